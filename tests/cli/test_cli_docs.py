"""docs/cli.md says what ``--help`` says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from agentopcd.core.config.flags import PANELS


def test_the_page_is_what_the_generator_writes(root: Path, cli_generator: ModuleType) -> None:
    page = root / "docs" / "cli.md"
    assert page.is_file(), "docs/cli.md is missing; write it with: make docs"
    wanted = cli_generator.generate()
    assert page.read_text(encoding="utf-8") == wanted, "docs/cli.md is out of date; write it with: make docs"


def test_every_command_has_help_with_an_example(cli_generator: ModuleType) -> None:
    for words, command in cli_generator.commands():
        text = cli_generator.plain_help(words, command)
        assert text.startswith(f"Usage: {' '.join(words)} ")
        if not getattr(command, "commands", None):
            assert f"agentopcd {words[1]}" in text.partition("\n")[2], f"no example in: {' '.join(words)} --help"


@pytest.mark.parametrize("verb", ["play", "consolidate", "learn"])
@pytest.mark.parametrize("columns", [80, 100])
def test_no_option_is_cut_in_a_narrow_terminal(root: Path, verb: str, columns: int) -> None:
    """Through the real command line: frames as in a terminal, and every name whole on its line."""
    env = {**os.environ, "COLUMNS": str(columns), "TERMINAL_WIDTH": str(columns)}
    done = subprocess.run(
        [sys.executable, "-m", "agentopcd", verb, "--help"],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    shown = [line.split()[1] for line in done.stdout.splitlines() if re.match(r"│ --", line)]
    assert {"--env", "--seed", "--engine", "--episodes" if verb == "play" else "--gradient-checkpointing"} <= {*shown}
    assert "…" not in done.stdout and "[default: (" not in done.stdout
    titles = re.findall(r"^╭─ (\w+) ", done.stdout, flags=re.MULTILINE)
    assert titles == [title for title in PANELS if title in titles] and titles[0] == "Options" and len(titles) >= 4
