"""One consolidation with its evaluation before and after (:func:`distil`), and rounds of everything (:func:`learn`)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentopcd import methods, models, sharding
from agentopcd.config import (
    ConsolidateConfig,
    EvaluateConfig,
    LearnConfig,
    PlayConfig,
    ScoreConfig,
    pick,
    player_flags,
)
from agentopcd.consolidate import Consolidated, consolidate, draw
from agentopcd.drift import Drift, drift_dict, drifts
from agentopcd.errors import ConfigError
from agentopcd.evaluate import Contestant, Evaluation, evaluate, lines, tabulate
from agentopcd.experience import choose, gather
from agentopcd.handover import shares
from agentopcd.ranks import Ranks
from agentopcd.runs import Run, write_json
from agentopcd.session import Progress, Session, no_progress, player_of, run_config
from agentopcd.teacher import teacher_of
from agentopcd.types import EMPTY, Context, Episode, Mixture, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distilled:
    """What a consolidation came to."""

    folder: str
    """The student, an ordinary Hugging Face folder."""
    model_id: str
    parent_id: str
    teacher_id: str
    context_id: str
    best_step: int
    evaluation: Evaluation | None
    repeated: bool = False
    """The run had finished before; nothing was trained."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "folder": self.folder, "model": self.model_id, "parent": self.parent_id,
            "teacher": self.teacher_id, "context": self.context_id,
            "best_step": self.best_step, "repeated": self.repeated,
            "evaluation": None if self.evaluation is None else self.evaluation.to_dict(),
        }  # fmt: skip


def distil(session: Session, config: ConsolidateConfig, context: Context | Mixture) -> Distilled:
    """Evaluate, train, evaluate again, and register the student with what it carries.

    A killed call is resumed by repeating it; a finished one is reported and not repeated.
    """
    if Ranks().count > 1 and config.device != "auto":
        raise ConfigError(f"device is {config.device!r} with {Ranks().count} processes; leave it out")
    if config.shard and Ranks().count == 1:
        raise ConfigError("there is one process to shard over; launch several with torchrun, or leave out --shard")
    session.resume_model("consolidate", context.id)
    student = session.loaded
    teacher_model = session.load(config.teacher) if config.teacher else student
    identity = run_config(config) | {
        "env": session.env, "student": student.id, "teacher_id": teacher_model.id, "context_id": context.id,
        "setup": session.setup(), "splits": {name: len(tasks) for name, tasks in session.manifest.splits.items()},
    }  # fmt: skip
    run = Run(session.work, "consolidate", identity)
    if (done := run.result) is not None:
        session.say(f"already done: {run.folder}")
        if (open_run := session.unfinished("consolidate", context_id=context.id, folder=str(run.folder))) is not None:
            session.store.finish(open_run, done)  # killed between the two records of the end
        found = Distilled(
            folder=done["folder"], model_id=done["model"], parent_id=done["parent"], teacher_id=done["teacher"],
            context_id=done["context"], best_step=done["best_step"], evaluation=None, repeated=True,
        )  # fmt: skip
        table = _table(session, config, context, found) if config.test_tasks else None
        return dataclasses.replace(found, evaluation=table)
    train = session.tasks("train")
    session.manifest.guard_training(train)
    stored = replayed(session, run.folder, train, config) if config.method == "prefix-replay" else []
    run_id = session.begin("consolidate", context_id=context.id, folder=str(run.folder))
    arms = _arms(student, teacher_model, context)
    test = session.tasks("test", config.test_tasks) if config.test_tasks else []
    if test:
        before = evaluate(session, arms, test, run_id=run_id)
        for line in lines(before)[1 : 2 + len(arms)]:
            session.say(line)
    session.say(f"consolidating context {context.id[:12]} into {student.name}: {run.folder}")
    training = Training(
        config=config, student=str(student.folder), context=context, stored=stored,
        train=list(dict.fromkeys(episode.task for episode in stored)) or train,
        select=session.tasks("select", config.select_tasks), work=session.work, identity=identity,
    )  # fmt: skip
    Ranks.training = True
    Ranks().from_main(training)
    result = train_student(training, student, teacher_model, run, session.say)
    Ranks.training = False
    session.store.add_model(
        result.model_id, str(result.folder), str(result.folder), student.id, run_id, shares(context)
    )
    out = Distilled(
        folder=str(result.folder), model_id=result.model_id, parent_id=student.id, teacher_id=teacher_model.id,
        context_id=context.id, best_step=result.best_step, evaluation=None,
    )  # fmt: skip
    if test:
        # The weights in memory have moved, so only the saved student plays; the others are read back.
        evaluate(session, [Contestant(label="student", model=session.load(out.folder))], test, run_id=run_id)
        out = dataclasses.replace(out, evaluation=_table(session, config, context, out))
    session.finish(run_id, out.to_dict())
    run.finish(out.to_dict())
    # The weights in memory are the last step's, no longer the base's: whoever plays on loads the base again.
    session.forget_model()
    return out


