"""A few hundred fuzzed inputs, the same ones every time; ``python -m benchmarks.fuzz`` tries 10,000."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable

import pytest

from agentopcd.core.errors import ConfigError
from benchmarks.fuzz.__main__ import fuzz, kinds, told, total_of
from benchmarks.fuzz.harness import Case, Kind, Refused, Silent, Tally, Untidy, call, limit, try_one

SLOW = {"runs"}
"""Kinds whose first input already takes seconds."""


def test_hundreds_of_odd_inputs_are_kept_as_they_are_or_refused_in_one_line() -> None:
    tallies = fuzz(250, seed=0, only=[name for name in kinds() if name not in SLOW])
    total = total_of(tallies)
    assert total.n >= 240
    assert not total.faults, "\n".join(told(total.faults, 0))


# -- the fuzzer itself ---------------------------------------------------------------------------------


def tried(try_: Callable[[Case], None]) -> Tally:
    tally = Tally()
    try_one("a kind", Kind(try_, 1), 7, 0, tally)
    return tally


def refuse(case: Case) -> None:
    raise ConfigError("got x, wanted y")


def refuse_without_a_word(case: Case) -> None:
    raise ConfigError("")


def fall(case: Case) -> None:
    raise KeyError("x")


def leave(case: Case) -> None:
    sys.exit(0)


def change(case: Case) -> None:
    raise Silent("7 became 8")


@pytest.mark.parametrize(
    ("try_", "kept", "refused", "broken", "silent"),
    [
        (lambda case: None, 1, 0, 0, 0),
        (refuse, 0, 1, 0, 0),
        (refuse_without_a_word, 0, 0, 1, 0),
        (fall, 0, 0, 1, 0),
        (leave, 0, 0, 1, 0),
        (change, 0, 0, 0, 1),
    ],
)
def test_each_way_to_end_is_counted_as_what_it_is(
    try_: Callable[[Case], None], kept: int, refused: int, broken: int, silent: int
) -> None:
    tally = tried(try_)
    assert (tally.kept, tally.refused, len(tally.faults) - tally.silent, tally.silent) == (
        kept,
        refused,
        broken,
        silent,
    )
    assert tally.n == 1


def test_what_never_ends_is_a_fault_even_if_it_catches_everything() -> None:
    def sleep() -> None:
        try:
            time.sleep(30)
        except Exception:
            time.sleep(30)

    began = time.perf_counter()
    with pytest.raises(BaseException, match="no end within"), limit(0.05):
        sleep()
    assert time.perf_counter() - began < 5


def test_the_same_number_draws_the_same_input() -> None:
    drawn: list[float] = []

    def draw(case: Case) -> None:
        drawn.append(case.rng.random())

    tried(draw)
    tried(draw)
    assert drawn[0] == drawn[1]


def test_a_command_that_ends_in_one_line_is_refused_and_one_that_ends_well_returns_what_it_said() -> None:
    with pytest.raises(Refused, match=r"^error: "):
        call("config", "show", "nope")
    assert call("config", "show", "play").startswith("# Settings of")


@pytest.mark.parametrize(
    ("act", "what"),
    [
        (lambda: print("\x1b[31mred"), "control characters reach stdout"),
        (lambda: sys.exit(3), "exit code 3"),
        (lambda: warnings.warn("two", stacklevel=1) or sys.exit(2), "0 error lines"),
        (lambda: print("error: a\nerror: b", file=sys.stderr) or sys.exit(2), "2 error lines"),
        (lambda: print('{"a": NaN}'), "not JSON"),
    ],
)
def test_a_command_that_ends_in_another_way_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], what: str
) -> None:
    monkeypatch.setattr("benchmarks.fuzz.harness.main", act)
    with pytest.raises(Untidy, match=what):
        call("list", "--json")
