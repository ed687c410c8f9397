"""Refs, the names of contexts: the confirmed context of an environment, and every step of every chain."""

from __future__ import annotations

from typing import NamedTuple


def best_ref(env: str) -> str:
    """Ref of the context that was confirmed last for an environment, for example ``sokoban/best``."""
    return f"{env}/best"


def pool_prefix(env: str) -> str:
    """Prefix of the refs of an environment's chain steps."""
    return f"{env}/pool/"


class PoolStep(NamedTuple):
    """One step of an extraction chain."""

    env: str
    chain: int
    step: int

    @property
    def ref(self) -> str:
        """Ref of this step, for example ``sokoban/pool/03/07``."""
        return f"{pool_prefix(self.env)}{self.chain:02d}/{self.step:02d}"
