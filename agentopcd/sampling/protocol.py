"""What the rest of the package asks of a sampler, whatever engine is behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from agentopcd.types import Completion, Request, Sampling


class Sampler(Protocol):
    """Answers prompts. Token ids go in and come out, so nothing is ever tokenised twice.

    The reply to a request depends on its prompt, its seed and the weights, not on its neighbours in
    the batch (up to rounding, which follows the shape of the batch). An engine with its own copy of
    the weights brings its own update call; the caller that trains is the one that calls it.
    """

    engine: str
    """Name for the setup hash, such as ``transformers-float32``: replies of two engines never pool."""

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order."""
        ...


def request_seed(*parts: object) -> int:
    """A 63-bit seed from what identifies a request (run seed, task, repetition, turn)."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
