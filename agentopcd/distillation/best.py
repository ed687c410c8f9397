"""The best student of a training on disk: ``best``, and ``best.old`` beside it until the next one is better.

A kill may fall between a new best student and the checkpoint that names it. The training then goes on from the
checkpoint before, which names the student before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from agentopcd import models
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import writing
from agentopcd.distillation.checkpoint import Progress
from agentopcd.distillation.learner import Learner
from agentopcd.models import find
from agentopcd.models.parallel import sharding
from agentopcd.models.parallel.ranks import Ranks


def save(progress: Progress, learner: Learner, context_id: str, folder: Path) -> None:
    """Save the student as the best one so far of the run in ``folder``; the one before is kept until the next."""
    progress.best_step = progress.step
    if Ranks.current().main:
        _move_aside(folder)
    progress.best_id = save_student(learner, context_id, progress.step, folder / "best")


def save_student(learner: Learner, context_id: str, step: int, folder: Path) -> str:
    """Save the student of a step as an ordinary model folder and return its id.

    Every process calls this. The main one writes; the others return an empty id.
    """
    facts, weights = {"step": step, "context": context_id}, folder.with_name(f"{folder.name}.safetensors.tmp")
    with writing(folder):
        if sharded := sharding.is_sharded(learner.whole.model):
            sharding.write_whole(learner.whole.model, weights)
        if not Ranks.current().main:
            return ""
        try:
            return models.save_model(
                learner.whole, folder, parent_id=learner.student.id, facts=facts, weights=weights if sharded else None
            )
        finally:
            weights.unlink(missing_ok=True)


def replace(progress: Progress, learner: Learner, context_id: str, folder: Path, say: Callable[[str], None]) -> None:
    """Do without the best student so far, which is no longer on disk: with that of the checkpoint, else a later one."""
    gone, progress.best_step, progress.best_id = progress.best_step, 0, ""
    if progress.step in progress.select:
        save(progress, learner, context_id, folder)
    instead = f"that of step {progress.best_step} takes its place" if progress.best_step else "a later one is chosen"
    say(f"warning: the best student so far, that of step {gone}, is gone or damaged in {folder}; {instead}")


def finish(folder: Path, *, merge: bool, dtype: str = "float32") -> None:
    """Give the best student of the run in ``folder`` its last name, ``student``.

    Args:
        merge: merge its adapter into a whole model.
        dtype: the dtype of the weights there.
    """
    best, student, done = folder / "best", folder / "student", folder / "best.done"
    shutil.rmtree(done, ignore_errors=True)  # an earlier call was killed while it removed this
    if not best.is_dir():  # an earlier call was killed right after this
        return
    with writing(student):
        shutil.rmtree(student, ignore_errors=True)
        if merge or dtype != "float32":
            if merge:
                models.merge(best, student)
            else:
                shutil.copytree(best, student)
            models.recast(student, dtype)
            best.rename(done)  # after a kill above, all of this is done again; a half removed ``best`` would be damaged
            shutil.rmtree(done)
        else:
            best.rename(student)
        shutil.rmtree(folder / "best.old", ignore_errors=True)


def _move_aside(folder: Path) -> None:
    """Make room for a better student in a run's ``folder``."""
    best, old = folder / "best", folder / "best.old"
    if best.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        best.rename(old)


def is_there(folder: Path, progress: Progress) -> bool:
    """Whether the student that ``progress`` names is there, as it was written."""
    return any(_is_best(folder / name, progress) for name in ("best", "best.old")) or _is_finished(folder, progress)


def put_back(folder: Path, progress: Progress) -> None:
    """Give the student that ``progress`` names the name ``best``, where a kill has left it as ``best.old``."""
    best, old = folder / "best", folder / "best.old"
    if not _is_best(best, progress) and _is_best(old, progress):
        shutil.rmtree(best, ignore_errors=True)
        old.rename(best)


def _is_best(folder: Path, progress: Progress) -> bool:
    try:
        if progress.best_id:
            return folder.is_dir() and find.fingerprint(folder) == progress.best_id
        return find.sidecar(folder).get("step") == progress.best_step
    except (OSError, ValueError, ConfigError):
        return False


def _is_finished(folder: Path, progress: Progress) -> bool:
    """Whether an earlier call was killed right after it had given the best student its last name."""
    try:
        return not (folder / "best").is_dir() and find.sidecar(folder / "student").get("step") == progress.best_step
    except (OSError, ValueError):
        return False
