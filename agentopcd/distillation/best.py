"""The best student of a training on disk: ``best``, and ``best.old`` beside it until the next one is better.

A kill may fall between a new best student and the checkpoint that names it. The training then goes on from the
checkpoint before, which names the student before.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from agentopcd.core.errors import ConfigError
from agentopcd.distillation.checkpoint import Progress
from agentopcd.models import find


def move_aside(folder: Path) -> None:
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
