"""Two arms that have played different tasks: intervals and tests without pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from math import comb, hypot

import numpy as np

from agentopcd.core.stats import DRAWS, Z95, Difference, Mean, Rate, mean_of, wilson


@dataclasses.dataclass(frozen=True, slots=True)
class Apart:
    """Two arms that share no pairs."""

    first: Rate | Mean
    second: Rate | Mean
    difference: Difference
    """Its ``n`` counts both arms."""
    p: float
    """One-sided p-value: the probability of a lead at least this large if it made no difference who is in which arm."""


def compare_apart(
    a: Sequence[float], b: Sequence[float], *, draws: int = DRAWS, z: float = Z95, seed: int = 0
) -> Apart:
    """Compare two arms whose episodes are on different tasks.

    Args:
        a: successes (bools) or scores (floats) of the first arm, one of each task.
        b: those of the second arm.
        draws: random deals, for scores.
        z: half the width of the difference's interval, in standard errors; by default that of 95 %.

    Returns:
        Of successes, the rates with Newcombe's interval of their difference (method 10 for independent proportions:
        Statist. Med. 1998, 17, 873) and Fisher's mid-p. Of scores, the means with the interval of unequal variances,
        and a permutation test.
    """
    if not all(isinstance(value, bool) for value in (*a, *b)):
        return _scores_apart(a, b, draws, z, seed)
    first, second = Rate(int(sum(a)), len(a)), Rate(int(sum(b)), len(b))
    (low1, high1), (low2, high2) = wilson(first.wins, first.n, z), wilson(second.wins, second.n, z)
    diff = first.rate - second.rate
    below = hypot(first.rate - low1, high2 - second.rate)
    above = hypot(high1 - first.rate, second.rate - low2)
    gain = Difference(diff, max(-1.0, diff - below), min(1.0, diff + above), first.n + second.n)
    return Apart(first, second, gain, _fisher_mid_p(first, second))


def _fisher_mid_p(first: Rate, second: Rate) -> float:
    """The chance that the first arm holds more of all wins than it does, plus half that of as many."""
    n, wins = first.n + second.n, first.wins + second.wins
    ways = [comb(wins, k) * comb(n - wins, first.n - k) for k in range(first.wins, min(wins, first.n) + 1)]
    return (2 * sum(ways) - ways[0]) / (2 * comb(n, first.n))


def _scores_apart(a: Sequence[float], b: Sequence[float], draws: int, z: float, seed: int) -> Apart:
    def mean(values: Sequence[float]) -> Mean:
        scores = dict(enumerate(values))
        return mean_of(scores, {key: str(key) for key in scores}, z)

    first, second = mean(a), mean(b)
    half = hypot(first.high - first.rate, second.high - second.rate)
    diff = first.rate - second.rate
    pooled, rng = np.asarray([*a, *b], dtype=np.float64), np.random.default_rng(seed)
    total = pooled[: len(a)].sum() - 1e-9 * np.abs(pooled).sum()  # equal totals may differ in their last digits
    hits = sum(rng.permutation(pooled)[: len(a)].sum() >= total for _ in range(draws))
    gain = Difference(diff, diff - half, diff + half, len(pooled))
    return Apart(first, second, gain, (int(hits) + 1) / (draws + 1))
