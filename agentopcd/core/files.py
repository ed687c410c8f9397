"""Names that people type for files: ``~`` is their home folder, and a text that cannot be a path is no file."""

from __future__ import annotations

import os
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
