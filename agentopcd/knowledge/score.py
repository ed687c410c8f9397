"""Choose a context by evidence: score many on ``select``, confirm one on ``confirm``, value the items.

Nothing here loads a model: the bench knows how to play. Every number is computed from stored episodes, so
repeating an interrupted call resumes it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from agentopcd.core.errors import ConfigError, TaskLeak
from agentopcd.core.stats import Z95, Comparison, detectable
from agentopcd.core.types import EMPTY, Context, Job, Placement, Task
from agentopcd.knowledge.assemble import render
from agentopcd.knowledge.bench import Bench, places_of
from agentopcd.knowledge.episodes import Count
from agentopcd.knowledge.items import Item
from agentopcd.knowledge.refs import PoolStep, best_ref
from agentopcd.knowledge.store import Store

ALPHA = 0.025
"""One-sided size of the confirm test."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """One context of a ranking."""

    context_id: str
    count: Count
    against_empty: Comparison


@dataclasses.dataclass(frozen=True, slots=True)
class Ranking:
    """Contexts on the same select tasks, best first. The best one's rate is biased upward."""

    rows: list[Scored]
    empty: Count
    competed: int
    """The K of "best of K": contexts with which this model has ever played on the select tasks of this setup."""
    errors: int
    """Episodes of this call that ended with an environment error despite retries; they are not counted."""

    @property
    def best(self) -> Scored:
        return self.rows[0]

    def __str__(self) -> str:
        lines = [f"empty         {self.empty.rate}"]
        for row in self.rows:
            lines.append(f"{row.context_id[:12]}  {row.count.rate}  {row.against_empty.difference} to empty")
        lines.append(f"best of {self.competed} on select: its own rate is biased upward, confirm it on fresh tasks")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, slots=True)
