"""What an item is worth: complementary random halves of the items play the same tasks."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from math import sqrt

from agentopcd.core.errors import ConfigError
from agentopcd.core.stats import Z95
from agentopcd.core.types import Context, Job, Placement, Task
from agentopcd.knowledge.assemble import render
from agentopcd.knowledge.bench import Bench
from agentopcd.knowledge.items import Item


@dataclasses.dataclass(frozen=True, slots=True)
class ItemValue:
    """Average gain from an item: success of the half that holds it minus success of the other half."""

    item_id: str
    value: float
    low: float
    high: float
    n: int
    """Tasks on which both halves were played."""


def subsets(
    bench: Bench, items: Sequence[Item], tasks: Sequence[Task], *, seed: int = 0, placement: Placement = "user"
) -> list[ItemValue]:
    """Value items by complementary random halves: on each task, one half of the items plays, then the other.

    The value of an item is the mean over tasks of success(its half) minus success(the other half). The
    complement cancels the difficulty of the task, and tasks are independent, so mean ± 1.96·se is its
    interval. The half of an item depends only on ``seed``, the task and the set of items, so a call with more
    tasks extends an earlier one.

    Args:
        tasks: tasks of the ``select`` split; they are registered there.

    Returns:
        The items, most valuable first.

    Raises:
        ConfigError: fewer than two items, no task, or fewer than two pairs could be played.
        TaskLeak: as in :func:`score`.
    """
    # Always oldest first: the order is part of a context, and a resumed call must build the same contexts.
    pool = sorted({item.id: item for item in items}.values(), key=lambda item: (item.created_at, item.id))
    if len(pool) < 2:
        raise ConfigError(f"subsets compares items with each other; got {len(pool)}, two are needed")
    halves = {task: _halves(pool, task, seed, placement) for task in tasks}
    contexts = {half.id: half for pair in halves.values() for half, _ in pair}
    bench.prepare(list(contexts.values()), tasks, "select", {"order": "subsets", "seed": seed, "pool": len(pool)})
    errors = bench.play_missing("subsets", [Job(task, half) for task in tasks for half, _ in halves[task]])
    won = {id_: bench.store.outcomes(bench.arm(half), bench.arena("select")) for id_, half in contexts.items()}
    signed: dict[str, list[float]] = {item.id: [] for item in pool}
    for task, ((half, inside), (other, _)) in halves.items():
        place = (task.key, task.seed, 0)
        if place in won[half.id] and place in won[other.id]:
            gain = won[half.id][place] - won[other.id][place]
            for item in pool:
                signed[item.id].append(gain if item.id in inside else -gain)
    if len(signed[pool[0].id]) < 2:
        raise ConfigError(
            f"fewer than two pairs of {bench.env} were played ({errors} environment errors); give more tasks"
        )
    values = [_value(item_id, gains) for item_id, gains in signed.items()]
    return sorted(values, key=lambda value: (-value.value, value.item_id))


def _halves(
    pool: Sequence[Item], task: Task, seed: int, placement: Placement
) -> tuple[tuple[Context, set[str]], tuple[Context, set[str]]]:
    """A random part of the pool and the rest of the pool, each as context and set of ids.

    Each item is in the first part with probability one half, independently. With parts of equal size, an
    item's value would be measured against the mean of the others.
    """
    order = sorted(item.id for item in pool)
    rng = random.Random(f"{seed}/{task.key}/{task.seed}/{'/'.join(order)}")
    inside = {item_id for item_id in order if rng.random() < 0.5}
    return _half(pool, inside, placement), _half(pool, set(order) - inside, placement)


def _half(pool: Sequence[Item], inside: set[str], placement: Placement) -> tuple[Context, set[str]]:
    return Context(render([item.text for item in pool if item.id in inside]), placement), inside


def _value(item_id: str, gains: Sequence[float]) -> ItemValue:
    n = len(gains)
    mean = sum(gains) / n
    half = Z95 * sqrt(sum((gain - mean) ** 2 for gain in gains) / (n - 1) / n)
    return ItemValue(item_id, mean, max(-1.0, mean - half), min(1.0, mean + half), n)
