"""Which unfinished runs a living process works on: it holds a lock on a file in the workspace, which ends with it.

The system ends the lock however the process ends, so a killed run is never taken for one that goes on.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from agentopcd.core.runs import writing

FOLDER = "live"
"""Subfolder of the workspace with a file for each run that is held."""


class Hold:
    """A run that this process works on.

    Args:
        work: the workspace folder.
        name: the run's name, as :func:`is_held` is asked for it.

    Attributes:
        shared: True if another process holds the run already, so that both work on it.
    """

    def __init__(self, work: Path, name: str) -> None:
        self._file = _file(work, name)
        self._lock = FileLock(self._file)
        with writing(self._file):
            self._file.parent.mkdir(exist_ok=True)
            with suppress(Timeout):
                self._lock.acquire(timeout=0)
        self.shared = not self._lock.is_locked

    def close(self) -> None:
        """Say that this process no longer works on the run. A second call does nothing."""
        if self._lock.is_locked:
            self._file.unlink(missing_ok=True)
            self._lock.release()


def is_held(work: Path, name: str) -> bool | None:
    """Whether a living process works on a run; None if that cannot be told because the file may not be written."""
    file = _file(work, name)
    if not file.is_file():
        return False
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return None
    lock.release()
    return False


def _file(work: Path, name: str) -> Path:
    return work / FOLDER / f"{name}.lock"
