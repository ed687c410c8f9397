"""TextArena games as text environments (TextArena 0.7.4).

TextArena is imported when an environment is built, never before: the import takes a third of a second.
"""

from __future__ import annotations

import hashlib
import random
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from agentopcd.core.errors import EnvError, did_you_mean
from agentopcd.core.text import after_thinking
from agentopcd.core.types import Part
from agentopcd.envs.base import TextEnv, last_bracket, sayable
from agentopcd.envs.games.inside import for_several, is_open, lacking, let_win, result_of, signature_of, state_key
from agentopcd.envs.games.solvers import Lake, Warehouse, shortest
from agentopcd.envs.views import hash_text

_LOCK = threading.RLock()
"""TextArena seeds and draws from the process-global generators, and Sokoban keeps state in its module."""

MOVES = {move: move for move in ("up", "down", "left", "right")}
_MOVE_NAMES = {**MOVES, "w": "up", "s": "down", "a": "left", "d": "right"}
_HOW_TO_MOVE = "Answer with one move in brackets: [up], [down], [left] or [right]."

SWAPS: dict[str, tuple[tuple[str, str], ...]] = {
    "": (),
    "vertical": (("up", "down"),),
    "horizontal": (("left", "right"),),
    "both": (("up", "down"), ("left", "right")),
}
"""Name of a swap → the pairs of moves whose names are swapped."""

_RULES_SHA256 = {"FrozenLake-v0": "aa4dbd78be9a7a9b", "Sokoban-v0": "884e23df29033da3"}
"""Start of the hash of the rules text this adapter was written for."""

_LETTER_IN = {"rules": re.compile(r"(?<=')[A-Z](?=')"), "state": re.compile(r"(?<![A-Za-z])[A-Z](?![A-Za-z])")}
"""Pattern of a letter of the board, by part: quoted in the rules, standing alone on the board."""

_LISTED_MOVES = re.compile(r"\n*Available (Actions|Moves):[^\n]*\s*\Z")
_NO_MOVE = "no move"
_KIND_OF = {
    "PROMPT": "rules",
    "GAME_BOARD": "state",
    "GAME_ACTION_DESCRIPTION": "feedback",
    "GAME_MESSAGE": "feedback",
    "GAME_ADMIN": "feedback",
}

_Rng = tuple[Any, Any]


