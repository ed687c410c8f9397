"""Intervals over seeds and tasks: hand values, laws, and their promised size where seeds differ."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from agentopcd.core.crossed import Outcomes, contrast, rate_of, spread
from agentopcd.core.quantiles import t_quantile, two_sided_t
from agentopcd.core.stats import Rate, paired_difference, ratio
from benchmarks.false_verdicts import draw, false_verdicts, main


def of_seeds(*rows: str) -> Outcomes:
    """Outcomes from one string of 0 and 1 for each seed, a sign for each task."""
    return {(seed, f"t{i}", i): sign == "1" for seed, row in enumerate(rows) for i, sign in enumerate(row)}


@pytest.mark.parametrize(
    ("freedom", "value"),  # scipy.stats.t.ppf(0.975, freedom)
    [(1, 12.706204736), (2, 4.302652730), (3, 3.182446305), (7, 2.364624252), (1000, 1.962339081)],
)
def test_student_t_matches_stored_values(freedom: float, value: float) -> None:
    assert t_quantile(freedom) == pytest.approx(value, rel=1e-6)


def test_student_t_by_law() -> None:
    assert two_sided_t(0, 3) == 1 and two_sided_t(1, 1) == pytest.approx(0.5)  # Cauchy
    assert two_sided_t(sqrt(2), 2) == pytest.approx(1 - sqrt(2) / 2)
    assert two_sided_t(1e6, 1e6) == 0


def test_the_variance_by_hand() -> None:
    # Two seeds, two tasks: 1 1 / 1 0. Mean 3/4; deviations 1/4 1/4 / 1/4 -3/4.
    values = [(0, "a", 1.0), (0, "b", 1.0), (1, "a", 1.0), (1, "b", 0.0)]
    side, cells = 2 * (0.25 + 0.25) / 16, (3 / 16 + 9 / 16) / 16
    variance, freedom = spread(values)
    assert variance == pytest.approx(max(2 * side - cells, side))
    assert freedom == pytest.approx(max(1.0, variance**2 / (2 * side**2)))
    assert spread([]) == (0.0, 1.0) and spread([(0, "a", 1.0)]) == (0.0, 1.0)


def test_one_seed_is_a_plain_mean_and_each_task_once() -> None:
    values = [(0, str(i), float(i % 3 == 0)) for i in range(50)]
    variance, freedom = spread(values)
    _, low, high = ratio([value for _, _, value in values], [1] * 50, 1.0)
    assert sqrt(variance) == pytest.approx((high - low) / 2 / t_quantile(49, 1.0)) and freedom == pytest.approx(49)


def test_one_lucky_seed_of_four_decides_nothing_and_four_that_agree_do() -> None:
    worse, better = "0" * 40, "1" * 30 + "0" * 10
    lucky = contrast(of_seeds(better, worse, worse, worse), of_seeds(*[worse] * 4))
    agreed = contrast(of_seeds(*[better] * 4), of_seeds(*[worse] * 4))
    assert paired_difference(0, lucky.wins, 0, 160 - lucky.wins).low > 0  # as if 160 games said it
    assert lucky.low < 0 < lucky.diff and lucky.p > 0.05 and (lucky.seeds, lucky.tasks, lucky.n) == (4, 40, 160)
    assert agreed.low > 0 and agreed.p < 0.01
    assert contrast(of_seeds(worse), of_seeds(better)).diff == -0.75


def test_an_interval_is_never_narrower_than_that_of_paired_games_and_has_a_width() -> None:
    alike = contrast(of_seeds(*["1" * 20] * 4), of_seeds(*["1" * 20] * 4))
    assert alike.diff == 0 and alike.low < 0 < alike.high and alike.p == 1
    nothing = contrast({}, {})
    assert (nothing.low, nothing.high, nothing.n) == (-1, 1, 0)
    rng = np.random.default_rng(3)
    for _ in range(20):
        a, b = ({(s, str(t), 0): bool(rng.random() < 0.4) for s in range(4) for t in range(30)} for _ in range(2))
        seen, cells = contrast(a, b), [0, 0, 0, 0]
        for key in a:
            cells[2 * (not a[key]) + (not b[key])] += 1
        games = paired_difference(*cells)
        assert seen.low <= games.low and games.high <= seen.high and seen.diff == pytest.approx(games.diff)
        assert contrast(b, a).low == pytest.approx(-seen.high) and contrast(b, a).p == pytest.approx(seen.p)
        assert (seen.p < 0.05) == (seen.low > 0 or seen.high < 0)


def test_repetitions_that_came_out_alike_are_no_other_tasks() -> None:
    for tasks in (1, 5, 20):
        won, lost = of_seeds(*["1" * tasks] * 4), of_seeds(*["0" * tasks] * 4)
        seen, alone = contrast(won, lost), paired_difference(0, tasks, 0, 0)
        assert (seen.low, seen.high, seen.n, seen.tasks) == (alone.low, alone.high, 4 * tasks, tasks)
        assert seen.p == pytest.approx(0.5**tasks)
        once = {key: ok for key, ok in won.items() if key[0] == 0}
        assert (contrast(once, lost).low, contrast(once, lost).p) == (seen.low, seen.p)


def test_equal_arms_that_are_sure_of_each_task_seldom_get_a_verdict() -> None:
    """What an arm can do it always does, so that repetitions say nothing; five tasks are the fewest of a verdict."""
    rng, wrong = np.random.default_rng(2), 0
    for _ in range(1000):
        a, b = (of_seeds(*["".join(map(str, rng.integers(0, 2, 5)))] * 4) for _ in range(2))
        seen = contrast(a, b)
        wrong += seen.low > 0 or seen.high < 0
    assert wrong <= 70  # three standard errors above 5 %


def test_equal_arms_seldom_get_a_verdict_though_their_seeds_differ() -> None:
    """At 5 %, 150 trials: up to 13 are within three standard errors. Whoever ignores seeds makes far more."""
    for seeds in (4, 8):
        found = false_verdicts(seeds, 60, 0.6, 150, seed=seeds)
        assert found["crossed"].wins <= 13
        assert found["games"].wins >= 30


def test_the_benchmark_refuses_a_single_seed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--trials", "1", "--seeds", "4", "1"])
    assert "--seeds 1: a spread over seeds takes two" in capsys.readouterr().err


def test_a_difference_is_still_seen() -> None:
    rng, seen = np.random.default_rng(5), 0
    for _ in range(40):
        a, _ = draw(rng, 4, 60, 0.3)
        first = {(s, str(t), 0): bool(a[s, t]) for s in range(4) for t in range(60)}
        seen += contrast(first, {key: won and rng.random() < 0.5 for key, won in first.items()}).low > 0
    assert seen >= 36


def test_a_rate_of_distinct_tasks_is_wilson_s() -> None:
    assert rate_of((0, str(i), i < 3) for i in range(10)) == Rate(3, 10)
    assert rate_of([]) == Rate(0, 0)


def test_a_rate_where_tasks_repeat_covers_the_true_one() -> None:
    """128 games on 19 boards by four seeds; the true rate is that over all boards and seeds."""
    rng, covered = np.random.default_rng(1), {"wilson": 0, "crossed": 0}
    truth = (1 / (1 + np.exp(-rng.normal(0, sqrt(2**2 + 0.3**2), 200_000)))).mean()
    for _ in range(150):
        boards, seeds, board = rng.normal(0, 2, 19), rng.normal(0, 0.3, (4, 1)), rng.integers(0, 19, 128)
        won = rng.random((4, 128)) < 1 / (1 + np.exp(-(boards[board] + seeds)))
        rate = rate_of((s, str(board[i]), bool(won[s, i])) for s in range(4) for i in range(128))
        covered["crossed"] += rate.low <= truth <= rate.high
        plain = Rate(rate.wins, rate.n)
        covered["wilson"] += plain.low <= truth <= plain.high
    assert covered["crossed"] >= 133 and covered["wilson"] <= 105  # of 150


def test_a_rate_of_none_or_all_counts_tasks_not_games() -> None:
    rate = rate_of((seed, str(task), True) for seed in range(4) for task in range(19))
    assert rate.rate == rate.high == 1 and rate.low == Rate(19, 19).low and rate.n == 76
    assert rate.low < Rate(76, 76).low
