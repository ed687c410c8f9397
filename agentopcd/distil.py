"""What ``agentopcd consolidate`` does: evaluate, train, evaluate again, and register the student."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentopcd import models
from agentopcd.consolidate import Consolidated, Training, consolidate
from agentopcd.core.config import ConfirmConfig, ConsolidateConfig, flags_for, player_flags
from agentopcd.core.config.toml import saved
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import Run, read_json, write_json
from agentopcd.core.types import Context, Episode, Mixture, Task
from agentopcd.distillation.distance import DISTANCE, Totals
from agentopcd.distillation.methods import METHODS, Needs
from agentopcd.distillation.played import draw
from agentopcd.distillation.teacher import teacher_of
from agentopcd.knowledge import Arm
from agentopcd.knowledge.students import move_student, student_moves
from agentopcd.models import find
from agentopcd.models.parallel import sharding
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.engine import engine_of, player_of
from agentopcd.rollouts.fault_log import FaultLog
from agentopcd.workspace.card import describe
from agentopcd.workspace.checks import check_before, check_launch, check_method, check_trainable
from agentopcd.workspace.day import day_of
from agentopcd.workspace.evaluation.distance import distances
from agentopcd.workspace.evaluation.spoken import Distances
from agentopcd.workspace.evaluation.table import Contestant, Entry, Evaluation, evaluate, row_lines, tabulate
from agentopcd.workspace.evidence import evidence
from agentopcd.workspace.experience.find_context import shares
from agentopcd.workspace.ledger import run_config
from agentopcd.workspace.paths import kept
from agentopcd.workspace.ratchet import Taught, play_parent, promote
from agentopcd.workspace.recorded import use_snapshot
from agentopcd.workspace.resolved import resolved
from agentopcd.workspace.session import Session
from agentopcd.workspace.trackers import summary, tracking


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distilled:
    """Result of a consolidation."""

    folder: str
    """Folder of the student, in the ordinary Hugging Face layout."""
    model_id: str
    parent_id: str
    teacher_id: str
    context_id: str
    best_step: int
    steps: int
    skipped: int
    """Steps that changed nothing."""
    evaluation: Evaluation | None
    promotion: Mapping[str, Any] | None = None
    """Whether it became ENV/student, see :meth:`agentopcd.workspace.ratchet.Promotion.to_dict`; None if it became that
    without a gate."""
    repeated: bool = False
    """True if the run had already finished, so that nothing was trained."""

    @property
    def promoted(self) -> bool:
        """Whether the student became ENV/student."""
        return self.promotion is None or self.promotion["verdict"] == "promoted"

    def to_dict(self) -> dict[str, Any]:
        return {
            "folder": self.folder, "model": self.model_id, "parent": self.parent_id,
            "teacher": self.teacher_id, "context": self.context_id,
            "best_step": self.best_step, "steps": self.steps, "skipped": self.skipped, "repeated": self.repeated,
            "evaluation": None if self.evaluation is None else self.evaluation.to_dict(),
            **({} if self.promotion is None else {"promotion": dict(self.promotion)}),
        }  # fmt: skip

    @classmethod
    def repeating(cls, done: Mapping[str, Any], run: Run) -> Distilled:
        """Rebuild the result that :meth:`to_dict` wrote when the run ended, without its evaluation.

        Raises:
            ConfigError: the student is gone or was changed.
        """
        folder = run.folder / "student"  # not as it was written: the workspace may have been moved
        if not folder.is_dir() or find.fingerprint(folder) != done["model"]:
            what = "was changed" if folder.is_dir() else "is gone"
            raise ConfigError(
                f"{run.folder} is done, but its student {what}; put it back, or remove {run.folder} to train again"
            )
        return cls(
            folder=str(folder), model_id=done["model"], parent_id=done["parent"], teacher_id=done["teacher"],
            context_id=done["context"], best_step=done["best_step"], steps=done.get("steps", 0),
            skipped=done.get("skipped", 0), evaluation=None, promotion=done.get("promotion"), repeated=True,
        )  # fmt: skip


def distil_context(session: Session, config: ConsolidateConfig, context: Context | Mixture) -> Distilled:
    """Evaluate, train, evaluate again, and register the student with the contexts it was trained on.

    Repeat a killed call to resume it. A finished call is reported, not repeated.
    """
    ranks = Ranks.current()
    check_launch(config, ranks.count)
    given, config = config, check_method(session, config)
    session.resume_model("consolidate", context.id)
    student = session.loaded
    if config.lora_rank:
        models.check_adapter(student, config.lora_rank)
    teacher_model = session.load(config.teacher) if config.teacher else student
    for model in {student.id: student, teacher_model.id: teacher_model}.values():
        check_trainable(session, config, model)
    identity = run_config(config) | {
        "env": session.env, "student": student.id, "teacher_id": teacher_model.id, "context_id": context.id,
        "setup": session.setup(), "splits": {name: len(tasks) for name, tasks in session.manifest.splits.items()},
    }  # fmt: skip
    run = Run(session.work, "consolidate", identity, saved(given, resolved(session))[0])
    if (done := run.result) is not None:
        with tracking(run, config.track, identity, session.say) as record:
            record.finish(summary(done["evaluation"]) if done.get("evaluation") else {})
        return _repeated(session, config, context, run, done)
    check_before(session, config, context, student, teacher_model)
    for part in context.parts:
        if said := evidence(session, part, flags_for(config, ConfirmConfig)):
            session.say(said)
    run_id = session.ledger.begin("consolidate", context_id=context.id, folder=str(run.folder))
    arms = _arms(student, teacher_model, context)
    test = session.tasks("test", config.test_tasks) if config.test_tasks else []
    folders = {one.id: str(one.folder) for one in (student, teacher_model)}
    known: dict[str, list[Totals]] = {}
    if test:
        before = evaluate(session, arms, test, run_id=run_id)
        far = measured(session, arms, teacher_model, context, test, known)
        for line in far.lines() if far else row_lines(before.rows):
            session.say(line)
    play_parent(session, student, config.gate_tasks, run_id)
    session.say(f"consolidating context {context.id[:12]} into {student.name}: {run.folder}")
    assignment = _assignment(session, config, context, student, run, identity)
    with tracking(run, config.track, identity, session.say) as record:
        with ranks.led(assignment):
            result = train_student(assignment, student, teacher_model, run, session.say)
        path = kept(session.work, result.folder)
        session.store.add_model(result.model_id, path, path, student.id, run_id, shares(context))
        out = Distilled(
            folder=str(result.folder), model_id=result.model_id, parent_id=student.id, teacher_id=teacher_model.id,
            context_id=context.id, best_step=result.best_step, steps=config.steps, skipped=result.skipped,
            evaluation=None,
        )  # fmt: skip
        describe(session.store, result.folder, result.model_id, student.folder)  # a kill below leaves a card, too
        if test:
            out = dataclasses.replace(out, evaluation=_reported(session, config, context, out, run_id, folders, known))
            describe(session.store, result.folder, result.model_id, student.folder, out.to_dict()["evaluation"])
        record.finish(summary(out.to_dict()["evaluation"]) if test else {})
    out = dataclasses.replace(out, promotion=_promoted(session, config, context, out, teacher_model, run_id))
    run.finish(out.to_dict())  # the folder first: after a kill here, Ledger.settle closes the open row
    session.ledger.finish(run_id, out.to_dict())
    session.use(None)  # the weights in memory are those of the last step, no longer the base's
    return out


def _assignment(
    session: Session, config: ConsolidateConfig, context: Context | Mixture, student: models.LoadedModel, run: Run,
    identity: dict[str, Any],
) -> Assignment:  # fmt: skip
    train = session.tasks("train")
    session.manifest.guard_training(train)
    stored = replayed(session, run.folder, train, config) if config.replays else []
    training = Training(
        config=config,
        context=context,
        train=list(dict.fromkeys(episode.task for episode in stored)) or train,
        select=session.tasks("select", config.select_tasks),
        by=session.by,
    )
    return Assignment(
        training=training, student=str(student.folder), stored=stored, work=session.work, identity=identity,
        snapshot=session.snapshot,
    )  # fmt: skip


def pilot(session: Session, config: ConsolidateConfig, context: Context | Mixture) -> float:
    """Train as ``config`` says, keep no student, and return how well the best checkpoint did on select tasks.

    Larger is better, also of a distance. A finished pilot is not repeated.
    """
    session.use(None)  # the weights in memory may be those of the last training
    student = session.loaded
    teacher = session.load(config.teacher) if config.teacher else student
    identity = run_config(config) | {
        "env": session.env, "student": student.id, "context_id": context.id, "setup": session.setup(),
    }  # fmt: skip
    run = Run(session.work, "pilot", identity)
    if (done := run.result) is None:
        assignment = _assignment(session, config, context, student, run, identity)
        with Ranks.current().led(assignment):
            result = train_student(assignment, student, teacher, run, session.say)
        scores = [found.rate for step, found in result.select.items() if step]
        done = {"best": max((-score if session.by == DISTANCE else score) for score in scores)}
        run.finish(done)
        shutil.rmtree(result.folder)
        session.use(None)
    return done["best"]


def _promoted(
    session: Session, config: ConsolidateConfig, context: Context | Mixture, out: Distilled,
    teacher: models.LoadedModel, run_id: int,
) -> Mapping[str, Any] | None:  # fmt: skip
    """Whether the student becomes ENV/student; None if no gate was asked for, so that it does."""
    if not config.gate_tasks:
        if not any(move["run_id"] == run_id for move in student_moves(session.store, session.env)):
            move_student(session.store, session.env, out.model_id, "no gate", "--gate-tasks 0", run_id)
        return None
    taught = Taught(context=context, teacher=str(teacher.folder))
    result = promote(session, session.load(out.folder), out.parent_id, config, taught, run_id)
    for line in result.lines():
        session.say(line)
    return result.to_dict()


def _repeated(
    session: Session, config: ConsolidateConfig, context: Context | Mixture, run: Run, done: Mapping[str, Any]
) -> Distilled:
    """The result of a finished run, with its table computed from stored episodes."""
    session.say(f"already done: {run.folder}")
    earlier = Distilled.repeating(done, run)
    table = _table(session, config, context, earlier) if config.test_tasks else None
    far = ((done.get("evaluation") or {}).get("distances")) if table else None
    if table and far:
        table = dataclasses.replace(table, distances=Distances.from_dict(far))
    return dataclasses.replace(earlier, evaluation=table)


def _reported(
    session: Session, config: ConsolidateConfig, context: Context | Mixture, out: Distilled, run_id: int,
    folders: Mapping[str, str], known: dict[str, list[Totals]],
) -> Evaluation:  # fmt: skip
    """The table of the trained student beside the other arms, which have played before.

    Training has changed the weights in memory, so only the saved student plays; the other arms are read back.
    """
    test = session.tasks("test", config.test_tasks)
    trained = Contestant(label="student", model=session.load(out.folder))
    evaluate(session, [trained], test, run_id=run_id)
    table = _table(session, config, context, out)
    if session.by != DISTANCE:
        return table
    again = {id_: session.load(folder) for id_, folder in folders.items()}
    arms = [*_arms(again[out.parent_id], again[out.teacher_id], context), trained]
    return dataclasses.replace(table, distances=measured(session, arms, again[out.teacher_id], context, test, known))


def measured(
    session: Session, arms: Sequence[Contestant], teacher: models.LoadedModel, context: Context | Mixture,
    test: Sequence[Task], known: dict[str, list[Totals]],
) -> Distances | None:  # fmt: skip
    """The distances of the arms to the teacher that sees the context, where checkpoints are chosen by them.

    Args:
        known: what was computed before, see :func:`agentopcd.workspace.evaluation.distance.distances`.
    """
    if session.by != DISTANCE:
        return None
    setup = session.setup(session.player_for(arms[0].model))
    return distances(session, arms, teacher, context, test, setup=setup, known=known)


def replayed(session: Session, folder: Path, train: Sequence[Task], config: ConsolidateConfig) -> list[Episode]:
    """The stored episodes of train tasks whose turns the student answers again; a resumed run gets the same episodes.

    Where an environment's prompts are stored, they are its own; else they are those of the workspace.

    Raises:
        ConfigError: no stored episode was played with these settings.
    """
    if session.game.spec.logged:
        return [session.game.log(task) for task in train]
    file = folder / "replayed.json"
    if not file.is_file():
        tasks = set(train)
        rows = session.store.episodes(env=session.env, setup=session.setup(), split="train")
        ids = [row["id"] for row in rows if Task(row["seed"], row["task_key"]) in tasks]
        if not ids:
            raise ConfigError(
                f"no stored episode of {session.env} on train tasks with these settings to replay; run `agentopcd play "
                f"--split train --no-extract {player_flags(config)}`"
            )
        write_json(file, ids)
    episodes = [session.store.transcript(id_) for id_ in read_json(file, "remove it to choose the episodes anew")]
    session.say(f"replaying the turns of {len(episodes)} stored episodes; the environment is not run")
    return episodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a process needs to take part in training a student."""

    training: Training
    student: str
    """Folder of the model to load."""
    stored: Sequence[Episode]
    """Stored episodes of train tasks, for methods that replay them."""
    work: Path
    identity: dict[str, Any]
    """Identity of the run, which determines its folder."""
    snapshot: str = ""
    """The copy of the recording that is the environment; '': it is none."""


