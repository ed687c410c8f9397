"""The table of an evaluation: base, in-context and student on the same test tasks, with intervals, floors and overlap.

Every episode is stored, so a repeated or resumed evaluation plays only the missing ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agentopcd.core.errors import ConfigError
from agentopcd.core.stats import Comparison, Mean, Rate
from agentopcd.core.types import EMPTY, Context, Job, Task
from agentopcd.envs.floors import Floors, floors
from agentopcd.knowledge import Arena, Arm, Place, places_of
from agentopcd.models.load import LoadedModel
from agentopcd.rollouts.engine import engine_of
from agentopcd.workspace.evaluation.names import PLACEBO_STUDENT, compared, header
from agentopcd.workspace.evaluation.spoken import Distances
from agentopcd.workspace.session import Session


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """The subject of one row of the table, which may have played long ago."""

    label: str
    arm: Arm
    note: str = ""
    """What a reader of the row's figures must know."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """A model that plays, and the context that it is shown."""

    label: str
    model: LoadedModel
    context: Context = EMPTY

    @property
    def arm(self) -> Arm:
        return Arm(self.model.id, self.context.id)

    @property
    def entry(self) -> Entry:
        return Entry(label=self.label, arm=self.arm, note=self.model.note)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableRow:
    """The figures of one contestant."""

    label: str
    rate: Rate
    tasks: int
    reply_tokens: float
    """The mean over episodes of the tokens of all their replies."""
    means: Mapping[str, Mean]
    """Mean reward, and the mean of each metric that the environment reports."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A table that can be printed and checked."""

    env: str
    split: str
    rows: list[TableRow]
    comparisons: dict[str, Comparison]
    """Paired differences of ``by``, by name, such as ``student - base``."""
    floors: Floors | None
    overlap: tuple[int, float]
    """The number and the share of test tasks that are also in train or extract."""
    protocol: str
    recovered: float | None
    """The share of the in-context gain that the student keeps without the context, on the tasks that all three have
    played; None without a gain."""
    notes: list[str]
    graded: bool
    """Whether success means anything here."""
    seen: tuple[int, list[int]]
    """The number of test tasks that earlier runs have played, and those runs: what was decided after reading what came
    out is not independent of these tasks."""
    compared: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """What each row is, see :func:`agentopcd.workspace.evaluation.names.compared`."""
    header: Sequence[str] = ()
    """The same in words; not part of the JSON, because a workspace may be moved."""
    by: str = "success"
    """What is compared: success, reward or a metric."""
    distances: Distances | None = None
    """The distances to the model that sees the context, where they are what counts."""

    def rate(self, label: str) -> Rate:
        """The success rate of the row with this label."""
        return next(row.rate for row in self.rows if row.label == label)

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as JSON, for ``--json`` and run folders."""
        return {
            "env": self.env, "split": self.split, "protocol": self.protocol, "notes": self.notes,
            "rows": [
                {
                    "label": row.label, **row.rate.to_dict(), "tasks": row.tasks, "reply_tokens": row.reply_tokens,
                    "means": {name: mean.to_dict() for name, mean in row.means.items()},
                }
                for row in self.rows
            ],
            "differences": {name: comparison.to_dict() for name, comparison in self.comparisons.items()},
            "recovered": self.recovered, "overlap": list(self.overlap),
            "seen": {"tasks": self.seen[0], "runs": self.seen[1]},
            "floors": None if self.floors is None else dataclasses.asdict(self.floors),
            **({"compared": dict(self.compared)} if self.compared else {}),
            # Listed only where they say something, so that older runs read as they did.
            **({} if self.graded else {"graded": False}),
            **({} if self.by == "success" else {"by": self.by}),
            **({} if self.distances is None else {"distances": self.distances.to_dict()}),
        }  # fmt: skip


def evaluate(
    session: Session, contestants: Sequence[Contestant], tasks: Sequence[Task], *, run_id: int, reps: int = 1
) -> Evaluation:
    """Play every contestant on the same test tasks with the same seeds, and compare the contestants in pairs.

    Args:
        reps: how often each task is played, each time with other noise; for environments with few tasks.

    Raises:
        ConfigError: there are no tasks, or different engines would play the contestants.
    """
    if not tasks:
        raise ConfigError(f"no test tasks of {session.env} to evaluate on")
    if len(engines := {engine_of(session.config, one.model)[0] for one in contestants}) > 1:
        raise ConfigError(f"these models would be played by {sorted(engines)}; name one of them with --engine")
    setups, first = set(), session.manifest.first_rep("test")
    for one in contestants:
        session.store.add_context(one.context)
        bench = session.bench(run_id, one.model)
        jobs = [Job(task, one.context, first + rep) for rep in range(reps) for task in tasks]
        bench.play_missing(f"test: {one.label}", jobs)
        setups.add(bench.setup)
    (setup,) = setups
    entries = [one.entry for one in contestants]
    return tabulate(session, entries, tasks, setup=setup, reps=reps, run_id=run_id)


def tabulate(
    session: Session, entries: Sequence[Entry], tasks: Sequence[Task], *, setup: str, reps: int = 1, run_id: int
) -> Evaluation:
    """Build the table of a run from the stored episodes."""
    places, store = set(test_places(session, tasks, reps)), session.store
    arena = Arena(session.env, setup, "test", places, session.score)
    counts = store.counts([entry.arm for entry in entries], arena)
    rows = [
        TableRow(
            label=entry.label,
            rate=store.rate(entry.arm, arena),
            tasks=counts[entry.arm].tasks,
            reply_tokens=_reply_tokens(session, entry.arm, setup, places),
            means=store.means(entry.arm, arena),
        )
        for entry in entries
    ]
    arms = {entry.label: entry.arm for entry in entries}
    named = compared(store, arms)
    wanted = [
        ("in-context", "base"), ("student", "base"), ("student", PLACEBO_STUDENT), (PLACEBO_STUDENT, "base"),
        ("student", "in-context"), ("student", "teacher"),
    ]  # fmt: skip
    notes = sorted({entry.note for entry in entries if entry.note})
    if arena.by != "success":
        notes.append(f"differences, and the share that is recovered, are of {arena.by}")
    if session.manifest.protocol == "shared":
        few = f"{session.manifest.distinct} tasks are too few to split"
        notes.append(f"{few}: selected, trained and reported on the same tasks, so this says nothing about other tasks")
    notes += _chosen_on(session, tasks)
    return Evaluation(
        env=session.env,
        split="test",
        rows=rows,
        comparisons={
            f"{a} - {b}": store.compare(arms[a], arms[b], arena) for a, b in wanted if a in arms and b in arms
        },
        floors=None
        if session.game.spec.logged
        else floors(
            session.game.ref,
            session.game.kwargs,
            tasks,
            max_steps=session.game.step_limit,
            success_when=session.game.success_when,
        ),
        graded=session.game.graded,
        overlap=session.manifest.overlap(),
        protocol=session.manifest.protocol,
        recovered=_recovered({label: store.outcomes(arm, arena) for label, arm in arms.items()}),
        notes=notes,
        seen=store.seen_before(session.env, {task.key for task in tasks}, run_id),
        compared=named,
        header=header(store, session.work, named),
        by=arena.by,
    )


def test_places(session: Session, tasks: Sequence[Task], reps: int = 1) -> list[Place]:
    """The places of test episodes, see :meth:`agentopcd.envs.manifest.Manifest.first_rep`."""
    return places_of(tasks, reps, first=session.manifest.first_rep("test"))


def _chosen_on(session: Session, tasks: Sequence[Task]) -> list[str]:
    """A line where the paper's own seeds put test tasks into select, too."""
    if session.manifest.protocol != "paper":
        return []
    select = {task.key for task in session.tasks("select")}
    both = sum(task.key in select for task in tasks)
    line = f"as in the paper, contexts and checkpoints were chosen on {both} of these {len(tasks)} tasks"
    return [line] if both else []


