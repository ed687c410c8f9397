"""The benchmark of the gateway at a small size: nothing is lost or doubled by kills, and both parts run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_or_doubled_by_kills(tmp_path: Path) -> None:
    sizes = {"clients": 4, "requests": 80, "kills": 4, "episodes": 8, "repeats": 1, "max-tokens": 16}
    words = [f"--{name}={size}" for name, size in sizes.items()]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.gateway", *words, "--json", tmp_path / "found.json"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["kills"]["largest_drift_nats"] < 1e-3
    wrong = ("lost", "doubled", "other_reply", "ratings_lost", "store_problems")
    assert {name: found["kills"][name] for name in wrong} == dict.fromkeys(wrong, 0)
    assert found["speed"]["turns"] >= 8 and found["speed"]["server"][0]["cpu_s"] > 0
