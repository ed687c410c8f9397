"""What the rest of the package asks of a sampler, whatever engine is behind it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol

from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Completion, Request, Sampling


class Sampler(Protocol):
    """Answers prompts. Token ids go in and come out, so nothing is ever tokenised twice.

    The reply to a request depends on its prompt, its seed and the weights, not on its neighbours in
    the batch (up to rounding, which follows the shape of the batch).
    """

    engine: str
    """Name for the setup hash, such as ``transformers-float32``: replies of two engines never pool."""

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order."""
        ...

    def submit(self, request: Request, sampling: Sampling) -> int:
        """Ask for a completion; :meth:`collect` returns it with this ticket."""
        ...

    def collect(self) -> list[tuple[int, Completion]]:
        """Completions that are ready, with their tickets; waits for at least one. Requires a pending request."""
        ...

    def drop(self, tickets: Iterable[int]) -> None:
        """Forget requests whose completions nobody will collect."""
        ...

    def rest(self) -> None:
        """No request comes until the weights have changed: an engine may free memory until then."""
        ...

    def update(self) -> float | None:
        """The weights changed. An engine with its own copy takes them over and measures how far it is off afterwards.

        Returns:
            Mean absolute difference of log-probabilities to the model's own, in nats; None without a copy.
        """
        ...


class InBatches:
    """Base of samplers that answer in batches: one call of ``sample`` answers everything submitted."""

    def __init__(self) -> None:
        self._asked: dict[int, tuple[Request, Sampling]] = {}
        self._tickets = itertools.count()

    def submit(self, request: Request, sampling: Sampling) -> int:
        """See :class:`Sampler`."""
        ticket = next(self._tickets)
        self._asked[ticket] = (request, sampling)
        return ticket

    def collect(self) -> list[tuple[int, Completion]]:
        """See :class:`Sampler`."""
        asked = dict(self._asked)
        self._asked.clear()
        (sampling,) = {how for _, how in asked.values()}  # one player at a time
        return list(zip(asked, self.sample([request for request, _ in asked.values()], sampling), strict=True))

    def drop(self, tickets: Iterable[int]) -> None:
        """See :class:`Sampler`."""
        for ticket in tickets:
            self._asked.pop(ticket, None)

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """See :class:`Sampler`."""
        raise NotImplementedError

    def rest(self) -> None:
        """Nothing to free."""

    def update(self) -> None:
        """Nothing to do: the weights that sample are those that train."""


def check_room(requests: Sequence[Request], sampling: Sampling, room: int, name: str) -> None:
    """Refuse prompts that leave no room for the longest reply in the ``room`` positions of model ``name``.

    Raises:
        ConfigError: a prompt and the longest reply do not fit.
    """
    longest = max((len(r.prompt_ids) for r in requests), default=0)
    if room and longest + sampling.max_tokens > room:
        raise ConfigError(
            f"a prompt of {longest} tokens and a reply of {sampling.max_tokens} do not fit into the {room} "
            f"positions of {name}; prompts are never cut, so lower max_tokens or shorten the context"
        )


def request_seed(*parts: object) -> int:
    """A 63-bit seed from what identifies a request (run seed, task, repetition, turn)."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
