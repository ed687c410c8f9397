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
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

from agentopcd.core.apart import Apart, compare_apart
from agentopcd.core.config import RECORDED
from agentopcd.core.errors import ConfigError
from agentopcd.core.power import least_p
from agentopcd.core.runs import work_flag
from agentopcd.core.stats import Comparison, compare, draws_for
from agentopcd.core.types import EMPTY
from agentopcd.knowledge import Store, best_ref, canonical
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.recordings import Rating, Recorded, sessions
from agentopcd.knowledge.students import CANARY, current_student, move_student, student_ref

Verdict = Literal["pass", "not better", "worse", "too few", "not asked"]
"""``too few`` ratings to pass at this look's level, whatever they are; that spends no look. A ``worse`` canary is dealt
no session any more. One that is ``not better`` goes on, and more ratings make another look. ``not asked``: a dry run,
and there are ratings enough."""


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
    pair: Comparison | Apart | None = None
    """None: nobody has looked."""
    worse: float = 1.0
    """One-sided p-value of the canary being worse."""
    paired: bool
    rated: tuple[int, int]
    """Rated sessions of the canary and beside it."""
    level: float
    look: int | None = None
    """Its number; None if none was spent."""
    moved: str = ""
    """The ref that was moved to the canary; empty: none was."""
    overtaken: bool = False
    """Whether the ref was moved by somebody else while ratings were compared, so that it stays."""

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
        if pair is not None:
            lines.append(
                f"  {self.by}: {pair.first.rate:.3f} against {pair.second.rate:.3f}, {pair.difference}, p = "
                f"{pair.p:.2g} ({how}; look {self.look}, level {self.level:.2g})"
            )
        words = {
            "pass": f"promoted, {self.moved} moved" if self.moved else "promoted before",
            "overtaken": "not promoted, it is better; but its ref was moved while ratings were compared, and stays",
            "not better": "not promoted, it is not shown to be better; it goes on, and more ratings make another look",
            "worse": "not promoted, it is worse; no new session is dealt to it",
            "too few": f"not promoted, too few ratings to reach level {self.level:.2g}; no look was spent",
            "not asked": f"not asked, there are ratings enough to reach level {self.level:.2g}; no look was spent",
        }
        return [*lines, f"verdict: {words['overtaken' if self.overtaken else self.verdict]}"]

    def to_dict(self) -> dict[str, Any]:
        """The fields that reports write; what a comparison shows only if a look was spent on it."""
        pair = self.pair
        shown = {} if pair is None else {
            "first": pair.first.rate, "second": pair.second.rate, "difference": pair.difference.diff, "p": pair.p,
            "p_worse": self.worse,
        }  # fmt: skip
        return shown | {
            "recording": self.arms.recording, "by": self.by, "verdict": self.verdict, "new": self.arms.new,
            "model": self.arms.canary[0].model_id, "context": self.arms.canary[0].context_id,
            "sessions": [len(self.arms.canary), len(self.arms.control)], "rated": [*self.rated],
            "paired": self.paired, "level": self.level, "look": self.look, "moved": self.moved,
            "overtaken": self.overtaken, "lines": self.lines(),
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
            f"--canary 0.1{work_flag(Path(store.path).parent)}`"
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

    A repeated call on the same ratings is the same look, and moves nothing twice. While ratings are read and compared,
    a server can write to the store.

    Args:
        by: success, reward, or a metric of the ratings.
        look: False only tells how many ratings there are, and neither spends nor writes anything.

    Raises:
        ConfigError: see :func:`arms_of` and :func:`check_beside`.
    """
    with store.read():
        arms = arms_of(store, recording)
    plan = canonical({"by": by, "rated": [_plan(arms.canary, by), _plan(arms.control, by)]})
    key = {
        "env": arms.env, "model_id": arms.canary[0].model_id, "setup": CANARY,
        "plan": hashlib.sha256(plan.encode()).hexdigest(),
        "context_id": arms.canary[0].context_id if arms.new == "context" else EMPTY.id,
    }  # fmt: skip
    if not (known := store.lookup("look", **key)) or known["verdict"] is None:  # what was decided stays decided
        check_beside(store, arms)
    scores = _Scores.of(arms, by)
    rated = len(_rated(arms.canary, by)), len(_rated(arms.control, by))

    def blind(level: float) -> Outcome:
        few = scores.reach >= level
        verdict: Verdict = "too few" if few else "not asked"
        return Outcome(arms=arms, by=by, verdict=verdict, paired=scores.paired, rated=rated, level=level)

    if not look:
        return blind(_level(store, key))
    with store.write():
        if (found := blind(_level(store, key))).verdict == "too few":
            return found
        row, was = store.begin_look(key, {}), _at(store, arms)
    pair, worse = scores.compared(found.level)  # takes its time, so nothing is locked
    verdict: Verdict = "pass" if pair.p < found.level else "worse" if worse < found.level else "not better"
    found = dataclasses.replace(found, verdict=verdict, pair=pair, worse=worse, look=row["number"])
    with store.write():
        known = store.lookup("look", id=row["id"])
        if verdict == "pass" and known is not None and known["verdict"] is None:
            overtaken = _at(store, arms) != was
            found = dataclasses.replace(found, moved="" if overtaken else _promote(store, found), overtaken=overtaken)
        elif verdict == "pass" and known is not None and known["result"]:
            first = read_object(known["result"], f"the result of look {row['number']}")
            found = dataclasses.replace(found, overtaken=first.get("overtaken", False))
        store.end_look(row["id"], verdict, found.to_dict())
    return found


def check_beside(store: Store, arms: Arms) -> None:
    """Refuse a canary that was never served beside what it would replace.

    Raises:
        ConfigError: its ref names something that is neither the canary nor what was served beside it.
    """
    served = {one.model_id if arms.new == "model" else one.context_id for one in (arms.canary[0], arms.control[-1])}
    if (now := _at(store, arms)) is not None and now not in served:
        ref = student_ref(arms.env) if arms.new == "model" else best_ref(arms.env)
        raise ConfigError(
            f"{ref} is {now[:12]} now, beside which this canary was never served, so nothing compares the two; serve "
            "that beside the canary, let sessions be rated, and ask again (no look was spent)"
        )


def _level(store: Store, key: Mapping[str, Any]) -> float:
    """The level of the look with this key, or of the next one if there is none yet."""
    known = store.lookup("look", **key)
    return known["level"] if known else store.next_level(key["env"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scores:
    """What is compared. Whether it is paired depends on the tasks alone: if most of the canary's rated sessions have a
    pair."""

    first: Mapping[Any, float]
    """Scores of the canary, by pair or by task."""
    second: Mapping[Any, float]
    tasks: Mapping[Any, str] | None
    """The task of each pair; None: there are no pairs."""

    @classmethod
    def of(cls, arms: Arms, by: str) -> _Scores:
        first, second = _by_task(arms.canary, by), _by_task(arms.control, by)
        places = [(task, n) for task in first for n in range(min(len(first[task]), len(second.get(task, ()))))]
        if places and 2 * len(places) >= len(_rated(arms.canary, by)):
            a, b = ({(task, n): arm[task][n] for task, n in places} for arm in (first, second))
            return cls(first=a, second=b, tasks={place: place[0] for place in places})
        a, b = ({task: scores[0] for task, scores in arm.items()} for arm in (first, second))
        return cls(first=a, second=b, tasks=None)

    @property
    def paired(self) -> bool:
        return self.tasks is not None

    @property
    def reach(self) -> float:
        """The smallest p-value that so many ratings can have, whatever they are."""
        success = all(isinstance(value, bool) for value in (*self.first.values(), *self.second.values()))
        if self.tasks is not None:
            distinct = len(set(self.tasks.values()))
            return least_p(distinct, success=success and distinct == len(self.tasks))
        least = 1 / comb(len(self.first) + len(self.second), len(self.first))
        return least / 2 if success else least  # a mid-p counts half of what was seen

    def compared(self, level: float) -> tuple[Comparison | Apart, float]:
        """The comparison, and the p-value of the other direction."""
        draws, z = draws_for(level), NormalDist().inv_cdf(1 - level)
        if self.tasks is not None:
            back = compare(self.second, self.first, self.tasks, draws=draws)
            return compare(self.first, self.second, self.tasks, draws=draws, z=z), back.p
        a, b = [*self.first.values()], [*self.second.values()]
        return compare_apart(a, b, draws=draws, z=z), compare_apart(b, a, draws=draws).p


def _at(store: Store, arms: Arms) -> str | None:
    """Where the ref is that a pass would move: what a person moves while ratings are compared, stays moved."""
    return current_student(store, arms.env) if arms.new == "model" else store.ref(best_ref(arms.env))


def _promote(store: Store, found: Outcome) -> str:
    """Move the ref to the canary, unless it is there already; returns the ref that moved, or ''."""
    arms, one = found.arms, found.arms.canary[0]
    assert found.pair is not None
    reason = f"canary, {found.by} {found.pair.difference}; look {found.look} at level {found.level:.2g}"
    if _at(store, arms) == (one.model_id if arms.new == "model" else one.context_id):
        return ""
    if arms.new == "model":
        move_student(store, arms.env, one.model_id, "gate", reason)
        return student_ref(arms.env)
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
