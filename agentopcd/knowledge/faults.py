"""What can be wrong with the file of a store, and what to do about it, in words."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentopcd.core.errors import StoreError

REPAIR = "`agentopcd store check` says what is wrong with it, `agentopcd store repair` saves what can be read"

_REMEDIES = {
    "SQLITE_BUSY": "another process is using it; wait until that one is done, then repeat the command",
    "SQLITE_LOCKED": "another process is using it; wait until that one is done, then repeat the command",
    "SQLITE_READONLY": "it cannot be written; give yourself write permission on the file and its folder, or copy both",
    "SQLITE_PERM": "give yourself permission on the file and its folder",
    "SQLITE_CANTOPEN": "give yourself permission on the file and its folder, or point --work at another folder",
    "SQLITE_FULL": "make room on the disk and repeat the command; what was stored before is kept",
    "SQLITE_TOOBIG": "this row is larger than SQLite can hold",
    "SQLITE_CONSTRAINT": "this row does not fit those that the store has",
}
"""What to do about SQLite's errors, by the first two words of their names; about all others: :data:`REPAIR`."""

UNREADABLE = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_PROTOCOL")
"""Errors that a copy of the files does not have: the rows may be sound, but this place does not let us at them."""


def name_of(error: BaseException | None) -> str:
    """The first two words of an SQLite error's name, such as ``SQLITE_BUSY``; empty for other errors."""
    return "_".join((getattr(error, "sqlite_errorname", None) or "").split("_")[:2])


@contextmanager
def told(path: Path | str, what: str = ":") -> Iterator[None]:
    """Raise what goes wrong with the store at ``path`` as a :class:`StoreError` with a remedy.

    Args:
        what: stands between the path and SQLite's own words.
    """
    try:
        yield
    except sqlite3.Error as error:
        said = " ".join(str(error).split())
        raise StoreError(f"{path}{what} {said}; {_REMEDIES.get(name_of(error), REPAIR)}") from error
    except (OverflowError, UnicodeError) as error:  # whole numbers beyond 64 bits, halves of a surrogate pair
        raise StoreError(f"{path} cannot hold this value: {error}") from error
    except OSError as error:
        why = f"{error.strerror or error}; {_REMEDIES['SQLITE_CANTOPEN']}"
        raise StoreError(f"cannot use the knowledge store {path}: {why}") from error


def read_object(body: str, what: str) -> dict[str, Any]:
    """The JSON object in a column of the store.

    Args:
        what: names the column and its row, for the message.

    Raises:
        StoreError: it holds something else.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise StoreError(f"the store is damaged: {what} is no JSON object but {body!r:.60}; {REPAIR}")
    return found


def check_file(path: Path, *, create: bool) -> None:
    """Refuse a file that SQLite would take for a new store although it was one with rows.

    Raises:
        StoreError: the file is missing and may not be created, or it is empty, or only its log is there.
    """
    log = beside(path, "-wal")
    if path.is_dir():
        raise StoreError(f"cannot open the knowledge store {path}: it is a folder; name the folder above with --work")
    if path.is_file() and not path.stat().st_size:
        raise StoreError(
            f"{path} has 0 bytes, so what it held is lost or was not copied whole; put a backup in its place, or "
            "remove the file to begin a new store"
        )
    if path.exists():
        return
    if log.is_file() and log.stat().st_size:
        raise StoreError(f"{path} is missing, but {log.name} beside it holds rows of it; put the two together again")
    if not create:
        raise StoreError(f"no knowledge store at {path}; play first, or point --work at another folder")


def beside(path: Path, ending: str) -> Path:
    """The file whose name is that of ``path`` with an ending, such as SQLite's ``-wal``."""
    return path.with_name(path.name + ending)


def copy_to_read(path: Path) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder with a copy of a store that cannot be opened where it is; SQLite brings the copy in order."""
    folder = tempfile.TemporaryDirectory(prefix="agentopcd-store-")
    try:
        for ending in (
            "-wal",
            "-journal",
            "",
        ):  # the rows last: what is written meanwhile may be in both, never in none
            if (file := beside(path, ending)).is_file():
                shutil.copyfile(file, Path(folder.name) / (path.name + ending))
    except OSError:
        folder.cleanup()
        raise
    return folder
