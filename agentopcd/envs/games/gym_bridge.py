"""Gymnasium environments as text environments: names for the actions, text for the observations."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete, Text

from agentopcd.core.errors import DependencyError, EnvError, GameFault, did_you_mean
from agentopcd.core.text import after_thinking
from agentopcd.envs.base import TextEnv, last_bracket, sayable
from agentopcd.envs.games import minigrid
from agentopcd.envs.games.inside import course, differs_later
from agentopcd.envs.games.solvers import Cell, Lake, shortest
from agentopcd.envs.guard import BUILD_LIMIT_S, faults, first_of, turn_of
from agentopcd.envs.load import load_module
from agentopcd.envs.views import hash_text

_COLOURED = re.compile(r"\x1b\[[0-9;]*m(.*?)\x1b\[0m", re.DOTALL)
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

_LAKE_ACTIONS = {"left": 0, "down": 1, "right": 2, "up": 3}
_LAKE_RULES = (
    "You walk on a frozen lake. S is the start, F is ice, H is a hole, G is the goal; the cell you stand on"
    " is in brackets. Reach G without falling into a hole."
)
_BLACKJACK = {
    "actions": {"stick": 0, "hit": 1},
    "rules": "Blackjack. You see your sum, the dealer's card, and whether you hold a usable ace.",
    "success_at": 1.0,
}
_CLIFF = {
    "actions": {"up": 0, "right": 1, "down": 2, "left": 3},
    "rules": "Walk from the lower left corner (x is you) to T. C is a cliff: it sends you back.",
    "success_at": -1.0,  # every move costs 1, and only the goal ends it
}
_FROZEN_LAKE = {"actions": _LAKE_ACTIONS, "rules": _LAKE_RULES, "success_at": 1.0}
_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "FrozenLake-v1": _FROZEN_LAKE,
    "FrozenLake8x8-v1": _FROZEN_LAKE,
    "CliffWalking-v1": _CLIFF,
    "CliffWalkingSlippery-v1": _CLIFF,
    "tabular/CliffWalking-v0": _CLIFF,
    "Taxi-v4": {
        "actions": {"down": 0, "up": 1, "right": 2, "left": 3, "pickup": 4, "dropoff": 5},
        "rules": "Drive the taxi to the passenger, pick them up, and drop them off where they want to go.",
        "success_at": 1.0,  # a delivery pays 20
    },
    "Blackjack-v1": _BLACKJACK,
    "tabular/Blackjack-v0": _BLACKJACK,
    "Acrobot-v1": {"success_when": "terminated"},  # every step costs 1, and only the goal ends it
    "MountainCar-v0": {"success_when": "terminated"},
}
"""Predefined actions, rules and success, so that ``gym:ID`` works without configuration."""

_SPEC_FIELDS = ("success_at", "success_when")


def preset_fields(env_id: str) -> dict[str, Any]:
    """Return the fields of the spec of ``gym:ID``: success, if it is known, and the step limit.

    Where no preset says when an episode is solved, the threshold that the environment was registered with does: a
    ``reward_threshold`` is a sum of rewards.

    Raises:
        EnvError: Gymnasium has no such environment.
    """
    spec = _gym_spec(env_id)
    preset = _PRESETS.get(spec.id, {})
    fields = {name: preset[name] for name in _SPEC_FIELDS if name in preset}
    if spec.id.startswith(minigrid.FAMILIES):  # they pay once, for success, and less the later it comes
        return {"success_when": "reward > 0", "max_steps": spec.max_episode_steps or minigrid.MAX_STEPS}
    if not fields and spec.reward_threshold is not None:
        fields = {"success_when": f"return >= {spec.reward_threshold:g}"}
    return {**fields, "max_steps": spec.max_episode_steps}


def _gym_spec(env_id: str) -> Any:
    """Return Gymnasium's spec of ``ID`` or ``PACKAGE:ID``; the package registers its environments when imported."""
    package, _, name = env_id.rpartition(":")
    if package:
        _import(package, env_id)
    try:
        return gymnasium.spec(name)
    except (gymnasium.error.Error, ImportError) as error:
        known = [known for known in gymnasium.registry if ":" not in known]
        raise EnvError(f"Gymnasium has no {env_id!r}{did_you_mean(name, known)} ({error})") from None