class TextArenaEnv(TextEnv):
    """Any single-player TextArena game.

    Observation: ``rules`` (first one only), ``feedback``, ``state`` (the board), ``actions``; at the end
    ``outcome`` with the reason.
    Action: a reply. With ``moves``, the last bracketed move after the thinking is sent, and nothing else.
    Without ``moves``, the text after the thinking is sent unchanged.
    Reward: 1.0 when the game pays 1 or more, else 0.0; the game's own reward is ``metrics["game_reward"]``.
    Episode end: decided by the game, which also ends after two invalid replies in a row. The number of replies
    is limited by :func:`agentopcd.envs.make`.
    Info: ``invalid``, ``success``, ``rules_sha256`` on reset; with ``moves`` also ``legal_actions`` and
    ``action``, the move that was understood.
    Task key: the first board, or, in a game that hides something or draws later, its whole state.
    Seeds: the same seed gives the same game, whatever else runs; the global generators of ``random`` and
    numpy are left unchanged.
    """

    packages = ("textarena",)

    def __init__(
        self,
        env_id: str,
        *,
        moves: Mapping[str, str] | None = None,
        actions: str = "",
        **ta_kwargs: Any,
    ) -> None:
        self.env_id = env_id.removesuffix("-raw")
        self.actions = actions
        self._moves = sayable(moves) if moves else None
        self._kwargs = {name: tuple(v) if isinstance(v, list) else v for name, v in ta_kwargs.items()}
        self._game: Any = None
        self._over = True
        self._board = ""
        self._rng: _Rng | None = None
        with self._own_rng():
            self._build()  # a wrong id or argument fails here, not in the middle of a run

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        game_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self._rng = None
        with self._own_rng(game_seed):
            self._game = self._build()
            self._game.reset(num_players=1, seed=game_seed)
            let_win(self._game.state)
            messages = self._game.get_observation()[1]
        self._over = False
        parts = self._parts(messages)
        self._board = parts.get("state", "")
        obs, info = self.first(**parts, actions=self.actions)
        if not is_open(self.env_id):
            info["task_key"] = state_key(self._game, self._board or obs, self._rng)
        info.update(self._extra(), rules_sha256=self._rules_hash(messages))
        return obs, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._over:
            raise EnvError("the game is over (or was never started); call reset()")
        said = self._said(action)
        with self._own_rng():
            done, _ = self._game.step(self._sent(said))
            messages = self._game.get_observation()[1]
        state = self._game.state
        self._over = bool(done)
        parts: dict[str, Any] = {**self._parts(messages)}
        self._board = parts["state"] = parts.get("state") or self._board
        if done:
            reward, facts = result_of(state)
            turn = self.turn(
                success=reward >= 1,
                invalid=bool(facts.get("invalid_move")),
                metrics={"game_reward": reward},
                outcome=str(facts.get("reason") or ""),
                **parts,
            )
        else:
            invalid = getattr(state, "error_count", 0) > 0
            turn = self.turn(invalid=invalid, actions=self.actions, **parts)
            turn[4].update(self._extra())
        if self._moves is not None and said != _NO_MOVE:
            turn[4]["action"] = said
        return turn

    def _said(self, reply: str) -> str:
        """Return the part of a reply that counts; the game obeys the *first* bracket, so it gets one or none."""
        if self._moves is None:
            return after_thinking(reply)
        word = last_bracket(reply, self._moves)
        return _NO_MOVE if word is None else f"[{self._moves[word]}]"

    def _sent(self, said: str) -> str:
        """Return what is sent to the game; a subclass may give the same word another meaning."""
        return said

    def _parts(self, messages: Sequence[Any]) -> dict[str, str]:
        """Return the game's messages as the parts that the player sees."""
        return _parts(messages)

    def _extra(self) -> dict[str, Any]:
        if self._moves is None:
            return {}
        return {"legal_actions": [f"[{move}]" for move in dict.fromkeys(self._moves.values())]}

    def _rules_hash(self, messages: Sequence[Any]) -> str:
        text = "".join(text for _, text, kind in messages if _name(kind) == "PROMPT")
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        wanted = _RULES_SHA256.get(self.env_id)
        if wanted and digest != wanted:
            warnings.warn(f"the rules of {self.env_id} changed: {digest}, not {wanted}", stacklevel=3)
        return digest

    def _build(self) -> Any:
        import textarena
        from textarena.envs.registration import ENV_REGISTRY

        raw = f"{self.env_id}-raw"
        if raw not in ENV_REGISTRY:
            known = [name.removesuffix("-raw") for name in ENV_REGISTRY if name.endswith("-raw")]
            raise EnvError(f"TextArena has no game {self.env_id!r}{did_you_mean(self.env_id, known)}")
        try:
            game = textarena.make(raw, **self._kwargs)
        except TypeError as error:
            raise EnvError(f"{self.env_id}: {error}; it takes {signature_of(ENV_REGISTRY[raw])}") from None
        except (LookupError, SyntaxError, ValueError) as error:
            if (missing := lacking(self.env_id, error)) is None:
                raise
            raise missing from error
        if state := for_several(type(game)):
            raise EnvError(f"{self.env_id} is a game for several players ({state}); only games for one can be played")
        return game

    @contextmanager
    def _own_rng(self, seed: int | None = None) -> Iterator[None]:
        """Run a piece of the game under the lock, with the global generators in the game's own state."""
        with _LOCK:
            outside = _rng_state()
            try:
                if seed is not None:
                    random.seed(seed)
                    np.random.seed(seed % 2**32)
                elif self._rng is not None:
                    _set_rng(self._rng)
                yield
                self._rng = _rng_state()
            finally:
                _set_rng(outside)


