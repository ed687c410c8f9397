"""Continuous batching in this process: a row that ends takes the next request, and shared beginnings are read once."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from agentopcd import models
from agentopcd.core.types import Completion, Request, Sampling
from agentopcd.models.process import FreedMemory
from agentopcd.rollouts.chat import common_length
from agentopcd.rollouts.sampling import decoding, drawing
from agentopcd.rollouts.sampling.lean import Lean, fits
from agentopcd.rollouts.sampling.prefixes import Prefixes
from agentopcd.rollouts.sampling.protocol import Heard
from agentopcd.rollouts.sampling.rows import Part, Rows

READ_TOKENS, READ_TOKENS_GPU = 1024, 8192
"""The most tokens of prompts that a step reads."""
ADMIT_EVERY = 8
"""Steps between looks for new requests where steps of one token are recorded: those that read prompts are not."""
SHARED_TOKENS = 16
"""A prompt waits for one that is being read if that saves it so many tokens."""
LOOK_EVERY = 8
"""Steps between looks at the memory of this process."""
ROWS_BYTES, PREFIXES_BYTES = 1 << 30, 1 << 29
"""Bounds for the keys and values of requests under way, and of what was read before."""
FREE_SHARE = 4
"""On a GPU, requests under way may take one part in so many of its free memory, if that is more."""


@dataclasses.dataclass(eq=False)
class _Seat:
    """A request under way, in a row."""

    ticket: int
    request: Request
    sampling: Sampling
    ids: list[int]
    """The prompt and the reply so far."""
    held: int = 0
    """How many of them the row holds keys and values of."""
    logprobs: list[float] = dataclasses.field(default_factory=list)

    @property
    def reading(self) -> bool:
        return not self.logprobs

    @property
    def reply(self) -> tuple[int, ...]:
        return tuple(self.ids[len(self.request.prompt_ids) :])

    @property
    def longest(self) -> int:
        """How many tokens its prompt and its reply have at most."""
        return len(self.request.prompt_ids) + self.sampling.max_tokens


class Continuous:
    """Answers requests, each at its own pace. The weights must stay as they are as long as this object lives.

    Args:
        loaded: the model.
        compute: dtype of matrix products.
        rows: the most requests under way.
        share: how many engines like this one the bounds on memory are for.
        in_order: give free rows to those who wait longest, as strangers expect; else to those who asked last.
    """

    def __init__(
        self, loaded: models.LoadedModel, compute: torch.dtype, rows: int, share: int = 1, *, in_order: bool = False
    ) -> None:
        self.loaded, self.compute, self.in_order = loaded, compute, in_order
        self.heard: Heard | None = None
        """Called with each token as it is sampled."""
        self._packed = decoding.Packed(loaded.model, compute)
        with self._sampling():
            lean = Lean(loaded.model, self._packed) if fits(loaded.model) else None
            self._rows = Rows(loaded.model, most=rows, bound=_bound(loaded.model) // share, lean=lean)
        self._prefixes = Prefixes(PREFIXES_BYTES // share)
        self._waiting: list[_Seat] = []
        self._seats: list[_Seat | None] = []
        self._freed, self._steps = FreedMemory(), 0

    @property
    def idle(self) -> bool:
        """Whether no request is waiting or under way."""
        return not self._waiting and not any(self._seats)

    @contextlib.contextmanager
    def _sampling(self) -> Iterator[None]:
        """Inside this block the model samples: eval mode, no gradients, cheaper products."""
        model, training = self.loaded.model, self.loaded.model.training
        if training:
            model.eval()
        try:
            with torch.no_grad(), models.autocast(next(model.parameters()).device, self.compute), self._packed.used():
                yield
        finally:
            if training:
                model.train()

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order; nothing else may be under way."""
        assert self.idle
        for entry in enumerate(requests):
            self.submit(*entry, sampling)
        found: dict[int, Completion] = {}
        while not self.idle:
            found.update(self.collect())
        return [found[number] for number in range(len(requests))]

    def collect(self) -> list[tuple[int, Completion]]:
        """The next replies that are complete; a request must be waiting or under way."""
        found: list[tuple[int, Completion]] = []
        with self._sampling():
            while not found:
                found = self._step()
        return found

    def advance(self) -> list[tuple[int, Completion]]:
        """One more token for each request under way; returns the replies that are complete then."""
        with self._sampling():
            return self._step()

    def submit(self, ticket: int, request: Request, sampling: Sampling) -> None:
        """Take a request."""
        seat = _Seat(ticket, request, sampling, list(request.prompt_ids))
        self._waiting.insert(0 if self.in_order else len(self._waiting), seat)

    def drop(self, tickets: Iterable[int]) -> None:
        """Forget requests."""
        gone = set(tickets)
        self._waiting = [seat for seat in self._waiting if seat.ticket not in gone]
        self._seats = [None if seat and seat.ticket in gone else seat for seat in self._seats]

    def _step(self) -> list[tuple[int, Completion]]:
        """One more token for each request whose prompt was read; returns the replies that are complete."""
        self._steps += 1
        if self._steps % LOOK_EVERY == 0:
            self._freed.look()
        self._close_up()
        if self._rows.recorded is None or self._steps % ADMIT_EVERY == 0 or not self._seats:
            self._admit()
        seats = [seat for seat in self._seats if seat is not None]
        hidden_BH = self._rows.read(list(self._parts(seats)))
        ready = [row for row, seat in enumerate(seats) if seat.held == len(seat.ids)]
        for row in ready:
            if seats[row].reading:
                self._keep(row, seats[row])
        if not ready:
            return []
        model = self.loaded.model
        chosen_BH = hidden_BH if len(ready) == len(seats) else hidden_BH[ready]
        logits_BV = models.scaled(model, model.get_output_embeddings()(chosen_BH)).float()
        taken: list[tuple[int, Completion] | None] = []
        for sampling, at in _alike([seats[row] for row in ready]):
            asked = [(seats[ready[i]].request, seats[ready[i]].reply) for i in at]
            drawn = drawing.draw(logits_BV if len(at) == len(ready) else logits_BV[at], asked, sampling)
            taken += [self._take(ready[i], *token) for i, token in zip(at, zip(*drawn, strict=True), strict=True)]
        return [reply for reply in taken if reply is not None]

    def _take(self, row: int, token: int, logprob: float) -> tuple[int, Completion] | None:
        """Append a token to a reply; if it is complete, free its row and return it."""
        seat = self._seats[row]
        assert seat is not None
        seat.ids.append(token)
        seat.logprobs.append(logprob)
        if self.heard is not None:
            self.heard(seat.ticket, (token,), (logprob,))
        ended = token in self.loaded.end_ids
        if not ended and len(seat.logprobs) < seat.sampling.max_tokens:
            return None
        self._keep(row, seat)
        self._seats[row] = None
        reason = "stop" if ended else "length"
        return seat.ticket, Completion(token_ids=seat.reply, logprobs=tuple(seat.logprobs), finish_reason=reason)

    def _keep(self, row: int, seat: _Seat) -> None:
        self._prefixes.add(seat.ids[: seat.held], lambda start, end: self._rows.take(row, start, end))

    def _parts(self, seats: Sequence[_Seat]) -> Iterable[Part]:
        """What each row reads in this step, in the order of rows. A long prompt takes several steps."""
        left = READ_TOKENS if self._rows.recorded is None else READ_TOKENS_GPU
        for row, seat in enumerate(seats):
            end = min(len(seat.ids), seat.held + max(1, left))
            yield Part(row, seat.held, seat.ids[seat.held : end])
            left -= end - seat.held if seat.reading else 0
            seat.held = end

    # -- who sits where -----------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give rows to waiting requests, the last one first: what it continues was read a moment ago. The rows under
        way lie side by side."""
        longest = max((seat.longest for seat in self._seats if seat), default=0)
        reading = [seat.ids for seat in self._seats if seat and seat.reading]
        later: list[_Seat] = []
        if self._waiting and not self._seats:
            self._rows.narrow(max(seat.longest for seat in self._waiting))
        while self._waiting:
            ids = self._waiting[-1].ids
            longest = max(longest, self._waiting[-1].longest)
            room, row = self._rows.room(longest), len(self._seats)
            if row >= room and row:
                break
            seat = self._waiting.pop()
            found = self._prefixes.find(ids[:-1])  # the last token is read again: its hidden state is needed
            known = sum(n for _, n in found)
            if any(common_length(ids, other) - known >= SHARED_TOKENS for other in reading):
                later.append(seat)
                continue
            soon = min(room, 1 + row + len(self._waiting) + len(later))
            self._rows.grow(max(row + 1, soon), longest, row)
            at = 0
            for read, n in found:
                self._rows.put(row, at, read, n)
                at += n
            seat.held = known
            self._seats.append(seat)
            if len(ids) - known > SHARED_TOKENS:
                reading.append(ids)
        self._waiting += reversed(later)

    def _close_up(self) -> None:
        """Move the last rows into free ones, so that the rows under way lie side by side."""
        while None in self._seats:
            last = self._seats.pop()
            if last is not None:
                row = self._seats.index(None)
                self._rows.move(len(self._seats), row, last.held)
                self._seats[row] = last


def _bound(model: Any) -> int:
    """Bytes for the keys and values of requests under way."""
    device = next(model.parameters()).device
    return max(ROWS_BYTES, torch.cuda.mem_get_info(device)[0] // FREE_SHARE if device.type == "cuda" else 0)


def _alike(seats: Sequence[_Seat]) -> Iterator[tuple[Sampling, list[int]]]:
    """Each kind of sampling, and the seats that have it. Those of a player are one object."""
    first = seats[0].sampling
    if all(seat.sampling is first for seat in seats):
        yield first, list(range(len(seats)))
        return
    for sampling in dict.fromkeys(seat.sampling for seat in seats):
        yield sampling, [i for i, seat in enumerate(seats) if seat.sampling == sampling]
