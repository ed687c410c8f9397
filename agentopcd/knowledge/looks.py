"""The budget of looks at an environment's confirm tasks.

Every confirmation of an environment, by whatever command, model or round, is one look. Look ``k`` tests at the level
``ALPHA / (k (k + 1))``, so all looks together, however many there will be, spend at most :data:`ALPHA`: with nothing
but worthless contexts, the chance that any is ever promoted stays below it (union bound; nothing is assumed about how
the looks depend on each other). Nothing is paid back after a pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ALPHA = 0.025
"""One-sided false-alarm rate of all looks of one environment together."""
_NOTHING = 1e-9
"""Less than this is a rounding error."""


def level_of(look: int) -> float:
    """Level of look number ``look``, from 1."""
    return ALPHA / (look * (look + 1))


def left_after(looks: int) -> float:
    """What is left of :data:`ALPHA` after this many looks."""
    return ALPHA / (looks + 1)


def left_of(looks: Sequence[Mapping[str, Any]]) -> float:
    """What is left of :data:`ALPHA` after these looks of one environment, never below 0.

    Looks that were imported have the levels of their own series. Those of schema 1, which had :data:`ALPHA` each, count
    as if they had the levels of their numbers.
    """
    if all(look["level"] in (level_of(look["number"]), ALPHA) for look in looks):
        return left_after(len(looks))
    spent = sum(level_of(look["number"]) if look["level"] >= ALPHA else look["level"] for look in looks)
    return ALPHA - spent if ALPHA - spent > _NOTHING else 0.0


def next_level(looks: Sequence[Mapping[str, Any]]) -> float:
    """Level of the look after these ones of one environment; 0 where imported looks have left nothing."""
    return min(level_of(len(looks) + 1), left_of(looks))