def _import(package: str, env_id: str) -> None:
    try:
        load_module(package)
    except EnvError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name == package:
            raise DependencyError(f"gym:{env_id} needs the package {package}; run: pip install {package}") from None
        raise


def from_id(env_id: str, **kwargs: Any) -> FromGym:
    """Build ``gym:ID`` with its predefined actions and rules; other arguments are Gymnasium's own for that id.

    Raises:
        EnvError: an unknown id, an argument it does not take, or actions without names.
    """
    spec = _gym_spec(env_id)
    preset = {name: v for name, v in _PRESETS.get(spec.id, {}).items() if name not in _SPEC_FIELDS}
    if spec.id.startswith(minigrid.FAMILIES):
        ours = {name: kwargs.pop(name) for name in ("actions", "rules", "to_text") if name in kwargs}
        env = _make(env_id, kwargs)
        return FromGym(env, **{**minigrid.preset(env), **ours})
    return FromGym(env_id, **{**preset, **kwargs})


class FromGym(TextEnv):
    """A Gymnasium environment with text actions and text observations.

    Observation: ``rules`` (first one only), ``state`` and ``actions``. The state is ``to_text(obs, env)``,
    else the observation if it is text, else the ``ansi`` rendering (a coloured cell becomes ``[cell]``),
    else ``str(obs)`` with every number of it.
    Action: the last bracketed name after the thinking. Any other reply is ``invalid``: nothing moves, and
    the same state is shown again. An environment with text actions gets the text after the thinking.
    Reward, episode end, seeds: the environment's own.
    Info: if the actions have names, ``legal_actions`` and ``action``, the action that was understood; of the
    environment's own, ``task_key``, ``split``, ``success``, ``metrics``, ``choices`` and ``invalid``.
    Task key: what ``key`` says, else the first state. Where seeds that look alike at first go on differently (hidden
    state, random steps), it also covers how fixed sequences of actions would go on.

    Args:
        env: an environment, or the id of one.
        actions: name → action; for a discrete space, the default names are the numbers ``0`` to ``n - 1``.
        to_text: ``(obs, env) -> str``.
        rules: an explanation for the first observation.
        key: ``(env) -> str``, the task key of an environment that was just reset.
        **kwargs: arguments for ``gymnasium.make``, if ``env`` is an id.

    Raises:
        EnvError: Gymnasium refuses the id or an argument, or the action space needs names.
    """

    packages = ("gymnasium",)

    def __init__(
        self,
        env: str | gymnasium.Env[Any, Any],
        *,
        actions: Mapping[str, Any] | None = None,
        to_text: Callable[[Any, Any], str] | None = None,
        rules: str = "",
        key: Callable[[Any], str] | None = None,
        **kwargs: Any,
    ) -> None:
        self._env = _make(env, kwargs) if isinstance(env, str) else env
        self._actions = _named(self._env, actions)
        self._to_text = to_text
        self._rules = rules
        self._key = key
        self._seen = ""
        self._kept: dict[str, Any] = {}
        self._game: Hashable = ""  # what look() is told; by itself, an instance asks for itself alone
        self._hides: bool | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        inner_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        course = self._course(inner_seed) if self._key is None and self._hidden() else None
        given: dict[str, Any] = {} if options is None else {"options": options}  # many resets take a seed only
        obs, inner = first_of(self._env.reset(seed=inner_seed, **given))
        self._seen, self._kept = self._words(obs), _kept(inner)
        text, info = self.first(rules=self._rules, state=self._seen, actions=self._how)
        if course is not None:
            info["task_key"] = hash_text(f"{self._seen}\n{course}")
        if self._key is not None:
            info["task_key"] = self._key(self._env)
        info.update(self._kept, **self._legal())
        return text, info

    def look(self, game: Hashable, limit_s: float) -> None:
        """Find out whether seeds that look alike at first go on differently: before the first episode, because it
        takes dozens of resets, and once for each game.

        Args:
            game: what is built, with its arguments.
            limit_s: seconds that one reset may take.
        """
        self._game = game
        if game not in _HIDES and type(self) is FromGym and self._key is None:  # others may need their own reset
            _HIDES[game] = None
            with contextlib.suppress(GameFault):  # it shows in the first episode
                with faults("reset", limit_s):
                    self._env.reset(seed=0)
                with faults("looking at seeds", BUILD_LIMIT_S):
                    self._hidden()
        self._hides = _HIDES.get(game)

    def _hidden(self) -> bool:
        """Whether some of the first seeds look the same at first and go on differently."""
        if self._hides is None:
            self._hides = self._differs_later() if self._actions is not None else False
            if self._game:
                _HIDES[self._game] = self._hides
        return bool(self._hides)

    def _course(self, seed: int) -> str:
        return course(self._env, list((self._actions or {}).values()), seed)

    def _differs_later(self) -> bool | None:
        def first(seed: int) -> str | None:
            obs, inner = first_of(self._env.reset(seed=seed))
            return None if "task_key" in inner else self._words(obs)

        return differs_later(first, self._course)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        chosen = self._chosen(action)
        if chosen is _NOTHING:
            said = f"No action was found in your reply. {self._how}"
            obs, _, _, _, info = self.turn(feedback=said, state=self._seen, invalid=True)
            same = {"choices": self._kept["choices"]} if "choices" in self._kept else {}
            return obs, 0.0, False, False, {**info, **same, **self._legal()}
        obs, reward, terminated, truncated, inner = turn_of(self._env.step(chosen))
        self._seen, self._kept = self._words(obs), _kept(inner)
        over = terminated or truncated
        text, _, _, _, info = self.turn(state=self._seen, actions="" if over else self._how)
        info.update(self._kept, **({} if over else self._legal()))
        if self._actions is not None:
            info["action"] = f"[{last_bracket(action, self._actions)}]"
        return text, float(reward), bool(terminated), bool(truncated), info

    def close(self) -> None:
        self._env.close()

    @property
    def game(self) -> gymnasium.Env[Any, Any]:
        """The environment itself, without wrappers."""
        return self._env.unwrapped

    @property
    def _how(self) -> str:
        if self._actions is None:
            return ""
        *most, last = [f"[{name}]" for name in self._actions]
        listed = f"{', '.join(most)} or {last}" if most else last
        return f"Answer with one action in brackets: {listed}."

    def _legal(self) -> dict[str, Any]:
        return {} if self._actions is None else {"legal_actions": [f"[{name}]" for name in self._actions]}

    def _chosen(self, reply: str) -> Any:
        if self._actions is None:
            return after_thinking(reply)
        name = last_bracket(reply, self._actions)
        return _NOTHING if name is None else self._actions[name]

    def _words(self, obs: Any) -> str:
        if self._to_text is not None:
            return self._to_text(obs, self._env)
        if isinstance(obs, str):
            return obs
        if self._env.render_mode == "ansi":
            drawn = _COLOURED.sub(r"[\1]", str(self._env.render()))
            return _ESCAPE.sub("", drawn).strip("\n")
        with np.printoptions(threshold=sys.maxsize):  # numpy would write "..." for the middle of a large array
            text = str(obs)
        if len(text) > _MOST_CHARS:
            raise EnvError(
                f"an observation of {self._env} takes {len(text):,} characters as text, more than {_MOST_CHARS:,}; say"
                " what to show, as in FromGym(env, to_text=lambda obs, env: ...)"
            )
        return text


