"""What ``agentopcd knowledge forget`` does: train a student again without an item, from the last ancestor that never
saw it, and prove it by content hashes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import work_flag
from agentopcd.core.text import SHORT
from agentopcd.core.types import Context, Mixture
from agentopcd.envs.scan import Progress, no_progress
from agentopcd.knowledge import Item, Store, check_leaks, without
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.decide import Target, decide
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.lineage import Generation, generations, passages, repeats
from agentopcd.knowledge.students import current_student, move_student, student_moves, student_ref
from agentopcd.models.parallel.ranks import launched
from agentopcd.workspace.checks import check_launch
from agentopcd.workspace.ledger import FORGET
from agentopcd.workspace.lineage.proof import Forgotten, fingerprint, holds, proved, teachers
from agentopcd.workspace.lineage.recorded import Training, finished, recorded
from agentopcd.workspace.pace import pace
from agentopcd.workspace.paths import recall
from agentopcd.workspace.session import Session

Distil = Callable[[Session, ConsolidateConfig, Context | Mixture], Any]
"""Trains a student and leaves ENV/student alone: :func:`agentopcd.distil.distil_context` without its moves, which
stands above this folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One training to repeat."""

    before: Generation
    """The student that it made."""
    training: Training | None
    """How it was; None: it is left out."""
    context: Context | Mixture | None
    """What is trained on now; None: nothing is left of it, so the training is left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How items are taken out of a student."""

    items: Sequence[Item]
    student: Row
    line: Sequence[Generation]
    """The student with its ancestors, the oldest first."""
    kept: int
    """How many of them never saw the items and stay."""
    steps: Sequence[Step]
    notes: Sequence[str]

    @property
    def ancestor(self) -> Row:
        """The last one that stays."""
        return self.line[self.kept - 1].model

    def lines(self) -> Iterator[str]:
        """What will be done."""
        yield f"the last ancestor that never saw it: {_called(self.ancestor)}"
        for step in self.steps:
            was = ", ".join(id_[:SHORT] for id_ in step.before.contexts)
            if step.context is None or step.training is None:
                yield f"left out: the training on {was}, of which nothing is left"
            else:
                now = ", ".join(part.id[:SHORT] for part in step.context.parts)
                again = "as it is, it never held it" if now == was else f"as {now}, in the place of {was}"
                yield f"{step.training.config.steps} steps on {again}"
        yield from (f"note: {note}" for note in self.notes)


def _called(row: Row) -> str:
    return f"{row['name']} {row['id'][:SHORT]}"


def plan_of(store: Store, work: Path, student: Row, items: Sequence[Item]) -> Plan:
    """Find what has to be trained again, and refuse what could not be proved.

    Raises:
        ConfigError: the student carries none of the items, or something else in its lineage says the same, or what
            the trainings need is gone.
    """
    line, ids = generations(store, student["id"]), {item.id for item in items}
    kept = next((n for n, one in enumerate(line) if _holds(store, one, ids)), len(line))
    if lost := [item for item in items if not any(_holds(store, one, {item.id}) for one in line)]:
        raise ConfigError(
            f"student {student['id'][:SHORT]} does not carry item {lost[0].id[:SHORT]}; agentopcd knowledge show "
            f"{student['id'][:SHORT]}{work_flag(work)} lists what it carries"
        )
    _check_rest(store, work, line, kept, items)
    _check_teachers(store, [*line[:kept], *(one for one in line[kept:] if _rest(store, one.contexts, ids))], items)
    if kept == 0 or recall(work, line[kept - 1].model) is None:
        gone = _called(line[kept - 1].model) if kept else "what it was trained from"
        raise ConfigError(f"the last ancestor that never saw it, {gone}, is not here; put it back")
    steps = [_step(store, work, one, ids) for one in line[kept:]]
    return Plan(items=items, student=student, line=line, kept=kept, steps=steps, notes=_notes(store, items, steps))


def _holds(store: Store, one: Generation, ids: set[str]) -> bool:
    return any(item.id in ids for context_id in one.contexts for item in store.items(context_id=context_id))


def _check_rest(store: Store, work: Path, line: Sequence[Generation], kept: int, items: Sequence[Item]) -> None:
    """Refuse if something else in the lineage says what is to be forgotten, or may not be trained on again.

    Raises:
        ConfigError: another item does, or plain text.
    """
    contexts = list(dict.fromkeys(context_id for one in line for context_id in one.contexts))
    others = [item for context_id in contexts for item in store.items(context_id=context_id)]
    if pairs := repeats(store, items, others):
        mine, other = pairs[0]
        also = " ".join(dict.fromkeys(other.id[:SHORT] for _, other in pairs))
        where = work_flag(work)
        raise ConfigError(
            f"item {other.id[:SHORT]} of this lineage seems to say the same ({other.text!r}); forget it as well: "
            f"agentopcd knowledge forget {' '.join(item.id[:SHORT] for item in items)} {also}{where}; or say that it "
            f"says something else: agentopcd knowledge tidy --distinct {mine.id[:SHORT]} {other.id[:SHORT]}{where}"
        )
    for context_id in contexts:
        if found := passages(store, context_id, items):
            raise ConfigError(
                f"context {context_id[:SHORT]} of this lineage says it in plain text, where no line can be left out "
                f"({found[0]!r}); write a context without it, and train a student on that from the base"
            )
    again = [item for one in line[kept:] for context_id in one.contexts for item in store.items(context_id=context_id)]
    retired = [item for item in again if item.status == "retired" and item.id not in {one.id for one in items}]
    if retired:
        raise ConfigError(
            f"item {retired[0].id[:SHORT]} of this lineage was retired as well ({retired[0].text!r}) and would be "
            f"trained on again; forget it too, or take that back: agentopcd knowledge approve "
            f"{retired[0].id[:SHORT]}{work_flag(work)}"
        )


def _check_teachers(store: Store, line: Sequence[Generation], items: Sequence[Item]) -> None:
    """Refuse if a teacher of the lineage would teach it again, or has taught it to what is to stay.

    Raises:
        ConfigError: one has it in its weights.
    """
    for teacher, taught in teachers(store, line).items():
        if holds(store, teacher, items):
            row = store.lookup("model", id=teacher)
            raise ConfigError(
                f"the teacher of student {taught[:SHORT]}, {_called(row) if row else teacher[:SHORT]}, has it in its "
                "weights and would teach it again; train a new student with another teacher"
            )


def _step(store: Store, work: Path, one: Generation, ids: set[str]) -> Step:
    context = _rest(store, one.contexts, ids)
    if context is None:
        return Step(before=one, training=None, context=None)
    training = Training.of(store, work, one.model["id"])
    _teacher(store, work, one.model, training)  # what is not here is refused before anything is trained
    _check_launch(one.model, training.config)
    return Step(before=one, training=training, context=context)


def _check_launch(student: Row, config: ConsolidateConfig) -> None:
    """Refuse a training that this launch cannot repeat, before an item is retired.

    Raises:
        ConfigError: it does not fit the number of processes or the installed packages.
    """
    if config.shard and launched() == 1:
        raise ConfigError(
            f"student {student['id'][:SHORT]} was trained with --shard, and there is one process to shard over; give "
            "the command under torchrun"
        )
    check_launch(config, launched())


def _teacher(store: Store, work: Path, student: Row, training: Training) -> str:
    """The name of the model that taught a training; '': what the student was trained from.

    By its id: ENV/student has moved since then, perhaps to a model that has it in its weights. Where the student's own
    parent was named as its teacher, the new parent teaches in its place.

    Raises:
        ConfigError: it is gone.
    """
    if not training.config.teacher or training.identity["teacher_id"] == student["parent_id"]:
        return ""
    id_ = training.identity["teacher_id"]
    row = store.lookup("model", id=id_)
    if row is None or (name := recall(work, row)) is None:
        raise ConfigError(f"the teacher {_called(row) if row else id_[:SHORT]} is no longer here; put it back")
    return name


def _rest(store: Store, contexts: Mapping[str, float], ids: set[str]) -> Context | Mixture | None:
    """The contexts of a training without the items; equal ones become one."""
    weights: dict[Context, float] = {}
    for context_id in sorted(contexts, key=lambda id_: (-contexts[id_], id_)):
        rest = without(store.get_context(context_id), ids)
        if rest.text.strip():
            weights[rest] = weights.get(rest, 0.0) + contexts[context_id]
    if len(weights) > 1:
        return Mixture(tuple(weights), tuple(weights.values()))
    return next(iter(weights), None)


def _notes(store: Store, items: Sequence[Item], steps: Sequence[Step]) -> list[str]:
    """What a person should know, besides what is done."""
    said, ids = [], {item.id for item in items}
    near = repeats(store, items, [item for item in store.items() if item.status != "retired"])
    for item, other in near:
        said.append(
            f"item {other.id[:SHORT]}, {other.status}, seems to say the same as {item.id[:SHORT]} and can still go "
            f"into a student: {other.text}"
        )
    for name, context_id in store.refs().items():
        if "/pool/" not in name and ids & {item.id for item in store.items(context_id=context_id)}:
            said.append(f"{name} holds it and stays where it is; no training takes that context any more")
    if any(step.training is not None and step.training.replays for step in steps):
        said.append("a training replays stored prompts, which may show moves of a model that had it in its weights")
    return said


def time_of(store: Store, work: Path, plan: Plan, say: Callable[[str], None]) -> str:
    """How long it will take at most, as one line, from what the same models took here."""
    seconds = 0.0
    for step in plan.steps:
        if step.training is None:
            continue
        parent = store.lookup("model", id=step.before.model["parent_id"])
        config = dataclasses.replace(step.training.config, model=(recall(work, parent) if parent else None) or "")
        with Session(config, work, say=say, snapshot=step.training.snapshot) as session:
            found, tests = pace(session), len(session.tasks("test", config.test_tasks)) if config.test_tasks else 0
        if found.step_s is None or (tests and found.episode_s is None):
            return "time: not known here"
        seconds += config.steps * found.step_s + 3 * tests * (found.episode_s or 0.0)
    return f"time: up to {seconds / 60:.0f} min, as in earlier runs here"


def forget(
    store: Store, work: Path, plan: Plan, *, distil: Distil, reason: str | None = None, server: str = "",
    say: Callable[[str], None] = print, progress: Progress = no_progress,
) -> Forgotten:  # fmt: skip
    """Carry out a plan: retire the items, train again in order, and prove that no hash of the new lineage is theirs.

    A killed call goes on when it is repeated; a finished one is reported, and proved again.

    Args:
        distil: trains a student.
        reason: kept in the history of the items.
        server: the address to play at, in the place of that of the first trainings; '': the same.

    Raises:
        ConfigError: a model is gone or was changed, or an item of a context may not be trained on.
    """
    if (done := forgotten_before(store, work, plan.student, plan.items, say=say)) is not None:
        return done
    settings = _settings(store, plan.student, plan.items)
    ids = settings["items"]
    with recorded(store, work, FORGET, settings, say) as run_id:
        decide(store, "retire", [Target(store.item(id_), []) for id_ in ids], reason or "forgotten")
        parent, instead = plan.ancestor["id"], {}
        for step in plan.steps:
            if step.context is not None:
                _add(store, step, ids)
                parent = _train(store, work, step, parent, distil, server, say, progress, run_id)
            instead[step.before.model["id"]] = parent
        result = proved(store, work, plan.items, parent, instead_of=plan.student["id"])
        for env in _move_students(store, run_id, instead, f"forgot {', '.join(id_[:SHORT] for id_ in ids)}"):
            say(f"{student_ref(env)}: {(current_student(store, env) or 'none')[:SHORT]}")
        store.finish(run_id, result.to_dict())
    return result


def forgotten_before(
    store: Store, work: Path, student: Row, items: Sequence[Item], *, say: Callable[[str], None] = print
) -> Forgotten | None:
    """What came of it, proved again, if these items were taken out of this student before; else None.

    How the old student was trained need not be known any more.

    Raises:
        ConfigError: the new student was changed, or holds one of the items.
    """
    if (done := finished(store, FORGET, _settings(store, student, items))) is None:
        return None
    say(f"forgotten before, in run {done[0]}")
    return proved(store, work, items, done[1]["student"], instead_of=student["id"], repeated=True)


def _settings(store: Store, student: Row, items: Sequence[Item]) -> dict[str, Any]:
    """What distinguishes a forgetting from others."""
    run = store.run(student["run_id"])
    env = read_object(run["config"], f"the config of run {run['id']}").get("env", "")
    return {"model_id": student["id"], "env": env, "items": sorted(item.id for item in items)}


def _move_students(store: Store, run_id: int, instead: Mapping[str, str], why: str) -> Iterator[str]:
    """Put each ENV/student that carried the items on the model that takes its place, and every other one back to what
    it would be without the trainings; yields the environments that were moved.

    What others have moved meanwhile, since the forgetting was killed or while it trained, counts.

    Args:
        instead: the model in the place of each model of the old lineage, by id.
    """
    began, own = store.run(run_id)["started_at"], {run_id, *_trainings(store, run_id, instead)}
    for env in sorted({move["env"] for move in student_moves(store)}):
        moves = [move for move in student_moves(store, env) if move["at"] < began or move["run_id"] not in own]
        was = moves[-1]["model_id"] if moves else None
        target = instead.get(was, was) if was else None
        if target is not None and (row := store.lookup("model", id=target)) is not None and row["parent_id"] is None:
            target = None  # nothing is left but the base, which plays where there is no student
        if target != current_student(store, env):
            move_student(store, env, target, "person", why, run_id)
        if target != was:
            yield env


def _trainings(store: Store, run_id: int, instead: Mapping[str, str]) -> Iterator[int]:
    """The runs that have trained for a forgetting. Two that end in the same weights share one row of a model."""
    for row in store.runs("consolidate"):
        if read_object(row["config"], f"the config of run {row['id']}").get(FORGET) == run_id:
            yield row["id"]
    rows = (store.lookup("model", id=id_) for id_ in instead.values())
    yield from (row["run_id"] for row in rows if row and row["run_id"] is not None)  # None: a base, or a person's move


def _add(store: Store, step: Step, ids: Sequence[str]) -> None:
    for context_id in step.before.contexts:
        rest = without(store.get_context(context_id), ids)
        if rest.text.strip():
            imported = bool(store.context_row(context_id)["imported"])
            store.add_context(rest, {"order": FORGET, "from": context_id, "without": [*ids]}, imported=imported)


def _train(
    store: Store, work: Path, step: Step, parent: str, distil: Distil, server: str, say: Callable[[str], None],
    progress: Progress, run_id: int,
) -> str:  # fmt: skip
    """Repeat one training from another parent, without a placebo student beside it; returns the new student's id.

    Without the gate of ENV/student: it asks whether a student is better than the one before, and that one has what is
    to be forgotten. Its row has the number of the forgetting, as ``forget``.
    """
    context, training, row = step.context, step.training, store.lookup("model", id=parent)
    name = recall(work, row) if row else None
    assert context is not None and training is not None
    if name is None:
        raise ConfigError(f"model {parent[:SHORT]}, to go on from, is no longer here; put it back")
    teacher = _teacher(store, work, step.before.model, training)
    if teacher and fingerprint(teacher) != training.identity["teacher_id"]:
        raise ConfigError(f"{teacher} is no longer the model that taught: its files were changed; put them back")
    named = {"context": context.id, "mix": 0} if isinstance(context, Context) else {"mix": len(context.parts)}
    config = dataclasses.replace(
        training.config,
        **{"context": "", **named, "model": name, "teacher": teacher, "gate_tasks": 0, "placebo": False},
    )
    if server:
        config = dataclasses.replace(config, server=server)
    with Session(config, work, say=say, progress=progress, snapshot=training.snapshot) as session:
        if session.loaded.id != parent:
            raise ConfigError(f"{name} is no longer model {parent[:SHORT]}: its files were changed; put them back")
        session.ledger.facts = {FORGET: run_id}
        for part in context.parts:
            check_leaks(store, part.id)
        return distil(session, config, context).model_id
