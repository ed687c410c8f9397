"""Intervals and tests: one rate or mean, two paired arms, repeated tasks.

Rates are fractions in [0, 1], means are in the unit of the score; differences are *first minus second*, tests are
one-sided (the first arm is better) unless their name says otherwise. Only the standard library is used, and numpy where
much is counted.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from math import ceil, comb, inf, isfinite, sqrt
from typing import Any, Literal, TypeVar

from agentopcd.core.errors import ConfigError
from agentopcd.core.quantiles import Z95, t_quantile

Key = TypeVar("Key", bound=Hashable)


@dataclasses.dataclass(frozen=True, slots=True)
class Rate:
    """``wins`` of ``n`` with a 95 % interval: Wilson's, unless another one is given."""

    wins: int
    n: int
    interval: tuple[float, float] | None = None
    """For games that are not independent, see :func:`agentopcd.core.crossed.rate_of`; None: Wilson's."""

    @property
    def rate(self) -> float:
        """Share of successes; 0 when nothing was played."""
        return self.wins / self.n if self.n else 0.0

    @property
    def low(self) -> float:
        return (self.interval or wilson(self.wins, self.n))[0]

    @property
    def high(self) -> float:
        return (self.interval or wilson(self.wins, self.n))[1]

    def __str__(self) -> str:
        return f"{self.rate:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})"

    def to_dict(self) -> dict[str, float | None]:
        """The fields that reports write."""
        return {"success": self.rate, "low": self.low, "high": self.high, "n": self.n}


@dataclasses.dataclass(frozen=True, slots=True)
class Mean:
    """Mean of a score that is no success rate, with a 95 % interval; ``n`` counts episodes."""

    rate: float
    """The mean; named as in :class:`Rate`, so that tables can hold either."""
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.rate:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})"

    def to_dict(self) -> dict[str, float | None]:
        """The fields that reports write; None where there are too few tasks for an interval."""
        return {"mean": self.rate, "low": finite(self.low), "high": finite(self.high), "n": self.n}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Mean:
        """What :meth:`to_dict` wrote."""
        low, high = row["low"], row["high"]
        return cls(row["mean"], -inf if low is None else low, inf if high is None else high, row["n"])


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """Difference of two paired rates or means with a 95 % interval; ``n`` counts pairs."""

    diff: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.diff:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """Two arms on the same pairs."""

    n: int
    """Pairs: the same task, seed and repetition in both arms."""
    tasks: int
    """Distinct tasks among them; with ``tasks < n`` pairs are not independent."""
    wins: int
    """Pairs in which the first arm did better."""
    losses: int
    first: Rate | Mean
    second: Rate | Mean
    difference: Difference
    p: float
    """One-sided p-value: the probability of a lead at least this large if the arms are equal."""
    test: Literal["mid_p", "sign_flip"]

    def __str__(self) -> str:
        return (
            f"{self.n} episodes on {self.tasks} tasks: {self.first.rate:.3f} against {self.second.rate:.3f}, "
            f"{self.difference}, win/loss {self.wins}/{self.losses}, {self.test} {self.p:.3g}"
        )

    def to_dict(self) -> dict[str, float | str | None]:
        """The fields that reports write."""
        return {
            "difference": self.difference.diff,
            "low": finite(self.difference.low), "high": finite(self.difference.high),
            "n": self.n, "tasks": self.tasks, "wins": self.wins, "losses": self.losses, "p": self.p, "test": self.test,
        }  # fmt: skip


def finite(number: float) -> float | None:
    """A number as JSON can hold it: None for infinity."""
    return number if isfinite(number) else None


