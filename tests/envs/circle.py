"""The command line on one environment: play with extraction, then one training step. Other people's games use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PLAYER = ("--model", "pocket-s", "--max-tokens", "8", "--max-steps", "4")


def agentopcd(*words: str, code: int = 0) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "agentopcd", *words], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def plays_and_learns(ref: tuple[str, ...], work: Path) -> str:
    """Play with extraction, then one step of training; return what play said."""
    places = ("--env", *ref, *PLAYER, "--work", str(work))
    played = agentopcd("play", *places, "--episodes", "6")
    (work / "context.txt").write_text("Say a number between 1 and 5.\n")
    small = ("--steps", "1", "--batch-size", "4", "--select-tasks", "4", "--test-tasks", "4")
    agentopcd("consolidate", *places, "--context", str(work / "context.txt"), "--force", *small)
    assert list(work.glob("runs/*/student/model.safetensors"))
    return played