def train_student(
    assignment: Assignment,
    student: models.LoadedModel,
    teacher: models.LoadedModel,
    run: Run,
    say: Callable[[str], None],
) -> Consolidated:
    """Assemble what the training loop needs, and run the loop. Every process calls this."""
    training = assignment.training
    config, context = training.config, training.context
    compute = models.pick_compute(config.compute, next(student.model.parameters()).device)
    kind, day = METHODS[config.method], functools.partial(day_of, assignment.work)
    needs = Needs(
        config=config,
        context=context,
        jobs=lambda: [job for step in range(1, config.steps + 1) for job in draw(training.train, step, config)],
        teacher=lambda: player_of(config, teacher, compute, day, say, together=True),
        stored=assignment.stored,
        folder=run.folder,
        ranks=Ranks.current(),
        say=say,
    )
    episodes = kind.prepare(needs)
    if config.lora_rank:
        models.add_adapter(student, config.lora_rank, compute, config.seed)
    player = player_of(config, student, compute, day, say, together=True)
    player = dataclasses.replace(player, faults=FaultLog(assignment.work / "errors" / f"{run.folder.name}.log"))
    if teacher is not student and player.chat.taught_by(teacher.tokenizer):
        say(f"note: teacher {teacher.name} has another chat template than the student; each reads its own")
    judge = player.chat.teacher or player.chat
    opening, tools = player.game.opening(training.train[0].seed) or ([], [])
    prefixes = [judge.prefix(part, opening, tools) for part in context.parts]
    judging = teacher_of(config, teacher, student, compute=compute, prefixes=prefixes)  # copies the whole student
    if config.shard:
        student = sharding.sharded(student, plays=engine_of(config, student)[0] == "transformers")
    return consolidate(
        training,
        student=student,
        teacher=judging,
        method=kind(config, player, episodes),
        run=run,
        say=say,
    )


