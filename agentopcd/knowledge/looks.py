"""The budget of looks at an environment's confirm tasks.

Every confirmation of an environment, by whatever command, model or round, is one look. Look ``k`` tests at the level
``ALPHA / (k (k + 1))``, so all looks together, however many there will be, spend at most :data:`ALPHA`: with nothing
but worthless contexts, the chance that any is ever promoted stays below it (union bound; nothing is assumed about how
the looks depend on each other). Nothing is paid back after a pass.
"""

from __future__ import annotations

ALPHA = 0.025
"""One-sided false-alarm rate of all looks of one environment together."""


def level_of(look: int) -> float:
    """Level of look number ``look``, from 1."""
    return ALPHA / (look * (look + 1))


def left_after(looks: int) -> float:
    """What is left of :data:`ALPHA` after this many looks."""
    return ALPHA / (looks + 1)
