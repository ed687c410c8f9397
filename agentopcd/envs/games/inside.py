"""The inside of a game: its whole state, whether its steps draw at random, how a seed goes on, for how many it is, its
result."""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib
import inspect
import itertools
import os
import random
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from agentopcd.core.errors import DependencyError, EnvError
from agentopcd.envs.views import hash_text

OPEN_GAMES = frozenset({
    "Countdown", "Crosswords", "Cryptarithm", "FifteenPuzzle", "FrozenLake", "LightsOut", "LogicPuzzle", "PegJump",
    "RushHour", "Slitherlink", "Sokoban", "Sudoku", "TowerOfHanoi",
})  # fmt: skip
"""Games of TextArena 0.7.4 whose board says all there is to know, so that the board alone is their task."""

_NLTK_DATA = re.compile(r"Resource\s+(?:\x1b\[\d+m)?'?(\w+)")
_SEVERAL = {"TwoPlayerState", "FFAMultiPlayerState", "TeamMultiPlayerState", "MinimalMultiPlayerState", "State"}
_NOT_STATE = {"state", "env_id", "entry_point", "action_space"}
_DEEPEST = 12
_LOOK_AT_SEEDS, _MOST_ALIKE = 32, 6
"""How many first states are compared to see whether anything is hidden, and how many seeds that look alike."""
_SEQUENCES, _LOOK_AHEAD = 3, 20
"""Sequences of one action, as many of mixed ones, and the steps of each. Steps cost time at every reset."""


def is_open(env_id: str) -> bool:
    """Whether the game's first board says all."""
    return env_id.partition("-v")[0] in OPEN_GAMES


def state_key(game: Any, seen: str, rng: Any) -> str:
    """Return the key of a game that was just reset: what is seen, what is not, and the draws to come, if any."""
    facts = {name: value for name, value in vars(game).items() if name not in _NOT_STATE}
    words = [seen, canonical(game.state.game_state), canonical(facts)]
    if draws_later(type(game)):
        words.append(canonical(rng))
    return hash_text("\n".join(words))


def canonical(value: Any, depth: int = 0) -> str:
    """Return text that is the same for the same state in every process.

    Functions, modules and files are no state. Objects of other modules than the game's are opened up as well: their
    attributes decide, not their addresses.
    """
    if depth > _DEEPEST:
        return "..."
    if value is None or isinstance(value, str | int | float | bool | bytes | complex):
        return repr(value)
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, np.ndarray | np.generic):
        return repr(value.tolist())
    if isinstance(value, Mapping):
        return (
            f"{{{','.join(sorted(f'{canonical(k, depth + 1)}:{canonical(v, depth + 1)}' for k, v in value.items()))}}}"
        )
    if isinstance(value, set | frozenset):
        return f"{{{','.join(sorted(canonical(item, depth + 1) for item in value))}}}"
    if isinstance(value, list | tuple | deque):
        return f"[{','.join(canonical(item, depth + 1) for item in value)}]"
    if isinstance(value, random.Random):
        return repr(value.getstate())
    if callable(value) or isinstance(value, ModuleType):
        return type(value).__name__
    if hasattr(value, "__array__"):  # of torch or jax
        with contextlib.suppress(Exception):  # one that has no numbers to give
            return f"{type(value).__name__}{canonical(np.asarray(value).tolist(), depth + 1)}"
    facts = _slots(value) | getattr(value, "__dict__", {})
    known = facts or hasattr(value, "__dict__")
    return f"{type(value).__name__}{canonical(facts, depth + 1)}" if known else type(value).__name__


def _slots(value: Any) -> dict[str, Any]:
    """The attributes of an object that its classes keep in slots. A path is of one machine, and no state."""
    slotted = [] if isinstance(value, os.PathLike) else [cls for cls in type(value).__mro__ if "__slots__" in vars(cls)]
    names = [name for cls in slotted for name, slot in vars(cls).items() if inspect.ismemberdescriptor(slot)]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def differs_later(first: Callable[[int], str | None], course_of: Callable[[int], str]) -> bool | None:
    """Whether some of the first seeds look the same at first and go on differently; ``None`` if none can be reset.

    A seed that cannot be reset or played is left out.

    Args:
        first: what a seed shows first; ``None`` if the environment says itself what its tasks are.
        course_of: see :func:`course`.
    """
    alike: dict[str, list[int]] = {}
    for seed in range(_LOOK_AT_SEEDS):
        with contextlib.suppress(Exception):
            if (seen := first(seed)) is None:
                return False
            alike.setdefault(seen, []).append(seed)
    for seeds in (seeds for seeds in alike.values() if len(seeds) > 1):
        courses: dict[int, str] = {}
        for seed in seeds[:_MOST_ALIKE]:
            with contextlib.suppress(Exception):
                courses[seed] = course_of(seed)
        if len(set(courses.values())) > 1:
            seed = next(iter(courses))
            if course_of(seed) == courses[seed]:  # and the seed decides which way
                return True
    return False if alike else None


