"""What ``agentopcd consolidate`` does: evaluate, train, evaluate again, and register the student."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentopcd import models
from agentopcd.consolidate import Consolidated, Training, consolidate
from agentopcd.core.config import ConsolidateConfig, ForecastConfig, flags_for, player_flags
from agentopcd.core.config.toml import saved
from agentopcd.core.errors import ConfigError, TrainingError
from agentopcd.core.runs import Run, kept, read_json, work_flag, write_json
from agentopcd.core.text import counted
from agentopcd.core.types import Context, Episode, Mixture, Task
from agentopcd.distillation.distance import Totals
from agentopcd.distillation.methods import METHODS, Needs
from agentopcd.distillation.played import draw
from agentopcd.distillation.teacher import teacher_of
from agentopcd.knowledge import PLACEBO
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.placebo import twin_of
from agentopcd.knowledge.students import leads, move_student, student_moves
from agentopcd.models.parallel import sharding
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.engine import engine_of, player_of
from agentopcd.rollouts.fault_log import FaultLog
from agentopcd.workspace.card import describe
from agentopcd.workspace.checks import check_before, check_launch, check_method, check_trainable
from agentopcd.workspace.day import day_of
from agentopcd.workspace.evaluation.distilled import Distilled, arms_of, folder_of, measured, reported, table_of
from agentopcd.workspace.evaluation.spoken import Distances
from agentopcd.workspace.evaluation.table import evaluate, row_lines
from agentopcd.workspace.experience.find_context import shares
from agentopcd.workspace.forecast import short
from agentopcd.workspace.gated import to_gate
from agentopcd.workspace.holding import Hold
from agentopcd.workspace.known import load_known
from agentopcd.workspace.ledger import run_config
from agentopcd.workspace.ratchet import Taught, play_parent, promote
from agentopcd.workspace.recorded import use_snapshot
from agentopcd.workspace.resolved import resolved
from agentopcd.workspace.session import Session
from agentopcd.workspace.trackers import summary, tracking


def distil_context(
    session: Session, config: ConsolidateConfig, context: Context | Mixture, *, moves: bool = True
) -> Distilled:
    """Evaluate, train, evaluate again, and register the student with the contexts it was trained on.

    With ``config.placebo``, a second student is then trained on the context's placebo and compared with the first.
    Repeat a killed call to resume it. A finished call is reported, not repeated.

    Args:
        moves: whether the student may become ENV/student, by its gate or without one; False: ENV/student stays.

    Raises:
        ConfigError: there is to be a placebo student, and the context has no twin.
    """
    if config.placebo:
        twin_of(context)  # refused now, if there is none, and not after the first training
    out, run, known = _distil(session, config, context, moves=moves)
    return _beside_placebo(session, config, context, out, run, known) if config.placebo else out


def _distil(
    session: Session, config: ConsolidateConfig, context: Context | Mixture, *, control: bool = False,
    moves: bool = True,
) -> tuple[Distilled, Run, dict[str, list[Totals]]]:  # fmt: skip
    """Train one student; returns its run, too, and what was computed of distances, which is nothing for a finished run.

    ``control``: a placebo student; its run says so, and no command takes it for a student.
    """
    check_launch(config, Ranks.current().count)
    given, config = config, check_method(session, config)
    session.resume_model("consolidate", context.id)
    student = session.loaded
    if config.lora_rank:
        models.check_adapter(student, config.lora_rank)
    teacher_model = _teacher(session, config, context) if config.teacher else student
    for model in {student.id: student, teacher_model.id: teacher_model}.values():
        check_trainable(session, config, model)
    identity = run_config(config) | {
        "env": session.env, "student": student.id, "teacher_id": teacher_model.id, "context_id": context.id,
        "setup": session.setup(), "splits": {name: len(tasks) for name, tasks in session.manifest.splits.items()},
        **(marked := {"placebo": True} if control else {}),
    }  # fmt: skip
    run = Run(session.work, "consolidate", identity, saved(given, resolved(session))[0])
    if run.result is None:
        with contextlib.closing(Hold(session.work, run.folder.name, "this training")):
            if run.result is None:  # else another process has finished it before this one held it
                pair = student, teacher_model
                return _trained(session, config, context, pair, run, identity, marked, moves=moves and not control)
    done = run.result or {}
    with tracking(run, config.track, identity, session.say) as record:
        record.finish(summary(done["evaluation"]) if done.get("evaluation") else {})
    return _repeated(session, config, context, run, done, moves=moves and not control), run, {}


def _trained(
    session: Session, config: ConsolidateConfig, context: Context | Mixture,
    pair: tuple[models.LoadedModel, models.LoadedModel], run: Run, identity: dict[str, Any], marked: dict[str, Any], *,
    moves: bool,
) -> tuple[Distilled, Run, dict[str, list[Totals]]]:  # fmt: skip
    """:func:`_distil`, of a run that this process holds; ``marked``: what its row holds of a placebo student."""
    student, teacher_model = pair
    control = bool(marked)
    check_before(session, config, context, student, teacher_model)
    for part in () if control else context.parts:
        if said := short(session, part, flags_for(config, ForecastConfig)):
            session.say(said)
    marked |= {"by": config.by} if config.by else {}
    run_id = session.ledger.begin("consolidate", context_id=context.id, folder=str(run.folder), **marked)
    if moves and config.gate_tasks:
        to_gate(session, config, student.id, run_id)
    arms = arms_of(student, teacher_model, context)
    test = session.tasks("test", config.test_tasks) if config.test_tasks else []
    known: dict[str, list[Totals]] = {}
    if test:
        before = evaluate(session, arms, test, run_id=run_id)
        far = measured(session, arms, teacher_model, context, test, known)
        for line in far.lines() if far else row_lines(before.rows):
            session.say(line)
    play_parent(session, student, 0 if control else config.gate_tasks, run_id)
    session.say(f"consolidating context {context.id[:12]} into {student.name}: {run.folder}")
    assignment = _assignment(session, config, context, (student, teacher_model), run, identity)
    with tracking(run, config.track, identity, session.say) as record:
        with Ranks.current().led(assignment):
            result = train_student(assignment, student, teacher_model, run, session.say)
        path = kept(session.work, result.folder)
        session.store.add_model(result.model_id, path, path, student.id, run_id, shares(context))
        out = Distilled(
            folder=str(result.folder), model_id=result.model_id, parent_id=student.id, teacher_id=teacher_model.id,
            context_id=context.id, best_step=result.best_step, steps=result.steps, skipped=result.skipped,
            evaluation=None,
        )  # fmt: skip
        describe(session.store, result.folder, result.model_id, student.folder)  # a kill below leaves a card, too
        if test:
            out = dataclasses.replace(out, evaluation=reported(session, config, context, out, run_id, known))
            describe(session.store, result.folder, result.model_id, student.folder, out.to_dict()["evaluation"])
        record.finish(summary(out.to_dict()["evaluation"]) if test else {})
    if moves:
        out = dataclasses.replace(out, promotion=_promoted(session, config, context, out, teacher_model, run_id))
    run.finish(out.to_dict())  # the folder first: after a kill here, Ledger.settle closes the open row
    session.ledger.finish(run_id, out.to_dict())
    session.use(None)  # the weights in memory are those of the last step, no longer the base's
    return out, run, known


def _teacher(session: Session, config: ConsolidateConfig, context: Context | Mixture) -> models.LoadedModel:
    """The teacher that is not the student itself; ENV/student may have moved since this command was first given."""
    moved = session.named(config.teacher) != config.teacher
    known = session.ledger.taught_by("consolidate", context.id) if moved else None
    return session.load(known or config.teacher)


def _beside_placebo(
    session: Session, config: ConsolidateConfig, context: Context | Mixture, out: Distilled, run: Run,
    known: dict[str, list[Totals]],
) -> Distilled:  # fmt: skip
    """The result with a placebo student in its table: one trained in the same way, from the same seeds, on the twin.

    It has a run of its own. The gate of :mod:`agentopcd.workspace.handover` refuses placebos; this is the one way by.
    """
    taught = twin_of(context)
    for part, twin in zip(context.parts, taught.parts, strict=True):
        session.store.add_context(twin, {"order": PLACEBO, "of": part.id})
    if config.teacher and session.named(config.teacher) != config.teacher:  # the student's gate may have moved it
        config = dataclasses.replace(config, teacher=folder_of(session, out.teacher_id))
    session.say(f"placebo student: the same training, on the placebo {taught.id[:12]} of context {context.id[:12]}")
    session.use(load_known(session, out.parent_id))
    trained, *_ = _distil(session, dataclasses.replace(config, placebo=False, test_tasks=0), taught, control=True)
    if out.placebo_id == trained.model_id:
        return out
    session.use(load_known(session, out.parent_id))
    out = dataclasses.replace(out, placebo_id=trained.model_id)
    run_id = _row_of(session, run)
    out = dataclasses.replace(out, evaluation=reported(session, config, context, out, run_id, known))
    found = dataclasses.replace(out, repeated=False, taken_back="").to_dict()
    session.store.finish(run_id, (session.ledger.result(run_id) or {}) | found)
    base = Path(folder_of(session, out.parent_id))
    describe(session.store, Path(out.folder), out.model_id, base, out.to_dict()["evaluation"])
    run.finish((run.result or {}) | found)  # the folder last: a repeated command that finds it there stops above
    session.use(None)
    return out


def _found(session: Session, run: Run) -> int | None:
    """The finished run with this folder. A model's row names the first run alone that ended in its weights."""
    for row in reversed(session.store.runs("consolidate", "done")):
        folder = read_object(row["config"], f"the config of run {row['id']}").get("folder", "")
        if Path(folder).name == run.folder.name and not row["imported"]:
            return row["id"]
    return None


