"""Writes docs/cli.md from the commands' help; a test compares the two.

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

Written by `make docs` from the commands' `--help-all`, or `--help` of those with few options; edit the help texts, not
this page. `--[no-]NAME` stands for `--NAME`, and for `--no-NAME`, which overrides a settings file.
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
    """The help text of one command with all its options, whatever terminal this runs in."""
    from agentopcd.cli.help import sections

    context = command.context_class(command, info_name=" ".join(words), terminal_width=WIDTH)
    out = context.make_formatter()
    command.format_usage(context, out)
    command.format_help_text(context, out)
    for title, rows in sections(command, context, everything=True).items():
        with out.section(title):
            out.write_dl(rows)
    after = [line for line in (command.epilog or "").splitlines() if line not in (command.help or "")]
    out.write("\n" + "".join(f"  {line}\n" for line in after) if after else "")
    return re.sub(r"[ \t]+$", "", out.getvalue(), flags=re.MULTILINE).strip()


def generate() -> str:
    """The whole page."""
    parts = [HEADER]
    for words, command in commands():
        parts.append(f"## `{' '.join(words)}`\n\n```text\n{plain_help(words, command)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(generate(), encoding="utf-8")
    print(f"wrote {TARGET}")
