"""Choosing a context on evidence: score many on ``select``, confirm one on ``confirm``, value the items.

A player is any callable that takes jobs and yields finished episodes. Nothing here loads a model, and
every number is read back from stored episodes, so an interrupted call is resumed by repeating it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from typing import Any

from agentopcd.errors import ConfigError, TaskLeak
from agentopcd.knowledge.assemble import render
from agentopcd.knowledge.items import Item
from agentopcd.knowledge.queries import Arm, Count, Place
from agentopcd.knowledge.store import Store
from agentopcd.stats import Z95, Comparison, detectable
from agentopcd.types import EMPTY, Context, Episode, Job, Placement, Task

Player = Callable[[Sequence[Job]], Iterable[Episode]]
"""Plays jobs and yields each episode as it finishes; it retries what the environment broke."""

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
    """The K of "best of K": contexts that this model has ever played on the select tasks of this setup."""
    errors: int
    """Episodes of this call that the environment broke in spite of retries; they count for nothing."""

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
    """Contexts that have played on these confirm tasks so far, this one included: the set wears out."""
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
    """What an item adds on average: the success of the half it is in minus that of the other half."""

    item_id: str
    value: float
    low: float
    high: float
    n: int
    """Tasks on which both halves were played."""


def check_leaks(store: Store, context_id: str) -> None:
    """Refuse a context with an item that came from a select, confirm or test task.

    Raises:
        TaskLeak: naming item and task.
    """
    leaks = store.leaks(context_id)
    if leaks:
        leak = leaks[0]
        raise TaskLeak(
            f"context {context_id[:12]} holds item {leak.item_id[:12]}, which came from {leak.split} task "
            f"{leak.key[:12]} of {leak.env} ({len(leaks)} in all); extract from 'extract' tasks only"
        )


def score(
    store: Store,
    candidates: Sequence[Context],
    tasks: Sequence[Task],
    play: Player,
    *,
    model_id: str,
    setup: str,
    env: str,
    run_id: int,
    reps: int = 1,
    split: str = "select",
) -> Ranking:
    """Play every candidate and the empty context on the same tasks, and rank them.

    Args:
        tasks: of the ``select`` split; they are registered as such.
        play: called once, with the jobs that the store lacks.
        reps: episodes of each task and arm.

    Raises:
        ConfigError: no candidate, no task, or not one episode could be played.
        TaskLeak: a candidate has learned from a task it must not know, or a task sits in another split.
    """
    contexts = {context.id: context for context in candidates if context.text}
    if not contexts:
        raise ConfigError("nothing to score: no context besides the empty one; play and extract first")
    _prepare(store, list(contexts.values()), tasks, env, split)
    jobs = [Job(task, context, rep) for task in tasks for rep in range(reps) for context in (EMPTY, *contexts.values())]
    errors = play_missing(store, jobs, play, model_id, setup, env, run_id)
    place = {"env": env, "setup": setup, "split": split, "places": _places(tasks, reps)}
    counts = store.counts([Arm(model_id), *(Arm(model_id, context_id) for context_id in contexts)], **place)
    rows = [
        Scored(
            context_id,
            counts[Arm(model_id, context_id)],
            store.compare(Arm(model_id, context_id), Arm(model_id), **place),
        )
        for context_id in contexts
    ]
    if not any(row.count.rate.n for row in rows):
        raise ConfigError(f"no episode of {env} could be played ({errors} environment errors): nothing to score")
    # Equal rates are ordered by id, which is as good as at random and the same on every resume.
    rows.sort(key=lambda row: (-row.count.rate.rate, row.context_id))
    competed = store.competitors(env, split, model_id=model_id, setup=setup)
    return Ranking(rows, counts[Arm(model_id)], competed, errors)


def confirm(
    store: Store,
    context: Context,
    tasks: Sequence[Task],
    play: Player,
    *,
    model_id: str,
    setup: str,
    env: str,
    run_id: int,
    reps: int = 1,
    split: str = "confirm",
    ref: str | None = None,
) -> Confirmation:
    """Play one context and the empty one on fresh tasks; promote it if it is better with p < .025.

    The test is McNemar's mid-p when every pair is a task of its own, else the sign-flip test over tasks.
    On a pass ``ENV/best`` (or ``ref``) is moved with the numbers as the reason.

    Raises:
        ConfigError: the context is empty, there is no task, or no pair could be played.
        TaskLeak: the context has learned from a task it must not know, or a task sits in another split.
    """
    if not context.text:
        raise ConfigError("the empty context cannot be confirmed: it is what a context is compared with")
    _prepare(store, [context], tasks, env, split)
    jobs = [Job(task, arm, rep) for task in tasks for rep in range(reps) for arm in (EMPTY, context)]
    errors = play_missing(store, jobs, play, model_id, setup, env, run_id)
    comparison = store.compare(Arm(model_id, context.id), Arm(model_id), env, setup, split, _places(tasks, reps))
    if comparison.n == 0:
        raise ConfigError(f"no pair of {env} could be played ({errors} environment errors): nothing to confirm")
    name = ref or f"{env}/best"
    result = Confirmation(context.id, comparison, comparison.p < ALPHA, store.competitors(env, split), errors, name)
    if result.passed:
        _promote(store, name, result, run_id)
    return result


def _promote(store: Store, name: str, result: Confirmation, run_id: int) -> None:
    current = store.refs(name).get(name)
    if current != result.context_id:  # a repeated call must not add a second move
        reason = f"{result.comparison}; look {result.look} on this confirm set"
        store.move(name, result.context_id, "confirm", reason, run_id, expect=current)


def subsets(
    store: Store,
    items: Sequence[Item],
    tasks: Sequence[Task],
    play: Player,
    *,
    model_id: str,
    setup: str,
    env: str,
    run_id: int,
    seed: int = 0,
    placement: Placement = "user",
    split: str = "select",
) -> list[ItemValue]:
    """Value items by complementary random halves: on each task one half plays, then all the others.

    The value of an item is the mean over tasks of success(its half) minus success(the other half). The
    complement cancels the difficulty of the task, and tasks are independent, so mean ± 1.96·se is its
    interval. Which half an item is in depends on ``seed``, the task and the set of items alone: more tasks
    extend an earlier call.

    Returns:
        The items, most valuable first.

    Raises:
        ConfigError: fewer than two items, no task, or fewer than two pairs could be played.
        TaskLeak: as in :func:`score`.
    """
    # Always oldest first: the order is part of a context, and a resumed call must make the same ones.
    pool = sorted({item.id: item for item in items}.values(), key=lambda item: (item.created_at, item.id))
    if len(pool) < 2:
        raise ConfigError(f"subsets compares items with each other; got {len(pool)}, two are needed")
    halves = {task: _halves(pool, task, seed, placement) for task in tasks}
    contexts = {half.id: half for pair in halves.values() for half, _ in pair}
    recipe = {"order": "subsets", "seed": seed, "pool": len(pool)}
    _prepare(store, list(contexts.values()), tasks, env, split, recipe)
    jobs = [Job(task, half) for task in tasks for half, _ in halves[task]]
    errors = play_missing(store, jobs, play, model_id, setup, env, run_id)
    found = {half: store.outcomes(Arm(model_id, half), env, setup, split) for half in contexts}
    signed: dict[str, list[int]] = {item.id: [] for item in pool}
    for task, ((half, inside), (other, _)) in halves.items():
        place = (task.key, task.seed, 0)
        if place in found[half.id] and place in found[other.id]:
            gain = found[half.id][place] - found[other.id][place]
            for item in pool:
                signed[item.id].append(gain if item.id in inside else -gain)
    if len(signed[pool[0].id]) < 2:
        raise ConfigError(f"fewer than two pairs of {env} were played ({errors} environment errors); give more tasks")
    values = [_value(item_id, gains) for item_id, gains in signed.items()]
    return sorted(values, key=lambda value: (-value.value, value.item_id))


def _halves(
    pool: Sequence[Item], task: Task, seed: int, placement: Placement
) -> tuple[tuple[Context, set[str]], tuple[Context, set[str]]]:
    """A random part of the pool and the rest of it, each as context and set of ids.

    Every item is in with probability one half on its own: with halves of equal size an item's value would
    be measured against the mean of the others.
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
    store: Store,
    contexts: Sequence[Context],
    tasks: Sequence[Task],
    env: str,
    split: str,
    recipe: Mapping[str, Any] | None = None,
) -> None:
    """Register tasks and contexts, then guard against leaks."""
    if not tasks:
        raise ConfigError(f"nothing to play: no {split} task of {env}")
    with store.write():
        store.add_tasks(env, tasks, split)
        for context in contexts:
            store.add_context(context, recipe)
            check_leaks(store, context.id)


