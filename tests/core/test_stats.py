"""Intervals and tests against stored values, hand values, laws and their promised sizes."""

from __future__ import annotations

import itertools
from itertools import product
from math import comb, inf, sqrt

import numpy as np
import pytest

from agentopcd.core.apart import compare_apart
from agentopcd.core.errors import ConfigError
from agentopcd.core.power import detectable, least_p, pairs_needed, tasks_to_pass
from agentopcd.core.stats import (
    Mean,
    Rate,
    benjamini_hochberg,
    compare,
    draws_for,
    mid_p,
    paired_difference,
    ratio,
    sign_flip,
    two_sided,
    wilson,
)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [  # statsmodels.stats.proportion.proportion_confint(k, n, method="wilson")
        (0, 10, 0.0, 0.27753279986288926),
        (3, 10, 0.10779126740630104, 0.6032218525388546),
        (10, 10, 0.7224672001371106, 1.0),
        (74, 256, 0.23697330037118258, 0.34738863905848194),
    ],
)
def test_wilson_matches_stored_values(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == pytest.approx((low, high), abs=1e-12)


def test_wilson_knows_nothing_from_nothing_and_refuses_the_impossible() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ConfigError, match="k=3, n=2"):
        wilson(3, 2)
    assert str(Rate(3, 10)) == "0.300 [0.108, 0.603] (n=10)"


@pytest.mark.parametrize(
    ("w", "l", "p"),
    [  # scipy: binom.sf(w, n, .5) + .5 * binom.pmf(w, n, .5)
        (3, 1, 0.1875),
        (61, 7, 2.0513995233409266e-12),
        (10, 10, 0.5),
        (1500, 1400, 0.031672379589336386),
    ],
)
def test_mid_p_matches_stored_values(w: int, l: int, p: float) -> None:  # noqa: E741
    assert mid_p(w, l) == pytest.approx(p, rel=1e-9)


def test_mid_p_by_hand_and_by_symmetry() -> None:
    assert mid_p(0, 0) == 1.0
    assert mid_p(2, 0) == 1 / 8  # half of the one path among four
    assert mid_p(7, 3) + mid_p(3, 7) == pytest.approx(1.0)


def test_sign_flip_agrees_with_counting_all_signs() -> None:
    sums = [3, -1, 2, 2, 1, -2, 4]
    exact = np.mean([sum(s * v for s, v in zip(signs, sums, strict=True)) >= sum(sums)
                     for signs in product((-1, 1), repeat=len(sums))])  # fmt: skip
    assert sign_flip(sums, draws=40_000, seed=1) == pytest.approx(exact, abs=0.006)
    assert sign_flip(sums, seed=2) == sign_flip(sums, seed=2)
    assert sign_flip([]) == sign_flip([0, 0]) == 1.0
    assert sign_flip([5] * 40, draws=99) == 1 / 100


@pytest.mark.parametrize("sums", [[0.1, 0.2, 0.3, -0.1], [0.3, 0.1, 0.2, -0.4, 0.1]])
def test_totals_that_differ_in_their_last_digit_are_equal(sums: list[float]) -> None:
    """0.1 + 0.2 + 0.3 is not 0.6 in binary: the unit of a score must not change the test."""
    assert sign_flip(sums) == sign_flip([round(10 * value) for value in sums])


@pytest.mark.parametrize("level", [0.0125, 1e-4, 1e-5])
def test_a_level_however_low_can_be_passed(level: float) -> None:
    draws = draws_for(level)
    assert 1 / (draws + 1) < level / 10
    assert draws == 9999 or sign_flip([1.0] * 40, draws) < level


