"""docs/cli.md says what ``--help`` says."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType


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
