"""``agentopcd envs new``: a commented environment to begin with."""

from __future__ import annotations

import keyword
import re
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agentopcd.core.errors import ConfigError
from agentopcd.core.files import path_of
from agentopcd.core.runs import write_new

TEMPLATES = Path(__file__).parent / "templates"
CLASS = "Mine"
"""The name of the class in the templates."""


class Kind(StrEnum):
    """What a template is of."""

    text = "text"
    tools = "tools"
    rows = "rows"


SOURCES = {Kind.text: "text_env.py", Kind.tools: "tool_env.py", Kind.rows: "rows.jsonl"}


def add_to(envs: typer.Typer) -> None:
    """Add the command to ``agentopcd envs``."""
    envs.command("new")(new)


def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file: NAME.py, or NAME.jsonl for rows.")],
    kind: Annotated[
        Kind | None,
        typer.Option(help="A text game, tools to call, or rows of questions.", show_default="text; rows for .jsonl"),
    ] = None,
) -> None:
    """Write an environment that can be played at once, with comments that say how to change it.

    Example: agentopcd envs new mine.py
    """
    kind = kind or (Kind.rows if file.suffix == ".jsonl" else Kind.text)
    source = TEMPLATES / SOURCES[kind]
    if file.suffix != source.suffix:
        raise ConfigError(f"{file} does not end in {source.suffix}, as a file of the kind {kind} must; name it so")
    if file.stem in {*sys.stdlib_module_names, "agentopcd", "gymnasium", "numpy"}:
        raise ConfigError(f"{file} would stand in the way of Python's own {file.stem!r}; give another name")
    if kind is Kind.rows and "," in str(file):
        raise ConfigError(f"{file} has a comma in its name, which stands between files of rows; give another name")
    text = source.read_text(encoding="utf-8")
    ref = str(file) if file.is_absolute() or str(file).startswith((".", "~")) else f"./{file}"
    if kind is not Kind.rows:
        name = class_name(file.stem, text)
        text = re.sub(rf"\b{CLASS}\b", name, text).replace("./FILE.py", ref)
        ref = f"{ref}:{name}"
    write_new(path_of(file), text)
    print(f"wrote {file}; next: agentopcd envs check {shlex.quote(ref)}")


def class_name(stem: str, text: str) -> str:
    """A class name made of a file's name, such as ``MyGame`` of ``my_game``, that ``text`` does not use yet."""
    name = "".join(word[0].upper() + word[1:] for word in re.findall(r"[A-Za-z0-9]+", stem)) or CLASS
    taken = keyword.iskeyword(name) or name[0].isdigit() or (name != CLASS and re.search(rf"\b{name}\b", text))
    return f"My{name}" if taken else name
