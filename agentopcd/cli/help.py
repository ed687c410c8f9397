"""What ``--help`` prints: nothing cut off at any width, the usual options of a long command first.

Typer draws tables, which cut names that are too long for a column. Here a long name has a line of its own.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from agentopcd.core.terminal import roomy

EVERYTHING = "agentopcd.help_all"
"""The key of a context's ``meta`` that is set while ``--help-all`` is answered."""
REST = "--help-all shows the other options, in panels."
COMPLETION = {"install_completion": "Install completion in your shell.", "show_completion": "Print the script of it."}
"""Shorter words for the options that Typer adds."""


class Command(TyperCommand):
    """A command whose callback may name its usual options as ``callback.usual``; ``--help-all`` shows all of them."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        print_help(self, ctx)


class Group(TyperGroup):
    """A group of commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        print_help(self, ctx)


class App(typer.Typer):
    """A Typer app whose commands and groups print their help as this module does."""

    def __init__(self, **settings: Any) -> None:
        given: dict[str, Any] = {"cls": Group, "no_args_is_help": True} | settings
        super().__init__(**given)

    def command(self, name: str | None = None, **settings: Any) -> Any:
        given: dict[str, Any] = {"cls": Command} | settings
        return super().command(name, **given)


def help_all(ctx: typer.Context, wanted: bool) -> None:
    """The callback of ``--help-all``."""
    if wanted and not ctx.resilient_parsing:
        ctx.meta[EVERYTHING] = True
        print_help(ctx.command, ctx)
        raise typer.Exit()


Rows = list[tuple[str, str]]


def sections(command: Any, ctx: typer.Context, *, everything: bool = False) -> dict[str, Rows]:
    """What a help text lists, by title: names on the left, what they do on the right.

    Args:
        everything: all options, in panels; otherwise the usual ones, in one panel, if the command says which these are.
    """
    usual = _usual(command)
    params = [param for param in command.get_params(ctx) if not getattr(param, "hidden", False)]
    if usual and not everything:
        order = {name: number for number, name in enumerate(usual)}
        shown = [param for param in params if param.name in order or not param.rich_help_panel]
        params = sorted(shown, key=lambda param: order.get(param.name, len(order)))
    commands = getattr(command, "commands", {}).items()
    found: dict[str, Rows] = {
        "Commands": [(name, _first_paragraph(one)) for name, one in commands if not one.hidden],
        "Arguments": [],
    }
    for param in params:
        if isinstance(param, TyperArgument):
            title = "Arguments"
        elif usual and everything:
            title = param.rich_help_panel or "Output"
        else:
            title = "Options"
        found.setdefault(title, []).append((name_of(param, ctx), text_of(param, ctx)))
    return {title: rows for title, rows in found.items() if rows}


def name_of(param: Any, ctx: typer.Context) -> str:
    """How a parameter is written: ``--seed <int>``, ``--[no-]force``, ``FILE``."""
    if isinstance(param, TyperArgument):
        return param.display_name_raw
    if param.is_flag:
        if [f"--no-{param.opts[0][2:]}"] == param.secondary_opts:
            return f"--[no-]{param.opts[0][2:]}"
        return ", ".join([*param.opts, *param.secondary_opts])
    return f"{', '.join(sorted(param.opts, key=len))} {param.display_type_rich(ctx=ctx)}"


def text_of(param: Any, ctx: typer.Context) -> str:
    """What a parameter does, its bounds and its default."""
    words = [" ".join(COMPLETION.get(param.name, param.help or "").split())]
    if param.min is not None:
        words.append(f"[{param.min} or more]")
    if param.show_envvar and param.envvar:
        words.append(f"[env var: {param.envvar}]")
    if param.required:
        words.append("[required]")
    elif default := _default(param, ctx):
        words.append(f"[default: {default}]")
    return " ".join(words)


def _default(param: Any, ctx: typer.Context) -> str:
    if isinstance(param.show_default, str) or not param.show_default:
        return param.show_default or ""
    value = param.get_default(ctx, call=False)
    if value is None or isinstance(value, list | tuple):
        return ""
    if isinstance(value, bool):
        return "on" if value else ""
    return str(getattr(value, "value", value))


def _first_paragraph(command: Any) -> str:
    return " ".join((command.help or "").partition("\n\n")[0].split())


def print_help(command: Any, ctx: typer.Context) -> None:
    """Print the help of a command, as wide as the terminal is."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    everything, console = EVERYTHING in ctx.meta, roomy(Console(highlight=False))

    def tell(text: str) -> None:
        console.print(Text("\n".join(_wrapped(" ".join(text.split()), console.width - 1, " "))))

    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    for text in (f"Usage: {usage}", *paragraphs):
        console.print()
        tell(text)
    console.print()
    for title, rows in sections(command, ctx, everything=everything).items():
        body = Text("\n".join(laid_out(rows, console.width - 4)))
        body.highlight_regex(r"(?m)^(--?[^\s<]+|[a-z]+(?=  ))", "bold cyan")
        body.highlight_regex(r"<[^<>\n]+>", "yellow")
        body.highlight_regex(r"\[(default|env var|required)[^\]]*\]|\[\d+ or more\]", "dim")
        console.print(Panel(body, title=title, title_align="left", border_style="dim"))
    if _usual(command) and not everything:
        tell(REST)
    for line in inspect.cleandoc(command.epilog or "").splitlines():
        if line not in paragraphs:  # an example may stand in both
            tell(line)


def _usual(command: Any) -> Sequence[str]:
    return getattr(command.callback, "usual", ())


def laid_out(rows: Rows, width: int) -> Iterator[str]:
    """The lines of two columns in ``width`` characters. A name over two fifths of it stands in a line of its own."""
    left = max((len(name) for name, _ in rows if len(name) + 2 <= width * 2 // 5), default=width // 5) + 2
    for name, text in rows:
        lines = _wrapped(text, width - left)
        if len(name) + 2 > left:
            yield from _wrapped(name, width)
        else:
            yield f"{name:<{left}}{next(lines, '')}"
        yield from (" " * left + line for line in lines)


def _wrapped(text: str, width: int, indent: str = "") -> Iterator[str]:
    yield from textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
