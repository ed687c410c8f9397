"""The benchmark of play: what it counts as CPU time."""

from __future__ import annotations

import subprocess
import sys

from benchmarks import rollout

BUSY = "import time\nwhile time.process_time() < 0.5: pass"


def test_the_cpu_time_of_processes_that_play_counts() -> None:
    def do() -> int:
        return subprocess.run([sys.executable, "-c", BUSY], check=True).returncode + 7

    tokens, spent = rollout.timed(do)
    assert tokens == 7 and spent >= 0.5
