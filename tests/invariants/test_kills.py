"""A kill in each command; ``python -m benchmarks.kills`` kills 100 times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kills import COMMANDS, differences, table


@pytest.mark.slow
def test_a_killed_command_that_is_given_again_ends_like_a_straight_one(root: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.kills", "--kills", str(len(COMMANDS)), "--work", str(tmp_path / "kills")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    noted = [json.loads(line) for line in (tmp_path / "kills" / "kills.jsonl").read_text().splitlines()]
    assert {one["verb"] for one in noted} == set(COMMANDS) and not any(one["wrong"] for one in noted)


def test_a_row_that_is_lost_or_changed_is_a_difference() -> None:
    straight = {"episode": '[\n{"seed": 1}\n{"seed": 2}]', "weights": "abc"}
    assert differences(straight, dict(straight)) == ""
    assert "seed" in differences(straight, {**straight, "episode": '[\n{"seed": 1}]'})
    assert "weights" in differences(straight, {"episode": straight["episode"]})


def test_the_table_counts_what_was_different() -> None:
    noted = [
        {"number": 0, "verb": "play", "at_s": 1, "wrong": ""},
        {"number": 1, "verb": "play", "at_s": 2, "wrong": "x"},
    ]
    lines = table(noted, 0)
    assert lines[1].split() == ["play", "2", "1", "1"] and lines[7].split() == ["all", "2", "1", "1"]
    assert lines[-1] == "kill 1 of play at 2 s: x"