def _places(tasks: Sequence[Task], reps: int) -> list[Place]:
    """Exactly what this call plays: other episodes of the same tasks must not enter its rates."""
    return [(task.key, task.seed, rep) for task in tasks for rep in range(reps)]


def play_missing(
    store: Store, jobs: Sequence[Job], play: Player, model_id: str, setup: str, env: str, run_id: int
) -> int:
    """Play what the store lacks, storing each episode as it comes; returns the environment's errors."""
    done = {id_: store.outcomes(Arm(model_id, id_), env, setup) for id_ in {job.context.id for job in jobs}}
    missing = [job for job in dict.fromkeys(jobs) if (job.task.key, job.task.seed, job.rep) not in done[job.context.id]]
    errors = 0
    if missing:
        for episode in play(missing):
            errors += store.add_episodes(run_id, model_id, setup, [episode])[0] is None
    return errors


def pool_ref(env: str, chain: int, step: int) -> str:
    """The name of one step of a chain, for example ``sokoban/pool/03/07``."""
    return f"{env}/pool/{chain:02d}/{step:02d}"


def add_to_pool(
    store: Store,
    env: str,
    chain: int,
    step: int,
    context: Context,
    *,
    run_id: int | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> str:
    """Store the context a chain has reached and name it; repeating the call adds nothing.

    Returns:
        The name of the ref.
    """
    name = pool_ref(env, chain, step)
    with store.write():
        store.add_context(context, recipe)
        current = store.refs(name).get(name)
        if current != context.id:
            store.move(name, context.id, "extract", f"chain {chain}, step {step}", run_id, expect=current)
    return name