def replayed(session: Session, folder: Path, train: Sequence[Task], config: ConsolidateConfig) -> list[Episode]:
    """The stored episodes of train tasks whose turns are answered anew; the same ones when a killed run goes on.

    Raises:
        ConfigError: none was played with these settings.
    """
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
    episodes = [session.store.transcript(id_) for id_ in json.loads(file.read_text())]
    session.say(f"replaying the turns of {len(episodes)} stored episodes; the environment is not asked again")
    return episodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What a process needs to know to take part in the training of a student."""

    config: ConsolidateConfig
    student: str
    context: Context | Mixture
    train: Sequence[Task]
    stored: Sequence[Episode]
    """What prefix replay goes on from."""
    select: Sequence[Task]
    work: Path
    identity: dict[str, Any]


def train_student(
    training: Training, student: models.LoadedModel, teacher: models.LoadedModel, run: Run, say: Callable[[str], None]
) -> Consolidated:
    """The loop, in the first process and in those that follow it."""
    config, context = training.config, training.context
    compute = models.pick_compute(config.compute, next(student.model.parameters()).device)
    answers = training.stored
    if config.by_teacher and training.train:  # without tasks the loop says so
        say("the teacher answers, with the context")
        jobs = [job for step in range(1, config.steps + 1) for job in draw(training.train, step, config)]
        answers = methods.answers(config, player_of(config, teacher, compute), context, jobs, run.folder, Ranks())
        say(f"it won {sum(e.success for e in answers)} of {len(answers)} train episodes")
    if config.lora_rank:
        models.add_adapter(student, config.lora_rank, compute, config.seed)
    player = player_of(config, student, compute)
    if config.shard:
        student = sharding.sharded_copy(student)
    prefixes = [player.chat.prefix(part) for part in context.parts]
    scorer = teacher_of(config, teacher, student, compute=compute, prefixes=prefixes)
    return consolidate(
        config, student=student, teacher=scorer, context=context, player=player,
        train=training.train, select=training.select, run=run, compute=compute, say=say,
        method=methods.make(config, player, answers),
    )  # fmt: skip


def follow() -> None:
    """What every process but the first one does: take part in trainings until the first one has no more."""
    training: Training | None
    while (training := Ranks().from_main(None)) is not None:
        device = models.pick_device(training.config.device)
        student = models.load_model(training.student, device=device)
        name = training.config.teacher
        teacher = models.load_model(name, device=device) if name else student
        run = Run(training.work, "consolidate", training.identity)
        train_student(training, student, teacher, run, lambda line: None)


def dismiss() -> None:
    """Let the processes that follow end. After an error within a training it is the launcher that ends them."""
    if not Ranks.training:
        Ranks().from_main(None)


def _arms(student: models.LoadedModel, teacher: models.LoadedModel, context: Context | Mixture) -> list[Contestant]:
    """Who the student to be is compared with: itself without and with the context, and another teacher, if any.

    Of a mixture the best context is shown.
    """
    arms = [
        Contestant(label="base", model=student),
        Contestant(label="in-context", model=student, context=context.parts[0]),
    ]
    if teacher.id == student.id:
        return arms
    return [*arms, Contestant(label="teacher", model=teacher, context=context.parts[0])]


def _table(session: Session, config: ConsolidateConfig, context: Context | Mixture, found: Distilled) -> Evaluation:
    """The evaluation of a run, read back from the stored episodes; plays nothing."""
    known = session.loaded

    def named(model_id: str) -> models.LoadedModel:
        return dataclasses.replace(known, id=model_id)

    arms = _arms(named(found.parent_id), named(found.teacher_id), context)
    arms.append(Contestant(label="student", model=named(found.model_id)))
    return tabulate(session, arms, session.tasks("test", config.test_tasks), setup=session.setup())


def evaluate_student(session: Session, config: EvaluateConfig) -> tuple[Evaluation, Mapping[str, Drift]]:
    """`agentopcd evaluate`: the base, the base with the context, and the student, on test tasks.

    The base is ``--model``, or what the student was trained from; the context is ``--context``, or what
    the student was distilled from, or ENV/best. Arms that do not exist are left out and named.

    Returns:
        The table, and how each arm's replies differ from the base's.
    """
    store = session.store
    student_name = config.student or session.newest_student()
    student = session.load(student_name) if student_name else None
    base = _base_of(session, config, student)
    run_id = session.begin("evaluate", student=student.id if student else "", base=base.id)
    contestants = [Contestant(label="base", model=base)]
    if config.context:
        context = session.context(config.context, config.placement)[0]
    else:
        carried = list(store.model_contexts(student.id)) if student else []
        best = store.refs(f"{session.env}/best").get(f"{session.env}/best")
        ids = [*carried, *([best] if best else [])]
        context = store.get_context(ids[0]) if ids else EMPTY
    if context.text:
        contestants.append(Contestant(label="in-context", model=base, context=context))
    else:
        session.say("no context: nothing was distilled or confirmed for this environment, and none was given")
    if student is not None and student.id != base.id:
        contestants.append(Contestant(label="student", model=student))
    else:
        session.say("no student: none was consolidated for this environment, and none was given")
    tasks = session.tasks("test", config.test_tasks)
    result = evaluate(session, contestants, tasks, run_id=run_id)
    moved = drifts(session, contestants, tasks, setup=session.setup(session.player_for(base)))
    session.finish(run_id, result.to_dict() | drift_dict(moved))
    return result, moved


def _base_of(session: Session, config: EvaluateConfig, student: models.LoadedModel | None) -> models.LoadedModel:
    """``--model``, else the student's parent where it still lies, else the built-in model."""
    if config.model:
        base = session.load(config.model)
    else:
        parent = student.parent_id if student else None
        rows = [row for row in session.store.models() if row["id"] == parent and row["path"]]
        if student is not None and not (rows and Path(rows[0]["path"]).is_dir()):
            raise ConfigError(f"the model that {student.name} was trained from is not here; give the base with --model")
        base = session.load(rows[0]["path"] if student else session.default_model)
        session.say(f"base: {rows[0]['name'] if student else session.default_model}")
    session.__dict__["loaded"] = base  # the model the run row names
    return base


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """One round of ``learn``."""

    number: int
    model: str
    played: dict[str, Any]
    confirmed: bool
    distilled: Distilled | None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"distilled": self.distilled.to_dict() if self.distilled else None}


