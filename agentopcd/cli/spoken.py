"""How a line for people is written: on a terminal wrapped by words and with the verdict in colour, else as it is."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from agentopcd.core.terminal import harmless, roomy

VERDICT = re.compile(r"^verdict: ([^,;:]+)")
COLOURS = {
    "train": "bold green", "collect better notes": "bold yellow", "do not": "bold red",
    "pass": "bold green", "better": "bold green", "closer": "bold green", "confirmed": "bold yellow",
    "no difference": "bold yellow", "not promoted": "bold red", "form only": "bold red", "worse": "bold red",
    "farther": "bold red", "nothing confirmed": "bold red",
}  # fmt: skip
"""Word of a verdict -> its style. The word says it all; the colour only finds it."""
WHOLE = ("next: ", "load it: ", "serve it: ", "with vLLM: ", "client: ", "rate: ")
"""How lines begin that are copied: a line end in the middle would come along."""
ONCE = ("note: ", "engine: ")
"""How lines begin that are news only once for each command, however many stages say them."""


def write(line: str, stream: Any) -> None:
    """Write a line to a stream of :func:`agentopcd.core.terminal.guard`, or to any other."""
    if not stream.isatty():
        print(line, file=stream, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    # Behind the guard, which would spell out the colours; so what is written is made harmless here.
    console = roomy(Console(file=getattr(stream, "rich_proxied_file", stream), highlight=False))
    for part in wrapped(harmless(line), console.width):
        text = Text(part)
        if (found := VERDICT.match(part)) and (style := COLOURS.get(found[1])):
            text.stylize(style, *found.span(1))
        console.print(text, soft_wrap=True)
    stream.flush()


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a text in lines of at most ``width`` characters, cut between words only."""
    out = []
    for line in text.split("\n"):
        if len(line) <= width or line.startswith(WHOLE):
            out.append(line)
            continue
        inner = " " * (len(line) - len(line.lstrip()) + 2)
        out += textwrap.wrap(
            line, width, subsequent_indent=inner, break_long_words=False, break_on_hyphens=False,
            replace_whitespace=False, expand_tabs=False,
        )  # fmt: skip
    return out
