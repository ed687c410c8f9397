"""Look at the tasks of an environment: reset it with seed after seed."""

from __future__ import annotations

import dataclasses
import hashlib
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agentopcd.core.errors import EnvError, GameFault
from agentopcd.envs.guard import Hang
from agentopcd.envs.views import join_parts, parts_of, task_key

SCAN_S = 60.0
"""Seconds after which looking at a slow environment stops as soon as there are enough tasks."""
ENOUGH = 400
"""Distinct tasks that are then enough: over 100 of them are for test."""
NOTHING_NEW = 200
"""Seeds in a row without a new task after which there are none to expect."""
MOST_BROKEN, MOST_HANGS = 20, 3
"""Seeds in a row, from the first on, that break, and seeds that hang, after which looking on is of no use."""

Progress = Callable[[str, Iterable[Any], int], Iterable[Any]]


def no_progress(label: str, items: Iterable[Any], total: int) -> Iterable[Any]:
    """Show nothing."""
    return items


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """What was found."""

    first: dict[str, int]
    """Task key → the first seed with it."""
    named: dict[str, dict[str, int]]
    """The same by split, for environments whose rows name one."""
    rules_sha256: str
    count: int
    """Number of seeds that were looked at, from 0."""


def scan(env: Any, ref: str, count: int, *, may_stop: bool, progress: Progress = no_progress) -> Seen:
    """Reset ``env`` with the seeds 0 to ``count`` - 1.

    A seed whose reset fails is left out, with a warning.

    Args:
        may_stop: stop, with a warning, when it takes long and there are enough tasks.
        progress: takes (label, items, number of items), shows how far the iteration is, and yields the items.

    Raises:
        EnvError: no seed can be reset, several hang, or a seed gives another task the second time.
    """
    first: dict[str, int] = {}
    named: dict[str, dict[str, int]] = {}
    broken: dict[int, GameFault] = {}
    rules, began, newest = "", time.monotonic(), 0
    for seed in progress(f"tasks of {ref}", range(count), count):
        try:
            obs, info = env.reset(seed=seed)
        except GameFault as fault:
            broken[seed] = fault
            _check_hope(ref, broken, first)
            continue
        rules = rules or rules_hash(obs, info)
        key = task_key(obs, info)
        if first.setdefault(key, seed) == seed:
            newest = seed
        if info.get("split"):
            named.setdefault(info["split"], {}).setdefault(key, seed)
        enough = len(first) >= ENOUGH or seed - newest >= NOTHING_NEW
        if may_stop and enough and time.monotonic() - began > SCAN_S and seed + 1 < count:
            warnings.warn(
                f"{ref} is slow: looked at {seed + 1:,} of {count:,} seeds; the {len(first):,} distinct tasks found are"
                f" enough (agentopcd envs splits {ref} --seeds N -o FILE looks at more)",
                stacklevel=3,
            )
            count = seed + 1
            break
    _tell_broken(ref, broken, first, count)
    _check_seeded(env, ref, first)
    return Seen(first, named, rules, count)


def rules_hash(obs: str, info: Mapping[str, Any]) -> str:
    if "rules_sha256" in info:
        return str(info["rules_sha256"])
    rules = join_parts(part for part in parts_of(obs, info) if part[0] == "rules")
    return hashlib.sha256(rules.encode()).hexdigest()[:16] if rules else ""


def _tell_broken(ref: str, broken: Mapping[int, GameFault], first: Mapping[str, int], count: int) -> None:
    if not broken:
        return
    seed, fault = next(iter(broken.items()))
    if not first:
        raise EnvError(f"no tasks of {ref}: none of its {count:,} seeds can be reset ({fault})")
    warnings.warn(
        f"{len(broken):,} of {count:,} seeds of {ref} cannot be reset and are left out (seed {seed}: {fault})",
        stacklevel=4,
    )


def _check_hope(ref: str, broken: Mapping[int, GameFault], first: Mapping[str, int]) -> None:
    """Stop where the next seeds would only break as well.

    Raises:
        EnvError: the first seeds all break, or several hang.
    """
    hung = sum(isinstance(fault, Hang) for fault in broken.values())
    if hung >= MOST_HANGS or (not first and len(broken) >= MOST_BROKEN):
        fault = list(broken.values())[-1]
        raise EnvError(f"no tasks of {ref}: {len(broken)} of the seeds looked at cannot be reset ({fault})")


def _check_seeded(env: Any, ref: str, first: Mapping[str, int]) -> None:
    """Raise EnvError if a seed gives another task the second time."""
    key, seed = next(iter(first.items()))
    try:
        again = task_key(*env.reset(seed=seed))
    except GameFault:  # it broke now and not before; play will count that
        return
    if again != key:
        raise EnvError(
            f"reset(seed={seed}) of {ref} gave another task the second time, so no task can be played again; draw from"
            " self.np_random only, after super().reset(seed=seed)"
        )
