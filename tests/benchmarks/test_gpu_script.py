"""The run-book for a GPU runs here at a tiny size, so that it has been run once before a GPU is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def book(out: Path, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--tiny", "--out", str(out), *words],
        cwd=ROOT, env=os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "WHEELS": "none"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == found
    return found


@pytest.mark.slow
def test_the_attention_of_the_run_book_is_exact(tmp_path: Path) -> None:
    found = book(tmp_path / "gpu.json", "--part", "attention")
    assert found.keys() == {"machine", "attention"} and found["machine"]["tflops"] > 0
    for shortcuts in found["attention"].values():
        assert shortcuts["off_nats"].keys() == {"head", "together", "branch", "prefix"}
        assert max(shortcuts["off_nats"].values()) < 1e-5 and not shortcuts["set_aside"]


@pytest.mark.slow
def test_the_whole_run_book(tmp_path: Path) -> None:
    found = book(tmp_path / "gpu.json")
    assert found["pocket"]["rows"].keys() == {"base", "in-context", "student"}
    for arm in ("ours", "lora"):
        assert found["step"][arm]["seconds"].keys() == {"rollout", "teacher", "update"}
        assert all(share > 0 for share in found["step"][arm]["share_of_rate"].values())
    assert found["teacher"]["ours"] > 0 and found["teacher"]["plain"] > 0
