"""How many processes a launcher such as ``torchrun`` has started together."""

from __future__ import annotations

import os

from agentopcd.core.errors import ConfigError


def launched() -> int:
    """The number of processes that were launched together with this one, itself included.

    Raises:
        ConfigError: ``WORLD_SIZE`` is no such number.
    """
    text = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ConfigError(
            f"WORLD_SIZE is {text[:40]!r}, which is no number of processes; torchrun sets it, so unset it"
        )
    return int(text)