def learn(config: LearnConfig, work: Path, *, say: Any = print, progress: Progress = no_progress) -> list[Round]:
    """Rounds of play, extract, score and consolidate; each starts from the last student.

    Round 1 starts from ``config.model``. A round whose candidates do not beat the empty context on the
    confirm tasks trains nothing (unless ``force``), and the next one goes on with the same model.
    """
    rounds: list[Round] = []
    run = Run(work, "learn", run_config(config))
    start = run.folder / "start.json"
    if run.result is None and start.is_file():  # killed: the newest student may be our own by now
        name = json.loads(start.read_text())["model"]
    else:
        with Session(pick(config, PlayConfig), work, say=say) as session:
            name = session.model_name()[0]
        (run.folder / "result.json").unlink(missing_ok=True)
        write_json(start, {"model": name})
    for number in range(1, config.rounds + 1):
        say(f"round {number} of {config.rounds}")
        here = dataclasses.replace(config, model=name, seed=config.seed + number - 1)
        done = _round(here, number, work, say, progress)
        rounds.append(done)
        name = done.distilled.folder if done.distilled else done.model
    run.finish({"rounds": [one.to_dict() for one in rounds]})
    return rounds


def _round(config: LearnConfig, number: int, work: Path, say: Any, progress: Progress) -> Round:
    play = pick(config, PlayConfig, episodes=config.episodes_per_round)
    with Session(play, work, say=say, progress=progress) as session:
        run_id = stage(session, "play", round=number)
        gathered = gather(session, play, run_id=run_id)
        session.finish(run_id, gathered.to_dict())
        say(f"played {gathered.rate}; {len(gathered.items)} items, {len(gathered.candidates)} candidate contexts")
        model = str(session.loaded.folder)
        if not gathered.candidates:
            say("no item could be read from the extractor's replies, so there is nothing to score")
            return Round(number=number, model=model, played=gathered.to_dict(), confirmed=False, distilled=None)
        run_id = stage(session, "score", round=number)
        ranking, outcome = choose(session, pick(config, ScoreConfig), gathered.candidates, run_id=run_id)
        assert outcome is not None
        session.finish(run_id, {"confirmed": outcome.passed, "text": str(outcome)})
        distilled = None
        if outcome.passed or config.force:
            context = session.store.get_context(ranking.best.context_id)
            session.check_handover(context)
            distilled = distil(session, pick(config, ConsolidateConfig), context)
        else:
            say("nothing beat the empty context, so nothing is consolidated (--force would)")
        return Round(
            number=number, model=model, played=gathered.to_dict(), confirmed=outcome.passed, distilled=distilled
        )


def stage(session: Session, verb: str, **facts: Any) -> int:
    """The run row of one stage of a longer job: an unfinished or finished one of the same settings, else a new one."""
    done = session.finished(verb, **facts)
    return session.begin(verb, **facts) if done is None else done