def test_sign_flip_keeps_its_size_on_19_tasks_where_mid_p_does_not() -> None:
    """256 pairs on 19 boards, with arm-by-board effects of one logit: arms are equal on average."""
    rng, trials = np.random.default_rng(11), 300
    passed = {"mid_p": 0, "sign_flip": 0}
    for trial in range(trials):
        board = rng.integers(0, 19, size=256)
        rates = 1 / (1 + np.exp(-(-1.0 + rng.normal(0, 1.0, size=(2, 19)))))
        won = rng.random((2, 256)) < rates[:, board]
        gain = won[0].astype(int) - won[1].astype(int)
        sums = [int(gain[board == b].sum()) for b in range(19)]
        passed["mid_p"] += mid_p(int((gain > 0).sum()), int((gain < 0).sum())) < 0.025
        passed["sign_flip"] += sign_flip(sums, draws=999, seed=trial) < 0.025
    assert passed["sign_flip"] <= 0.035 * trials
    assert passed["mid_p"] > 0.05 * trials


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [  # evaluated separately, with statsmodels' Wilson interval for the two margins
        ((36, 12, 2, 0), 0.0569295840032388, 0.3404276029749407),
        ((43, 0, 7, 0), -0.26186193710585526, -0.039702667834774746),
        ((14, 5, 0, 22), 0.011483241383033305, 0.22649268435121123),  # here phi is shrunk
        ((1, 1, 7, 12), -0.5069202266861409, -0.025559124164859892),
    ],
)
def test_paired_difference_matches_stored_values(cells: tuple[int, int, int, int], low: float, high: float) -> None:
    found = paired_difference(*cells)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    assert found.diff == pytest.approx((cells[1] - cells[2]) / sum(cells))
    both, wins, losses, neither = cells
    swapped = paired_difference(both, losses, wins, neither)
    assert (swapped.low, swapped.high) == pytest.approx((-high, -low))


def test_paired_difference_at_the_edges() -> None:
    assert paired_difference(0, 0, 0, 0).low == -1.0
    assert paired_difference(0, 5, 0, 0).high == 1.0
    alone = paired_difference(0, 0, 0, 12)
    assert alone.low < 0 < alone.high


def test_paired_interval_covers() -> None:
    rng, covered, trials = np.random.default_rng(3), 0, 500
    for _ in range(trials):
        difficulty = rng.normal(0, 1.3, size=256)
        rates = 1 / (1 + np.exp(-np.array([[-0.8], [-1.3]]) - difficulty))
        won = rng.random((2, 256)) < rates
        cells = [int(((won[0] == a) & (won[1] == b)).sum()) for a, b in ((1, 1), (1, 0), (0, 1), (0, 0))]
        found = paired_difference(*cells)
        covered += found.low <= (rates[0] - rates[1]).mean() <= found.high
    assert 0.92 * trials <= covered <= 0.995 * trials


def test_compare_pairs_what_both_have_played() -> None:
    tasks = {1: "a", 2: "b", 3: "c", 4: "d", 5: "e"}
    first = {1: True, 2: True, 3: False, 4: True, 5: True}
    second = {1: False, 2: True, 3: True, 4: False}
    found = compare(first, second, tasks)
    assert (found.n, found.tasks, found.wins, found.losses) == (4, 4, 2, 1)
    assert (found.first, found.second) == (Rate(3, 4), Rate(2, 4))
    assert found.test == "mid_p"
    assert found.p == mid_p(2, 1)
    assert found.difference == paired_difference(1, 2, 1, 0)
    assert "4 episodes on 4 tasks" in str(found)


def test_compare_flips_whole_tasks_when_tasks_repeat() -> None:
    tasks = {number: f"board {number % 4}" for number in range(40)}
    first = {number: number % 4 == 0 for number in range(40)}  # better on one board of four
    second = dict.fromkeys(range(40), False)
    found = compare(first, second, tasks)
    assert (found.n, found.tasks, found.test) == (40, 4, "sign_flip")
    assert mid_p(found.wins, found.losses) < 0.01 < 0.4 < found.p  # ten wins, but all on one board
    plain = paired_difference(0, 10, 0, 30)
    assert found.difference.low < plain.low and found.difference.high > plain.high
    one = compare({1: True, 2: True}, {1: False, 2: False}, {1: "a", 2: "a"})
    assert (one.difference.low, one.difference.high) == (-1.0, 1.0)