class _Grid(TextArenaEnv):
    """A grid game whose letters and moves may differ from TextArena's.

    The game itself is unchanged: letters are swapped in what the player sees, moves in what the player says.
    The game's messages about a move name the true direction. The task key is that of TextArena's original
    board, so a board that is held out in one variant is held out in all of them.
    """

    def __init__(self, env_id: str, letters: Mapping[str, tuple[str, str]], swap: str, **ta_kwargs: Any) -> None:
        """``letters`` gives, for each role, TextArena's letter and the letter to show."""
        _check_letters({role: shown for role, (_, shown) in letters.items()})
        if not isinstance(swap, str) or swap not in SWAPS:
            raise EnvError(f"swap must be one of {', '.join(map(repr, SWAPS))}, got {swap!r}")
        self._shown = dict(letters.values())
        self._meant = {word: other for pair in SWAPS[swap] for word, other in (pair, pair[::-1])}
        self._key = ""
        super().__init__(env_id, moves=_MOVE_NAMES, actions=_HOW_TO_MOVE, **ta_kwargs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        obs, info = super().reset(seed=seed, options=options)
        info["task_key"] = self._key
        return obs, info

    def word_for(self, move: str) -> str:
        """Return the word that the player must say to make a true move."""
        return self._meant.get(move, move)  # a swap is its own inverse

    def _replies(self, moves: list[str] | None) -> list[str] | None:
        return None if moves is None else [f"[{self.word_for(move)}]" for move in moves]

    def _sent(self, said: str) -> str:
        word = said.strip("[]")
        return f"[{self._meant[word]}]" if word in self._meant else said

    def _parts(self, messages: Sequence[Any]) -> dict[str, str]:
        parts = _parts(messages)
        self._key = hash_text(parts.get("state", ""))
        for kind, where in _LETTER_IN.items():
            if kind in parts:
                parts[kind] = where.sub(lambda found: self._shown.get(found.group(), found.group()), parts[kind])
        return parts


def _check_letters(letters: Mapping[str, str]) -> None:
    for role, letter in letters.items():
        if not isinstance(letter, str) or not re.fullmatch("[A-OQ-Z]", letter):
            raise EnvError(f"{role} must be one upper-case letter A to Z other than P, got {letter!r}")
    if len(set(letters.values())) < len(letters):
        raise EnvError(f"{' and '.join(letters)} must be different letters, got {next(iter(letters.values()))!r} twice")


class FrozenLake(_Grid):
    """Walk from the top left to the bottom right of a frozen lake without falling into a hole.

    Observation: the board drawn in cells, ``P`` the player, ``H`` a hole, ``G`` the goal.
    Action: ``[up]``, ``[down]``, ``[left]`` or ``[right]``; leaving the map counts as invalid.
    Reward: 1.0 at the goal, else 0.0; ``metrics["game_reward"]`` is the share of the way that was covered.
    Episode end: goal, hole, or two invalid replies in a row.
    Seeds: one board per seed; 3x3 with 2 holes has 19 boards, 4x4 with 4 holes has 757.
    Version: TextArena ``FrozenLake-v0``.

    Args:
        size: cells per side.
        num_holes: holes on the board.
        hole: the letter drawn for a hole.
        goal: the letter drawn for the goal.
        swap: ``vertical`` makes ``[up]`` go down and ``[down]`` up, ``horizontal`` the same for left and
            right, ``both`` does both.
    """

    def __init__(self, size: int = 3, num_holes: int = 2, hole: str = "H", goal: str = "G", swap: str = "") -> None:
        if not isinstance(size, int) or not isinstance(num_holes, int):
            raise EnvError(f"size and num_holes must be whole numbers, got {size!r}, {num_holes!r}")
        if size < 2 or not 1 <= num_holes <= (size - 1) ** 2:
            room = max(size - 1, 1) ** 2
            raise EnvError(f"size {size} has room for 1 to {room} holes beside a path, got {num_holes}")
        self._size = (size, num_holes)
        letters = {"hole": ("H", hole), "goal": ("G", goal)}
        super().__init__("FrozenLake-v0", letters, swap, size=size, num_holes=num_holes)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        obs, info = super().reset(seed=seed, options=options)
        if len(self.model().holes) != self._size[1]:
            raise EnvError(f"no board with {self._size[1]} holes was found for seed {seed}")
        return obs, info

    def model(self) -> Lake:
        """Return the board as it was at reset, for the solver; its moves are true directions."""
        grid = self._game.state.game_state["grid"]
        size = len(grid)
        holes = frozenset((r, c) for r in range(size) for c in range(size) if grid[r][c] == "H")
        return Lake(size=size, holes=holes, start=self._game.player_pos, goal=self._game.state.game_state["goal_pos"])

    def solution(self) -> list[str] | None:
        """Return a shortest list of replies that wins from the reset state."""
        return self._replies(shortest(self.model()))


class Sokoban(_Grid):
    """Push every box onto a goal.

    Observation: the room, ``#`` wall, ``_`` floor, ``P`` player, ``X`` box, ``O`` goal, ``√`` box on goal.
    Action: ``[up]``, ``[down]``, ``[left]`` or ``[right]``; walking or pushing into something is invalid.
    Reward: 1.0 when solved, else 0.0; ``metrics["game_reward"]`` is the share of boxes on goals.
    Episode end: solved, or two invalid replies in a row. A box stuck in a corner does not end the episode.
    Seeds: one room per seed; 6x6 with 1 box has about 2,228 rooms in 4,000 seeds.
    Version: TextArena ``Sokoban-v0``.

    Args:
        dim_room: rows and columns, walls included.
        num_boxes: number of boxes, and of goals.
        box: the letter drawn for a box.
        target: the letter drawn for a goal.
        swap: the moves whose names are swapped, as in :class:`FrozenLake`.
    """

    def __init__(
        self,
        dim_room: Sequence[int] = (6, 6),
        num_boxes: int = 1,
        box: str = "X",
        target: str = "O",
        swap: str = "",
    ) -> None:
        sides = tuple(dim_room) if isinstance(dim_room, Sequence) else ()
        whole = all(isinstance(number, int) for number in (*sides, num_boxes))
        if not whole or len(sides) != 2 or min(sides) < 5 or num_boxes < 1:
            raise EnvError(f"a room needs two sides of 5 or more and a box, got {dim_room!r}, {num_boxes!r}")
        self._start: Any = None
        super().__init__(
            "Sokoban-v0",
            {"box": ("X", box), "target": ("O", target)},
            swap,
            dim_room=sides,
            num_boxes=num_boxes,
            max_turns=100_000,  # make() limits the steps; the game's own limit ignores invalid replies
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        obs, info = super().reset(seed=seed, options=options)
        self._start = self._game.room_state.copy()
        return obs, info

    def model(self) -> Warehouse:
        """Return the room as it was at reset, for the solver; its moves are true directions."""
        fixed, state = self._game.room_fixed, self._start
        return Warehouse(
            floor=_cells(fixed != 0),
            goals=_cells(fixed == 2),
            player=min(_cells(state == 5)),
            boxes=_cells((state == 4) | (state == 3)),
        )

    def solution(self) -> list[str] | None:
        """Return a shortest list of replies that wins from the reset state, ``None`` if none was found."""
        return self._replies(shortest(self.model()))


def _cells(mask: Any) -> frozenset[tuple[int, int]]:
    return frozenset((int(r), int(c)) for r, c in np.argwhere(mask))


def _name(kind: Any) -> str:
    return getattr(kind, "name", str(kind))


def _parts(messages: Sequence[Any]) -> dict[str, str]:
    """Sort the game's messages into parts; of several boards, only the newest is shown."""
    found: list[Part] = [(_KIND_OF[_name(kind)], text) for _, text, kind in messages if _name(kind) in _KIND_OF]
    texts: dict[str, list[str]] = {}
    for kind, text in found:
        texts.setdefault(kind, []).append(_LISTED_MOVES.sub("", text) if kind == "state" else text)
    parts = {kind: "\n".join(text.strip() for text in listed) for kind, listed in texts.items()}
    if "state" in texts:
        parts["state"] = texts["state"][-1].strip("\n")
    return parts


def _rng_state() -> _Rng:
    return random.getstate(), np.random.get_state()


def _set_rng(state: _Rng) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