class Confirmation:
    """One context against the empty one on the confirm tasks."""

    context_id: str
    comparison: Comparison
    passed: bool
    look: int
    """Contexts that have played on these confirm tasks so far, this one included; each look wears out the set."""
    errors: int
    ref: str
    """The ref that was moved if it passed."""

    def __str__(self) -> str:
        verdict = f"pass, {self.ref} moved" if self.passed else "not promoted"
        seen = detectable(self.comparison.n, min(self.comparison.second.rate, 0.9))
        return (
            f"{self.context_id[:12]} against empty: {self.comparison}: {verdict}; look {self.look} on this "
            f"confirm set; {self.comparison.n} pairs show a rise of {seen:.2f} four times in five"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ItemValue:
    """Average gain from an item: success of the half that holds it minus success of the other half."""

    item_id: str
    value: float
    low: float
    high: float
    n: int
    """Tasks on which both halves were played."""


def check_leaks(store: Store, context_id: str) -> None:
    """Refuse a context with an item that came from a select, confirm or test task.

    Raises:
        TaskLeak: there is such an item; the message names item and task.
    """
    leaks = store.leaks(context_id)
    if leaks:
        leak = leaks[0]
        raise TaskLeak(
            f"context {context_id[:12]} holds item {leak.item_id[:12]}, which came from {leak.split} task "
            f"{leak.key[:12]} of {leak.env} ({len(leaks)} in all); extract from 'extract' tasks only"
        )


def score(bench: Bench, candidates: Sequence[Context], tasks: Sequence[Task]) -> Ranking:
    """Play every candidate and the empty context on the same tasks, and rank them.

    Args:
        tasks: tasks of the ``select`` split; they are registered there.

    Raises:
        ConfigError: there is no candidate or no task, or no episode could be played.
        TaskLeak: a candidate holds an item from a task it must not know, or a task is in another split.
    """
    store, contexts = bench.store, {context.id: context for context in candidates if context.text}
    if not contexts:
        raise ConfigError("nothing to score: no context besides the empty one; play and extract first")
    _prepare(bench, list(contexts.values()), tasks, "select")
    jobs = [Job(task, context) for task in tasks for context in (EMPTY, *contexts.values())]
    errors = bench.play_missing("select", jobs)
    # Only what this call plays: other episodes of the same tasks must not enter its rates.
    arena, empty = bench.arena("select", places_of(tasks)), bench.arm()
    counts = store.counts([empty, *(bench.arm(context) for context in contexts.values())], arena)
    rows = [
        Scored(context.id, counts[arm], store.compare(arm, empty, arena))
        for context, arm in ((context, bench.arm(context)) for context in contexts.values())
    ]
    if not any(row.count.rate.n for row in rows):
        raise ConfigError(f"no episode of {bench.env} could be played ({errors} environment errors): nothing to score")
    # Ties are broken by id: as good as at random, and the same after every resume.
    rows.sort(key=lambda row: (-row.count.rate.rate, row.context_id))
    competed = store.competitors(bench.env, "select", model_id=bench.model_id, setup=bench.setup)
    return Ranking(rows, counts[empty], competed, errors)


def confirm(bench: Bench, context: Context, tasks: Sequence[Task]) -> Confirmation:
    """Play one context and the empty one on fresh tasks; promote it if it is better with p < .025.

    The test is McNemar's mid-p when no two pairs share a task, else the sign-flip test over tasks.
    On a pass, ``ENV/best`` is moved to the context, with the numbers as the reason.

    Args:
        tasks: tasks of the ``confirm`` split; they are registered there.

    Raises:
        ConfigError: the context is empty, there is no task, or no pair could be played.
        TaskLeak: the context holds an item from a task it must not know, or a task is in another split.
    """
    store, env = bench.store, bench.env
    if not context.text:
        raise ConfigError("the empty context cannot be confirmed: it is what a context is compared with")
    _prepare(bench, [context], tasks, "confirm")
    errors = bench.play_missing("confirm", [Job(task, arm) for task in tasks for arm in (EMPTY, context)])
    comparison = store.compare(bench.arm(context), bench.arm(), bench.arena("confirm", places_of(tasks)))
    if comparison.n == 0:
        raise ConfigError(f"no pair of {env} could be played ({errors} environment errors): nothing to confirm")
    look, passed = store.competitors(env, "confirm"), comparison.p < ALPHA
    result = Confirmation(context.id, comparison, passed, look, errors, best_ref(env))
    if passed:
        _promote(store, result, bench.run_id)
    return result


def _promote(store: Store, result: Confirmation, run_id: int) -> None:
    current = store.ref(result.ref)
    if current != result.context_id:  # a repeated call must not add a second move
        reason = f"{result.comparison}; look {result.look} on this confirm set"
        store.move(result.ref, result.context_id, "confirm", reason, run_id, expect=current)


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
    _prepare(bench, list(contexts.values()), tasks, "select", {"order": "subsets", "seed": seed, "pool": len(pool)})
    errors = bench.play_missing("subsets", [Job(task, half) for task in tasks for half, _ in halves[task]])
    won = {id_: bench.store.outcomes(bench.arm(half), bench.arena("select")) for id_, half in contexts.items()}
    signed: dict[str, list[int]] = {item.id: [] for item in pool}
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


def _value(item_id: str, gains: Sequence[int]) -> ItemValue:
    n = len(gains)
    mean = sum(gains) / n
    half = Z95 * sqrt(sum((gain - mean) ** 2 for gain in gains) / (n - 1) / n)
    return ItemValue(item_id, mean, max(-1.0, mean - half), min(1.0, mean + half), n)


def _prepare(
    bench: Bench, contexts: Sequence[Context], tasks: Sequence[Task], split: str,
    origin: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Register tasks and contexts, then guard against leaks."""
    if not tasks:
        raise ConfigError(f"nothing to play: no {split} task of {bench.env}")
    with bench.store.write():
        bench.store.add_tasks(bench.env, tasks, split)
        for context in contexts:
            bench.store.add_context(context, origin)
            check_leaks(bench.store, context.id)


def add_to_pool(
    store: Store, step: PoolStep, context: Context, *, run_id: int | None = None,
    origin: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """Store the context that a chain has reached and point its ref at it; repeating the call adds nothing.

    Returns:
        The name of the ref.
    """
    with store.write():
        store.add_context(context, origin)
        current = store.ref(step.ref)
        if current != context.id:
            reason = f"chain {step.chain}, step {step.step}"
            store.move(step.ref, context.id, "extract", reason, run_id, expect=current)
    return step.ref
