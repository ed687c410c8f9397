"""Means over groups whose members are not independent: the tokens of a reply, the replies of a conversation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import inf, sqrt
from typing import NamedTuple

from agentopcd.core.quantiles import t_quantile
from agentopcd.core.stats import Mean, ratio

Sized = tuple[str, float, int]
"""A key, a total and a size; those of one key form a group."""


def mean_of_groups(values: Iterable[Sized]) -> Mean:
    """The mean of what the totals are sums of, with the interval of :func:`agentopcd.core.stats.ratio`.

    Returns:
        The mean, ``n`` counting values; 0 with an infinite interval without any.
    """
    listed = list(values)
    totals, sizes = _grouped(listed)
    if not sum(sizes.values()):
        return Mean(0.0, -inf, inf, 0)
    return Mean(*ratio([totals[key] for key in totals], [sizes[key] for key in totals]), len(listed))


def closed_share(student: Iterable[Sized], base: Iterable[Sized]) -> Mean:
    r"""How much smaller one mean over groups is than another, with a 95 % interval; the groups are paired by key.

    .. math:: c = 1 - \frac{A}{B}, \qquad A = \frac{\sum_g a_g}{\sum_g m_g}, \quad B = \frac{\sum_g b_g}{\sum_g n_g}

    The interval is that of the linearised share (delta method): group :math:`g` moves it by
    :math:`-(a_g - A m_g) / (B \sum m) + A (b_g - B n_g) / (B^2 \sum n)`.

    Args:
        student: what the smaller mean is of.
        base: what the other mean is of. Only keys that both have count.

    Returns:
        The share, ``n`` counting groups; 0 with an infinite interval where ``base`` is 0 or there are fewer than two.
    """
    (a, m), (b, n) = _grouped(student), _grouped(base)
    keys = sorted(a.keys() & b.keys())
    sizes = (sum(m[key] for key in keys), sum(n[key] for key in keys))
    if len(keys) < 2 or not all(sizes) or not (below := sum(b[key] for key in keys)):
        return Mean(0.0, -inf, inf, len(keys))
    top, bottom = sum(a[key] for key in keys) / sizes[0], below / sizes[1]
    moved = [
        (top / bottom * (b[key] - bottom * n[key]) / sizes[1] - (a[key] - top * m[key]) / sizes[0]) / bottom
        for key in keys
    ]
    half = t_quantile(len(keys) - 1) * sqrt(len(keys) / (len(keys) - 1) * sum(value * value for value in moved))
    return Mean(1 - top / bottom, 1 - top / bottom - half, 1 - top / bottom + half, len(keys))


def _grouped(values: Iterable[Sized]) -> tuple[dict[str, float], dict[str, int]]:
    totals: defaultdict[str, float] = defaultdict(float)
    sizes: defaultdict[str, int] = defaultdict(int)
    for key, total, size in sorted(values):  # a sum of floats depends on the order of its terms
        totals[key] += total
        sizes[key] += size
    return totals, sizes


class Products(NamedTuple):
    """Scalar products of three changes, summed over the members of one group: the ``rest``, the ``part``, and ``both``
    as somebody else shows them."""

    rest_rest: float
    rest_part: float
    part_part: float
    rest_shown: float
    part_shown: float


def shown_share(groups: Sequence[Products], size_of: Sequence[Products] = ()) -> Mean:
    r"""How much of a part is in what is shown, when the rest may be in it as well: a coefficient of a regression.

    .. math:: y = a\,x_\mathrm{rest} + s\,x_\mathrm{part} + e

    by least squares over all groups; :math:`s` is returned. With :math:`r` and :math:`u` what is left of
    :math:`x_\mathrm{part}` and :math:`y` when their projections on :math:`x_\mathrm{rest}` are taken away,
    :math:`s = \sum_g \langle r, u \rangle_g / \sum_g \langle r, r \rangle_g`. So the interval of
    :func:`agentopcd.core.stats.ratio` is that of the regression with the members of a group dependent on each other.

    Args:
        size_of: those of another part. What is shown is then told in units of that part's size:
            :math:`s \sqrt{\sum \langle r, r \rangle / \sum \langle r', r' \rangle}`, which stays small where both
            this part and what is shown of it are small.

    Returns:
        :math:`s`, ``n`` counting groups; 0 with an infinite interval where a part cannot be told from the rest.
    """
    tops, sizes = _left(groups)
    others = _left(size_of)[1] if size_of else sizes
    if not (sizes and others):
        return Mean(0.0, -inf, inf, len(groups))
    units, (share, low, high) = sqrt(sum(sizes) / sum(others)), ratio(tops, sizes)
    return Mean(units * share, units * low, units * high, len(groups))


def _left(groups: Sequence[Products]) -> tuple[list[float], list[float]]:
    """What is left of the part, times what is left of what is shown, and times itself, for each group; nothing if that
    is only the rounding of what is the same as the rest."""
    total = Products(*(sum(values) for values in zip(*groups, strict=True))) if groups else Products(0, 0, 0, 0, 0)
    part, shown = 0.0, 0.0
    if total.rest_rest > 0:
        part, shown = total.rest_part / total.rest_rest, total.rest_shown / total.rest_rest
    tops = [
        one.part_shown - part * one.rest_shown - shown * one.rest_part + part * shown * one.rest_rest for one in groups
    ]
    sizes = [one.part_part - 2 * part * one.rest_part + part * part * one.rest_rest for one in groups]
    return (tops, sizes) if sum(sizes) > 1e-9 * total.part_part else ([], [])
