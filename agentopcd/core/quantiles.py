"""Student's t: how many standard errors an interval takes where its variance is estimated from few observations."""

from __future__ import annotations

from functools import lru_cache
from math import atan, exp, lgamma, pi, sqrt
from statistics import NormalDist

Z95 = NormalDist().inv_cdf(0.975)
"""Standard normal quantile of a two-sided 95 % interval."""


def two_sided_t(t: float, freedom: float) -> float:
    r"""Chance of Student's t to be further from 0 than ``t``.

    With :math:`t = \sqrt{\nu} \tan\theta` the density is :math:`\cos^{\nu-1}\theta` but for a factor; it is summed by
    Simpson's rule.
    """
    import numpy as np

    grid, step = np.linspace(0.0, atan(t / sqrt(freedom)), 401, retstep=True)
    density = np.cos(grid) ** (freedom - 1)
    within = float(step) / 3 * float(density[0] + density[-1] + 4 * density[1::2].sum() + 2 * density[2:-1:2].sum())
    whole = sqrt(pi) / 2 * exp(lgamma(freedom / 2) - lgamma((freedom + 1) / 2))
    return max(0.0, 1 - within / whole)


@lru_cache(maxsize=4096)
def t_quantile(freedom: float, z: float = Z95) -> float:
    """Half the width of an interval in standard errors: of 95 %, 12.7 for one degree of freedom, 3.18 for three.

    Args:
        z: what it would be with a known variance, which says how sure the interval is to be.
    """
    outside, low, high = 2 * NormalDist().cdf(-z), 0.0, max(z, 1.0)
    while two_sided_t(high, freedom) > outside:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_t(middle, freedom) > outside else (low, middle)
    return high
