"""One input after the other, and how each of them ends."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import agentopcd
from agentopcd.cli import main
from agentopcd.core.errors import AgentOpcdError

PACKAGE = Path(agentopcd.__file__).parent

LIMIT_S = 60.0
"""An input that has not ended by then counts as a hang."""


class Silent(AssertionError):
    """The input was kept, but it no longer means what it said."""


class Untidy(AssertionError):
    """The command did not end as promised: in one line with exit code 2, or well."""


class Refused(Exception):
    """The command ended in one line with exit code 2."""


class Hang(BaseException):
    """The time limit is over. No ``Exception``, so that nobody mends it on the way."""


@dataclasses.dataclass
class Case:
    """One input: where it lies, and what draws it."""

    rng: random.Random
    folder: Path
    """An empty folder, the current one while the input is tried."""
    shown: str = ""
    """What a person needs to see of the input if it is a fault."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of input: ``try_`` draws one, gives it to the product, and checks the laws."""

    try_: Callable[[Case], None]
    share: int
    """Inputs of this kind among 10,000."""


@dataclasses.dataclass(frozen=True)
class Fault:
    kind: str
    number: int
    silent: bool
    what: str
    """Type and first line of the exception."""
    place: str
    """The last line of our own code that it passed."""
    shown: str


@dataclasses.dataclass
class Tally:
    """The outcomes of one kind."""

    kept: int = 0
    refused: int = 0
    faults: list[Fault] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @property
    def n(self) -> int:
        return self.kept + self.refused + len(self.faults)

    @property
    def silent(self) -> int:
        return sum(fault.silent for fault in self.faults)


def try_one(name: str, kind: Kind, number: int, seed: int, tally: Tally) -> None:
    """Draw input ``number`` of a kind, try it, and count how it ended."""
    began = time.perf_counter()
    case = Case(random.Random(f"{name}:{seed}:{number}"), Path(tempfile.mkdtemp(prefix="fuzz-")))
    home = Path.cwd()
    os.chdir(case.folder)
    try:
        with limit(LIMIT_S), warnings.catch_warnings(), muted():
            warnings.simplefilter("ignore")
            kind.try_(case)
        tally.kept += 1
    except (Refused, AgentOpcdError) as error:
        if str(error).strip():
            tally.refused += 1
        else:
            tally.faults.append(_fault(name, number, error, case))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        tally.faults.append(_fault(name, number, error, case))
    finally:
        os.chdir(home)
        shutil.rmtree(case.folder, ignore_errors=True)
        tally.seconds += time.perf_counter() - began


def _fault(name: str, number: int, error: BaseException, case: Case) -> Fault:
    ours = [
        f"{Path(frame.filename).relative_to(PACKAGE)}:{frame.lineno} ({frame.name})"
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(PACKAGE)
    ]
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    place = "" if isinstance(error, Silent) or not ours else ours[-1]
    return Fault(name, number, isinstance(error, Silent), what, place, case.shown[:240])


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise :class:`Hang` in this thread when the time is over, again and again until somebody listens."""

    def over(*_: object) -> None:
        raise Hang(f"no end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)  # a test has a time limit of its own
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """What the library says for itself is not part of the table."""
    with contextlib.redirect_stdout(_stream("strict")), contextlib.redirect_stderr(_stream("backslashreplace")):
        yield


def _stream(errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True)


def call(*words: str, stdin: str = "", may_fail: bool = False) -> str:
    """Call the command line with these words and return what it wrote to stdout.

    Args:
        may_fail: exit code 1 is a verdict of this command, too.

    Raises:
        Refused: it ended in one line with exit code 2.
        Untidy: it ended in any other way but well.
    """
    out, err = _stream("strict"), _stream("backslashreplace")
    argv, standard_in, show = sys.argv, sys.stdin, warnings.showwarning
    sys.argv, sys.stdin = ["agentopcd", *words], io.StringIO(stdin)
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv, sys.stdin, warnings.showwarning = argv, standard_in, show
    said, complained = (stream.buffer.getvalue().decode("utf-8") for stream in (out, err))  # type: ignore[attr-defined]
    _check_tidy(words, code, said, complained, may_fail)
    return said


def _check_tidy(words: tuple[str, ...], code: Any, said: str, complained: str, may_fail: bool) -> None:
    for stream, text in (("stdout", said), ("stderr", complained)):
        if raw := Counter(char for char in text.replace("\r\n", "\n") if _controls(char)):
            raise Untidy(f"control characters reach {stream}: {dict(raw)!r:.80}")
    if code in (0, None) or (code == 1 and may_fail):
        if "--json" in words and code in (0, None):
            _check_json(said)
        return
    errors = [line for line in complained.splitlines() if line.startswith("error: ")]
    if code != 2:
        raise Untidy(f"exit code {code!r}; stderr ends {complained[-200:]!r}")
    if len(errors) != 1 or not complained.rstrip("\n").endswith(errors[0]) or not errors[0][7:].strip():
        helped = not errors and "Usage" in complained + said  # a group called without a command shows its help
        if not helped:
            raise Untidy(f"{len(errors)} error lines; stderr ends {complained[-200:]!r}")
    raise Refused(errors[0] if errors else "help")


def _controls(char: str) -> bool:
    return char not in "\n\t" and unicodedata.category(char) == "Cc"


def _check_json(said: str) -> None:
    """One JSON value, or one a line; strict, so that NaN is no number."""

    def refuse(name: str) -> None:
        raise Untidy(f"--json printed {name}, which is not JSON")

    try:
        json.loads(said, parse_constant=refuse)
    except ValueError:
        try:
            for line in filter(str.strip, said.split("\n")):
                json.loads(line, parse_constant=refuse)
        except ValueError:
            raise Untidy(f"--json printed what is not JSON: {said[:80]!r}") from None
