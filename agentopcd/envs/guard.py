"""The door to an environment: whatever a game does wrong comes out as one :class:`GameFault` with one line.

Every environment that :func:`agentopcd.envs.make` builds stands behind it, so play, splits, floors, ``check``, ``show``
and ``try`` meet the same faults in the same words.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import numbers
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium.wrappers import TimeLimit

from agentopcd.core.calls import tools_of
from agentopcd.core.errors import AgentOpcdError, EnvError, GameFault, OutOfTime
from agentopcd.core.messages import read_messages
from agentopcd.core.text import first_line
from agentopcd.envs.views import parts_of

STEP_LIMIT_S = 60.0
"""Seconds that one reset or step may take, unless the spec says otherwise."""
SLOW_STEP_LIMIT_S = 600.0
"""The same for an environment that declares itself slow."""
BUILD_LIMIT_S = 600.0
"""Seconds that building an environment may take."""
_AGAIN_S = 1.0
"""Seconds after which the alarm rings again, for a game that swallowed it."""

KNOWN_INFO = (
    "parts", "task_key", "split", "rules_sha256", "success", "invalid", "metrics", "legal_actions", "choices", "action",
    "messages", "tools",
)  # fmt: skip
"""The entries of ``info`` that this package reads."""


class Hang(GameFault):
    """A call that gave no answer in time."""


class Guarded(TimeLimit):
    """An environment behind the door; episodes are cut off after ``max_steps`` replies.

    Args:
        env: an environment of texts.
        max_steps: replies per episode.
        limit_s: seconds that one reset or step may take; see :func:`time_limit` for what this cannot stop.
    """

    def __init__(self, env: Any, max_steps: int, limit_s: float = STEP_LIMIT_S) -> None:
        super().__init__(env, max_steps)
        self.limit_s = limit_s

        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self._steps = 0
        given: dict[str, Any] = {} if options is None else {"options": options}  # many resets take a seed only
        with faults(f"reset(seed={seed})", self.limit_s):
            return _first(self.env.reset(seed=seed, **given))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        with faults("step", self.limit_s):
            obs, reward, terminated, truncated, info = _turn(self.env.step(action))
        self._steps += 1
        return obs, reward, terminated, truncated or self._steps >= self._max_episode_steps, info

    def close(self) -> None:
        """Close the environment. A failure is a warning: it must not hide the reason for closing."""
        try:
            with faults("close()", self.limit_s):
                self.env.close()
        except GameFault as fault:
            warnings.warn(f"{fault}; ignored", stacklevel=2)


@contextlib.contextmanager
def faults(what: str, limit_s: float, *, ours: bool = False) -> Iterator[None]:
    """Turn whatever is raised inside, and a hang, into a :class:`GameFault`.

    ``SystemExit`` must not end our process. Ctrl-C is not a fault.

    Args:
        what: the call, for the message.
        limit_s: seconds that it may take.
        ours: let errors of this package through. They count as faults where a game runs: raised there, they are about
            that game.
    """
    try:
        with time_limit(limit_s):
            yield
    except GameFault:
        raise
    except OutOfTime:
        raise Hang(f"{what} gave no answer within {limit_s:.0f} s") from None
    except SystemExit as leaving:
        raise GameFault(f"{what} called exit({'' if leaving.code is None else leaving.code!r})") from leaving
    except AgentOpcdError as error:
        if ours:
            raise
        raise GameFault(f"{what}: {error}") from error
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # libraries have some of their own: asyncio's CancelledError, a panic of Rust
        said = first_line(error, otherwise="(no message)")
        raise GameFault(f"{what} raised {type(error).__name__}: {said}") from error


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` inside a call that takes longer: an alarm signal of the main thread.

    It stops whatever comes back to the interpreter: a loop in Python, ``sleep``, a socket. It cannot stop C code that
    does not return, a loop around a bare ``except:``, or a call in another thread; there it does nothing. An
    environment with ``slow=True`` runs in a process of its own, and that process is killed.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    began = time.monotonic()
    left_s, every_s = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
        if left_s:  # an alarm that somebody else had set goes on
            signal.setitimer(signal.ITIMER_REAL, max(left_s - (time.monotonic() - began), 0.001), every_s)


def _tuple(what: str, result: Any, size: int, wanted: str) -> tuple[Any, ...]:
    if inspect.isawaitable(result):
        if hasattr(result, "close"):
            result.close()  # pyright: ignore[reportAttributeAccessIssue]
        raise GameFault(f"{what} is a coroutine (async def); it is called without await")
    if not isinstance(result, tuple) or len(result) != size:
        got = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
        raise GameFault(f"{what} must return {wanted}, got {got}")
    return result


def first_of(result: Any) -> tuple[Any, dict[str, Any]]:
    """What a reset returned, if it has the form of one."""
    obs, info = _tuple("reset", result, 2, "(observation, info)")
    return obs, _dict(info)


def turn_of(result: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
    """What a step returned, if it has the form of one."""
    wanted = "(observation, reward, terminated, truncated, info)"
    obs, reward, terminated, truncated, info = _tuple("step", result, 5, wanted)
    return obs, reward, terminated, truncated, _dict(info)


def _dict(info: Any) -> dict[str, Any]:
    if not isinstance(info, dict):
        raise GameFault(f"info must be a dict, got {type(info).__name__}")
    return info


def _first(result: Any) -> tuple[str, dict[str, Any]]:
    obs, info = first_of(result)
    return _text(obs, info), _checked_info(info)


def _turn(result: Any) -> tuple[str, float, bool, bool, dict[str, Any]]:
    obs, reward, terminated, truncated, info = turn_of(result)
    text = _text(obs, info)
    return text, _reward(reward), _flag("terminated", terminated), _flag("truncated", truncated), _checked_info(info)


def _text(obs: Any, info: dict[str, Any]) -> str:
    """Return the observation if it is text that can be written down."""
    if not isinstance(obs, str):
        raise GameFault(f"an observation must be text, got {type(obs).__name__}")
    for text in (obs, str(info.get("task_key")), *(part for _, part in parts_of(obs, info))):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise GameFault("a text holds half a surrogate pair, which is no character") from None
    return obs


def _reward(reward: Any) -> float:
    try:
        number = float(reward)
    except (TypeError, ValueError):
        raise GameFault(f"a reward must be a number, got {reward!r:.60}") from None
    if not math.isfinite(number):
        raise GameFault(f"the reward {number} is not a finite number")
    return number


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_ | numbers.Number) or value not in (0, 1):
        raise GameFault(f"{name} must be True or False, got {value!r:.60}")
    return bool(value)


def _checked_info(info: dict[str, Any]) -> dict[str, Any]:
    info = {name: value for name, value in info.items() if value is not None or name not in KNOWN_INFO}
    if "success" in info:
        info = info | {"success": _flag("info['success']", info["success"])}
    if not isinstance(info.get("split", ""), str):
        raise GameFault(f"info['split'] must be the name of a split, got {info['split']!r:.60}")
    metrics = info.get("metrics", {})
    if not isinstance(metrics, Mapping):
        raise GameFault(f"info['metrics'] must map names to numbers, got {metrics!r:.60}")
    for name, value in metrics.items():
        if isinstance(value, str) or not _is_finite(value):
            raise GameFault(f"info['metrics'][{name!r}] must be a finite number, got {value!r:.60}")
    try:
        if "messages" in info:
            info = info | {"messages": _prompt(info["messages"])}
        if "tools" in info:
            info = info | {"tools": tools_of(info["tools"])}
    except ValueError as error:
        raise GameFault(str(error)) from None
    for name in ("legal_actions", "choices"):
        listed = info.get(name) or ()
        if isinstance(listed, str) or not all(isinstance(action, str) for action in listed):
            raise GameFault(f"info[{name!r}] must be a list of texts, got {listed!r:.60}")
    return info


def _prompt(cell: Any) -> list[dict[str, Any]]:
    """The prompt that an environment writes, with the kinds of text that it names kept."""
    try:
        messages = read_messages(cell)
    except EnvError as error:
        raise GameFault(f"info['messages']: {error}") from None
    if messages[-1]["role"] == "assistant" or all(message["role"] != "user" for message in messages):
        raise GameFault("info['messages'] must have a message of the user, and end before the reply")
    kinds = [one.get("part") if isinstance(one, Mapping) else None for one in cell]
    return [{**message, **({"part": kind} if kind else {})} for message, kind in zip(messages, kinds, strict=True)]


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False
