"""Paths of models as the store and the run folders keep them.

A folder inside the workspace is kept relative to it, so that it is found from any folder, and after the workspace was
moved or copied.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agentopcd.core.errors import ConfigError
from agentopcd.core.files import is_file
from agentopcd.core.runs import work_flag
from agentopcd.knowledge.store import Store
from agentopcd.knowledge.students import current_student, env_of, student_moves, student_ref


def inside(work: Path, path: str | Path) -> Path | None:
    """The folder of a run of this workspace that a path names, whatever workspace it was written in; None if none.

    Version 0.1 wrote paths as they were typed, with the workspace in front.
    """
    parts = Path(path).parts
    if "runs" not in parts:
        return None
    last = len(parts) - 1 - parts[::-1].index("runs")
    return work.joinpath(*parts[last:])


def recall(work: Path, model: Mapping[str, Any]) -> str | None:
    """The name to load a model of the store by; None if it is no longer where it was.

    Args:
        model: the model's row.
    """
    if not model["path"]:
        return None
    here = inside(work, model["path"])
    if here is not None and model["run_id"] is not None:  # trained here: another workspace's copy is not taken for it
        return str(here) if here.is_dir() else None
    for place in (work / model["path"], Path(model["path"]), here):
        if place is not None and place.is_dir():
            return str(place)
    from agentopcd.models import find  # loads torch, which takes longer than what most readers of paths do

    return model["name"] if model["name"] in find.BUILT_IN else None


def existing(store: Store, work: Path, ids: Iterable[str]) -> tuple[str | None, list[str]]:
    """The folder of the first of some models that still exists, and those before it that are gone."""
    gone: list[str] = []
    for id_ in ids:
        row = store.lookup("model", id=id_)
        if row is None:
            break
        if (name := recall(work, row)) is not None:
            return name, gone
        gone.append(row["path"] or row["name"])
    return None, list(dict.fromkeys(gone))


def student_folder(store: Store, work: Path, name: str) -> str | None:
    """The folder of ENV/student; None if the name is no such ref of this workspace.

    Raises:
        ConfigError: the environment has no student any more, or its folder is gone.
    """
    env = env_of(name)
    if not env or is_file(name) or Path(name).is_dir() or not student_moves(store, env):
        return None
    if (folder := playing(store, work, env)) is None:
        raise ConfigError(f"{name} was rolled back to none; name another model")
    return folder


def playing(store: Store, work: Path, env: str) -> str | None:
    """The folder of the model at ENV/student; None if there is none.

    Raises:
        ConfigError: it is gone. No older student takes its place: that one may hold what was taken out since.
    """
    if (id_ := current_student(store, env)) is None:
        return None
    row = store.lookup("model", id=id_)
    if row is None or (folder := recall(work, row)) is None:
        known = (row["path"] or row["name"]) if row else id_[:12]
        raise ConfigError(
            f"{student_ref(env)} is {known}, which is gone; put it back, take "
            f"another student (agentopcd rollback {shlex.quote(env)}{work_flag(work)}), or name a model with --model"
        )
    return folder
