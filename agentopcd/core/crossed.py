r"""Intervals for outcomes that are crossed: several training seeds, or chains, that have all played the same tasks.

Such outcomes are no independent observations. What one training learned is in all of its games, and a hard task is hard
for every seed. So both are resampled in thought: other seeds and other tasks could have been drawn. The variance of a
mean over n outcomes is that of two-way clustering (Cameron, Gelbach and Miller, J. Bus. Econ. Stat. 2011, 29, 238):

.. math:: V = V_s + V_t - V_{st}, \qquad V_g = \frac{G}{G-1} \sum_g \Bigl(\sum_{i \in g} (x_i - \bar x)\Bigr)^2 / n^2

with the groups g the seeds, the tasks, and the cells of both (without the factor); never below :math:`V_s` or
:math:`V_t`. The interval takes Student's t with Satterthwaite's degrees of freedom, which four seeds need.

A bootstrap over seeds and tasks would say the same for many seeds. Of four seeds its percentiles are too narrow and its
spread counts the noise of single games three times: ``python -m benchmarks.false_verdicts`` compares them.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from math import sqrt

from agentopcd.core.quantiles import t_quantile, two_sided_t
from agentopcd.core.stats import Rate, mid_p, paired_difference, wilson

Outcomes = Mapping[tuple[int, str, int], bool]
"""Success by training seed (or chain), task key, and a number that tells the games of one task apart."""


@dataclasses.dataclass(frozen=True, slots=True)
class Contrast:
    """Two arms on the same games, with an interval over seeds and tasks."""

    diff: float
    """First minus second."""
    low: float
    high: float
    p: float
    """Two-sided p-value of no difference."""
    n: int
    """Games that both arms have played."""
    seeds: int
    tasks: int
    wins: int
    """Games that only the first arm won."""
    losses: int

    def __str__(self) -> str:
        return f"{self.diff:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def contrast(a: Outcomes, b: Outcomes) -> Contrast:
    """Compare two arms over the games that both have played.

    The interval is the hull of the one over seeds and tasks and of Newcombe's for paired games, which still has a width
    where all games came out alike. In that case nothing is seen of the variance, and as many games count as there are
    tasks. With a single seed or a single task, only the other is resampled, and a few tasks may all come out alike by
    chance: the caller has to say that this is too little. Without games it is all of [-1, 1].
    """
    cells = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    gains: list[tuple[Hashable, Hashable, int]] = []
    for key in sorted(a.keys() & b.keys(), key=str):
        first, second = bool(a[key]), bool(b[key])
        cells[first, second] += 1
        gains.append((key[0], key[1], first - second))
    _, wins, losses, _ = cells.values()
    variance, freedom = spread(gains)
    tasks = len({task for _, task, _ in gains})
    each = 1.0 if variance or not gains else tasks / len(gains)
    paired = paired_difference(*(count * each for count in cells.values()))
    half = t_quantile(freedom) * sqrt(variance)
    first, second = round(wins * each), round(losses * each)
    p = min(1.0, 2 * min(mid_p(first, second), mid_p(second, first)))
    if variance:
        p = max(p, two_sided_t(abs(paired.diff) / sqrt(variance), freedom))
    return Contrast(
        paired.diff, max(-1.0, min(paired.low, paired.diff - half)), min(1.0, max(paired.high, paired.diff + half)), p,
        len(gains), len({seed for seed, _, _ in gains}), tasks, wins, losses,
    )  # fmt: skip


def rate_of(games: Iterable[tuple[Hashable, Hashable, bool]]) -> Rate:
    """A success rate over games, each with its seed and its task.

    Where a task was played more than once, by several seeds or several times, it is Wilson's interval for as many
    independent games as would have this variance, with Student's t. Where all games or none were won nothing is seen of
    the variance; then as many games count as there are tasks.
    """
    games = sorted(((seed, task, bool(won)) for seed, task, won in games), key=str)
    n, wins, tasks = len(games), sum(won for _, _, won in games), len({task for _, task, _ in games})
    if tasks == n:
        return Rate(wins, n)
    rate, (variance, freedom) = wins / n, spread(games)
    if not variance:
        return Rate(wins, n, wilson(rate * tasks, tasks))
    independent = min(n, rate * (1 - rate) / variance)
    return Rate(wins, n, wilson(rate * independent, independent, t_quantile(freedom)))


def spread(values: Iterable[tuple[Hashable, Hashable, float]]) -> tuple[float, float]:
    """Variance of the mean of values that are crossed by seed and task, and its degrees of freedom.

    Args:
        values: (seed, task, value) of each game.

    Returns:
        Variance, 0 if all groups have the same mean, and degrees of freedom, at least 1. A side with a single group
        says nothing of other groups and is left out.
    """
    values = list(values)
    n = len(values)
    mean = sum(value for _, _, value in values) / n if n else 0.0

    def squares(group: int | None) -> tuple[float, int]:
        sums: defaultdict[Hashable, float] = defaultdict(float)
        for one in values:
            sums[one[:2] if group is None else one[group]] += one[2] - mean
        return sum(total * total for total in sums.values()) / n**2, len(sums)

    if not n:
        return 0.0, 1.0
    sides = [(square * count / (count - 1), count - 1) for square, count in map(squares, (0, 1)) if count > 1]
    if not sides:
        return 0.0, 1.0
    cells = squares(None)[0] if len(sides) > 1 else 0.0
    variance = max(sum(side for side, _ in sides) - cells, *(side for side, _ in sides))
    below = sum(side * side / freedom for side, freedom in sides)
    return (variance, max(1.0, variance * variance / below)) if variance > 1e-15 else (0.0, 1.0)
