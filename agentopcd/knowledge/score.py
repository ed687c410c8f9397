"""Rank contexts on ``select`` tasks: by halving, which plays most with the best, or all alike.

Nothing here loads a model: the bench knows how to play. Every number is computed from stored episodes, so
repeating an interrupted call resumes it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from itertools import count, islice
from math import ceil, log2
from typing import Any

from agentopcd.core.errors import ConfigError
from agentopcd.core.stats import Comparison, Mean, Rate
from agentopcd.core.types import EMPTY, Context, Job, Task
from agentopcd.knowledge.bench import Bench, check_scores, places_of
from agentopcd.knowledge.episodes import Arena, Arm, Count, Place
from agentopcd.knowledge.refs import PoolStep
from agentopcd.knowledge.store import Store

PER_CONTEXT = 16
"""Episodes that halving plays for each context, on average."""


SHOWN = 10
"""Contexts of a ranking that people are shown."""


def _line(name: str, rate: Rate | Mean, called: str) -> str:
    interval = f"[{rate.low:.3f}, {rate.high:.3f}]"
    return f"{name:12s}  {rate.rate:6.3f}  {interval:>16s} {rate.n:5d}  {called}".rstrip()


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """One context of a ranking."""

    context_id: str
    count: Count
    against_empty: Comparison | None
    """None if the empty context did not play."""
    rounds: int = 0
    """Rounds of halving that it has played in."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ranking:
    """Contexts on the same select tasks, best first. The best one's rate is biased upward."""

    rows: list[Scored]
    empty: Count | None
    """The empty context on the same tasks, if it played."""
    competed: int
    """The K of "best of K": contexts with which this model has ever played on the select tasks of this setup."""
    errors: int
    """Episodes of this call that ended with an environment error despite retries; they are not counted."""
    episodes: int
    """Episodes that the ranking rests on, stored ones included."""
    means: Mapping[str, Mean]
    """Mean reward and metrics of the best one."""
    refs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """A name of each context that has one."""
    outcomes: Mapping[str, Mapping[Place, float]] = dataclasses.field(default_factory=dict)
    """The score of each context at each place. After halving, contexts have played different tasks, so that only what
    stands at one place compares them."""

    @property
    def best(self) -> Scored:
        return self.rows[0]

    def __str__(self) -> str:
        lines = [f"{'context':12s}  {'select':>6s}  {'95 % interval':>16s} {'n':>5s}  name"]
        lines += [_line("none", self.empty.rate, "the empty context")] if self.empty else []
        for row in self.rows[:SHOWN]:
            beside = f"  {row.against_empty.difference} to none" if row.against_empty else ""
            lines.append(_line(row.context_id[:12], row.count.rate, self.refs.get(row.context_id, "")) + beside)
        if more := len(self.rows) - SHOWN:
            lines += [f"and {more} that did worse (--json lists all)"] if more > 0 else []
        lines.append(f"best of {self.competed} on select: its own rate is biased upward, confirm it on fresh tasks")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The ranking as JSON."""
        return {
            "best": self.best.context_id, "competed": self.competed, "episodes": self.episodes, "errors": self.errors,
            "ranking": [
                {"context": row.context_id, **row.count.rate.to_dict(), "rounds": row.rounds} for row in self.rows
            ],
            "means": {name: mean.to_dict() for name, mean in self.means.items()},
        }  # fmt: skip


def score(bench: Bench, candidates: Sequence[Context], tasks: Sequence[Task], *, by: str = "success") -> Ranking:
    """Play every candidate and the empty context on the same tasks, and rank them.

    Args:
        tasks: tasks of the ``select`` split; they are registered there.
        by: success, reward or a metric.

    Raises:
        ConfigError: there is no candidate or no task, no episode could be played, or none reports the metric.
        TaskLeak: a candidate holds an item from a task it must not know, or a task is in another split.
    """
    contexts = _distinct(bench, candidates, tasks)
    jobs = [Job(task, context) for task in tasks for context in (EMPTY, *contexts)]
    errors = bench.play_missing("select", jobs)
    # Only what this call plays: other episodes of the same tasks must not enter its rates.
    arena, empty = bench.arena("select", places_of(tasks), by), bench.arm()
    counts = bench.store.counts([empty, *map(bench.arm, contexts)], arena)
    rows = [
        Scored(context.id, counts[arm], bench.store.compare(arm, empty, arena))
        for context, arm in zip(contexts, map(bench.arm, contexts), strict=True)
    ]
    # Ties are broken by id: as good as at random, and the same after every resume.
    rows.sort(key=lambda row: (*_place(row), row.context_id))
    _check(bench, rows, arena, errors)
    return _ranking(bench, rows, arena, counts[empty], errors, len(jobs))


def halving(
    bench: Bench, candidates: Sequence[Context], tasks: Sequence[Task], *, by: str = "success", seed: int = 0
) -> Ranking:
    """Rank candidates by sequential halving: all that are left play the same new tasks, and the better half stays.

    With K candidates there are ceil(log2 K) rounds; the figures of a candidate are those of all its rounds. Once all
    tasks have been played, they are played again with other noise. The empty context does not play: what the winner is
    worth is for :func:`agentopcd.knowledge.confirm` to say. (Karnin, Koren and Somekh, ICML 2013; with common tasks,
    which cancel their difficulty, and not as many episodes in each round: they fall in even steps from round to round,
    because a first round of two games for each of a hundred contexts loses the best one now and then.)

    Args:
        tasks: tasks of the ``select`` split, in the order in which they are played; they are registered there.
        by: success, reward or a metric.
        seed: breaks ties.

    Returns:
        The candidates, those that stayed longest first.

    Raises:
        ConfigError, TaskLeak: as in :func:`score`.
    """
    alive = _distinct(bench, candidates, tasks)
    rounds = max(1, ceil(log2(len(alive))))
    budget, errors, played = PER_CONTEXT * len(alive), 0, 0
    order = ((task, rep) for rep in count() for task in tasks)
    places: list[tuple[Task, int]] = []
    rows, out, arena = [], [], bench.arena("select", (), by)
    for number in range(1, rounds + 1):
        share = 2 * (rounds - number + 1) / (rounds * (rounds + 1))
        new = list(islice(order, max(1, int(budget * share) // len(alive))))
        places += new
        errors += bench.play_missing("select", [Job(task, context, rep) for task, rep in new for context in alive])
        played += len(new) * len(alive)
        arena = bench.arena("select", [(task.key, task.seed, rep) for task, rep in places], by)
        counts = bench.store.counts(map(bench.arm, alive), arena)
        rows = [Scored(context.id, counts[bench.arm(context)], None, number) for context in alive]
        _check(bench, rows, arena, errors)
        rows.sort(key=lambda row: (*_place(row), _lot(seed, row.context_id)))
        stay = ceil(len(alive) / 2)
        rows, out = rows[:stay], rows[stay:] + out
        alive = [context for context in alive if context.id in {row.context_id for row in rows}]
    return _ranking(bench, rows + out, arena, None, errors, played)


def _place(row: Scored) -> tuple[bool, float]:
    """What rows are sorted by. One without a finished game is last: its 0 is no score, and others may be negative."""
    return not row.count.rate.n, -row.count.rate.rate


def _lot(seed: int, context_id: str) -> str:
    """The lot that decides ties, the same after every resume."""
    return hashlib.sha256(f"{seed}/{context_id}".encode()).hexdigest()


def _distinct(bench: Bench, candidates: Sequence[Context], tasks: Sequence[Task]) -> list[Context]:
    """The candidates to play, each once, registered with their tasks."""
    contexts = list({context.id: context for context in candidates if context.text}.values())
    if not contexts:
        raise ConfigError("nothing to score: no context besides the empty one; play and extract first")
    bench.prepare(contexts, tasks, "select")
    return contexts


def _check(bench: Bench, rows: Sequence[Scored], arena: Arena, errors: int) -> None:
    """Refuse a ranking of nothing, before more is played."""
    if not any(row.count.rate.n for row in rows):
        check_scores(bench, Arm(bench.model_id, rows[0].context_id), arena, errors)


def _ranking(
    bench: Bench, rows: list[Scored], arena: Arena, empty: Count | None, errors: int, episodes: int
) -> Ranking:
    store = bench.store
    means = store.means(Arm(bench.model_id, rows[0].context_id), arena)
    competed = store.competitors(bench.env, "select", model_id=bench.model_id, setup=bench.setup)
    ranked = {row.context_id for row in rows}
    refs = {id_: name for name, id_ in store.refs().items() if id_ in ranked}
    outcomes = {row.context_id: store.outcomes(Arm(bench.model_id, row.context_id), arena) for row in rows}
    return Ranking(rows, empty, competed, errors, episodes, means, refs, outcomes)


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
