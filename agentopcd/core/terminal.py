"""The way to the terminal: what games, models, people's files and libraries write is made harmless on it.

Text that we show comes from strangers. A terminal obeys control characters in it: they can clear the screen, change its
title, hide a line or type a command. So every stream of the command line is a :class:`Guarded` one, which writes such
characters as ``\\u001b``. JSON keeps its meaning, since JSON spells them the same way.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from agentopcd.core.errors import OutputError

HARMFUL = re.compile(r"\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What is not written raw: control characters besides tab and line end, characters that turn the direction of the text
around, and halves of surrogate pairs, which no encoding has."""
NARROWEST = 20
"""Columns that a terminal has at least, whatever it says."""
SECRET = re.compile(r"(?<=://)[^\s/]+(?=@)")
"""The user and the password, or the key, in an address."""


def harmless(text: str) -> str:
    """``text`` with each harmful character as ``\\uXXXX``.

    Raises:
        TypeError: ``text`` is bytes. (Libraries find out in this way that a stream takes text.)
    """
    return HARMFUL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def without_password(text: str) -> str:
    """``text`` with the users and passwords of the addresses in it replaced by ``***``."""
    return SECRET.sub("***", text)


def roomy(console: Any) -> Any:
    """A console of rich with a width that words can be wrapped in: a terminal may say that it has no columns."""
    console.width = max(NARROWEST, console.width)
    return console


def plain(value: Any) -> Any:
    """``value`` with None in place of every number that is not finite, because JSON has none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


class Guarded:
    """A text stream that writes no harmful character, and reports a failed write in one line.

    Args:
        stream: the stream behind it.
        name: its name in messages.
    """

    def __init__(self, stream: Any, name: str) -> None:
        self.rich_proxied_file = stream
        """The stream behind, under the name by which rich finds it: its colours and bars are our own."""
        self.name = name
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ESCAPE)

    def write(self, text: str) -> int:
        return self._guarded(self.rich_proxied_file.write, harmless(text))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._guarded(self.rich_proxied_file.flush)

    def _guarded(self, act: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return act(*arguments)
        except BrokenPipeError:
            raise  # the reader has seen enough, as `head` has; the parser ends the command without a word
        except OSError as error:
            raise OutputError(
                f"cannot write to {self.name}: {error.strerror}; make room, or send it elsewhere"
            ) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


ESCAPE = "agentopcd.escape"
"""The error handler of streams: a character that the encoding lacks is written as JSON spells it."""


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(json.dumps(character)[1:-1] for character in missing), error.end


codecs.register_error(ESCAPE, _escaped)


def guard() -> None:
    """Guard stdout and stderr of this process. A second call changes nothing.

    A stream that the caller closed leads nowhere from now on. Without that, the next file that is opened, such as the
    store, would take its number and get what a library prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        setattr(sys, name, stream if isinstance(stream, Guarded) else Guarded(stream, name))


class _Results:
    """Where results for programs go while :func:`only_results` is on; None: to ``sys.stdout``."""

    stream: Any = None


def only_results() -> Callable[[], None]:
    """Keep stdout for :func:`emit`: all else that is written to it, also by other processes of ours, goes to stderr.

    Returns:
        A function that ends this.
    """
    before, kept = sys.stdout, -1
    try:
        number = before.fileno()
    except (OSError, ValueError):  # a stream in memory, in a test
        number = -1
    _Results.stream = before
    if number == 1:
        before.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
        _Results.stream = Guarded(open(kept, "w", encoding=before.encoding, closefd=False), "stdout")  # noqa: SIM115
    sys.stdout = sys.stderr

    def end() -> None:
        sys.stdout.flush()
        sys.stdout, _Results.stream = before, None
        if kept >= 0:
            os.dup2(kept, 1)
            os.close(kept)

    return end


def emit(value: Any, **how: Any) -> None:
    """Print a result for programs as JSON on stdout; ``how`` goes to ``json.dumps``."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, default=str, **how)
    print(text, file=_Results.stream or sys.stdout, flush=True)
