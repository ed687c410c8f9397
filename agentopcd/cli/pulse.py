"""A sign of life on stderr where that is no terminal, as in a log: a line at least every 30 seconds, in any stage."""

from __future__ import annotations

import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

EVERY_S = 30.0
"""The longest silence, in seconds."""
SHOWN = 60
"""How many characters of the last line are repeated, up to the end of a word."""


class _Pulse:
    """What the sign of life says. One for each process, since there is one stderr."""

    beating = False
    stage = ""
    """What is under way, such as ``select: 3/64``; '' if only the last line says."""
    moved_at = 0.0
    """When the stage last got further."""
    said_at = 0.0
    """When a line was last written."""


def said(line: str) -> None:
    """A line for people was just written: the silence begins anew, and this is what goes on."""
    if line.strip():
        _Pulse.stage = f"after: {textwrap.shorten(line.strip().splitlines()[0], SHOWN, placeholder=' ...')}"
    _Pulse.said_at = _Pulse.moved_at = time.monotonic()


def moved(stage: str) -> None:
    """A stage has got further."""
    _Pulse.stage, _Pulse.moved_at = stage, time.monotonic()


@contextmanager
def beating() -> Iterator[None]:
    """Write a sign of life while the body runs, if stderr is no terminal. A nested call joins the outer one."""
    if _Pulse.beating or sys.stderr.isatty():
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(over, EVERY_S), name="agentopcd-pulse", daemon=True)
    _Pulse.beating, _Pulse.stage = True, ""
    _Pulse.said_at = _Pulse.moved_at = time.monotonic()
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _Pulse.beating = False


def _beat(over: threading.Event, every_s: float) -> None:
    while not over.wait(min(1.0, every_s / 4)):
        at = time.monotonic()
        if at - _Pulse.said_at < every_s:
            continue
        still = at - _Pulse.moved_at
        line = _Pulse.stage or "at work"
        if still >= every_s:
            line += f" (still at it after {still:.0f} s)"
        _Pulse.said_at = at
        try:
            print(line, file=sys.stderr, flush=True)
        except Exception:  # nobody reads it any more; the command itself will notice where that matters
            return
