"""The gate of canaries: served sessions of two models, or of two contexts, compared by how people rated them.

One look at the ratings of a recording, at the level that its environment's budget of looks allows
(:mod:`agentopcd.knowledge.looks`). Sessions that nobody rated count as nothing; how many there are is told, since a
user who leaves says nothing. A pass moves ENV/student to the canary's model, or ENV/best to its context.

Where the client's tasks repeat, the arms are paired on them. Otherwise one session of each task counts in each arm.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import comb
from statistics import NormalDist
from typing import Any, Literal

from agentopcd.core.apart import Apart, compare_apart
from agentopcd.core.config import RECORDED
from agentopcd.core.errors import ConfigError
from agentopcd.core.stats import Comparison, compare, draws_for
from agentopcd.core.types import EMPTY
from agentopcd.knowledge import Store, best_ref, canonical
from agentopcd.knowledge.looks import level_of
from agentopcd.knowledge.recordings import Rating, Recorded, sessions
from agentopcd.knowledge.students import CANARY, current_student, move_student, student_ref

Verdict = Literal["pass", "not better", "worse", "too few"]
"""``too few`` ratings to pass at this look's level, whatever they are; that spends no look. A ``worse`` canary is dealt
no session any more. One that is ``not better`` goes on, and more ratings make another look."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arms:
    """The sessions of a canary, and those beside it, oldest first."""

    recording: str
    canary: Sequence[Recorded]
    control: Sequence[Recorded]

    @property
    def new(self) -> Literal["model", "context"]:
        """What of the canary is not as in the control."""
        return "context" if self.canary[0].model_id == self.control[0].model_id else "model"

    @property
    def env(self) -> str:
        return RECORDED + self.recording


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the ratings say about a canary."""

    arms: Arms
    by: str
    verdict: Verdict
    pair: Comparison | Apart
    worse: float
    """One-sided p-value of the canary being worse."""
    rated: tuple[int, int]
    """Rated sessions of the canary and beside it."""
    level: float
    look: int | None
    """Its number; None if none was spent."""
    moved: str = ""
    """The ref that was moved to the canary; empty: none was."""

    def lines(self) -> list[str]:
        """What was compared, and the verdict."""
        arms, pair = self.arms, self.pair
        how = "unpaired, one session of each task"
        if isinstance(pair, Comparison):
            how = f"{pair.n} pairs on {pair.tasks} tasks"
        first = arms.canary[0]
        new = f"model {first.model_id[:12]}" if arms.new == "model" else f"context {first.context_id[:12]}"
        lines = [
            f"canary of recording {arms.recording}, {new}: {self.rated[0]} of {len(arms.canary)} sessions rated; "
            f"beside it {self.rated[1]} of {len(arms.control)}",
        ]
        if self.verdict != "too few":
            lines.append(
                f"  {self.by}: {pair.first.rate:.3f} against {pair.second.rate:.3f}, {pair.difference}, p = "
                f"{pair.p:.2g} ({how}; look {self.look}, level {self.level:.2g})"
            )
        words = {
            "pass": f"promoted, {self.moved} moved" if self.moved else "promoted before",
            "not better": "not promoted, it is not shown to be better; it goes on, and more ratings make another look",
            "worse": "not promoted, it is worse; no new session is dealt to it",
            "too few": f"not promoted, too few ratings to reach level {self.level:.2g}; no look was spent",
        }
        return [*lines, f"verdict: {words[self.verdict]}"]

    def to_dict(self) -> dict[str, Any]:
        pair = self.pair
        return {
            "recording": self.arms.recording, "by": self.by, "verdict": self.verdict, "new": self.arms.new,
            "model": self.arms.canary[0].model_id, "context": self.arms.canary[0].context_id,
            "sessions": [len(self.arms.canary), len(self.arms.control)], "rated": [*self.rated],
            "first": pair.first.rate, "second": pair.second.rate, "difference": pair.difference.diff,
            "p": pair.p, "p_worse": self.worse, "paired": isinstance(pair, Comparison), "level": self.level,
            "look": self.look, "moved": self.moved, "lines": self.lines(),
        }  # fmt: skip


def arms_of(store: Store, recording: str) -> Arms:
    """The newest canary of a recording, and the sessions beside it: of the same time, and of one model and context.

    Sessions that changed their model half-way belong to neither.

    Raises:
        ConfigError: no canary was served, or nothing beside it.
    """
    dealt = [one for one in sessions(store, recording) if one.arm and _one_model(one)]
    canaries = [one for one in dealt if one.arm == "canary"]
    if not canaries:
        raise ConfigError(
            f"no session of {recording!r} was dealt to a canary; deal some with `agentopcd serve --record {recording} "
            "--canary 0.1`"
        )
    canary = [one for one in canaries if _who(one) == _who(canaries[-1])]
    beside = [one for one in dealt if one.arm == "control" and one.started_at >= canary[0].started_at]
    beside = [one for one in beside if (one.model_id == canary[0].model_id) != (one.context_id == canary[0].context_id)]
    control = [one for one in beside if _who(one) == _who(beside[-1])]
    if not control:
        raise ConfigError(f"no session of {recording!r} was served beside the canary, so there is nothing to compare")
    return Arms(recording=recording, canary=canary, control=control)


def decide(store: Store, recording: str, by: str = "success", *, look: bool = True) -> Outcome:
    """Compare the newest canary with what was served beside it, and move the ref if it is better.

    A repeated call on the same ratings is the same look, and moves nothing twice.

    Args:
        by: success, reward, or a metric of the ratings.
        look: False only tells how many ratings there are, and spends nothing.

    Raises:
        ConfigError: see :func:`arms_of`.
    """
    with store.write():
        arms = arms_of(store, recording)
        plan = canonical({"by": by, "rated": [_plan(arms.canary, by), _plan(arms.control, by)]})
        key = {
            "env": arms.env, "model_id": arms.canary[0].model_id, "setup": CANARY,
            "plan": hashlib.sha256(plan.encode()).hexdigest(),
            "context_id": arms.canary[0].context_id if arms.new == "context" else EMPTY.id,
        }  # fmt: skip
        known = store.lookup("look", **key)
        level = known["level"] if known else level_of(len(store.looks(arms.env)) + 1)
        pair, worse, reach = _compared(arms, by, level)
        found = Outcome(
            arms=arms, by=by, verdict="too few", pair=pair, worse=worse, level=level, look=None,
            rated=(len(_rated(arms.canary, by)), len(_rated(arms.control, by))),
        )  # fmt: skip
        if reach >= level or not look:
            return found
        row = store.begin_look(key, {})
        verdict: Verdict = "pass" if pair.p < level else "worse" if worse < level else "not better"
        found = dataclasses.replace(found, verdict=verdict, look=row["number"])
        if row["verdict"] is None and verdict == "pass":
            found = dataclasses.replace(found, moved=_promote(store, found))
        store.end_look(row["id"], verdict, found.to_dict())
        return found


def _compared(arms: Arms, by: str, level: float) -> tuple[Comparison | Apart, float, float]:
    """The comparison, the p-value of the other direction, and the smallest p-value that so many ratings can have.

    Which comparison it is depends on the tasks alone: paired if most of the canary's rated sessions have a pair.
    """
    first, second = _by_task(arms.canary, by), _by_task(arms.control, by)
    places = [(task, n) for task in first for n in range(min(len(first[task]), len(second.get(task, ()))))]
    draws, z = draws_for(level), NormalDist().inv_cdf(1 - level)
    if places and 2 * len(places) >= len(_rated(arms.canary, by)):
        a, b = ({(task, n): arm[task][n] for task, n in places} for arm in (first, second))
        tasks = {place: place[0] for place in places}
        there, back = compare(a, b, tasks, draws=draws, z=z), compare(b, a, tasks, draws=draws)
        return there, back.p, 0.5**there.tasks
    a, b = ([scores[0] for scores in arm.values()] for arm in (first, second))
    there, back = compare_apart(a, b, draws=draws, z=z), compare_apart(b, a, draws=draws)
    return there, back.p, 1 / comb(len(a) + len(b), len(a))


def _promote(store: Store, found: Outcome) -> str:
    """Move the ref to the canary, unless it is there already; returns the ref that moved, or ''."""
    arms, one = found.arms, found.arms.canary[0]
    reason = f"canary, {found.by} {found.pair.difference}; look {found.look} at level {found.level:.2g}"
    if arms.new == "model":
        if current_student(store, arms.env) == one.model_id:
            return ""
        move_student(store, arms.env, one.model_id, "gate", reason)
        return student_ref(arms.env)
    if store.ref(best_ref(arms.env)) == one.context_id:
        return ""
    store.move(best_ref(arms.env), one.context_id, CANARY, reason)
    return best_ref(arms.env)


def _one_model(session: Recorded) -> bool:
    return all((one.model_id, one.context_id) == _who(session) for one in session.requests)


def _who(session: Recorded) -> tuple[str, str]:
    return session.model_id, session.context_id


def _score(rating: Rating, by: str) -> float | None:
    """A bool for success."""
    if by in ("success", "reward"):
        return getattr(rating, by)
    return rating.metrics.get(by)


def _rated(found: Sequence[Recorded], by: str) -> list[Recorded]:
    return [one for one in found if _score(one.rating, by) is not None]


def _by_task(found: Sequence[Recorded], by: str) -> Mapping[str, list[float]]:
    """The scores of rated sessions, by the client's task; a session without one is a task of its own."""
    tasks: defaultdict[str, list[float]] = defaultdict(list)
    for one in _rated(found, by):
        score = _score(one.rating, by)
        assert score is not None
        tasks[f"session:{one.key}" if one.task is None else f"task:{one.task}"].append(score)
    return tasks


def _plan(found: Sequence[Recorded], by: str) -> list[list[Any]]:
    return [[one.key, _score(one.rating, by)] for one in _rated(found, by)]
