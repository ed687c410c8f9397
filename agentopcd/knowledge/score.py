"""Choose a context by evidence: score many on ``select``, confirm one on ``confirm``, value the items.

Nothing here loads a model: the bench knows how to play. Every number is computed from stored episodes, so
repeating an interrupted call resumes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from agentopcd.core.errors import ConfigError
from agentopcd.core.stats import Comparison, detectable
from agentopcd.core.types import EMPTY, Context, Job, Task
from agentopcd.knowledge.bench import Bench, places_of
from agentopcd.knowledge.episodes import Count
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
    bench.prepare(list(contexts.values()), tasks, "select")
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
    bench.prepare([context], tasks, "confirm")
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
