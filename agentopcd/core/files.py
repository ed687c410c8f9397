"""Names that people type for files: ``~`` is their home folder, and a text that cannot be a path is no file."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path


def path_of(name: str | Path) -> Path:
    """The path that a person has typed, ``~`` at its start replaced by the home folder, if there is such a one."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no user of that name
        return Path(name)


def resolved(path: str | Path) -> Path:
    """The absolute path behind all links. A link that leads to itself is left as it is: whoever opens it is told."""
    return Path(os.path.realpath(path))


def is_file(name: str | Path) -> bool:
    """Whether ``name`` is a file; False for a text that no path can be, such as a whole prompt."""
    try:
        return path_of(name).is_file()
    except (OSError, ValueError):  # too long, or not to be reached
        return False


def is_dir(name: str | Path) -> bool:
    """Whether ``name`` is a folder; False for a text that no path can be."""
    try:
        return path_of(name).is_dir()
    except (OSError, ValueError):
        return False


def is_gguf(name: str | Path) -> bool:
    """Whether ``name`` is that of a ``.gguf`` file, there or not."""
    return Path(name).suffix.lower() == ".gguf"


def hub_of(folder: str | Path) -> str:
    """The hub id of a model in the cache of the hub's library, by its path; '' for other folders."""
    for part, below in itertools.pairwise(Path(folder).parts):  # models--OWNER--NAME/snapshots/REVISION
        if below == "snapshots" and (found := re.fullmatch(r"models--([\w.-]+?)--([\w.-]+)", part)):
            return f"{found[1]}/{found[2]}"
    return ""


def told(name: str) -> str:
    """The name of a model or file as strangers may read it: never with the path to it on this machine.

    A hub id and a built-in name stay as they are.
    """
    if hub := hub_of(name):
        return hub
    *_, runs, run, last = "", "", "", *Path(name).parts
    ours = not is_dir(name) or is_file(path_of(name) / "agentopcd.json")  # others have folders called runs, too
    if (runs, last) == ("runs", "student") and ours:
        return f"the student of run {run}"
    if is_gguf(name):
        return "a local .gguf file"
    is_name = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) and not ("/" in name and is_dir(name))
    return name if is_name else "a local folder"
