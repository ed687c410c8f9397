"""The scripts of the recipes start anywhere: with any interpreter, and into the folder that was meant."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    "system-prompt/run.sh": "", "text-games/run.sh": "", "tools/run.sh": "TOOLS_WORK",
    "short-answers/run.sh": "SHORT_WORK", "demo-real.sh": "DEMO_WORK",
}  # fmt: skip
"""Each with the variable that names its folder; '': its first argument does."""


def start(script: str, python: Path, here: Path) -> subprocess.CompletedProcess[str]:
    """Run a script from another folder, into ``w`` there."""
    name = SCRIPTS[script]
    env = os.environ | {"PYTHON": str(python)} | ({name: "w"} if name else {})
    words = ["bash", str(ROOT / "recipes" / script), *([] if name else ["w"])]
    return subprocess.run(words, cwd=here, env=env, capture_output=True, text=True, check=False)


def interpreter(folder: Path, code: int) -> Path:
    """An interpreter that writes its arguments down and does nothing."""
    file = folder / "python"
    file.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\nexit {code}\n')
    file.chmod(0o755)
    return file


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_recipe_starts_with_a_named_interpreter_into_the_folder_that_was_typed(script: str, tmp_path: Path) -> None:
    done = start(script, interpreter(tmp_path, 0), tmp_path)
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text()
    assert "-m agentopcd " in asked and f"--work {tmp_path}/w" in asked


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_recipe_that_cannot_start_leaves_no_folder(script: str, tmp_path: Path) -> None:
    assert start(script, interpreter(tmp_path, 1), tmp_path).returncode != 0
    assert not (tmp_path / "w").exists()
