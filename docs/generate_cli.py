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
    """The help text of one command, its panels as sections, whatever terminal this runs in."""
    context = command.context_class(command, info_name=" ".join(words), terminal_width=WIDTH)
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for param in command.get_params(context):
        panel = getattr(param, "rich_help_panel", None) or f"{param.param_type_name.capitalize()}s"
        if record := param.get_help_record(context):  # none for what is hidden
            sections.setdefault(panel, []).append(record)
    out = context.make_formatter()
    command.format_usage(context, out)
    command.format_help_text(context, out)
    for panel, records in sections.items():
        if records:
            with out.section(panel):
                out.write_dl(records)
    if getattr(command, "commands", None):
        command.format_commands(context, out)
    command.format_epilog(context, out)
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
