"""Which unfinished runs a living process works on: it holds a lock on a file in the workspace, which ends with it.

The system ends the lock however the process ends, so a killed run is never taken for one that goes on.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import writing

FOLDER = "live"
"""Subfolder of the workspace with a file for each run that is held."""
PATIENCE_S = 2.0
"""How long a run is waited for: whoever asks for its state has it for a moment, too."""


class Hold:
    """A run that this process works on, and no other: two would write to one log and rotate the same checkpoints.

    Args:
        work: the workspace folder.
        name: the run's name, as :func:`is_held` is asked for it.
        what: the run in words.

    Raises:
        ConfigError: another process works on it.
    """

    def __init__(self, work: Path, name: str, what: str = "this run") -> None:
        self._file = _file(work, name)
        self._lock = FileLock(self._file)
        with writing(self._file):
            self._file.parent.mkdir(exist_ok=True)
            with suppress(Timeout):
                self._lock.acquire(timeout=PATIENCE_S)
        if self._lock.is_locked and not isinstance(self._lock, SoftFileLock):  # which writes the same itself
            with suppress(OSError):  # a system on which nobody may write to a file that is locked
                self._file.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", encoding="utf-8")
        if not self._lock.is_locked:
            raise ConfigError(
                f"another process works on {what}{_holder(self._file)}; wait until it has ended, or stop it, and give "
                f"the command again (if there is no such process: remove {self._file})"
            )

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


def _holder(file: Path) -> str:
    """Which process holds a run, as its file tells it; '' if it does not."""
    try:
        number, host, *_ = file.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return ""
    return f" (process {int(number)} on {host})" if number.isdigit() else ""


def _file(work: Path, name: str) -> Path:
    return work / FOLDER / f"{name}.lock"