def wilson(k: float, n: float, z: float = Z95) -> tuple[float, float]:
    r"""Wilson score interval of ``k`` successes in ``n`` trials, which need not be whole numbers.

    .. math:: \frac{\hat p + z^2/2n \pm z\sqrt{\hat p(1-\hat p)/n + z^2/4n^2}}{1 + z^2/n}

    Returns:
        ``(low, high)`` within [0, 1]; ``(0, 1)`` when ``n`` is 0.

    Raises:
        ConfigError: ``k`` is not within 0 and ``n``.
    """
    if not 0 <= k <= n:
        raise ConfigError(f"wilson needs 0 <= k <= n, got k={k}, n={n}")
    if n == 0:
        return 0.0, 1.0
    rate = k / n
    centre = rate + z * z / (2 * n)
    half = z * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the formula is exact, but rounding would leave 1e-17 instead of 0.
    low = 0.0 if k == 0 else (centre - half) / scale
    high = 1.0 if k == n else (centre + half) / scale
    return low, high


def mid_p(w: int, l: int) -> float:  # noqa: E741 - wins and losses
    """One-sided McNemar mid-p: the chance of more than ``w`` wins, plus half that of exactly ``w``.

    Args:
        w: pairs that only the first arm won.
        l: pairs that only the second arm won.

    Returns:
        A probability; 1 when no pair is discordant. Valid only when no two pairs share a task.
    """
    n = w + l
    if n == 0:
        return 1.0
    return (2 * sum(comb(n, j) for j in range(w + 1, n + 1)) + comb(n, w)) / 2 ** (n + 1)


DRAWS = 9999
"""Random sign vectors of a :func:`sign_flip`, unless its level wants more."""


def draws_for(level: float) -> int:
    """Sign vectors enough to see whether a p-value is below ``level``: a twentieth of it can still be told from 0."""
    return max(DRAWS, ceil(20 / level))


def sign_flip(sums: Sequence[float], draws: int = DRAWS, seed: int = 0) -> float:
    """One-sided sign-flip test over whole tasks, for scores, or for tasks that were played more than once.

    Args:
        sums: the first arm's score minus the second's, summed over the pairs of each task.
        draws: random sign vectors; the smallest possible result is ``1 / (draws + 1)``.
        seed: seed of the random draws.

    Returns:
        The share of sign vectors whose total reaches the observed one, the observed one included.
    """
    import numpy as np

    values = np.asarray([value for value in sums if value], dtype=np.float64)
    if not len(values):
        return 1.0
    rng = np.random.default_rng(seed)
    reached, hits = values.sum() - 1e-9 * np.abs(values).sum(), 0  # equal totals may differ in their last digits
    for start in range(0, draws, 1000):  # in blocks, so that thousands of tasks need little memory
        signs = rng.integers(0, 2, size=(min(1000, draws - start), len(values)), dtype=np.int8) * 2 - 1
        hits += int((signs @ values >= reached).sum())
    return (hits + 1) / (draws + 1)