def _recovered(outcomes: Mapping[str, Mapping[Place, float]]) -> float | None:
    """``(student - base) / (in-context - base)``, over the places that all three have played."""
    if not {"base", "in-context", "student"} <= set(outcomes):
        return None
    common = set.intersection(*(set(outcomes[label]) for label in ("base", "in-context", "student")))
    base, shown, student = (sum(outcomes[o][p] for p in common) for o in ("base", "in-context", "student"))
    return (student - base) / (shown - base) if shown > base else None


def _reply_tokens(session: Session, arm: Arm, setup: str, places: Collection[Place]) -> float:
    """The mean number of reply tokens of an episode of ``arm``."""
    rows = session.store.episodes(model_id=arm.model_id, context_id=arm.context_id, env=session.env, setup=setup)
    lengths = [row["output_tokens"] for row in rows if (row["task_key"], row["seed"], row["rep"]) in places]
    return sum(lengths) / len(lengths) if lengths else 0.0


def lines(evaluation: Evaluation) -> list[str]:
    """The table as plain text, with one fact per line."""
    out = [f"{evaluation.env}, {evaluation.split} tasks"]
    out += row_lines(evaluation.rows) if evaluation.graded else []
    out += evaluation.distances.lines() if evaluation.distances else []
    wide = max((21, *map(len, evaluation.comparisons)))
    for name, c in evaluation.comparisons.items() if evaluation.graded else ():
        paired = f"paired, {c.wins} won / {c.losses} lost on {c.tasks} tasks, p = {c.p:.2g}"
        out.append(f"{name:{wide}s} {c.difference}  {paired}")
    if evaluation.recovered is not None:
        out.append(f"recovered: {evaluation.recovered:.0%} of the in-context gain, without the context")
    if evaluation.floors is not None:
        out.append(f"floors: {evaluation.floors.text}")
    count, share = evaluation.overlap
    out.append(f"test tasks also in train or extract: {count} ({share:.0%})")
    if evaluation.seen[0]:
        runs = ", ".join(map(str, evaluation.seen[1]))
        out.append(f"test tasks that earlier runs have played: {evaluation.seen[0]} (runs {runs})")
    return [*out, *(f"note: {note}" for note in evaluation.notes)]


def row_lines(rows: Sequence[TableRow]) -> list[str]:
    """The rows of a table, below a line with the names of the columns."""
    wide = max((12, *(len(row.label) for row in rows)))
    out = [f"{'':{wide}s} {'success':>8s}  {'95 % interval':>16s} {'n':>5s}  tokens"]
    for row in rows:
        interval = f"[{row.rate.low:.3f}, {row.rate.high:.3f}]"
        out.append(
            f"{row.label:{wide}s} {row.rate.rate:8.3f}  {interval:>16s} {row.rate.n:5d}  {row.reply_tokens:6.1f}"
        )
    for name in dict.fromkeys(name for row in rows for name in row.means):
        shown = [(row.label, row.means[name], row.rate.rate) for row in rows if name in row.means]
        if any(mean.rate != success for _, mean, success in shown):  # else it is success once more
            out.append(f"{name}: " + ", ".join(f"{label} {mean}" for label, mean, _ in shown))
    return out
