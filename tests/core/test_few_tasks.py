"""Differences on few tasks claim no more than they know: intervals by simulation, and where nothing varies."""

from __future__ import annotations

import random
from math import inf, nan, pi, tan
from statistics import NormalDist

import pytest

from agentopcd.core.errors import ConfigError
from agentopcd.core.quantiles import Z95, t_quantile
from agentopcd.core.stats import compare, mean_of, paired_difference


@pytest.mark.parametrize("z", [1.0, Z95, 3.5])
def test_quantiles_of_other_levels(z: float) -> None:
    """Of one degree of freedom (Cauchy) in closed form; of very many it is the normal one."""
    outside = NormalDist().cdf(-z)
    assert t_quantile(1, z) == pytest.approx(tan(pi * (0.5 - outside)), rel=1e-4)
    assert t_quantile(1e6, z) == pytest.approx(z, rel=1e-4)
    assert t_quantile(4, z) > t_quantile(40, z) > z


@pytest.mark.parametrize("tasks", [2, 3, 5, 10])
def test_the_interval_of_a_mean_of_few_tasks_covers(tasks: int) -> None:
    rng, held, rounds = random.Random(tasks), 0, 2000
    keys = {number: str(number) for number in range(tasks)}
    for _ in range(rounds):
        found = mean_of({number: rng.gauss(0.3, 1) for number in keys}, keys)
        held += found.low <= 0.3 <= found.high
    assert 0.935 <= held / rounds <= 0.965


@pytest.mark.parametrize(("tasks", "each"), [(3, 20), (5, 20), (19, 13)])
def test_the_interval_of_repeated_tasks_covers(tasks: int, each: int) -> None:
    """Each task has its own rates, and both arms their own gain there."""
    rng, held, rounds = random.Random(1), 0, 600
    for _ in range(rounds):
        a, b, names = {}, {}, {}
        for task in range(tasks):
            base, gain = rng.uniform(0.2, 0.6), rng.uniform(0.0, 0.3)
            for rep in range(each):
                key = (task, rep)
                a[key], b[key], names[key] = rng.random() < base + gain, rng.random() < base, str(task)
        found = compare(a, b, names, draws=99).difference
        held += found.low <= 0.15 <= found.high
    assert held / rounds >= 0.94


def test_tasks_that_all_came_out_alike_count_once_each() -> None:
    names = {(task, rep): str(task) for task in range(3) for rep in range(100)}
    won, lost = dict.fromkeys(names, True), dict.fromkeys(names, False)
    found = compare(won, lost, names).difference
    wanted = paired_difference(0, 3, 0, 0)
    assert (found.diff, found.n) == (1.0, 300) and wanted.low < 0.5
    assert found.low == pytest.approx(wanted.low)
    even = compare(won, won, names).difference
    assert even.low == pytest.approx(paired_difference(3, 0, 0, 0).low) and even.low < -0.5 and even.high > 0.5


@pytest.mark.parametrize("odd", [nan, inf, -inf])
def test_what_is_no_number_does_not_win(odd: float) -> None:
    with pytest.raises(ConfigError, match=r"a score is -?(nan|inf), which compares with nothing"):
        compare({1: odd, 2: 1.0}, {1: 0.0, 2: 0.0}, {1: "1", 2: "2"})
