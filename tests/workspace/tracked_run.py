"""Logs the steps of a run to a tracker, and may kill itself: ``tracked_run.py WORK TRACKER first|again|done``."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from agentopcd.core.runs import Run
from agentopcd.workspace.trackers import check_tracker, tracking

SETTINGS = {"learning_rate": 1e-3, "env": "math", "env_args": {"at": "http://me:hush81x@host"}, "server": "", "n": None}
SUMMARY = {"test/student/success": 0.5, "test/student - base/difference": 0.25}


def main(work: str, tracker: str, part: str) -> None:
    check_tracker(tracker)
    run = Run(Path(work), "consolidate", {"env": "math"})
    steps = {"first": range(4), "again": range(3, 6), "done": range(0)}[part]
    if part == "again":
        run.rewind(2)  # to the checkpoint; step 3 runs again
    with tracking(run, tracker, SETTINGS, lambda line: print(line, flush=True)) as record:
        for step in steps:
            figures = {"loss/value_nats": 1 / (step + 1), "train/skipped": step == 1, "loss/name": "x", "none": None}
            run.log({"step": step, **figures, "odd=%name": 2.0})
        if part == "first":
            time.sleep(float(os.environ.get("LINGER_S", "3")))  # some trackers write from a thread
            os.kill(os.getpid(), signal.SIGKILL)
        record.finish(SUMMARY)


if __name__ == "__main__":
    main(*sys.argv[1:])
