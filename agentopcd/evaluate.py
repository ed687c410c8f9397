"""Base, in-context and student on the same test tasks, with intervals, floors and overlap beside them.

Every episode is stored, so a repeated or resumed evaluation plays only what is missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from agentopcd.envs.floors import Floors, floors
from agentopcd.errors import ConfigError
from agentopcd.knowledge import Arm, Place, play_missing
from agentopcd.models import LoadedModel
from agentopcd.session import Session, engine_of
from agentopcd.stats import Comparison, Rate
from agentopcd.types import EMPTY, Context, Job, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """One row of the table: a model and the context it is shown."""

    label: str
    model: LoadedModel
    context: Context = EMPTY

    @property
    def arm(self) -> Arm:
        return Arm(self.model.id, self.context.id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What one contestant did."""

    label: str
    rate: Rate
    tasks: int
    reply_tokens: float
    """Mean tokens of all replies of an episode."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A table that can be printed and checked."""

    env: str
    split: str
    rows: list[Row]
    comparisons: dict[str, Comparison]
    """Paired differences by name, such as ``student - base``."""
    floors: Floors | None
    overlap: tuple[int, float]
    """Test tasks that are also in train or extract: how many, and what share."""
    protocol: str
    recovered: float | None
    """Share of the in-context gain that the student has without the context, on the tasks all three played;
    None without a gain."""
    notes: list[str]

    def rate(self, label: str) -> Rate:
        return next(row.rate for row in self.rows if row.label == label)

    def to_dict(self) -> dict[str, Any]:
        """JSON for ``--json`` and run folders."""
        return {
            "env": self.env, "split": self.split, "protocol": self.protocol, "notes": self.notes,
            "rows": [
                {"label": r.label, "success": r.rate.rate, "low": r.rate.low, "high": r.rate.high, "n": r.rate.n,
                 "tasks": r.tasks, "reply_tokens": r.reply_tokens} for r in self.rows
            ],
            "differences": {
                name: {"difference": c.difference.diff, "low": c.difference.low, "high": c.difference.high,
                       "n": c.n, "tasks": c.tasks, "wins": c.wins, "losses": c.losses, "p": c.p, "test": c.test}
                for name, c in self.comparisons.items()
            },
            "recovered": self.recovered, "overlap": list(self.overlap),
            "floors": None if self.floors is None else dataclasses.asdict(self.floors),
        }  # fmt: skip


def evaluate(
    session: Session, contestants: Sequence[Contestant], tasks: Sequence[Task], *, run_id: int, split: str = "test",
    reps: int = 1,
) -> Evaluation:  # fmt: skip
    """Play every contestant on the same tasks with the same seeds and compare them in pairs.

    Args:
        reps: how often each task is played, with other noise; for environments with few tasks.

    Raises:
        ConfigError: no tasks.
    """
    if not tasks:
        raise ConfigError(f"no {split} tasks of {session.env} to evaluate on")
    if len(engines := {engine_of(session.config, one.model)[0] for one in contestants}) > 1:
        raise ConfigError(f"these models would be played by {sorted(engines)}; name one of them with --engine")
    setups = set()
    for one in contestants:
        player = session.player_for(one.model)
        setup = session.setup(player)
        setups.add(setup)
        session.store.add_context(one.context)
        play_missing(
            session.store, [Job(task, one.context, rep) for rep in range(reps) for task in tasks],
            session.plays(f"{split}: {one.label}", player), one.model.id, setup, session.env, run_id,
        )  # fmt: skip
    (setup,) = setups
    return tabulate(session, contestants, tasks, setup=setup, split=split, reps=reps)


def tabulate(
    session: Session, contestants: Sequence[Contestant], tasks: Sequence[Task], *, setup: str, split: str = "test",
    reps: int = 1,
) -> Evaluation:  # fmt: skip
    """The table, read back from the stored episodes."""
    places = [(task.key, task.seed, rep) for rep in range(reps) for task in tasks]
    place: dict[str, Any] = {"env": session.env, "setup": setup, "split": split, "places": places}
    counts = session.store.counts([one.arm for one in contestants], **place)
    rows = [
        Row(
            label=one.label,
            rate=counts[one.arm].rate,
            tasks=counts[one.arm].tasks,
            reply_tokens=_reply_tokens(session, one, setup, set(places)),
        )
        for one in contestants
    ]
    by_label = {one.label: one.arm for one in contestants}
    wanted = [("in-context", "base"), ("student", "base"), ("student", "in-context"), ("student", "teacher")]
    comparisons = {
        f"{a} - {b}": session.store.compare(by_label[a], by_label[b], **place)
        for a, b in wanted
        if a in by_label and b in by_label
    }
    notes = sorted({one.model.note for one in contestants if one.model.note})
    if session.manifest.protocol == "shared":
        notes.append("too few tasks to split: selected, trained and reported on the same tasks")
    return Evaluation(
        env=session.env,
        split=split,
        rows=rows,
        comparisons=comparisons,
        floors=floors(session.game.ref, session.game.kwargs, tasks, max_steps=session.game.step_limit),
        overlap=session.manifest.overlap(),
        protocol=session.manifest.protocol,
        recovered=_recovered({label: session.store.outcomes(arm, **place) for label, arm in by_label.items()}),
        notes=notes,
    )


def _recovered(outcomes: Mapping[str, Mapping[Place, bool]]) -> float | None:
    """(student - base) / (in-context - base), on the places that all three have."""
    if not {"base", "in-context", "student"} <= set(outcomes):
        return None
    common = set.intersection(*(set(outcomes[label]) for label in ("base", "in-context", "student")))
    base, shown, student = (sum(outcomes[o][p] for p in common) for o in ("base", "in-context", "student"))
    return (student - base) / (shown - base) if shown > base else None


def _reply_tokens(session: Session, one: Contestant, setup: str, places: set[Place]) -> float:
    rows = session.store.episodes(model_id=one.model.id, context_id=one.context.id, env=session.env, setup=setup)
    lengths = [row["output_tokens"] for row in rows if (row["task_key"], row["seed"], row["rep"]) in places]
    return sum(lengths) / len(lengths) if lengths else 0.0


def lines(evaluation: Evaluation) -> list[str]:
    """The table as plain text, one fact a line."""
    out = [f"{evaluation.env}, {evaluation.split} tasks"]
    out.append(f"{'':12s} {'success':>8s}  {'95 % interval':>16s} {'n':>5s}  tokens")
    for row in evaluation.rows:
        interval = f"[{row.rate.low:.3f}, {row.rate.high:.3f}]"
        out.append(f"{row.label:12s} {row.rate.rate:8.3f}  {interval:>16s} {row.rate.n:5d}  {row.reply_tokens:6.1f}")
    for name, c in evaluation.comparisons.items():
        paired = f"paired, {c.wins} won / {c.losses} lost on {c.tasks} tasks, p = {c.p:.2g}"
        out.append(f"{name:21s} {c.difference}  {paired}")
    if evaluation.recovered is not None:
        out.append(f"recovered: {evaluation.recovered:.0%} of the in-context gain, without the context")
    if evaluation.floors is not None:
        out.append(f"floors: {evaluation.floors.text}")
    count, share = evaluation.overlap
    out.append(f"test tasks also in train or extract: {count} ({share:.0%})")
    return [*out, *(f"note: {note}" for note in evaluation.notes)]