@pytest.mark.parametrize("kind", ["successes", "scores", "repeated tasks"])
def test_a_stricter_level_widens_every_kind_of_difference(kind: str) -> None:
    """Repeats of a task are all alike, so the interval over tasks is the wider one."""
    tasks = {pair: pair // 4 if kind == "repeated tasks" else pair for pair in range(60)}
    arms: list[dict[int, float]] = [
        {pair: task % k / k if kind == "scores" else task % k != 0 for pair, task in tasks.items()} for k in (3, 4)
    ]
    named = {pair: str(task) for pair, task in tasks.items()}
    a, b = arms
    wide, usual = compare(a, b, named, z=3.0).difference, compare(a, b, named).difference
    assert wide.diff == usual.diff and wide.low < usual.low and wide.high > usual.high


def test_compare_of_nothing() -> None:
    found = compare({}, {}, {})
    assert (found.n, found.p, found.first.rate) == (0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("base", "other", "rho", "pairs"),
    [(0.06, 0.20, 0.3, 69), (0.06, 0.20, 0.5, 54), (0.20, 0.30, 0.3, 210), (0.20, 0.30, 0.5, 152),
     (0.20, 0.25, 0.3, 770), (0.20, 0.25, 0.5, 553), (0.75, 0.80, 0.3, 770), (0.75, 0.80, 0.5, 553)],
)  # fmt: skip
def test_pairs_needed_matches_stored_values(base: float, other: float, rho: float, pairs: int) -> None:
    assert round(pairs_needed(base, other, rho)) == pairs


def test_detectable_is_the_inverse_of_pairs_needed() -> None:
    for n in (64, 256, 1024):
        assert pairs_needed(0.25, 0.25 + (detectable(n) or 0)) == pytest.approx(n, rel=1e-6)
    assert (detectable(1024) or 1) < 0.05 and detectable(256) == pytest.approx(0.095, abs=0.001)
    assert detectable(0) is detectable(1) is detectable(4, 0.06, alpha=0.0125) is detectable(64, 0.99) is None
    # A planted effect of this size is found about four times in five.
    rng, n, base = np.random.default_rng(8), 256, 0.25
    other = base + (detectable(n, base, rho=0.0) or 0)
    found = 0
    for _ in range(400):
        won = rng.random((2, n)) < np.array([[other], [base]])
        found += mid_p(int((won[0] & ~won[1]).sum()), int((won[1] & ~won[0]).sum())) < 0.025
    assert found / 400 == pytest.approx(0.8, abs=3 * sqrt(0.8 * 0.2 / 400))
    with pytest.raises(ConfigError, match="equal"):
        pairs_needed(0.2, 0.2)


def test_two_sided_by_hand() -> None:
    assert two_sided([1, 1, 1]) == 2 / 8  # +++ and --- of eight
    assert two_sided([1, 1, -1]) == two_sided([]) == two_sided([0, 0]) == two_sided([1, -1]) == 1.0
    assert two_sided([2, 1]) == 2 / 4  # only 3 and -3 are as far from 0
    assert two_sided([2, 1, -1]) == two_sided([-2, 1, -1]) == 6 / 8  # 4 2 2 0 0 -2 -2 -4


def test_two_sided_is_the_exact_sign_test_where_sums_are_signs() -> None:
    plus, minus = 61, 27
    tail = sum(comb(88, j) for j in range(plus, 89)) / 2**88
    assert two_sided([1] * plus + [-1] * minus + [0] * 40) == pytest.approx(2 * tail, rel=1e-12)


def test_two_sided_agrees_with_counting_all_signs() -> None:
    sums = [3, -1, 2, 2, 1, -2, 4, 0]
    far = [abs(sum(s * v for s, v in zip(signs, sums, strict=True))) >= abs(sum(sums))
           for signs in product((-1, 1), repeat=len(sums))]  # fmt: skip
    assert two_sided(sums) == pytest.approx(np.mean(far), rel=1e-12)
    assert two_sided(sums) == two_sided([-value for value in sums])


@pytest.mark.parametrize("sums", [[0.5, -0.25, 1, 0.75, 0.5, -0.1, 0.9], [-0.5, 0.25, -1, -0.75, 0.5]])
def test_two_sided_of_scores_counts_both_tails(sums: list[float]) -> None:
    far = [abs(sum(s * v for s, v in zip(signs, sums, strict=True))) >= abs(sum(sums)) - 1e-9
           for signs in product((-1, 1), repeat=len(sums))]  # fmt: skip
    assert two_sided(sums) == pytest.approx(np.mean(far), abs=0.015)


def test_benjamini_hochberg_by_hand() -> None:
    # Five tests: 5/1 of .01, 5/2 of .02, 5/3 of .03, 5/4 of .04, 5/5 of .05 are all .05.
    assert benjamini_hochberg([0.04, 0.01, 0.05, 0.03, 0.02]) == pytest.approx([0.05] * 5)
    # From the largest down: .9; 4/3 of .06 = .08; 4/2 of .05 = .1, but no q is above that of a larger p; 4/1 of .001.
    assert benjamini_hochberg([0.001, 0.05, 0.06, 0.9]) == pytest.approx([0.004, 0.08, 0.08, 0.9])
    assert benjamini_hochberg([0.3]) == [0.3] and benjamini_hochberg([]) == []


def test_benjamini_hochberg_keeps_false_discoveries_rare() -> None:
    """200 studies of 30 items, 10 of them real: the mean share of false names stays below 10 %."""
    rng, shares, found = np.random.default_rng(0), [], 0
    for _ in range(200):
        gains = rng.choice([-1, 0, 1], p=[0.15, 0.7, 0.15], size=(30, 120))
        gains[:10] = rng.choice([-1, 0, 1], p=[0.06, 0.7, 0.24], size=(10, 120))
        named = [q <= 0.1 for q in benjamini_hochberg([two_sided([int(g) for g in row]) for row in gains])]
        shares.append(sum(named[10:]) / max(1, sum(named)))
        found += sum(named[:10])
    assert np.mean(shares) <= 0.1
    assert found / 2000 > 0.6  # and it does find


def test_ratio_by_hand() -> None:
    # Groups of size 1: mean 2, variance 1, three of them.
    half = 4.302653 / sqrt(3)  # Student's t of two degrees of freedom
    assert ratio([1, 2, 3], [1, 1, 1]) == pytest.approx((2, 2 - half, 2 + half), rel=1e-6)
    # 2 of 4 and 4 of 4: ratio 3/4; residuals 2 - 3 and 4 - 3, so sqrt(2 / 1 * 2) / 8.
    assert ratio([2, 4], [4, 4]) == pytest.approx((0.75, 0.75 - 12.706205 / 4, 0.75 + 12.706205 / 4), rel=1e-6)
    assert ratio([3], [4]) == (0.75, -inf, inf)


def test_repeats_within_a_group_do_not_narrow_the_interval() -> None:
    once, often = ratio([1, 0, 1, 0], [1] * 4), ratio([5, 0, 5, 0], [5] * 4)
    assert often == pytest.approx(once)


def test_arms_without_pairs_are_compared_as_published() -> None:
    """The interval of Newcombe's table II (a), method 10; the test by counting every deal."""
    found = compare_apart([True] * 56 + [False] * 14, [True] * 48 + [False] * 32)
    assert found.difference.low == pytest.approx(0.0524, abs=5e-5)
    assert found.difference.high == pytest.approx(0.3339, abs=5e-5)
    first, second = [True, True, False, True], [False, True, False]
    deals = [sum(deal) for deal in itertools.combinations([*first, *second], 4)]
    expected = (sum(wins > 3 for wins in deals) + sum(wins == 3 for wins in deals) / 2) / len(deals)
    assert compare_apart(first, second).p == pytest.approx(expected)
    assert compare_apart(first, second).p + compare_apart(second, first).p == pytest.approx(1)


def test_scores_without_pairs_are_dealt_anew() -> None:
    first, second = [0.9, 0.8, 0.7, 0.2], [0.1, 0.6, 0.3]
    deals = [sum(deal) for deal in itertools.combinations([*first, *second], 4)]
    expected = sum(total >= sum(first) - 1e-9 for total in deals) / len(deals)
    found = compare_apart(first, second)
    assert found.p == pytest.approx(expected, abs=0.02)
    assert found.difference.diff == pytest.approx(0.65 - 1 / 3)
    assert found.difference.low < found.difference.diff < found.difference.high


@pytest.mark.parametrize("mean", [Mean(0.5, 0.25, 0.75, 8), Mean(1.0, -inf, inf, 1)])
def test_a_mean_is_read_back_as_it_was_written(mean: Mean) -> None:
    assert Mean.from_dict(mean.to_dict()) == mean


@pytest.mark.parametrize("success", [True, False])
def test_as_many_tasks_as_can_pass_a_level(success: bool) -> None:
    """Won all, with no other pair in between; a task fewer does not do."""
    assert least_p(8, success=True) == mid_p(8, 0)
    for level in (0.025, 0.0125, 2**-9, 0.00125, 1e-6):
        needed = tasks_to_pass(level, success=success)
        assert least_p(needed, success=success) < level <= least_p(needed - 1, success=success)
