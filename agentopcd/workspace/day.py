"""The day that a workspace's prompts speak of.

Some chat templates tell the model what day it is. The prompts of a run are rendered again later and compared, and its
episodes are compared with others, so one workspace has one day: a run that passes midnight, or that goes on the next
day, goes on with it.
"""

from __future__ import annotations

import datetime
from pathlib import Path

from agentopcd.core.errors import ConfigError


def day_of(work: Path) -> datetime.date:
    """The day of the workspace in the folder ``work``: the one on which it was asked for first.

    Raises:
        ConfigError: the file with the day was changed.
    """
    file = work / "day.txt"
    day = datetime.date.today().isoformat()
    try:
        with file.open("x", encoding="utf-8") as new:  # only the first of several processes writes
            new.write(day + "\n")
    except FileExistsError:
        day = file.read_text(encoding="utf-8", errors="replace").strip() or day  # empty: another process is writing it
    try:
        return datetime.date.fromisoformat(day)
    except ValueError:
        raise ConfigError(f"{file} must hold a day such as 2026-01-31, got {day[:40]!r}; write it there") from None