def course(env: Any, actions: Sequence[Any], seed: int) -> str:
    """How this seed goes on under fixed sequences of actions."""
    always = [itertools.repeat(action) for action in actions[:_SEQUENCES]]
    mixed = [random.Random(number).choices(actions, k=_LOOK_AHEAD) for number in range(_SEQUENCES)]
    told: list[str] = []
    for sequence in (*always, *mixed):
        env.reset(seed=seed)
        for action in itertools.islice(sequence, _LOOK_AHEAD):
            obs, reward, terminated, truncated, _ = env.step(action)
            told.append(f"{canonical(obs)} {float(reward)} {bool(terminated)}")
            if terminated or truncated:
                break
    return hash_text("\n".join(told))


@functools.cache
def draws_later(cls: type) -> bool:
    """Whether a step of this game draws at random, in its own methods or in functions of their modules."""
    return any(_draws(function) for function in _reached(cls, "step"))


def _draws(function: FunctionType) -> bool:
    named = set(_names(function.__code__))
    if named & {"random", "np_random"}:  # the module, numpy's, a method of that name, or Gymnasium's generator
        return True
    return any(getattr(function.__globals__.get(name), "__module__", None) == "random" for name in named)


def _reached(cls: type, method: str) -> Iterator[FunctionType]:
    """The functions that a method can call: methods of the class, and functions of their modules, by name."""
    waiting, seen = [getattr(cls, method, None)], set()
    while waiting:
        function = waiting.pop()
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        yield function
        for name in _names(function.__code__):
            waiting += [getattr(cls, name, None), function.__globals__.get(name)]


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:  # comprehensions and lambdas
        if isinstance(constant, CodeType):
            yield from _names(constant)


@functools.cache
def for_several(cls: type) -> str:
    """Return the name of the state for several players that the game's reset builds; '' for a game of one."""
    named = {name for function in _reached(cls, "reset") for name in _names(function.__code__)}
    return "" if "SinglePlayerState" in named else min(named & _SEVERAL, default="")


def lacking(env_id: str, error: Exception) -> EnvError | DependencyError | None:
    """Return the error that says what a game lacks here, if that is why it could not be built."""
    name, said = f"textarena:{env_id}", str(error)
    if isinstance(error, LookupError) and (found := _NLTK_DATA.search(said)):
        data = found[1]
        return DependencyError(
            f"{name} needs nltk's data {data!r}; where there is a network, run: python -m nltk.downloader {data}"
        )
    if isinstance(error, ValueError) and "API_KEY" in said:
        return EnvError(f"{name} plays against a model at OpenRouter; set OPENROUTER_API_KEY, or take another game")
    if isinstance(error, SyntaxError):
        return EnvError(f"{name} is written for a Python newer than {sys.version_info.major}.{sys.version_info.minor}")
    return None


def let_win(state: Any) -> None:
    """Give a state for one player the call by which Fifteen Puzzle ends a solved board; only other states have it."""
    if not hasattr(state, "set_winners"):
        state.set_winners = lambda player_ids, reason: state.set_outcome(float(0 in player_ids), reason)


def result_of(state: Any) -> tuple[float, dict[str, Any]]:
    """Return the final reward and the game's facts about the end."""
    rewards, facts = state.rewards, state.game_info[0]
    try:
        reward = float(rewards[0])
    except (TypeError, ValueError, KeyError) as error:
        if facts.get("invalid_move"):  # some games mistake the order of arguments and put the reason in its place
            return 0.0, facts
        raise EnvError(f"the game ended without a usable reward: {rewards!r}") from error
    return reward, facts


def signature_of(spec: Any) -> str:
    target = spec.entry_point
    if isinstance(target, str):
        module, _, name = target.partition(":")
        target = getattr(importlib.import_module(module), name)
    return str(inspect.signature(target))
