"""Text helpers shared by the whole package: the lines of a text, a reply without its reasoning, an error in short."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

THINKING, END_OF_THINKING = "<think>", "</think>"
"""The marks around a reply's reasoning. Those of other model families are read as these: ``rollouts/replies.py``."""
SHORT = 12
"""Digits of an id that are shown; commands take them for the whole."""

MARKS = "".join(
    chr(code)
    for code in (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0))
    if unicodedata.category(chr(code)) in ("Mn", "Mc") and code not in (0xFE0E, 0xFE0F)
)
"""Combining marks, which go on with a word though ``\\w`` does not hold them; not those that draw an emoji."""


def after_thinking(reply: str) -> str:
    """The text after the last ``</think>``, unchanged; the whole reply if it has no such marks.

    A reply that has begun to think and has not ended has said nothing yet: it is empty.
    """
    said = reply.rpartition(END_OF_THINKING)[2]
    return "" if THINKING in said else said


def still_thinking(reply: str) -> bool:
    """Whether a reply ends inside its reasoning: it was cut there, or the model never came out of it."""
    return THINKING in reply.rpartition(END_OF_THINKING)[2]


def first_line(error: object, otherwise: str = "") -> str:
    """The first line with a word in an error's message, cut to 300 characters; ``otherwise`` if there is none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if any(sign.isalnum() for sign in line)), otherwise)[:300]


def counted(number: int, noun: str) -> str:
    """A number and what it counts: 1 item, 2 items. The noun's plural is made with an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def split_lines(text: str) -> list[str]:
    """The lines of a text, as editors and models end them.

    ``str.splitlines`` would also cut at form feeds and at U+2028, which stand inside of sentences.
    """
    return re.split(r"\r\n|\n|\r", text)


def keep_lines(text: str, wanted: Callable[[str], bool]) -> str:
    """The text with only the lines that are wanted, which are asked for in order; line ends stay as they are."""
    pieces = re.split(r"(\r\n|\n|\r)", text)
    kept = [(end, line) for end, line in zip(["", *pieces[1::2]], pieces[::2], strict=True) if wanted(line)]
    return "".join(line if not number else end + line for number, (end, line) in enumerate(kept))
