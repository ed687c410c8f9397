"""Pages of the docs with sessions: their blocks, and how to run them as a reader would."""

from __future__ import annotations

import dataclasses
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

FENCE = re.compile(
    r"(?:^(?P<before>[^\n]+)\n\n)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL
)
SAVED = re.compile(r"`(\w+\.py)`:$")


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing that a reader does: paste a block, give a command, save a file."""

    kind: str
    """``block``: a bash block; ``command``: a line after ``$``; ``file``: Python that the page saves in a file;
    ``script``: Python that stands alone."""
    text: str
    """As it stands on the page."""
    shell: str
    """What bash runs for it."""
    shown: str = ""
    """The output that the page shows right below."""


def blocks_of(page: Path) -> list[str]:
    """The blocks of a page that are meant to be pasted."""
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def steps_of(text: str) -> list[Step]:
    """What a page has its reader do, from top to bottom."""
    steps: list[Step] = []
    saved: set[str] = set()
    for fence in FENCE.finditer(text):
        language, block = fence["language"], fence["text"]
        if language == "python":
            name = SAVED.search(fence["before"] or "")
            into = "python3 -" if name is None else f"cat {'>>' if name[1] in saved else '>'} {name[1]}"
            saved |= {name[1]} if name else set()
            steps.append(Step("file" if name else "script", block, f"{into} <<'END-OF-PYTHON'\n{block}END-OF-PYTHON"))
        elif language == "bash":
            steps.append(Step("block", block, block))
        elif language == "text" and steps and not fence["before"]:
            steps[-1] = dataclasses.replace(steps[-1], shown=block)
        elif re.search(r"^ *\$ ", block, re.MULTILINE):
            steps += _console(block)
    return steps


def _console(block: str) -> list[Step]:
    """The commands of a block with prompts, each with the lines that the page shows below it."""
    steps = []
    for piece in re.split(r"^ *\$ ", block, flags=re.MULTILINE)[1:]:
        lines = piece.splitlines(keepends=True)
        end = next(n for n, line in enumerate(lines, 1) if not line.rstrip().endswith(("\\", "|")))
        command = re.sub(r" {2,}#.*", "", "".join(lines[:end]).strip())
        steps.append(Step("command", command, command, "".join(lines[end:])))
    return steps


def check_commands(page: Path, generator: ModuleType, least: int) -> None:
    """Every command of a page parses, and there are at least so many."""
    found = list(commands(page.read_text(encoding="utf-8")))
    assert len(found) >= least
    for words in found:
        try:
            parse(generator, words)
        except Exception as error:
            pytest.fail(f"{page.name}: agentopcd {shlex.join(words)}\n{type(error).__name__}: {error}")


def reader(folder: Path) -> dict[str, str]:
    """The environment variables of a reader who has installed the package; ``folder`` gets the programs."""
    folder.mkdir(exist_ok=True)
    words_of = {"agentopcd": "-m agentopcd ", "torchrun": "-m torch.distributed.run ", "python": "", "python3": ""}
    for name, words in words_of.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words}"$@"\n')
        (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def run(blocks: list[str], tmp_path: Path) -> tuple[Path, list[str]]:
    """Run blocks one after the other in an empty folder, and return that folder and what each printed."""
    env, folder = reader(tmp_path / "bin"), tmp_path / "empty"
    folder.mkdir(exist_ok=True)
    said = []
    for block in blocks:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", block],
            cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        said.append(done.stdout)
    return folder, said
