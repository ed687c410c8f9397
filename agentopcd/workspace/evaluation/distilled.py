"""The result of a consolidation, and its table: base, in-context, student, and a placebo student if there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from agentopcd import models
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import Run
from agentopcd.core.types import Context, Mixture, Task
from agentopcd.distillation.distance import DISTANCE, Totals
from agentopcd.knowledge import Arm
from agentopcd.models import find
from agentopcd.workspace.evaluation.distance import distances
from agentopcd.workspace.evaluation.names import PLACEBO_STUDENT
from agentopcd.workspace.evaluation.spoken import Distances
from agentopcd.workspace.evaluation.table import Contestant, Entry, Evaluation, evaluate, tabulate
from agentopcd.workspace.paths import recall
from agentopcd.workspace.session import Session


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
    """Steps taken, fewer than asked for if training stopped early."""
    skipped: int
    """Steps that changed nothing."""
    evaluation: Evaluation | None
    promotion: Mapping[str, Any] | None = None
    """Whether it became ENV/student, see :meth:`agentopcd.workspace.ratchet.Promotion.to_dict`; None if it became that
    without a gate."""
    repeated: bool = False
    """True if the run had already finished, so that nothing was trained."""
    placebo_id: str = ""
    """Id of the placebo student; '' if none was trained."""
    taken_back: str = ""
    """The environment whose student it became, and neither is nor led to any more; '': none, or it did not ask."""

    @property
    def promoted(self) -> bool:
        """Whether the student became ENV/student."""
        return self.promotion is None or self.promotion["verdict"] == "promoted"

    @property
    def plays(self) -> bool:
        """Whether it became ENV/student and was not taken back since."""
        return self.promoted and not self.taken_back

    @property
    def passed(self) -> bool:
        """Whether no other way to train is worth a try: it was promoted, or only came too late for that, or its gate
        could not be asked."""
        found = self.promotion or {}
        return self.promoted or found.get("verdict") == "overtaken" or not found.get("asked", True)

    def to_dict(self) -> dict[str, Any]:
        return {
            "folder": self.folder, "model": self.model_id, "parent": self.parent_id,
            "teacher": self.teacher_id, "context": self.context_id,
            "best_step": self.best_step, "steps": self.steps, "skipped": self.skipped, "repeated": self.repeated,
            **({"placebo": self.placebo_id} if self.placebo_id else {}),
            **({"taken_back": self.taken_back} if self.taken_back else {}),
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
            placebo_id=done.get("placebo", ""),
        )  # fmt: skip


def reported(
    session: Session, config: ConsolidateConfig, context: Context | Mixture, out: Distilled, run_id: int,
    known: dict[str, list[Totals]],
) -> Evaluation:  # fmt: skip
    """The table of the trained students beside the other arms, which have played before.

    Training has changed the weights in memory, so only the saved student plays; the other arms are read back.
    """
    test = session.tasks("test", config.test_tasks)
    trained = [Contestant(label="student", model=session.load(out.folder))]
    if out.placebo_id:
        trained.append(Contestant(label=PLACEBO_STUDENT, model=session.load(folder_of(session, out.placebo_id))))
    evaluate(session, trained, test, run_id=run_id)
    table = table_of(session, config, context, out)
    if session.by != DISTANCE:
        return table
    again = {id_: session.load(folder_of(session, id_)) for id_ in {out.parent_id, out.teacher_id}}
    arms = [*arms_of(again[out.parent_id], again[out.teacher_id], context), *trained]
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


def arms_of(student: models.LoadedModel, teacher: models.LoadedModel, context: Context | Mixture) -> list[Contestant]:
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


def table_of(session: Session, config: ConsolidateConfig, context: Context | Mixture, result: Distilled) -> Evaluation:
    """The evaluation of a run, computed from stored episodes; plays nothing."""
    shown, note = context.parts[0].id, session.loaded.note
    arms = {"base": Arm(result.parent_id), "in-context": Arm(result.parent_id, shown)}
    if result.teacher_id != result.parent_id:
        arms["teacher"] = Arm(result.teacher_id, shown)
    arms["student"] = Arm(result.model_id)
    if result.placebo_id:
        arms[PLACEBO_STUDENT] = Arm(result.placebo_id)
    entries = [Entry(label=label, arm=arm, note=note) for label, arm in arms.items()]
    trained = session.store.lookup("model", id=result.model_id)
    run_id = trained["run_id"] if trained else 0
    tasks = session.tasks("test", config.test_tasks)
    return tabulate(session, entries, tasks, setup=session.setup(), run_id=run_id or 0)


def folder_of(session: Session, model_id: str) -> str:
    """Where a model of the store lies.

    Raises:
        ConfigError: it is gone.
    """
    row = session.store.lookup("model", id=model_id)
    if row is None or (name := recall(session.work, row)) is None:
        raise ConfigError(f"the model {model_id[:12]} of this run is no longer here; put it back")
    return name
