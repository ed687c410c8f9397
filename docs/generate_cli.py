"""Writes docs/cli.md from the commands' ``--help``; a test compares the two.

Run ``make docs`` after a change of an option or a help text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

TARGET = Path(__file__).with_name("cli.md")
WIDTH = 100
HEADER = """# Command line

Written by `make docs` from the commands' `--help`; edit the help texts, not this page.
"""


def commands() -> Iterator[tuple[list[str], Any]]:
    """Every visible command with the words that call it, groups before their members."""
    from agentopcd.cli import app

    def walk(words: list[str], command: Any) -> Iterator[tuple[list[str], Any]]:
        yield words, command
        for name, child in getattr(command, "commands", {}).items():
            if not child.hidden:
                yield from walk([*words, name], child)

    yield from walk(["agentopcd"], typer.main.get_command(app))


def plain_help(words: list[str], command: Any) -> str:
    """The help text of one command, without colour and frames, whatever terminal this runs in."""
    context = command.context_class(command, info_name=" ".join(words), terminal_width=WIDTH)
    style, command.rich_markup_mode = command.rich_markup_mode, None
    try:
        text = command.get_help(context)
    finally:
        command.rich_markup_mode = style
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip()


def generate() -> str:
    """The whole page."""
    parts = [HEADER]
    for words, command in commands():
        parts.append(f"## `{' '.join(words)}`\n\n```text\n{plain_help(words, command)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(generate(), encoding="utf-8")
    print(f"wrote {TARGET}")
