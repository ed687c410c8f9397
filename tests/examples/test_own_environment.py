"""The environment that people are told to copy keeps the contract, and a model plays it from its file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentopcd import envs

FILE = "examples/own_environment.py"


def run(root: Path, work: Path, *words: str) -> str:
    env = os.environ | {"AGENTOPCD_WORK": str(work), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_checker_finds_no_error(root: Path) -> None:
    report = envs.check_env(f"{root / FILE}:Ferry", 64)
    assert report.errors == []
    assert report.random_success < 0.25


def test_it_says_how_to_go_on(root: Path, tmp_path: Path) -> None:
    assert f"agentopcd play --env {FILE}:Ferry" in run(root, tmp_path, FILE)


@pytest.mark.slow
def test_a_model_plays_it(root: Path, tmp_path: Path) -> None:
    words = ("--env", f"{FILE}:Ferry", "--model", "pocket", "--episodes", "2", "--max-steps", "2", "--no-extract")
    run(root, tmp_path, "-m", "agentopcd", "play", *words)
    listed = run(root, tmp_path, "-m", "agentopcd", "knowledge", "list", "episodes")
    assert listed.count(f"{FILE}:Ferry") >= 2
