"""Continuous batching in this process: a row that ends takes the next request, and shared beginnings are read once."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from agentopcd import models
from agentopcd.core.types import Completion, Request, Sampling
from agentopcd.models.process import FreedMemory
from agentopcd.rollouts.sampling import decoding, drawing
from agentopcd.rollouts.sampling.drafts import KEPT, Drafts
from agentopcd.rollouts.sampling.lean import Lean, fits
from agentopcd.rollouts.sampling.prefixes import Prefixes, Read
from agentopcd.rollouts.sampling.protocol import Heard
from agentopcd.rollouts.sampling.rows import Rows
from agentopcd.rollouts.sampling.shared import WORTH_BYTES, Beginnings, Shared
from agentopcd.rollouts.sampling.steps import Part

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
RESERVED = 4
"""Rows leave room for so many times the tokens that are shared so far, up to half of it: more contexts may come."""
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
    marks: list[int] = dataclasses.field(default_factory=list)
    """See :meth:`~agentopcd.rollouts.sampling.shared.Beginnings.enter`."""
    held: int = 0
    """How many of them were read."""
    draft: list[int] = dataclasses.field(default_factory=list)
    """Guesses at the tokens to come, which were read after the others."""
    shared: Shared | None = None
    """What the row does not hold of them."""
    logprobs: list[float] = dataclasses.field(default_factory=list)

    @property
    def reading(self) -> bool:
        return not self.logprobs

    @property
    def reply(self) -> tuple[int, ...]:
        return tuple(self.ids[len(self.request.prompt_ids) :])

    @property
    def before(self) -> int:
        """How many tokens are shared."""
        return len(self.shared) if self.shared else 0

    @property
    def longest(self) -> int:
        """How many tokens its row has to hold at most."""
        return len(self.request.prompt_ids) + self.sampling.max_tokens - self.before


class Continuous:
    """Answers requests, each at its own pace. The weights must stay as they are as long as this object lives.

    Args:
        loaded: the model.
        compute: dtype of matrix products.
        rows: the most requests under way.
        share: how many engines like this one the bounds on memory are for.
        in_order: give free rows to those who wait longest, as strangers expect; else to those who asked last.
        worth: bytes of a layer's keys and values that sharing must save at each step.
    """

    def __init__(
        self, loaded: models.LoadedModel, compute: torch.dtype, rows: int, share: int = 1, *, in_order: bool = False,
        worth: int = WORTH_BYTES,
    ) -> None:  # fmt: skip
        self.loaded, self.compute, self.in_order = loaded, compute, in_order
        self.heard: Heard | None = None
        """Called with each token as it is sampled."""
        self._packed = decoding.Packed(loaded.model, compute)
        with self._sampling():
            self._lean = Lean(loaded.model, self._packed) if fits(loaded.model) else None
            self._rows = Rows(loaded.model, most=rows, bound=_bound(loaded.model) // share, lean=self._lean)
        self._beginnings = Beginnings(-(-worth * self._rows.layers // self._rows.each))
        self._prefixes = Prefixes(PREFIXES_BYTES // share)
        self.drafts = Drafts(KEPT // share)
        self._waiting: list[_Seat] = []
        self._seats: list[_Seat | None] = []
        self._freed, self.steps = FreedMemory(), 0

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
        """At least one more token for each request whose prompt is read; returns the replies that are complete then."""
        with self._sampling():
            return self._step()

    def submit(self, ticket: int, request: Request, sampling: Sampling) -> None:
        """Take a request."""
        seat = _Seat(ticket, request, sampling, list(request.prompt_ids))
        if self._rows.can_share:
            seat.marks = self._beginnings.enter(seat.ids)
        self._waiting.insert(0 if self.in_order else len(self._waiting), seat)

    def drop(self, tickets: Iterable[int]) -> None:
        """Forget requests."""
        gone = set(tickets)
        for seat in (*self._waiting, *self._seats):
            if seat and seat.ticket in gone:
                self._beginnings.leave(seat.marks)
        self._waiting = [seat for seat in self._waiting if seat.ticket not in gone]
        self._seats = [None if seat and seat.ticket in gone else seat for seat in self._seats]

    def _step(self) -> list[tuple[int, Completion]]:
        """See :meth:`advance`."""
        self.steps += 1
        if self.steps % LOOK_EVERY == 0:
            self._freed.look()
        self._close_up()
        if self._rows.recorded is None or self.steps % ADMIT_EVERY == 0 or not self._seats:
            self._admit()
        seats = [seat for seat in self._seats if seat is not None]
        parts = list(self._parts(seats))
        hidden_MH = self._rows.read(parts)
        first = list(itertools.accumulate((part.wanted for part in parts), initial=0))
        ready = [row for row, seat in enumerate(seats) if seat.held == len(seat.ids)]
        for row in ready:
            if seats[row].reading:
                self._keep(row, seats[row])
        if not ready:
            return []
        places = [place for row in ready for place in range(first[row], first[row + 1])]
        logits_MV = self._logits(hidden_MH if len(places) == len(hidden_MH) else hidden_MH[places])
        first = list(itertools.accumulate((parts[row].wanted for row in ready), initial=0))[:-1]
        found, number, left = [], 0, dict(zip(ready, first, strict=True))
        while left:  # a token for each row, then one more for those whose guess it was
            at = [place + number for place in left.values()]
            logits_BV = logits_MV if len(at) == len(logits_MV) else logits_MV[at]
            found += self._draw(logits_BV, {row: seats[row] for row in left})
            left = {row: at for row, at in left.items() if self._seats[row] and seats[row].held == len(seats[row].ids)}
            number += 1
        return found

    def _logits(self, hidden_MH: Tensor) -> Tensor:
        model = self.loaded.model
        return models.scaled(model, model.get_output_embeddings()(hidden_MH)).float()

    def _draw(self, logits_BV: Tensor, by_row: Mapping[int, _Seat]) -> list[tuple[int, Completion]]:
        """The next token of the request in each of these rows; returns the replies that are complete."""
        rows, seats = list(by_row), list(by_row.values())
        taken: list[tuple[int, Completion] | None] = []
        for sampling, at in _alike(seats):
            asked = [(seats[i].request, seats[i].reply) for i in at]
            drawn = drawing.draw(logits_BV if len(at) == len(rows) else logits_BV[at], asked, sampling)
            taken += [self._take(rows[i], *token) for i, token in zip(at, zip(*drawn, strict=True), strict=True)]
        return [reply for reply in taken if reply is not None]

    def _take(self, row: int, token: int, logprob: float) -> tuple[int, Completion] | None:
        """Append a token to a reply; if it is complete, free its row and return it."""
        seat = self._seats[row]
        assert seat is not None
        if seat.draft and seat.draft.pop(0) == token:
            seat.held += 1
            self.drafts.right += 1
        else:
            seat.draft.clear()
        seat.ids.append(token)
        seat.logprobs.append(logprob)
        if not self._rows.records:
            self.drafts.learn(seat.ids)
        if self.heard is not None:
            self.heard(seat.ticket, (token,), (logprob,))
        ended = token in self.loaded.end_ids
        if not ended and len(seat.logprobs) < seat.sampling.max_tokens:
            return None
        self._keep(row, seat)
        self._seats[row] = None
        self._beginnings.leave(seat.marks)
        reason = "stop" if ended else "length"
        return seat.ticket, Completion(token_ids=seat.reply, logprobs=tuple(seat.logprobs), finish_reason=reason)

    def _keep(self, row: int, seat: _Seat) -> None:
        self._prefixes.add(seat.ids[: seat.held], lambda start, end: self._rows.take(row, start, end, seat.shared))

    def _parts(self, seats: Sequence[_Seat]) -> Iterable[Part]:
        """What each row reads in this step, in the order of rows. A long prompt takes several steps."""
        left = READ_TOKENS if self._rows.recorded is None else READ_TOKENS_GPU
        for row, seat in enumerate(seats):
            end = min(len(seat.ids), seat.held + max(1, left))
            if end == len(seat.ids) and not self._rows.records:
                seat.draft = self._guess(seat)
            yield Part(row, seat.held, [*seat.ids[seat.held : end], *seat.draft], seat.shared, 1 + len(seat.draft))
            left -= end - seat.held if seat.reading else 0
            seat.held = end

    def _guess(self, seat: _Seat) -> list[int]:
        """What a request's next tokens may be, without the last that its reply may have: nothing is drawn after it."""
        request, most = seat.request, seat.sampling.max_tokens - len(seat.logprobs) - 1
        draft = self.drafts.guess(seat.ids, len(request.prompt_ids), most, self.loaded.end_ids, request.choices)
        self.drafts.made += len(draft)
        return draft

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
            row = len(self._seats)
            if row and row >= self._room(longest):
                break
            seat = self._waiting.pop()
            ids, kept = seat.ids, self._beginnings.find(seat.ids, seat.marks)
            found = self._prefixes.find(ids[:-1])  # the last token is read again: its hidden state is needed
            known = max(len(kept or ()), sum(n for _, n in found))
            more = known + SHARED_TOKENS
            if len(ids) >= more and any(other[:more] == ids[:more] for other in reading):  # soon it is kept
                later.append(seat)
                continue
            cut = self._beginnings.cut(seat.marks)
            if cut <= 2 * len(kept or ()):
                cut = 0
            elif not self._has_room_to_share(cut):
                if row and not self.in_order and self._fill_up(cut):  # those whose beginning is kept go first
                    later.append(seat)
                    continue
                cut = 0
            wide = max(longest, seat.longest - (cut or len(kept or ())))
            if row and row >= self._room(wide, cut):
                self._waiting.append(seat)
                break
            seat.shared = self._read_once(seat, cut) if cut else kept
            if seat.shared is not None:
                self._beginnings.keep(seat.shared, seat.marks)
            longest, known = wide, max(seat.before, known)
            beside = RESERVED * self._beginnings.tokens
            soon = min(self._rows.room(longest, beside), 1 + row + len(self._waiting) + len(later))
            self._rows.grow(max(row + 1, soon), longest, row, beside)
            self._fill(self._rows, row, found, seat.before)
            seat.held = known
            self._seats.append(seat)
            if len(ids) - known > SHARED_TOKENS:
                reading.append(ids)
        self._waiting += reversed(later)

    def _used(self) -> list[Shared]:
        """What requests under way share."""
        return list({id(seat.shared): seat.shared for seat in self._seats if seat and seat.shared}.values())

    def _room(self, width: int, cut: int = 0) -> int:
        """How many rows of ``width`` tokens there may be, if ``cut`` tokens more are shared. What nobody uses any more
        is forgotten if that makes room."""
        room = self._rows.room(width, RESERVED * (self._beginnings.tokens + cut))
        if room <= len(self._seats) and self._beginnings.tokens:
            used = self._used()
            more = self._rows.room(width, RESERVED * (sum(map(len, used)) + cut))
            if more > room:
                self._beginnings.forget(used)
                return more
        return room

    def _has_room_to_share(self, cut: int) -> bool:
        """Whether so many tokens more may be kept, if need be after what nobody uses was forgotten."""
        if self._rows.fits(self._beginnings.tokens + cut):
            return True
        used = self._used()
        if not self._seats:
            self._rows.narrow(0)
        if fits := self._rows.fits(sum(map(len, used)) + cut):
            self._beginnings.forget(used)
        return fits

    def _fill_up(self, cut: int) -> bool:
        """Whether it is what is shared, and not the rows, that leaves no room for so many tokens more."""
        return (sum(map(len, self._used())) + cut) * self._rows.each > self._rows.bound // 2

    def _read_once(self, seat: _Seat, cut: int) -> Shared:
        """Read the first tokens of a request, which others have in common with it."""
        ids = tuple(seat.ids[:cut])
        rows = Rows(self.loaded.model, most=1, bound=0, lean=self._lean)
        rows.grow(1, cut, 0)
        at = self._fill(rows, 0, self._prefixes.find(ids), 0)
        for left in range(-(-(cut - at) // READ_TOKENS), 0, -1):  # pieces of one size, since a short one costs as much
            end = at + (cut - at) // left
            rows.read([Part(0, at, ids[at:end])])
            at = end
        return Shared(ids, rows.first(cut))

    @staticmethod
    def _fill(rows: Rows, row: int, found: Sequence[tuple[Read, int]], before: int) -> int:
        """Write what was read before into a row that lacks the tokens ``before``; returns how many there are."""
        at = 0
        for read, n in found:
            if at + n > before:
                rows.put(row, max(0, at - before), read, max(0, before - at), n)
            at += n
        return at

    def _close_up(self) -> None:
        """Move the last rows into free ones, so that the rows under way lie side by side."""
        while None in self._seats:
            last = self._seats.pop()
            if last is not None:
                row = self._seats.index(None)
                self._rows.move(len(self._seats), row, last.held - last.before)
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
