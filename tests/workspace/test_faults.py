"""What breaks an environment is found in the workspace, whether it broke in play or in training."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentopcd.cli import app

GAME = """
from agentopcd.envs import TextEnv

class Breaks(TextEnv):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed = seed
        return self.first(key=seed, state=f"Room {seed}.", actions="Say [go].")

    def step(self, action):
        if self.seed % 2:
            raise RuntimeError(f"room {self.seed} has no door")
        return self.turn(outcome="Done.", success=True)
"""


@pytest.fixture
def words(tmp_path: Path, tiny_model_dir: Path) -> list[str]:
    (tmp_path / "breaks.py").write_text(GAME)
    (tmp_path / "context.txt").write_text("Say [go].")
    named = ["--env", f"{tmp_path / 'breaks.py'}:Breaks", "--model", str(tiny_model_dir), "--work", str(tmp_path / "w")]
    return [*named, "--max-tokens", "4", "--compute", "float32"]


def run(*words: str) -> str:
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_faults_of_play_are_in_a_file_that_the_warning_names(words: list[str], tmp_path: Path) -> None:
    said = run("play", *words, "--episodes", "8", "--no-extract")
    (log,) = (tmp_path / "w" / "errors").iterdir()
    (warning,) = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert log.name.endswith("breaks-py-breaks-1.log") and warning.endswith(f"not counted; in full: {log}")
    text, broken = log.read_text(), int(warning.split()[1])
    assert 0 < broken < 8 and text.count("==== ") == 3 * broken  # the first attempt and two retries
    assert text.count("turn 1, the reply was:") == 3 * broken and 'breaks.py", line 12, in step' in text
    assert text.count("Traceback (most recent call last)") == 2 * 3 * broken  # its own, and the one line made of it


def test_faults_of_training_are_told_once(words: list[str], tmp_path: Path) -> None:
    training = "--steps 2 --batch-size 6 --select-every 2 --select-tasks 2 --test-tasks 0 --learning-rate 1e-3"
    said = run("consolidate", *words, "--context", str(tmp_path / "context.txt"), *training.split())
    (warning,) = [line for line in said.splitlines() if " of step " in line]
    (folder,) = (tmp_path / "w" / "runs").iterdir()
    assert warning.endswith(f"broke off; in full: {tmp_path / 'w' / 'errors' / f'{folder.name}.log'}")
    assert "has no door" in (tmp_path / "w" / "errors" / f"{folder.name}.log").read_text()
