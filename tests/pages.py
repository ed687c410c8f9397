"""Pages of the docs with sessions: their blocks, and how to run them as a reader would."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.test_readme import commands, parse


def blocks_of(page: Path) -> list[str]:
    """The blocks of a page that are meant to be pasted."""
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def check_commands(page: Path, generator: ModuleType, least: int) -> None:
    """Every command of a page parses, and there are at least so many."""
    found = list(commands(page.read_text(encoding="utf-8")))
    assert len(found) >= least
    for words in found:
        try:
            parse(generator, words)
        except Exception as error:
            pytest.fail(f"{page.name}: agentopcd {shlex.join(words)}\n{type(error).__name__}: {error}")


def run(blocks: list[str], tmp_path: Path) -> tuple[Path, list[str]]:
    """Run blocks one after the other in an empty folder, and return that folder and what each printed."""
    tool = tmp_path / "bin" / "agentopcd"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m agentopcd "$@"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    folder = tmp_path / "empty"
    folder.mkdir()
    env = os.environ | {"PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    said = []
    for block in blocks:
        done = subprocess.run(["bash", "-e", "-c", block], cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        said.append(done.stdout)
    return folder, said