def _row_of(session: Session, run: Run) -> int:
    """The finished run with this folder.

    Raises:
        ConfigError: the store has none.
    """
    if (found := _found(session, run)) is None:
        raise ConfigError(f"the store has no run with the folder {run.folder}; remove that to train again")
    return found


def _assignment(
    session: Session, config: ConsolidateConfig, context: Context | Mixture,
    pair: tuple[models.LoadedModel, models.LoadedModel], run: Run, identity: dict[str, Any], verb: str = "consolidate",
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
    student, teacher = pair
    return Assignment(
        training=training, student=str(student.folder), teacher="" if teacher is student else str(teacher.folder),
        stored=stored, work=session.work, verb=verb, identity=identity, snapshot=session.snapshot,
    )  # fmt: skip


def pilot(session: Session, config: ConsolidateConfig, context: Context | Mixture) -> float:
    """Train as ``config`` says, keep no student, and return how well the best checkpoint did on select tasks.

    A finished pilot is not repeated.
    """
    session.use(None)  # the weights in memory may be those of the last training
    student = session.loaded
    teacher = session.load(config.teacher) if config.teacher else student
    identity = run_config(config) | {
        "env": session.env, "student": student.id, "context_id": context.id, "setup": session.setup(),
    }  # fmt: skip
    run = Run(session.work, "pilot", identity)
    if (done := run.result) is None:
        assignment = _assignment(session, config, context, (student, teacher), run, identity, "pilot")
        try:
            with Ranks.current().led(assignment):
                result = train_student(assignment, student, teacher, run, session.say)
        finally:
            session.use(None)  # the weights in memory are the pilot's, however it ended
        done = {"best": max(found.rate for step, found in result.select.items() if step)}
        run.finish(done)
        shutil.rmtree(result.folder)
    return done["best"]


def _promoted(
    session: Session, config: ConsolidateConfig, context: Context | Mixture, out: Distilled,
    teacher: models.LoadedModel, run_id: int,
) -> Mapping[str, Any] | None:  # fmt: skip
    """Whether the student becomes ENV/student; None if no gate was asked for, so that it does."""
    if not config.gate_tasks:
        _move_ungated(session, out.model_id, run_id)
        return None
    taught = Taught(context=context, teacher=str(teacher.folder))
    result = promote(session, session.load(out.folder), out.parent_id, config, taught, run_id)
    for line in result.lines():
        session.say(line)
    return result.to_dict()


def _move_ungated(session: Session, model_id: str, run_id: int) -> None:
    """Make a student ENV/student without a gate, once: what others have moved since then stays."""
    if not any(move["run_id"] == run_id for move in student_moves(session.store, session.env)):
        move_student(session.store, session.env, model_id, "no gate", "--gate-tasks 0", run_id)


def _repeated(
    session: Session, config: ConsolidateConfig, context: Context | Mixture, run: Run, done: Mapping[str, Any], *,
    moves: bool,
) -> Distilled:  # fmt: skip
    """The result of a finished run, with its table computed from stored episodes."""
    session.say(f"already done: {run.folder}")
    earlier = Distilled.repeating(done, run)
    if moves and not config.gate_tasks and (row := _found(session, run)) is not None:
        _move_ungated(session, earlier.model_id, row)  # the first call may have been told to move nothing
    if moves and earlier.promoted and not leads(session.store, session.env, earlier.model_id):
        earlier = dataclasses.replace(earlier, taken_back=session.env)
    table = table_of(session, config, context, earlier) if config.test_tasks else None
    far = ((done.get("evaluation") or {}).get("distances")) if table else None
    if table and far:
        table = dataclasses.replace(table, distances=Distances.from_dict(far))
    return dataclasses.replace(earlier, evaluation=table)


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
                f"--split train --no-extract {player_flags(config)}{work_flag(session.work)}`"
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
    teacher: str
    """Folder of the teacher; '': the student as it is before the training."""
    stored: Sequence[Episode]
    """Stored episodes of train tasks, for methods that replay them."""
    work: Path
    verb: str
    identity: dict[str, Any]
    """Verb and identity of the run, which determine its folder."""
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
    prefixes = [judge.prefix(part, opening, tools) for part in context.parts if not config.turn_items]
    if config.turn_items:
        items = counted(config.turn_items, "item")
        say(f"the teacher sees {items} at each turn, chosen for it, so it reads each prompt in full")
    judging = teacher_of(config, teacher, student, compute=compute, prefixes=prefixes)  # copies the whole student
    if config.shard:
        student = sharding.sharded(student, plays=engine_of(config, student)[0] == "transformers")
    method = kind(config, player, episodes)
    return consolidate(training, student=student, teacher=judging, method=method, run=run, say=say)


def follow() -> None:
    """Take part in trainings until the first process has no more. Every other process runs this."""
    assignment: Assignment | None
    while (assignment := Ranks.current().from_main(None)) is not None:
        config = assignment.training.config
        if assignment.snapshot:
            use_snapshot(assignment.work, config.env, assignment.snapshot)
        device = models.pick_device(config.device)
        student = models.load_model(assignment.student, device=device)
        teacher = models.load_model(assignment.teacher, device=device) if assignment.teacher else student
        run = Run(assignment.work, assignment.verb, assignment.identity)
        with contextlib.suppress(TrainingError):  # the first process has it, too, and may go on with another training
            train_student(assignment, student, teacher, run, lambda line: None)
