"""What ``agentopcd evaluate`` does: play base, base with context, and student on the same test tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from agentopcd import models
from agentopcd.core.config import EvaluateConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.files import resolved
from agentopcd.core.types import EMPTY, Context
from agentopcd.distillation.distance import DISTANCE
from agentopcd.knowledge import own_best
from agentopcd.knowledge.faults import read_object
from agentopcd.workspace.card import describe
from agentopcd.workspace.evaluation.distance import distances
from agentopcd.workspace.evaluation.drift import Drift, drift_dict, drifts
from agentopcd.workspace.evaluation.names import PLACEBO_STUDENT
from agentopcd.workspace.evaluation.table import Contestant, Evaluation, evaluate
from agentopcd.workspace.paths import inside, recall
from agentopcd.workspace.session import Session


def evaluate_student(session: Session, config: EvaluateConfig) -> tuple[Evaluation, Mapping[str, Drift]]:
    """Evaluate the base, the base with the context, and the student on test tasks.

    The base is ``--model``, else the model that the student was trained from. The context is ``--context``, else the
    one that was distilled into the student, else ENV/best, unless an import alone has put it there. If there is no
    context or no student, the evaluation says so and goes on without it.

    Returns:
        The table, and the drift of each contestant from the base.
    """
    store = session.store
    student_name = config.student or session.newest_student()
    student = session.load(student_name) if student_name else None
    base = _base_of(session, config, student)
    run_id = session.ledger.begin("evaluate", student=student.id if student else "", base=base.id)
    contestants = [Contestant(label="base", model=base)]
    if config.context:
        context = session.context(config.context, config.placement)[0]
    else:
        carried = _carried(session, student) if student else []
        best = own_best(store, session.env)
        ids = [*carried, *([best] if best else [])]
        context = store.get_context(ids[0]) if ids else EMPTY
    if context.text:
        contestants.append(Contestant(label="in-context", model=base, context=context))
    else:
        session.say("no context: nothing was distilled or confirmed for this environment, and none was given")
    if student is not None and student.id != base.id:
        contestants.append(Contestant(label="student", model=student))
        contestants += _placebo_student(session, student)
    else:
        session.say("no student: none was consolidated for this environment, and none was given")
    tasks = session.tasks("test", config.test_tasks)
    result = evaluate(session, contestants, tasks, run_id=run_id)
    if session.by == DISTANCE and context.text:
        seen = _taught_by(session, student, base, context)
        far = distances(session, contestants, seen, context, tasks, setup=session.setup())
        result = dataclasses.replace(result, distances=far)
    drift = drifts(session, contestants, tasks, setup=session.setup())
    session.ledger.finish(run_id, result.to_dict() | drift_dict(drift))
    here = student is not None and inside(resolved(session.work), student.folder) == student.folder
    if student is not None and here and student.parent_id == base.id:
        describe(store, student.folder, student.id, base.folder)  # with the drift, which only this verb measures
    return result, drift


def _carried(session: Session, student: models.LoadedModel) -> list[str]:
    """The contexts of a student; of a mixture, the best one first, which the table of its training has shown."""
    table = _training(session, student).get("evaluation") or {}
    shown = (table.get("compared", {}).get("in-context") or {}).get("context") or {}
    return sorted(session.store.model_contexts(student.id), key=lambda id_: id_ != shown.get("id"))


def _placebo_student(session: Session, student: models.LoadedModel) -> list[Contestant]:
    """The placebo student that was trained beside this one, if there is one and it is still here."""
    twin = _training(session, student).get("placebo", "")
    if not (known := session.store.lookup("model", id=twin) if twin else None):
        return []
    if (name := recall(session.work, known)) is None:
        session.say(f"note: the placebo student {known['path']} is gone, so it is left out")
        return []
    return [Contestant(label=PLACEBO_STUDENT, model=session.load(name))]


def _training(session: Session, student: models.LoadedModel) -> Mapping[str, Any]:
    """The result of the training of a student; empty if the store does not know it."""
    row = session.store.lookup("model", id=student.id)
    if row is None or row["run_id"] is None:
        return {}
    result = session.store.run(row["run_id"])["result"]
    return read_object(result, f"the result of run {row['run_id']}") if result else {}


def _taught_by(
    session: Session, student: models.LoadedModel | None, base: models.LoadedModel, context: Context
) -> models.LoadedModel:
    """The model that distances are to when it sees ``context``: the student's teacher, if that was another model than
    its base and this is what it taught; else the base."""
    if student is None or context.id not in session.store.model_contexts(student.id):
        return base
    trained = _training(session, student)
    id_ = trained.get("teacher", base.id)
    if id_ in (base.id, trained.get("parent")):
        return base
    row = session.store.lookup("model", id=id_)
    if row is None or (name := recall(session.work, row)) is None:
        gone = row["path"] if row else id_[:12]
        session.say(f"note: the teacher {gone} is gone, so the distance is to the base that sees the context")
        return base
    session.say(f"distance: to the teacher {name} with the context, as in training")
    return session.load(name)


def _base_of(session: Session, config: EvaluateConfig, student: models.LoadedModel | None) -> models.LoadedModel:
    """The base: ``--model``, else the student's parent, else, without a student, the built-in model.

    Raises:
        ConfigError: the student's parent is no longer on this machine.
    """
    if config.model:
        base = session.load(config.model)
    else:
        parent = student.parent_id if student else None
        row = session.store.lookup("model", id=parent) if student else None
        name = recall(session.work, row) if row else None
        if student is not None and name is None:
            raise ConfigError(f"the model that {student.name} was trained from is not here; give the base with --model")
        base = session.load(name or session.default_model)
        if parent is not None and base.id != parent:
            raise ConfigError(
                f"{name} is no longer the model that the student was trained from: its files were changed; give the "
                "base with --model"
            )
        session.say(f"base: {row['name'] if row else session.default_model}")
    session.use(base)  # the run's row must name the base as its model
    return base