def two_sided(sums: Sequence[float]) -> float:
    r"""Two-sided sign-flip test of mean 0: every sum would be as likely with the other sign.

    .. math:: p = P\left(\Bigl|\sum_t \pm s_t\Bigr| \ge \Bigl|\sum_t s_t\Bigr|\right)

    over all :math:`2^T` choices of signs. For whole numbers they are counted, not drawn, so there is no seed and no
    normal distribution: it holds for few tasks, too. If all sums are -1, 0 or 1, it is the exact sign test. For scores
    it is twice the smaller of the two results of :func:`sign_flip`.

    Args:
        sums: one number of each task, such as its wins minus its losses.

    Returns:
        A probability; 1 when the sums add up to 0.
    """
    import numpy as np

    if not all(isinstance(value, int) for value in sums):
        return min(1.0, 2 * min(sign_flip(sums), sign_flip([-value for value in sums])))
    sizes = [abs(int(value)) for value in sums if value]
    reach, total = sum(sizes), abs(int(sum(sums)))
    chance = np.zeros(reach + 1)  # of the sum of those sizes that get a plus
    chance[0] = 1.0
    for size in sizes:
        chance[size:] = (chance[size:] + chance[:-size]) / 2
        chance[:size] /= 2
    # With a sum of m over the pluses, the total is 2 m - reach, and the two tails are equal.
    return min(1.0, 2 * float(chance[(reach + total) // 2 :].sum())) if total else 1.0


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    r"""False-discovery rate at which each of several hypotheses is rejected (J. R. Statist. Soc. B 1995, 57, 289).

    .. math:: q_{(i)} = \min_{j \ge i} \frac{m}{j}\, p_{(j)}

    with the p-values :math:`p_{(1)} \le \dots \le p_{(m)}`. Rejecting those with :math:`q \le 0.1` keeps the expected
    share of false rejections at 10 % or below, if the tests are independent or positively dependent.

    Returns:
        One q for each p, in the order given.
    """
    q, least = [1.0] * len(p), 1.0
    by_p = sorted(range(len(p)), key=lambda index: p[index])
    for rank in range(len(p), 0, -1):
        index = by_p[rank - 1]
        least = min(least, len(p) / rank * p[index])
        q[index] = least
    return q


def ratio(totals: Sequence[float], sizes: Sequence[float], z: float = Z95) -> tuple[float, float, float]:
    r"""A mean over groups of unequal size, with an interval (95 %) that counts each group as one observation.

    .. math:: r = \frac{\sum_g t_g}{\sum_g s_g}, \qquad
        r \pm t \, \frac{\sqrt{\frac{G}{G-1} \sum_g (t_g - r s_g)^2}}{\sum_g s_g}

    with Student's t of :math:`G - 1` degrees of freedom. What is in one group (the pairs of one task, the tokens of one
    turn) need not be independent. With groups of size 1 it is the mean and its usual interval.

    Args:
        totals: the sum of each group.
        sizes: the size of each group; their sum is above 0.
        z: how sure the interval is to be, as a quantile of the normal distribution; by default 95 %.

    Returns:
        ``(ratio, low, high)``; the interval is infinite for fewer than two groups.
    """
    size = sum(sizes)
    value = sum(totals) / size
    if len(totals) < 2:
        return value, -inf, inf  # one group says nothing about others
    spread = sum((total - value * one) ** 2 for total, one in zip(totals, sizes, strict=True))
    half = t_quantile(len(totals) - 1, z) * sqrt(spread * len(totals) / (len(totals) - 1)) / size
    return value, value - half, value + half


def paired_difference(both: float, wins: float, losses: float, neither: float, z: float = Z95) -> Difference:
    """Difference of paired proportions with Newcombe's interval (method 10: Statist. Med. 1998, 17, 2635).

    The counts need not be whole numbers, as in :func:`wilson`.

    Args:
        both: pairs that both arms won.
        wins: pairs that only the first arm won.
        losses: pairs that only the second arm won.
        neither: pairs that both arms lost.

    Returns:
        First minus second; ``(0, -1, 1)`` with ``n = 0`` when there are no pairs.
    """
    n = both + wins + losses + neither
    if n == 0:
        return Difference(0.0, -1.0, 1.0, 0)
    first, second = (both + wins) / n, (both + losses) / n
    low1, high1 = wilson(both + wins, n, z)
    low2, high2 = wilson(both + losses, n, z)
    phi = _phi(both, wins, losses, neither)
    diff = (wins - losses) / n
    below = _hypotenuse(first - low1, high2 - second, phi)
    above = _hypotenuse(high1 - first, second - low2, phi)
    return Difference(diff, max(-1.0, diff - below), min(1.0, diff + above), round(n))


def _phi(both: float, wins: float, losses: float, neither: float) -> float:
    """Correlation of the two arms over pairs, shrunk by n/2 when positive; 0 when a margin is empty."""
    margins = (both + wins) * (losses + neither) * (both + losses) * (wins + neither)
    if margins == 0:
        return 0.0
    cross = both * neither - wins * losses
    if cross > 0:
        cross = max(cross - (both + wins + losses + neither) / 2, 0)
    return cross / sqrt(margins)


def _hypotenuse(a: float, b: float, phi: float) -> float:
    return sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))


def compare(
    a: Mapping[Key, float], b: Mapping[Key, float], tasks: Mapping[Key, str], *, draws: int = DRAWS, z: float = Z95
) -> Comparison:
    """Compare two arms over the pairs that both arms have played.

    Args:
        a: success (a bool) or score (a float) of the first arm by pair (for example ``(seed, rep)``).
        b: success or score of the second arm by the same pairs.
        tasks: the task key of each pair.
        draws: for :func:`sign_flip`.
        z: half the width of the difference's interval, in standard errors; by default that of 95 %.

    Returns:
        Rates, difference and a one-sided p: :func:`mid_p` for successes when no two pairs share a task,
        :func:`sign_flip` over tasks otherwise. Pairs that either arm lacks are ignored.
    """
    if not all(isinstance(value, bool) for arm in (a, b) for value in arm.values()):
        return _compare_scores(a, b, tasks, draws, z)
    cells = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    sums: defaultdict[str, int] = defaultdict(int)
    sizes: defaultdict[str, int] = defaultdict(int)
    for key in a.keys() & b.keys():
        first, second = bool(a[key]), bool(b[key])
        cells[first, second] += 1
        sums[tasks[key]] += first - second
        sizes[tasks[key]] += 1
    both, wins, losses, neither = cells.values()
    n = both + wins + losses + neither
    difference = paired_difference(both, wins, losses, neither, z)
    repeated = len(sums) < n
    if repeated:
        difference = widened(cells, [(sums[task], sizes[task]) for task in sums], z)
    # Sorted: the pairs come from a set, and the result of the draws depends on the order of the sums.
    p = sign_flip(sorted(sums.values()), draws) if repeated else mid_p(wins, losses)
    return Comparison(
        n, len(sums), wins, losses, Rate(both + wins, n), Rate(both + losses, n), difference, p,
        "sign_flip" if repeated else "mid_p",
    )  # fmt: skip


def _compare_scores(
    a: Mapping[Key, float], b: Mapping[Key, float], tasks: Mapping[Key, str], draws: int, z: float
) -> Comparison:
    pairs = sorted(a.keys() & b.keys(), key=str)
    if odd := [value for key in pairs for value in (a[key], b[key]) if not isfinite(value)]:
        raise ConfigError(f"a score is {odd[0]}, which compares with nothing; let the environment report numbers")
    gains = {key: a[key] - b[key] for key in pairs}
    difference = mean_of(gains, tasks, z)
    sums: defaultdict[str, float] = defaultdict(float)
    for key, gain in gains.items():
        sums[tasks[key]] += gain
    return Comparison(
        len(pairs), len(sums), sum(gain > 0 for gain in gains.values()), sum(gain < 0 for gain in gains.values()),
        mean_of({key: a[key] for key in pairs}, tasks), mean_of({key: b[key] for key in pairs}, tasks),
        Difference(difference.rate, difference.low, difference.high, difference.n),
        sign_flip(sorted(sums.values()), draws), "sign_flip",
    )  # fmt: skip


def mean_of(scores: Mapping[Key, float], tasks: Mapping[Key, str], z: float = Z95) -> Mean:
    """Mean of scores with an interval (95 %) that takes tasks, not episodes, for independent (see :func:`ratio`)."""
    if not scores:
        return Mean(0.0, -inf, inf, 0)
    by_task: defaultdict[str, list[float]] = defaultdict(list)
    for key, score in scores.items():
        by_task[tasks[key]].append(score)
    sums, sizes = [sum(values) for values in by_task.values()], [len(values) for values in by_task.values()]
    mean, low, high = ratio(sums, sizes, z)
    return Mean(mean, low, high, len(scores))


def widened(cells: Mapping[Any, float], groups: Sequence[tuple[float, int]], z: float = Z95) -> Difference:
    """The hull of the paired interval and one over tasks; if those came out alike, as many pairs count as tasks."""
    _, low, high = ratio([total for total, _ in groups], [size for _, size in groups], z)
    n = sum(cells.values())
    each = 1.0 if high - low > 1e-12 else len(groups) / n
    difference = dataclasses.replace(paired_difference(*(count * each for count in cells.values()), z=z), n=n)
    low, high = min(difference.low, low), max(difference.high, high)
    return Difference(difference.diff, max(-1.0, low), min(1.0, high), difference.n)
