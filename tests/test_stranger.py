"""The fifteen lines of the README are an environment: checked, played by a person, played by a model."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests import warm


def cli(*words: str, cwd: Path, typed: str = "", real: bool = True) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"AGENTOPCD_WORK": str(cwd / "work"), "OMP_NUM_THREADS": "1"}
    return warm.run(*words, cwd=cwd, env=env, typed=typed, real=real)


@pytest.fixture(scope="module")
def folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    blocks = re.findall(r"^```python\n(.*?)^```", (root / "README.md").read_text(), flags=re.M | re.S)
    (code,) = [block for block in blocks if "class Guess" in block]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    path = tmp_path_factory.mktemp("stranger")
    (path / "guess.py").write_text(code)
    return path


def test_check_passes(folder: Path) -> None:
    done = cli("envs", "check", "./guess.py:Guess", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_person_plays_it(folder: Path) -> None:
    typed = "".join(f"[{n}]\n" for n in range(1, 21))
    done = cli("envs", "try", "./guess.py:Guess", "--seed", "3", cwd=folder, typed=typed)
    assert done.returncode == 0, done.stderr
    assert "Too low." in done.stdout


@pytest.mark.parametrize("env", ["./guess.py:Guess", "gym:FrozenLake-v1"])
def test_a_model_plays_it(folder: Path, tiny_model_dir: Path, env: str) -> None:
    words = ("--model", str(tiny_model_dir), "--episodes", "2", "--max-tokens", "4", "--max-steps", "2", "--no-extract")
    done = cli("play", "--env", env, *words, cwd=folder, real=env.startswith("./"))  # a stranger's start is a real one
    assert done.returncode == 0, done.stderr
    listed = cli("knowledge", "list", "episodes", cwd=folder)
    assert listed.stdout.count(f"{env} ") >= 2
