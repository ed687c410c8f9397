"""The ratchet: a student becomes ENV/student only if it is better here and has lost nothing that its parents had.

Three questions, each on tasks that chose nothing, so that rounds can follow each other without end:

1. Better here: on this environment's confirm tasks, without a context, the student beats its parent and, if that is
   another one, the model at ENV/student.
2. Nothing lost: in every environment that a model of its lineage was promoted in, it is not inferior to the last of
   these, by more than a margin, on that environment's confirm tasks.
3. Not far away: on neutral prompts, its replies are near those of the base of its lineage.

Each environment's tests are one look at its confirm tasks, at the level that the budget of looks allows
(:mod:`agentopcd.knowledge.looks`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist, pstdev
from typing import Any, Literal

from agentopcd.core.config.training import TrainConfig
from agentopcd.core.errors import AgentOpcdError, ConfigError
from agentopcd.core.power import least_p
from agentopcd.core.stats import Comparison, Mean, compare, draws_for
from agentopcd.core.text import SHORT, counted
from agentopcd.core.types import EMPTY, Context, Job, Mixture
from agentopcd.distillation.distance import DISTANCE
from agentopcd.knowledge import Arm, Bench, Place, canonical, home, left_after
from agentopcd.knowledge.looks import left_of
from agentopcd.knowledge.students import current_student, lineage, move_student, student_ref
from agentopcd.models.load import LoadedModel
from agentopcd.workspace.evaluation.distance import nats_by_place
from agentopcd.workspace.evaluation.neutral import neutral_drift
from agentopcd.workspace.evaluation.table import Contestant
from agentopcd.workspace.gated import UNGATED, abilities, as_made, confirm_jobs, incumbent, made_by, moved, too_few
from agentopcd.workspace.known import load_known
from agentopcd.workspace.session import Session

Verdict = Literal["promoted", "too few", "not better", "student stays", "lost", "drifted", "overtaken"]
"""``too few`` confirm tasks to pass at this look's level, whatever comes of them; that spends no look. ``not better``
than the parent; better than that, but the model at ENV/student stays; something was ``lost`` in an earlier environment;
replies to neutral prompts have ``drifted``; it passed all this, but was ``overtaken`` by another move of ENV/student;
or ``promoted``."""

Role = Literal["parent", "student", "had"]
"""Who a student meets: its parent, the model at ENV/student, or the model whose ability must be kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Test:
    """A student beside another model on one environment's confirm tasks, both without a context."""

    env: str
    rival: str
    """The other model's id."""
    role: Role
    pair: Comparison
    """The student against it; the interval is at this look's level, one-sided."""
    look: int
    level: float
    passed: bool
    by: str = "success"
    """What was compared: success, reward, a metric, or a distance, with a minus sign, so that more is better."""
    allowed: float = 0.0
    """How much less an ability may be, in the unit of ``by``."""
    left: float | None = None
    """What this look has left of the budget; by default, what it leaves where no look was imported."""

    def __str__(self) -> str:
        pair, gain = self.pair, self.pair.difference
        rates = f"{pair.first.rate:.3f} against {pair.second.rate:.3f},"
        if self.by == DISTANCE:
            rates = f"distance {-pair.first.rate:.3f} against {-pair.second.rate:.3f}, nearer by"
        what = {"parent": "its parent", "student": "the student before it", "had": f"what it had in {self.env}"}
        worst = f"at worst {gain.low:+.3f}, {-self.allowed:+.3g} is allowed"
        if _few(pair, self.by, self.level):
            worst = f"{counted(pair.tasks, 'task')}, too few to tell"
        asked = f"p = {pair.p:.2g}" if self.role != "had" else worst
        return (
            f"  against {what[self.role]} {self.rival[:SHORT]}: {rates} {gain.diff:+.3f}, {asked} (n={pair.n}; look "
            f"{self.look}, level {self.level:.2g}): {'yes' if self.passed else 'no'}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "env": self.env, "rival": self.rival, "role": self.role, **self.pair.to_dict(),
            "by": self.by, "first": self.pair.first.rate, "second": self.pair.second.rate, "passed": self.passed,
            "allowed": self.allowed, "look": self.look, "level": self.level,
            "left": left_after(self.look) if self.left is None else self.left,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Promotion:
    """Whether a student took the place of ENV/student, and why."""

    env: str
    student: str
    verdict: Verdict
    tests: Sequence[Test]
    drift: Mean | None
    """Nats a token from the lineage's base on neutral prompts; None if it did not come to that."""
    margin: float
    budget: float
    """The most that ``drift`` may be, in nats a token."""
    notes: Sequence[str] = ()
    """What could not be asked, and why."""
    asked: bool = True
    """False: it was refused for something that could not be asked, which another way to train would not change."""

    @property
    def promoted(self) -> bool:
        return self.verdict == "promoted"

    def lines(self) -> list[str]:
        """The tests, a line each, and the verdict."""
        said = [f"the gate of {student_ref(self.env)}, student {self.student[:SHORT]}:", *map(str, self.tests)]
        if self.drift is not None:
            inside = "yes" if self.drift.high <= self.budget else "no"
            said.append(f"  neutral prompts: {self.drift} nats a token from the base, budget {self.budget:g}: {inside}")
        said += [f"  note: {note}" for note in self.notes]
        stays = f"{student_ref(self.env)} stays as it is"
        words = {
            "promoted": f"promoted, {student_ref(self.env)} moved",
            "not better": f"not promoted, it is not shown to be better than its parent here; {stays}",
            "student stays": f"not promoted, it is not shown to be better than the student before it; {stays}",
            "lost": f"not promoted, it may have lost more elsewhere than a margin of {self.margin:g} allows; {stays}",
            "too few": f"not promoted, so few confirm tasks cannot show that it is better, no look was spent; {stays}",
            "drifted": f"not promoted, its replies to neutral prompts are not shown to be near the base's; {stays}",
            "overtaken": f"not promoted, it passed, but {student_ref(self.env)} was moved meanwhile; {stays}",
        }
        return [*said, f"verdict: {words[self.verdict]}"]

    def to_dict(self) -> dict[str, Any]:
        return {
            "env": self.env, "student": self.student, "verdict": self.verdict, "margin": self.margin,
            "budget": self.budget, "drift": self.drift and self.drift.to_dict(), "notes": [*self.notes],
            "asked": self.asked,
            "tests": [test.to_dict() for test in self.tests], "lines": self.lines(),
        }  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taught:
    """What a student was taught, which its distance is measured to where nothing is right or wrong."""

    context: Context | Mixture
    teacher: str
    """The name to load the teacher by."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Ground:
    """One environment's confirm tasks, on which a student meets other models."""

    session: Session
    run_id: int
    jobs: Sequence[Job]
    taught: Taught | None = None

    @classmethod
    def of(cls, session: Session, tasks: int, run_id: int, taught: Taught | None = None) -> _Ground:
        return cls(session=session, run_id=run_id, jobs=confirm_jobs(session, tasks), taught=taught)

    @property
    def places(self) -> list[Place]:
        return [(job.task.key, job.task.seed, job.rep) for job in self.jobs]

    def play(self, label: str, model: LoadedModel) -> Bench:
        """Play the tasks that this model has not played, without a context."""
        bench = self.session.bench(self.run_id, model)
        bench.prepare([EMPTY], [job.task for job in self.jobs], "confirm")
        bench.play_missing(f"confirm: {label}", self.jobs)
        return bench

    def scores(self, bench: Bench, model_id: str, model: LoadedModel | None = None) -> Mapping[Place, float]:
        """What a model has reached on the tasks, by place. It is loaded only if something is missing.

        Raises:
            ConfigError: it would have to play, and is gone or was changed.
        """
        measured = self.session.by == DISTANCE
        done = bench.store.outcomes(Arm(model_id), bench.arena(places=self.places))
        if model is None and (measured or len(done) < len(self.jobs)):
            model = load_known(self.session, model_id)
        if len(done) < len(self.jobs):
            assert model is not None
            self.play(model_id[:SHORT], model)
        if not measured:
            return bench.store.outcomes(Arm(model_id), bench.arena(places=self.places, by=self.session.by))
        assert model is not None and self.taught is not None
        teacher = self.session.load(self.taught.teacher)
        contestant = Contestant(label=model_id[:SHORT], model=model)
        far = nats_by_place(self.session, contestant, teacher, self.taught.context, self.jobs, setup=bench.setup)
        return {place: -nats for place, nats in far.items()}

    def meet(
        self, bench: Bench, student: LoadedModel, rivals: Mapping[str, Role], margin: float
    ) -> tuple[list[Test], Mapping[str, Any]]:
        """The student against other models, all in one look at these tasks; a repeated call is the same look."""
        plan = canonical({"student": [*rivals], "by": self.session.by, "places": [[*place] for place in self.places]})
        mine = self.scores(bench, student.id, student)
        theirs = {rival: self.scores(bench, rival) for rival in rivals}
        if not all(mine.keys() & scores.keys() for scores in theirs.values()):  # before a look is spent on nothing
            raise ConfigError(f"no confirm task of {bench.env} was finished by both models, so nothing can be compared")
        look = bench.store.begin_look(
            {"env": bench.env, "model_id": student.id, "context_id": EMPTY.id, "setup": bench.setup,
             "plan": hashlib.sha256(plan.encode()).hexdigest()},
            {"run_id": self.run_id},
        )  # fmt: skip
        level, tests, left = look["level"], [], left_of(bench.store.looks(bench.env)[: look["number"]])
        for rival, role in rivals.items():
            pair = compare(
                mine, theirs[rival], {place: place[0] for place in mine}, draws=draws_for(level),
                z=NormalDist().inv_cdf(1 - level),
            )  # fmt: skip
            allowed = margin * _spread(theirs[rival].values(), self.session.by)
            kept = pair.difference.low > -allowed or pair.difference.low >= 0
            passed = pair.p < level if role != "had" else kept and not _few(pair, self.session.by, level)
            tests.append(
                Test(
                    env=bench.env, rival=rival, role=role, pair=pair, look=look["number"], level=level, passed=passed,
                    by=self.session.by, allowed=allowed, left=left,
                )
            )  # fmt: skip
        return tests, look


def _few(pair: Comparison, by: str, level: float) -> bool:
    """Whether so few tasks show nothing at this level: two with equal scores have an interval without width."""
    return least_p(pair.tasks, success=by == "success") >= level


def _spread(scores: Iterable[float], by: str) -> float:
    """What a margin is a share of: 1 for success rates; for other scores twice their standard deviation over tasks.

    That is 1, too, for a score of 0 and 1 that is as often one as the other, and follows the scale of any other score.
    """
    return 1.0 if by == "success" else 2 * pstdev(map(float, scores))


def play_parent(session: Session, parent: LoadedModel, tasks: int, run_id: int) -> None:
    """Play a parent's confirm tasks while its weights are in memory, before they are trained."""
    if tasks:
        _Ground.of(session, tasks, run_id).play("parent", parent)


def promote(
    session: Session, student: LoadedModel, parent_id: str, config: TrainConfig, taught: Taught, run_id: int
) -> Promotion:
    """Ask the three questions about a student, and move ENV/student to it if all answers are yes and it is still the
    model that the student has met.

    A repeated call is the same look, and moves nothing twice.

    Args:
        parent_id: the model that it was trained from.
        config: ``gate_tasks``, ``margin`` and ``drift_budget``.
    """
    store, env = session.store, session.env
    if few := too_few(session, config, run_id):
        return Promotion(
            env=env, student=student.id, verdict="too few", tests=[], drift=None, margin=config.most_lost,
            budget=config.budget_nats, notes=[few], asked=False,
        )  # fmt: skip
    ground = _Ground.of(session, config.gate_tasks, run_id, taught)
    bench = ground.play("student", student)
    rivals: dict[str, Role] = {parent_id: "parent"}
    if (met := incumbent(session, run_id)) not in (None, student.id):
        rivals.setdefault(str(met), "student")
    tests, look = ground.meet(bench, student, rivals, 0.0)
    verdict: Verdict = "promoted"
    drift, kept = None, _Kept()
    if failed := [test for test in tests if not test.passed]:
        verdict = "not better" if failed[0].role == "parent" else "student stays"
    else:
        kept = _kept(session, student, parent_id, config, run_id)
        tests += kept.tests
        if not kept.whole:
            verdict = "lost"
        else:
            drift = _drift(session, student, kept)
            verdict = "promoted" if drift is not None and drift.high <= config.budget_nats else "drifted"
    result = Promotion(
        env=env, student=student.id, verdict=verdict, tests=tests, drift=drift, margin=config.most_lost,
        budget=config.budget_nats, notes=kept.notes, asked=kept.asked,
    )  # fmt: skip
    with store.write():
        moves = result.promoted and current_student(store, env) != student.id and moved(session, run_id) is None
        if moves and current_student(store, env) != met:  # minutes have passed since it was read
            result = dataclasses.replace(result, verdict="overtaken")
        store.end_look(look["id"], "pass" if result.promoted else result.verdict, result.to_dict())
        if moves and result.promoted:
            reason = f"{tests[0].pair.difference} to its parent; look {look['number']} at level {look['level']:.2g}"
            move_student(store, env, student.id, "gate", reason, run_id)
    return result


@dataclasses.dataclass
class _Kept:
    """What was found out about what a lineage had."""

    tests: list[Test] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    whole: bool = True
    """Whether nothing is lost."""
    asked: bool = True
    """Whether all could be asked that had to be."""


def _kept(session: Session, student: LoadedModel, parent_id: str, config: TrainConfig, run_id: int) -> _Kept:
    """The student against what its lineage had in other environments.

    What cannot be asked counts as lost: promoting it unasked would be no ratchet.
    """
    kept = _Kept()
    for env, had in abilities(session, parent_id).items():
        try:
            made = made_by(session, had)
            if home(trained_on := made.get("env", env)) != env:  # a canary has put it there
                kept.notes.append(f"{env} was not asked: its student was trained on {trained_on}")
                continue
            with as_made(session, made) as other:
                if not other.game.graded:
                    kept.notes.append(f"{env} was not asked: nothing is right or wrong there")
                    continue
                ground = _Ground.of(other, config.gate_tasks, run_id)
                bench = ground.play(f"student in {env}", student)
                (test,), look = ground.meet(bench, student, {had["id"]: "had"}, config.most_lost)
                other.store.end_look(look["id"], "pass" if test.passed else "lost", test.to_dict())
        except AgentOpcdError as error:
            kept.notes.append(
                f"{env} could not be asked, so it counts as lost: {error}; put back what is missing, {UNGATED}"
            )
            kept.whole = kept.asked = False
            continue
        kept.tests.append(test)
        kept.whole &= test.passed
        if not test.passed and test.pair.losses <= test.pair.wins:
            few = f"the {test.pair.n} pairs of {env} are too few to show a loss below {test.allowed:.3g}; see --margin"
            kept.notes.append(few)
    return kept


def _drift(session: Session, student: LoadedModel, kept: _Kept) -> Mean | None:
    """How far the student's replies to neutral prompts are from those of the base of its lineage; None if that cannot
    be measured, which is noted."""
    base, what = None, "the drift on neutral prompts was not measured"
    try:
        base = load_known(session, lineage(session.store, student.id)[-1])
        return neutral_drift(session, student, base)
    except AgentOpcdError as error:
        kept.asked = base is not None  # of the replies of another student it may be measured
        kept.notes.append(f"{what}: {error}" + ("" if kept.asked else f", {UNGATED}"))
        return None
