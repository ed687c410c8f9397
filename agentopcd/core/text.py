"""Text helpers shared by the whole package: text from a file, its lines, a reply without its reasoning."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from agentopcd.core.errors import ConfigError

END_OF_THINKING = "</think>"


def after_thinking(reply: str) -> str:
    """The text after the last ``</think>``, unchanged; the whole reply if there is no such mark."""
    return reply.rpartition(END_OF_THINKING)[2]


def first_line(error: object, otherwise: str = "") -> str:
    """The first line of an error's message, cut to 300 characters; ``otherwise`` if the message is empty."""
    return (str(error).strip().splitlines() or [otherwise])[0][:300]


def split_lines(text: str) -> list[str]:
    """The lines of a text, as editors and models end them.

    ``str.splitlines`` would also cut at form feeds and at U+2028, which stand inside of sentences.
    """
    return re.split(r"\r\n|\n|\r", text)


def read_text(path: str | Path) -> str:
    """The text of a file: UTF-8 with or without the mark that some editors put first, or UTF-16 with its mark.

    Line ends stay as they are.

    Raises:
        ConfigError: the file cannot be read, or is not such text.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {str(path)!r} ({getattr(error, 'strerror', None) or error})") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path} is not UTF-8 text (line {line}: {error.reason}); save it as UTF-8") from error
    if "\0" in text:
        raise ConfigError(f"{path} is not text: it holds zero bytes")
    return text