def follow() -> None:
    """Take part in trainings until the first process has no more. Every other process runs this."""
    assignment: Assignment | None
    while (assignment := Ranks.current().from_main(None)) is not None:
        config = assignment.training.config
        if assignment.snapshot:
            use_snapshot(assignment.work, config.env, assignment.snapshot)
        device = models.pick_device(config.device)
        student = models.load_model(assignment.student, device=device)
        teacher = models.load_model(config.teacher, device=device) if config.teacher else student
        run = Run(assignment.work, "consolidate", assignment.identity)
        train_student(assignment, student, teacher, run, lambda line: None)


def _arms(student: models.LoadedModel, teacher: models.LoadedModel, context: Context | Mixture) -> list[Contestant]:
    """The arms to compare the future student with: the base without and with the context, and another teacher, if any.

    Of a mixture, the arms are shown the best context.
    """
    arms = [
        Contestant(label="base", model=student),
        Contestant(label="in-context", model=student, context=context.parts[0]),
    ]
    if teacher.id == student.id:
        return arms
    return [*arms, Contestant(label="teacher", model=teacher, context=context.parts[0])]


def _table(session: Session, config: ConsolidateConfig, context: Context | Mixture, result: Distilled) -> Evaluation:
    """The evaluation of a run, computed from stored episodes; plays nothing."""
    shown, note = context.parts[0].id, session.loaded.note
    arms = {"base": Arm(result.parent_id), "in-context": Arm(result.parent_id, shown)}
    if result.teacher_id != result.parent_id:
        arms["teacher"] = Arm(result.teacher_id, shown)
    arms["student"] = Arm(result.model_id)
    entries = [Entry(label=label, arm=arm, note=note) for label, arm in arms.items()]
    trained = session.store.lookup("model", id=result.model_id)
    run_id = trained["run_id"] if trained else 0
    tasks = session.tasks("test", config.test_tasks)
    return tabulate(session, entries, tasks, setup=session.setup(), run_id=run_id or 0)
