"""How many pairs a comparison needs, and what a number of pairs can show."""

from __future__ import annotations

from math import floor, log2, sqrt
from statistics import NormalDist

from agentopcd.core.errors import ConfigError


def pairs_needed(base: float, other: float, rho: float = 0.3, alpha: float = 0.025, power: float = 0.8) -> float:
    """Pairs that a one-sided McNemar test needs to tell ``other`` from ``base`` (not rounded).

    Args:
        base, other: the two true success rates; they must differ.
        rho: correlation of the two outcomes over tasks.
        alpha: one-sided size of the test.
        power: probability of detecting the difference.

    Raises:
        ConfigError: the rates are equal.
    """
    if base == other:
        raise ConfigError("pairs_needed: the two rates are equal, no number of pairs shows a difference")
    discordant = base * (1 - other) + other * (1 - base)
    discordant -= 2 * rho * sqrt(base * (1 - base) * other * (1 - other))
    size, reach = NormalDist().inv_cdf(1 - alpha), NormalDist().inv_cdf(power)
    gap = (other - base) ** 2
    return (size * sqrt(discordant) + reach * sqrt(max(discordant - gap, 0.0))) ** 2 / gap


def detectable(n: int, base: float = 0.25, rho: float = 0.3, alpha: float = 0.025, power: float = 0.8) -> float | None:
    """The smallest rise over ``base`` that ``n`` pairs detect with the given power.

    Returns:
        A difference of rates, to be printed beside a result; None if so many pairs do not detect even a rise to 1.
    """
    low, high = 1e-6, 1 - base
    if n <= 0 or high <= low or pairs_needed(base, base + high, rho, alpha, power) > n:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        if pairs_needed(base, base + middle, rho, alpha, power) > n:
            low = middle
        else:
            high = middle
    return high


def least_p(tasks: int, *, success: bool) -> float:
    """The smallest one-sided p-value that so many paired tasks can have, whatever comes of them.

    Args:
        success: the test is :func:`~agentopcd.core.stats.mid_p`, which counts half of what was seen; otherwise
            :func:`~agentopcd.core.stats.sign_flip`.
    """
    return 0.5 ** (tasks + success)


def tasks_to_pass(level: float, *, success: bool) -> int:
    """The smallest number of tasks whose :func:`least_p` is below a level."""
    return max(1, floor(-log2(level)) + 1 - success)
