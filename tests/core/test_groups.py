"""Means over groups, and the share by which one is smaller: by hand, and the interval by simulation."""

from __future__ import annotations

import random
from math import inf
from statistics import fmean

import pytest

from agentopcd.core.groups import closed_share, mean_of_groups
from agentopcd.core.stats import Mean


def test_a_mean_of_groups_weighs_each_token() -> None:
    found = mean_of_groups([("a", 2.0, 4), ("a", 1.0, 1), ("b", 3.0, 1)])
    assert found.rate == pytest.approx(1.0) and found.n == 3
    assert found.low < 1 < found.high
    assert mean_of_groups([]) == Mean(0.0, -inf, inf, 0)  # nothing was measured, which is no sure zero


def test_the_share_closed_by_hand() -> None:
    base, student = [("a", 8.0, 4), ("b", 4.0, 4)], [("b", 2.0, 4), ("a", 1.0, 4)]
    found = closed_share(student, base)
    assert found.rate == pytest.approx(1 - 3 / 12) and found.n == 2
    # A is 0.375 and B is 1.5; "a" moves the share by this, "b" by the same with the other sign
    moved = -(1 - 0.375 * 4) / (1.5 * 8) + 0.375 * (8 - 1.5 * 4) / (1.5**2 * 8)
    assert found.high - found.rate == pytest.approx(12.706205 * (2 * 2 * moved**2) ** 0.5, rel=1e-4)


def test_only_what_both_have_counts() -> None:
    both = [("a", 8.0, 4), ("b", 4.0, 4)]
    assert closed_share([*both, ("c", 100.0, 1)], [*both, ("d", 0.5, 1)]).rate == pytest.approx(0.0)
    assert closed_share([("a", 1.0, 1)], [("a", 2.0, 1)]).low == -inf
    assert closed_share(both, [("a", 0.0, 4), ("b", 0.0, 4)]).high == inf
    assert closed_share([("a", 0.0, 0), ("b", 0.0, 0)], both).high == inf


def test_the_interval_covers() -> None:
    rng, covered, games = random.Random(3), 0, 400
    for _ in range(games):
        base, student = [], []
        for key in map(str, range(60)):
            hard = rng.lognormvariate(0, 0.5)  # some conversations are far for both
            for _ in range(2):
                m, n = rng.randint(5, 60), rng.randint(5, 60)
                base.append((key, hard * fmean(rng.expovariate(1) for _ in range(n)) * n, n))
                student.append((key, 0.4 * hard * fmean(rng.expovariate(1) for _ in range(m)) * m, m))
        found = closed_share(student, base)
        covered += found.low <= 0.6 <= found.high
    assert 0.91 <= covered / games <= 0.985
