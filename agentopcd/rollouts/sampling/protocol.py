"""The interface of a sampler, whatever engine is behind it, and what engines share: batching, limits, seeds."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Completion, Request, Sampling

Heard = Callable[[int, Sequence[int], Sequence[float]], None]
"""Takes a ticket, its next tokens and their log-probabilities."""


class Sampler(Protocol):
    """Answers prompts. Token ids go in and come out, so no text is ever tokenised twice.

    The reply to a request depends on its prompt, its seed and the weights. It does not depend on the other requests of
    the batch, except for rounding, which depends on the batch's shape.
    """

    engine: str
    """The name in the setup hash, such as ``transformers-float32``. Replies of two engines are never pooled."""

    @property
    def room(self) -> int:
        """The most tokens of a prompt and its reply together; 0: unknown."""
        ...

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order."""
        ...

    def submit(self, request: Request, sampling: Sampling) -> int:
        """Ask for a completion and return a ticket; :meth:`collect` returns the completion with this ticket."""
        ...

    def collect(self) -> list[tuple[int, Completion]]:
        """The completions that are ready, with their tickets. Waits for at least one; a request must be pending."""
        ...

    def drop(self, tickets: Iterable[int]) -> None:
        """Forget these requests: nobody will collect their completions."""
        ...

    def split(self, jobs: int) -> Sequence[Sampler]:
        """The samplers that divide so many jobs among them. They live until a :meth:`drop` leaves no request."""
        ...

    def rest(self) -> None:
        """Free memory if possible: no request comes until the weights have changed."""
        ...

    def update(self) -> float | None:
        """Take over the model's changed weights, if the engine has its own copy, and measure how far it is off then.

        Returns:
            The mean absolute difference between the engine's log-probabilities and the model's, in nats; None for an
            engine without a copy.
        """
        ...


class Stepwise(Sampler, Protocol):
    """A sampler that answers strangers: requests come while others are under way, each with settings of its own."""

    heard: Heard | None
    """Called with the tokens of a reply as they are sampled, where the engine can tell; None: nobody listens. A reply
    that was not heard before it was complete comes from :meth:`advance` alone."""

    def advance(self) -> list[tuple[int, Completion]]:
        """As :meth:`collect`, but returns soon, with nothing if nothing is complete, so that new requests get in."""
        ...


class InBatches:
    """Base class of samplers that answer in batches: one call of ``sample`` answers all submitted requests."""

    engine: str

    @property
    def room(self) -> int:
        """See :class:`Sampler`: unknown, unless the engine says otherwise."""
        return 0

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
        found: list[tuple[int, Completion]] = []
        for sampling in dict.fromkeys(settings for _, settings in asked.values()):  # those of a player are all alike
            tickets = [ticket for ticket, (_, settings) in asked.items() if settings == sampling]
            found += zip(tickets, self.sample([asked[ticket][0] for ticket in tickets], sampling), strict=True)
        return found

    def drop(self, tickets: Iterable[int]) -> None:
        """See :class:`Sampler`."""
        for ticket in tickets:
            self._asked.pop(ticket, None)

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """See :class:`Sampler`."""
        raise NotImplementedError

    def split(self, jobs: int) -> Sequence[Sampler]:
        """See :class:`Sampler`: this one alone."""
        return [self]

    def rest(self) -> None:
        """Do nothing: there is no memory to free."""

    def update(self) -> None:
        """Do nothing: the weights that sample are the weights that train."""


def all_of(sampler: Sampler, tickets: Sequence[int]) -> list[Completion]:
    """The completions of all tickets, in order; none is left with the sampler, also if one fails."""
    replies: dict[int, Completion] = {}
    try:
        while len(replies) < len(tickets):
            replies |= sampler.collect()
    except BaseException:
        sampler.drop(tickets)
        raise
    return [replies[ticket] for ticket in tickets]


def check_room(requests: Sequence[Request], sampling: Sampling, room: int, name: str) -> None:
    """Refuse prompts that leave no room for the longest reply.

    Args:
        requests: the prompts to check.
        sampling: says how long a reply may be.
        room: the number of positions of the model; 0: unknown, so nothing is refused.
        name: the model's name, for the message.

    Raises:
        ConfigError: a prompt and the longest reply do not fit into the positions.
    """
    longest = max((len(r.prompt_ids) for r in requests), default=0)
    if room and longest + sampling.max_tokens > room:
        raise ConfigError(
            f"a prompt of {longest} tokens and a reply of {sampling.max_tokens} do not fit into the {room} "
            f"positions of {name}; prompts are never cut, so lower max_tokens or shorten the context"
        )


def request_seed(*parts: object) -> int:
    """A 63-bit seed from the parts that identify a request: run seed, task, repetition and turn, for instance."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
