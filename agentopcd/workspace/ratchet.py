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
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal

from agentopcd.core.config import PlayerConfig
from agentopcd.core.config.training import TrainConfig
from agentopcd.core.errors import AgentOpcdError, ConfigError
from agentopcd.core.stats import Comparison, Mean, compare, draws_for
from agentopcd.core.text import SHORT
from agentopcd.core.types import EMPTY, Context, Job, Mixture
from agentopcd.distillation.distance import DISTANCE
from agentopcd.knowledge import Arm, Bench, Place, canonical, left_after
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.students import current_student, lineage, move_student, student_moves, student_ref
from agentopcd.models.load import LoadedModel
from agentopcd.workspace.evaluation.distance import nats_by_place
from agentopcd.workspace.evaluation.neutral import neutral_drift
from agentopcd.workspace.evaluation.table import Contestant
from agentopcd.workspace.experience.choose import first_rep
from agentopcd.workspace.ledger import config_of
from agentopcd.workspace.paths import recall
from agentopcd.workspace.session import Session

Verdict = Literal["promoted", "not better", "student stays", "lost", "drifted", "overtaken"]
"""``not better`` than the parent; better than that, but the model at ENV/student stays; something was ``lost`` in an
earlier environment; replies to neutral prompts have ``drifted``; it passed all this, but was ``overtaken`` by another
move of ENV/student; or ``promoted``."""

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

    def __str__(self) -> str:
        pair, gain = self.pair, self.pair.difference
        rates = f"{pair.first.rate:.3f} against {pair.second.rate:.3f},"
        if self.by == DISTANCE:
            rates = f"distance {-pair.first.rate:.3f} against {-pair.second.rate:.3f}, nearer by"
        what = {"parent": "its parent", "student": "the student before it", "had": f"what it had in {self.env}"}
        asked = f"p = {pair.p:.2g}" if self.role != "had" else f"at worst {gain.low:+.3f}"
        return (
            f"  against {what[self.role]} {self.rival[:SHORT]}: {rates} {gain.diff:+.3f}, {asked} (n={pair.n}; look "
            f"{self.look}, level {self.level:.2g}): {'yes' if self.passed else 'no'}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "env": self.env, "rival": self.rival, "role": self.role, **self.pair.to_dict(),
            "by": self.by, "first": self.pair.first.rate, "second": self.pair.second.rate, "passed": self.passed,
            "look": self.look, "level": self.level, "left": left_after(self.look),
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
            "lost": f"not promoted, it may have lost more than {self.margin:g} elsewhere; {stays}",
            "drifted": f"not promoted, its replies to neutral prompts are not shown to be near the base's; {stays}",
            "overtaken": f"not promoted, it passed, but {student_ref(self.env)} was moved meanwhile; {stays}",
        }
        return [*said, f"verdict: {words[self.verdict]}"]

    def to_dict(self) -> dict[str, Any]:
        return {
            "env": self.env, "student": self.student, "verdict": self.verdict, "margin": self.margin,
            "budget": self.budget, "drift": self.drift and self.drift.to_dict(), "notes": [*self.notes],
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
        jobs = [Job(task, rep=first_rep(session)) for task in session.tasks("confirm", tasks)]
        return cls(session=session, run_id=run_id, jobs=jobs, taught=taught)

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
            ConfigError: it would have to play, and is not here.
        """
        measured = self.session.by == DISTANCE
        done = bench.store.outcomes(Arm(model_id), bench.arena(places=self.places))
        if model is None and (measured or len(done) < len(self.jobs)):
            row = bench.store.lookup("model", id=model_id)
            if (name := recall(self.session.work, row) if row else None) is None:
                raise ConfigError(f"model {model_id[:SHORT]} is not here, and has to play confirm tasks of {bench.env}")
            model = self.session.load(name)
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
        level, tests = look["level"], []
        for rival, role in rivals.items():
            pair = compare(
                mine, theirs[rival], {place: place[0] for place in mine}, draws=draws_for(level),
                z=NormalDist().inv_cdf(1 - level),
            )  # fmt: skip
            passed = pair.difference.low > -margin if role == "had" else pair.p < level
            tests.append(
                Test(
                    env=bench.env, rival=rival, role=role, pair=pair, look=look["number"], level=level, passed=passed,
                    by=self.session.by,
                )
            )  # fmt: skip
        return tests, look


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
    ground = _Ground.of(session, config.gate_tasks, run_id, taught)
    bench = ground.play("student", student)
    rivals: dict[str, Role] = {parent_id: "parent"}
    if (met := _incumbent(session, run_id)) not in (None, student.id):
        rivals.setdefault(str(met), "student")
    tests, look = ground.meet(bench, student, rivals, 0.0)
    verdict: Verdict = "promoted"
    drift, notes = None, []
    if failed := [test for test in tests if not test.passed]:
        verdict = "not better" if failed[0].role == "parent" else "student stays"
    else:
        kept, notes, whole = _kept(session, student, parent_id, config, run_id)
        tests += kept
        if not whole:
            verdict = "lost"
        else:
            drift, more = _drift(session, student)
            notes += more
            verdict = "promoted" if drift is not None and drift.high <= config.budget_nats else "drifted"
    result = Promotion(
        env=env, student=student.id, verdict=verdict, tests=tests, drift=drift, margin=config.most_lost,
        budget=config.budget_nats, notes=notes,
    )  # fmt: skip
    with store.write():
        moves = result.promoted and current_student(store, env) != student.id and _moved(session, run_id) is None
        if moves and current_student(store, env) != met:  # minutes have passed since it was read
            result = dataclasses.replace(result, verdict="overtaken")
        store.end_look(look["id"], "pass" if result.promoted else result.verdict, result.to_dict())
        if moves and result.promoted:
            reason = f"{tests[0].pair.difference} to its parent; look {look['number']} at level {look['level']:.2g}"
            move_student(store, env, student.id, "gate", reason, run_id)
    return result


def _incumbent(session: Session, run_id: int) -> str | None:
    """The model at ENV/student before this run moved it."""
    own = _moved(session, run_id)
    if own is None:
        return current_student(session.store, session.env)
    return student_moves(session.store, session.env)[own - 1]["model_id"] if own else None


def _moved(session: Session, run_id: int) -> int | None:
    """The place, among the moves of ENV/student, of the one that a run has made; None if it has made none."""
    moves = student_moves(session.store, session.env)
    return next((place for place, move in enumerate(moves) if move["run_id"] == run_id), None)


def _kept(
    session: Session, student: LoadedModel, parent_id: str, config: TrainConfig, run_id: int
) -> tuple[list[Test], list[str], bool]:
    """The student against what its lineage had in other environments, notes, and whether nothing is lost.

    What cannot be asked counts as lost: promoting it unasked would be no ratchet.
    """
    tests: list[Test] = []
    notes: list[str] = []
    whole = True
    for env, had in abilities(session, parent_id).items():
        try:
            settings, by = _settings(session, had["run_id"])
            with Session(settings, session.work, say=session.say_once, by=by) as other:
                if not other.game.graded:
                    notes.append(f"{env} was not asked: nothing is right or wrong there")
                    continue
                ground = _Ground.of(other, config.gate_tasks, run_id)
                bench = ground.play(f"student in {env}", student)
                found, look = ground.meet(bench, student, {had["id"]: "had"}, config.most_lost)
                other.store.end_look(look["id"], "pass" if found[0].passed else "lost", found[0].to_dict())
        except AgentOpcdError as error:
            notes.append(f"{env} could not be asked, so it counts as lost: {error}")
            whole = False
            continue
        tests += found
        whole &= found[0].passed
        if not found[0].passed and found[0].pair.losses <= found[0].pair.wins:
            n = found[0].pair.n
            notes.append(f"the {n} pairs of {env} are too few to show a loss below {config.most_lost:g}; see --margin")
    return tests, notes, whole


def abilities(session: Session, parent_id: str) -> dict[str, Mapping[str, Any]]:
    """What a lineage was promoted in besides this environment: the model of the last such move, by environment."""
    line = lineage(session.store, parent_id)
    last = {move["env"]: move["model_id"] for move in student_moves(session.store) if move["model_id"] in line}
    rows = {env: session.store.lookup("model", id=id_) for env, id_ in last.items() if env != session.env}
    return {env: row for env, row in rows.items() if row is not None and row["run_id"] is not None}


def _settings(session: Session, run_id: int) -> tuple[PlayerConfig, str]:
    """How an earlier run played its environment, with the engine of this session, and what it chose by.

    Raises:
        ConfigError: another version wrote that run.
    """
    stored = read_object(session.store.run(run_id)["config"], f"the config of run {run_id}")
    here = session.config
    engine = {name: getattr(here, name) for name in ("engine", "server", "device", "compute")}
    by = stored.get("by", "")
    return dataclasses.replace(config_of(PlayerConfig, stored), model="", **engine), "" if by == DISTANCE else by


def _drift(session: Session, student: LoadedModel) -> tuple[Mean | None, list[str]]:
    """How far the student's replies to neutral prompts are from those of the base of its lineage."""
    base = session.store.lookup("model", id=lineage(session.store, student.id)[-1])
    name = recall(session.work, base) if base else None
    if name is None:
        return None, ["the drift on neutral prompts was not measured: the base of the lineage is not here; put it back"]
    try:
        return neutral_drift(session, student, session.load(name)), []
    except AgentOpcdError as error:
        return None, [f"the drift on neutral prompts was not measured: {error}"]