_NOTHING = object()
_MOST_CHARS = 50_000
"""Longest observation that is written out as numbers."""
_MOST_ACTIONS = 1000  # that get their numbers as names: every observation lists them
_HIDES: dict[Hashable, bool | None] = {}
"""Whether a game with these arguments hides something; found out once, and None where no seed could be reset."""


def _make(env_id: str, kwargs: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    spec = _gym_spec(env_id)
    given: dict[str, Any] = {name: list(value) if isinstance(value, tuple) else value for name, value in kwargs.items()}
    drawn = {"render_mode": "ansi"} if "render_mode" not in given and _draws_text(spec) else {}
    try:
        try:
            return gymnasium.make(spec.id, disable_env_checker=True, **drawn, **given)
        except TypeError as error:
            if not drawn or "render_mode" not in str(error):
                raise
            return gymnasium.make(spec.id, disable_env_checker=True, **given)  # it takes no such argument
    except (gymnasium.error.Error, ImportError, KeyError, TypeError, ValueError) as error:
        raise EnvError(f"gym:{env_id}: {error}") from error


def _draws_text(spec: Any) -> bool:
    """Return whether the environment can draw itself as text, without building it."""
    from gymnasium.envs.registration import load_env_creator

    creator = spec.entry_point
    try:
        if isinstance(creator, str):
            creator = load_env_creator(creator)
    except Exception:  # what is missing is told when it is built
        return False
    metadata = getattr(creator, "metadata", None)
    return isinstance(metadata, Mapping) and "ansi" in (metadata.get("render_modes") or ())  # of a wrapper, a property


def _named(env: gymnasium.Env[Any, Any], actions: Mapping[str, Any] | None) -> dict[str, Any] | None:
    space = getattr(env, "action_space", None)
    if actions:
        if not isinstance(actions, Mapping):
            raise EnvError(f"actions must map names to actions, as in {{'left': 0}}, got {actions!r:.60}")
        wrong = [name for name, action in actions.items() if isinstance(space, Discrete) and not space.contains(action)]
        if wrong:
            raise EnvError(f"the action {wrong[0]!r} is {actions[wrong[0]]!r:.60}, which is not in {space} of {env}")
        return sayable(actions)
    if space is None or isinstance(space, Text):
        return None
    if isinstance(space, Discrete):
        if space.n > _MOST_ACTIONS:
            more = f"more than {_MOST_ACTIONS:,}; name some actions, as in FromGym(env, actions={{'left': 0}})"
            raise EnvError(f"{env} has {space.n:,} actions, {more}")
        start = int(space.start)
        return {str(k): k for k in range(start, start + int(space.n))}
    raise EnvError(f"actions of {env} are {space}; name some, as in FromGym(env, actions={{'left': 0}})")


def _kept(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of ``info`` that this package defines; arrays and timings are dropped."""
    names = ("task_key", "split", "success", "metrics", "choices", "invalid")
    return {name: info[name] for name in names if name in info}


class GymFrozenLake(FromGym):
    """Gymnasium's ``FrozenLake-v1`` with a new map for every seed.

    Observation: the map as letters, the player's cell in brackets.
    Action: ``[left]``, ``[down]``, ``[right]`` or ``[up]``; walking against the border stays in place.
    Reward: 1.0 at the goal, else 0.0. Episode end: goal or hole.
    Seeds: one map per seed, drawn by Gymnasium's own generator, always with a path to the goal.
    Version: ``FrozenLake-v1``.

    Args:
        size: cells per side.
        is_slippery: whether a step goes astray two times in three.
        ice: chance that a cell is ice and not a hole, 0 to 1.
    """

    def __init__(self, size: int = 4, is_slippery: bool = False, ice: float = 0.7) -> None:
        if not isinstance(size, int) or size < 2 or not isinstance(ice, int | float) or not 0 < ice <= 1:
            raise EnvError(f"a lake needs a size of 2 or more and ice above 0 up to 1, got {size!r}, {ice!r}")
        self._size, self._slippery, self._ice = size, is_slippery, ice
        super().__init__(self._lake(0), actions=_LAKE_ACTIONS, rules=_LAKE_RULES)

    def _hidden(self) -> bool:
        return False  # a map is a task, slippery or not

    def _lake(self, seed: int) -> gymnasium.Env[Any, Any]:
        from gymnasium.envs.toy_text.frozen_lake import generate_random_map

        self._map = generate_random_map(size=self._size, p=self._ice, seed=seed)
        return _make("FrozenLake-v1", {"desc": self._map, "is_slippery": self._slippery})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        TextEnv.reset(self, seed=seed)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        self._env.close()
        self._env = self._lake(chosen)
        return super().reset(seed=chosen, options=options)

    def model(self) -> Lake | None:
        """Return the map as it was at reset, for the solver; ``None`` if steps are random."""
        if self._slippery:
            return None
        size = self._size
        cells = {(r, c): self._map[r][c] for r in range(size) for c in range(size)}
        holes: frozenset[Cell] = frozenset(cell for cell, letter in cells.items() if letter == "H")
        goal = (size - 1, size - 1)
        return Lake(size=size, holes=holes, start=(0, 0), goal=goal, two_invalid_end=False)

    def solution(self) -> list[str] | None:
        """Return a shortest list of replies that wins from the reset state."""
        model = self.model()
        moves = shortest(model) if model else None
        return None if moves is None else [f"[{move}]" for move in moves]
