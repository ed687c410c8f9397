"""Refs, the names of contexts: the confirmed one of an environment, the valued one, and every step of every chain."""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

from agentopcd.core.config import RECORDED
from agentopcd.core.errors import StoreError

LONGEST = 4000
"""The most characters of a ref: it begins with an environment's name, which may hold its arguments."""


def check_ref(name: str) -> None:
    """Refuse a name that could not be typed, printed or told from the empty context.

    Raises:
        StoreError: the name is empty, is ``empty``, is too long, or holds spaces or control characters.
    """
    odd = any(char.isspace() or unicodedata.category(char) in ("Cc", "Cs") for char in name)
    if not name or name == "empty" or odd or len(name) > LONGEST:
        shown = ascii(name) if len(name) <= 100 else f"a text of {len(name)} characters"
        raise StoreError(f"{shown} cannot name a ref; use something like 'sokoban/best'")


def home(env: str) -> str:
    """The environment whose student and best context an environment has: of a recording, however its sessions are
    shown and graded, the recording itself, since they are what is served; else the environment."""
    return env.partition(",")[0] if env.startswith(RECORDED) else env


def best_ref(env: str) -> str:
    """Ref of the context that was confirmed last for an environment, for example ``sokoban/best``."""
    return f"{home(env)}/best"


def valued_ref(env: str) -> str:
    """Ref of the context that was last assembled from the values of an environment's items."""
    return f"{env}/valued"


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
