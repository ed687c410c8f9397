"""What breaks an environment, written down in full, so that whoever wrote it can find the fault and play it again."""

from __future__ import annotations

import dataclasses
import re
import threading
from datetime import UTC, datetime
from pathlib import Path

from agentopcd.core.runs import writing
from agentopcd.core.types import Job

MOST_BYTES = 1_000_000
"""The most that a file may hold; later faults are left out."""
LONGEST = 20_000
"""The most characters of a traceback, and of a reply; of a longer one, the middle is left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """One episode that broke off."""

    env: str
    job: Job
    turn: int
    """The turn in which it happened, from 1; 0: before the first reply."""
    reply: str
    """What the environment was given in that turn."""
    traceback: str
    attempt: int
    """Number of this attempt at the episode, from 1."""

    def __str__(self) -> str:
        job, at = self.job, datetime.now(UTC).isoformat(timespec="seconds")
        head = [
            f"==== {at}  {self.env}  attempt {self.attempt}",
            f"seed {job.task.seed}  task {job.task.key}  repetition {job.rep}  context {job.context.id[:12]}",
            f"turn {self.turn}" + (", the reply was:" if self.turn else ", before any reply"),
        ]
        said = [_cut(self.reply)] if self.turn else []
        return "\n".join([*head, *said, "", _cut(self.traceback.rstrip()), "", ""])


class FaultLog:
    """A file of faults. It is made when the first one is written.

    Args:
        file: where; several processes may write to it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Write a fault down, unless the file is full."""
        with self._lock, writing(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8", errors="backslashreplace") as log:
                if log.tell() < MOST_BYTES:
                    log.write(str(fault))
                    if log.tell() >= MOST_BYTES:
                        log.write("==== the file is full: later faults are left out; remove it to collect more\n")


def fault_log(work: Path, env: str, run: str) -> FaultLog:
    """The log of a run of a workspace: ``errors/ENV-RUN.log``."""
    slug = re.sub(r"[^a-z0-9]+", "-", env.lower()).strip("-")[-40:]
    return FaultLog(work / "errors" / f"{slug}-{run}.log")


def _cut(text: str) -> str:
    half, over = LONGEST // 2, len(text) - LONGEST
    return text if over <= 0 else f"{text[:half]}\n[... {over} characters ...]\n{text[-half:]}"
