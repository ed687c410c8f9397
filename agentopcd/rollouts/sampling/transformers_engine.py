"""The transformers engine: samples in this process, in the fastest of several ways that the model bears."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from agentopcd import models
from agentopcd.core.errors import AlignmentError
from agentopcd.core.text import first_line
from agentopcd.core.types import Completion, Request, Sampling
from agentopcd.models.process import give_back_memory
from agentopcd.rollouts.sampling import decoding, drawing, shares
from agentopcd.rollouts.sampling.continuous import Continuous
from agentopcd.rollouts.sampling.drafts import Rehearsed
from agentopcd.rollouts.sampling.protocol import Heard, InBatches, Sampler, check_room
from agentopcd.rollouts.sampling.same_weights import SAMPLING, gaps_nats, limit_nats
from agentopcd.rollouts.sampling.shared import BLOCK, WORTH_BYTES

WAYS = ("fast", "padded", "alone")
"""Ways to sample, the cheapest first: by :mod:`.continuous`; by ``generate`` on padded batches of prompts of similar
length; by ``generate`` on one prompt at a time."""
CHECKED_TOKENS = 1024
"""The most tokens of a prompt that the ways are compared on."""
SHORT_TOKENS = 100
"""The most of those that share their beginnings."""


class TransformersSampler(InBatches):
    """Samples from the very model object that is trained, so there is no copy of weights to update.

    The first requests are sampled by the cheapest of :data:`WAYS` and their log-probabilities compared with the model's
    own forward pass. If they differ, the next way is tried, and the model keeps the first one that agrees.

    Args:
        loaded: the model; it is in eval mode while it samples.
        compute: dtype of matrix products, see :func:`agentopcd.models.compute.pick_compute`.
        batch_size: sequences per ``generate`` call; four times as many requests are under way at once.
        say: takes the line that names a way which was set aside.
        in_order: see :class:`.continuous.Continuous`.
    """

    def __init__(
        self, loaded: models.LoadedModel, *, compute: torch.dtype, batch_size: int = 32,
        say: Callable[[str], None] = print, in_order: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.loaded = loaded
        self.compute = compute
        self.batch_size = batch_size
        self.say = say
        self.in_order = in_order
        self.heard: Heard | None = None
        """See :class:`~agentopcd.rollouts.sampling.protocol.Stepwise`."""
        self._running: Continuous | None = None
        self._taken: set[int] = set()
        self.engine = f"transformers-{str(compute).removeprefix('torch.')}"

    @property
    def rows(self) -> int:
        """The most requests under way at once. A row of one token costs less than a padded one, so more of them pay."""
        return 4 * self.batch_size

    @property
    def room(self) -> int:
        """See :class:`~agentopcd.rollouts.sampling.protocol.Sampler`."""
        return models.positions(self.loaded.model)

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order.

        Raises:
            ConfigError: a prompt and its longest reply do not fit into the model's positions.
            AlignmentError: whichever way the model samples, the log-probabilities are not those of its forward pass.
        """
        check_room(requests, sampling, self.room, self.loaded.name)
        return self._sample(requests, sampling, self.way(requests, sampling), self.compute) if requests else []

    def collect(self) -> list[tuple[int, Completion]]:
        """See :class:`~agentopcd.rollouts.sampling.protocol.Sampler`."""
        running = self._take_up()
        return super().collect() if running is None else self._found(running.collect())

    def advance(self) -> list[tuple[int, Completion]]:
        """See :class:`~agentopcd.rollouts.sampling.protocol.Stepwise`. The slower ways answer all at once, unheard."""
        running = self._take_up()
        if running is None:
            return super().collect()
        running.heard = self.heard
        try:
            return self._found(running.advance())
        except Exception:  # whatever state that has left
            self._running = None
            raise

    def _take_up(self) -> Continuous | None:
        """Hand what is new to the engine; None if this model is sampled in a slower way."""
        new = {ticket: entry for ticket, entry in self._asked.items() if ticket not in self._taken}
        for request, sampling in new.values():
            check_room([request], sampling, self.room, self.loaded.name)
        if self._running is None and self.way(*_few(new.values())) == "fast":
            self._running = Continuous(self.loaded, self.compute, self.rows, in_order=self.in_order)
        if self._running is not None:
            for ticket, entry in new.items():
                self._running.submit(ticket, *entry)
            self._taken.update(new)
        return self._running

    def _found(self, found: list[tuple[int, Completion]]) -> list[tuple[int, Completion]]:
        for ticket, _ in found:
            del self._asked[ticket]
        self._taken.difference_update(ticket for ticket, _ in found)
        return found

    def split(self, jobs: int) -> Sequence[Sampler]:
        """See :class:`~agentopcd.rollouts.sampling.protocol.Sampler`: :mod:`.shares` for a small model on a CPU."""
        count = shares.number(self.loaded.model, jobs)
        return shares.Group(self, count).shares if count > 1 else [self]

    def drop(self, tickets: Iterable[int]) -> None:
        """See :class:`~agentopcd.rollouts.sampling.protocol.Sampler`. With the last request goes what was read; a
        server keeps it for those who ask next."""
        tickets = set(tickets)
        super().drop(tickets)
        self._taken -= tickets
        if self._running is not None:
            self._running.drop(tickets)
        if not self._asked and not self.in_order:
            self._running = None

    def rest(self) -> None:
        """Forget what was read. Beside a large model, training needs the memory."""
        self.drop(list(self._asked))
        self._running = None
        if not decoding.is_small(self.loaded.model):
            give_back_memory()

    def update(self) -> None:
        """Forget what was read: the weights that sample are the weights that train."""
        self.rest()

    def way(self, requests: Sequence[Request], sampling: Sampling) -> str:
        """How this model is sampled; compared anew when something about the model has changed."""
        known = models.shortcuts_of(self.loaded.model)
        state = (self.compute, self.loaded.adapter is not None, self.loaded.model.config._attn_implementation)
        if known.decoding_seen != state:
            with known.timed():
                known.decoding = self._choose(requests, sampling)
            known.decoding_seen = state
        return known.decoding

    def _choose(self, requests: Sequence[Request], sampling: Sampling) -> str:
        """The first of :data:`WAYS` that gives the log-probabilities of the model's own forward pass."""
        by_length = sorted(requests, key=lambda r: len(r.prompt_ids))
        long = by_length[-1].prompt_ids[:CHECKED_TOKENS]
        # Prompts of one length would need no padding, so one is cut.
        # One begins as another does, so that it is read after what they share.
        prompts = [
            by_length[0].prompt_ids[:CHECKED_TOKENS],
            long,
            long[len(long) // 3 :],
            long[: 2 * len(long) // 3 + 1],
        ]
        probes = [Request(prompt_ids=ids, seed=seed) for seed, ids in enumerate(prompts)]
        few = dataclasses.replace(SAMPLING, max_tokens=min(SAMPLING.max_tokens, sampling.max_tokens))
        faults: list[str] = []
        for way in WAYS:
            if not (fault := self._fault(way, probes, few)):
                if faults:
                    self.say(f"note: {self.loaded.name} is sampled the slower way, {way}: {faults[0]}")
                return way
            faults.append(fault)
        raise AlignmentError(
            f"{self.loaded.name} ({type(self.loaded.model).__name__}) cannot be sampled here: {faults[-1]}; its "
            "replies would not be those of the model that is trained and measured, so take another model"
        )

    def _fault(self, way: str, probes: Sequence[Request], sampling: Sampling) -> str:
        """How the log-probabilities of this way differ from those of the model's own forward pass; '' if they agree."""
        known = models.shortcuts_of(self.loaded.model)
        # Float32 tells a wrong way from rounding. Flash attention, and the weights below an adapter, are in bfloat16.
        flash = models.attends_without_padding(self.loaded.model)
        whole = not flash and all(p.dtype == torch.float32 for p in self.loaded.model.parameters())
        # What few probes begin with alike is not worth sharing, so short ones are answered as if it were.
        size = max(len(probe.prompt_ids) for probe in probes)
        room = self.room - sampling.max_tokens if self.room else SHORT_TOKENS
        size = min(SHORT_TOKENS, max(size, 3 * BLOCK), max(1, room))
        short = [
            dataclasses.replace(probe, prompt_ids=tuple(itertools.islice(itertools.cycle(probe.prompt_ids), size)))
            for probe in probes
        ]
        asked = {WORTH_BYTES: probes} | ({0: short} if way == "fast" else {})
        for compute in dict.fromkeys([torch.float32, self.compute] if whole else [self.compute]):
            try:
                with models.heard(self.loaded):
                    gaps = []
                    for worth, some in asked.items():
                        gaps += gaps_nats(self.loaded, compute, *self._answers(some, sampling, way, compute, worth))
            except Exception as error:  # whatever the code of an architecture raises
                known.off_nats[f"{way} decoding"] = math.inf
                return f"{way} decoding fails ({first_line(error, otherwise=type(error).__name__)})"
            off = max(float(gap.mean()) for gap in gaps)
            known.off_nats[f"{way} decoding"] = off
            if not off <= limit_nats(compute, sampling.temperature):  # also refuses NaN
                return f"{way} decoding is off by {off:.2g} nats a token from its forward pass"
        return ""

    def _answers(
        self, probes: Sequence[Request], sampling: Sampling, way: str, compute: torch.dtype, worth: int
    ) -> tuple[list[Request], list[Completion]]:
        """The probes and their replies; those of the fast way twice, the second time with guesses at the first."""
        if way != "fast":
            return list(probes), self._sample(probes, sampling, way, compute)
        engine = Continuous(self.loaded, compute, self.batch_size, worth=worth)
        first = engine.sample(probes, sampling)
        known = {probe.prompt_ids: reply.token_ids for probe, reply in zip(probes, first, strict=True)}
        engine.drafts = Rehearsed(known)
        return [*probes, *probes], [*first, *engine.sample(probes, sampling)]

    def _sample(
        self, requests: Sequence[Request], sampling: Sampling, way: str, compute: torch.dtype
    ) -> list[Completion]:
        if way == "fast":
            return Continuous(self.loaded, compute, self.batch_size).sample(requests, sampling)
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids))
        size = 1 if way == "alone" else self.batch_size
        replies: dict[int, Completion] = {}
        with decoding.packed_linears(self.loaded.model, compute) if way == "padded" else contextlib.nullcontext():
            for start in range(0, len(order), size):
                chunk = order[start : start + size]
                batch = self._batch([requests[i] for i in chunk], sampling, compute)
                replies.update(zip(chunk, batch, strict=True))
        return [replies[i] for i in range(len(requests))]

    @torch.no_grad()
    def _batch(self, requests: Sequence[Request], sampling: Sampling, compute: torch.dtype) -> list[Completion]:
        model, pad = self.loaded.model, self.loaded.tokenizer.pad_token_id
        device = next(model.parameters()).device
        width = max(len(r.prompt_ids) for r in requests)
        ids = torch.full((len(requests), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            ids[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
            mask[row, width - len(request.prompt_ids) :] = 1
        chooser = _SeededChoice(requests, sampling, width)
        was_training, vendor = model.training, model.generation_config
        model.eval()
        # generate() fills settings that we leave open from the model's own file. None of them may leak in.
        model.generation_config = GenerationConfig()
        try:
            with models.autocast(device, compute):
                out = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=self._config(sampling),
                    logits_processor=LogitsProcessorList([chooser]),
                )
        finally:
            model.generation_config = vendor
            model.train(was_training)
        rows = out[:, width:].tolist()
        return [self._completion(row, lps) for row, *lps in zip(rows, *chooser.logprobs, strict=True)]

    def _config(self, sampling: Sampling) -> GenerationConfig:
        # _SeededChoice draws the token and leaves it as the only finite score, so greedy search must take it.
        return GenerationConfig(
            do_sample=False,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            num_beams=1,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=list(self.loaded.end_ids),
            pad_token_id=self.loaded.tokenizer.pad_token_id,
            use_cache=True,
        )

    def _completion(self, ids: list[int], logprobs: Sequence[float]) -> Completion:
        end = next((i for i, token in enumerate(ids) if token in self.loaded.end_ids), None)
        n = len(ids) if end is None else end + 1
        return Completion(
            token_ids=tuple(ids[:n]),
            logprobs=tuple(logprobs[:n]),
            finish_reason="length" if end is None else "stop",
        )


def _few(asked: Iterable[tuple[Request, Sampling]]) -> tuple[list[Request], Sampling]:
    """The requests, and the settings of the first: how a model is sampled does not depend on them."""
    entries = list(asked)
    return [request for request, _ in entries], entries[0][1]


class _SeededChoice(LogitsProcessor):
    """Draws each row's next token, leaves it as the only finite score, and keeps its log-probability."""

    def __init__(self, requests: Sequence[Request], sampling: Sampling, width: int) -> None:
        self.requests, self.sampling, self.width = requests, sampling, width
        self.logprobs: list[list[float]] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        said = map(tuple, input_ids[:, self.width :].tolist())
        chosen, logprobs = drawing.draw(scores.float(), list(zip(self.requests, said, strict=True)), self.sampling)
        self.logprobs.append(logprobs)
        chosen_B1 = torch.tensor(chosen, device=scores.device)[:, None]
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen_B1, 0.0)
