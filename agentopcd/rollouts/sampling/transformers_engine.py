"""The transformers engine: ``generate`` on padded batches of prompts of similar length."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from agentopcd import models
from agentopcd.core.errors import AlignmentError
from agentopcd.core.text import first_line
from agentopcd.core.types import Completion, Request, Sampling
from agentopcd.rollouts.sampling import decoding
from agentopcd.rollouts.sampling.choices import allowed_ids, keep
from agentopcd.rollouts.sampling.protocol import InBatches, check_room
from agentopcd.rollouts.sampling.same_weights import SAMPLING, gaps_nats, limit_nats

WAYS = ("fast", "padded", "alone")
"""Ways to sample, the cheapest first: by :mod:`.decoding`; by transformers' own decoding; without batches either."""
CHECKED_TOKENS = 1024
"""The most tokens of a prompt that the ways are compared on."""


class TransformersSampler(InBatches):
    """Samples from the very model object that is trained, so there is no copy of weights to update.

    The first requests are sampled by the cheapest of :data:`WAYS` and their log-probabilities compared with the model's
    own forward pass. If they differ, the next way is tried, and the model keeps the first one that agrees.

    Args:
        loaded: the model; it is in eval mode while it samples.
        compute: dtype of matrix products, see :func:`agentopcd.models.compute.pick_compute`.
        batch_size: sequences per ``generate`` call. Requests are sorted by prompt length first.
        say: takes the line that names a way which was set aside.
    """

    def __init__(
        self, loaded: models.LoadedModel, *, compute: torch.dtype, batch_size: int = 32,
        say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        super().__init__()
        self.loaded = loaded
        self.compute = compute
        self.batch_size = batch_size
        self.say = say
        self.engine = f"transformers-{str(compute).removeprefix('torch.')}"

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
        known = models.shortcuts_of(self.loaded.model)
        state = (self.compute, self.loaded.adapter is not None, self.loaded.model.config._attn_implementation)
        if requests and known.decoding_seen != state:
            with known.timed():
                known.decoding = self._choose(requests, sampling)
            known.decoding_seen = state
        return self._sample(requests, sampling, known.decoding, self.compute)

    def _choose(self, requests: Sequence[Request], sampling: Sampling) -> str:
        """The first of :data:`WAYS` that gives the log-probabilities of the model's own forward pass."""
        by_length = sorted(requests, key=lambda r: len(r.prompt_ids))
        long = by_length[-1].prompt_ids[:CHECKED_TOKENS]
        # Prompts of one length would need no padding, so one is cut.
        prompts = [by_length[0].prompt_ids[:CHECKED_TOKENS], long, long[len(long) // 3 :]]
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
        for compute in dict.fromkeys([torch.float32, self.compute] if whole else [self.compute]):
            try:
                with models.heard(self.loaded):
                    replies = self._sample(probes, sampling, way, compute)
                    gaps = gaps_nats(self.loaded, compute, probes, replies)
            except Exception as error:  # whatever the code of an architecture raises
                known.off_nats[f"{way} decoding"] = math.inf
                return f"{way} decoding fails ({first_line(error, otherwise=type(error).__name__)})"
            off = max(float(gap.mean()) for gap in gaps)
            known.off_nats[f"{way} decoding"] = off
            if not off <= limit_nats(compute, sampling.temperature):  # also refuses NaN
                return f"{way} decoding is off by {off:.2g} nats a token from its forward pass"
        return ""

    def _sample(
        self, requests: Sequence[Request], sampling: Sampling, way: str, compute: torch.dtype
    ) -> list[Completion]:
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids))
        size = 1 if way == "alone" else self.batch_size
        replies: dict[int, Completion] = {}
        fast = way == "fast"
        with decoding.packed_linears(self.loaded.model, compute) if fast else contextlib.nullcontext():
            for start in range(0, len(order), size):
                chunk = order[start : start + size]
                batch = self._batch([requests[i] for i in chunk], sampling, fast, compute)
                replies.update(zip(chunk, batch, strict=True))
        return [replies[i] for i in range(len(requests))]

    @torch.no_grad()
    def _batch(
        self, requests: Sequence[Request], sampling: Sampling, fast: bool, compute: torch.dtype
    ) -> list[Completion]:
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
        cheaper = decoding.grouped_attention(device) if fast else contextlib.nullcontext()
        cache = decoding.reserved_cache(model, width + sampling.max_tokens, compute) if fast else None
        try:
            with models.autocast(device, compute), cheaper:
                out = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=self._config(sampling),
                    past_key_values=cache,
                    logits_processor=LogitsProcessorList([chooser]),
                )
        finally:
            model.generation_config = vendor
            model.train(was_training)
        rows = out[:, width:].tolist()
        logprobs = torch.stack(chooser.logprobs, dim=1).tolist()
        return [self._completion(row, lps) for row, lps in zip(rows, logprobs, strict=True)]

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

    def _completion(self, ids: list[int], logprobs: list[float]) -> Completion:
        end = next((i for i, token in enumerate(ids) if token in self.loaded.end_ids), None)
        n = len(ids) if end is None else end + 1
        return Completion(
            token_ids=tuple(ids[:n]),
            logprobs=tuple(logprobs[:n]),
            finish_reason="length" if end is None else "stop",
        )


class _SeededChoice(LogitsProcessor):
    """Draws each row's next token with noise that depends only on the row's seed and the token's position.

    The draw is by inversion: one uniform number per (seed, position) is looked up in the cumulative distribution. The
    chosen token is left as the only finite score, and its log-probability is kept.
    """

    def __init__(self, requests: Sequence[Request], sampling: Sampling, width: int) -> None:
        self.seeds = [r.seed for r in requests]
        self.choices = [r.choices for r in requests]
        self.sampling, self.width = sampling, width
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        logits_BV = scores.float()
        if any(self.choices):
            said = input_ids[:, self.width :].tolist()
            logits_BV = keep(logits_BV, [allowed_ids(c, tuple(s)) for c, s in zip(self.choices, said, strict=True)])
        if self.sampling.temperature == 0:
            logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
            chosen_B = logits_BV.argmax(dim=-1)
        else:
            logprobs_BV = truncated_logprobs(logits_BV, self.sampling)
            chosen_B = self._draw(logprobs_BV)
        self.logprobs.append(logprobs_BV.gather(1, chosen_B[:, None]).squeeze(1).cpu())
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen_B[:, None], 0.0)

    def _draw(self, logprobs_BV: torch.Tensor) -> torch.Tensor:
        position = len(self.logprobs)
        noise = [random.Random(f"{seed}:{position}").random() for seed in self.seeds]
        if logprobs_BV.device.type == "mps":  # MPS has no float64
            return self._draw_from(logprobs_BV.cpu(), noise).to(logprobs_BV.device)
        return self._draw_from(logprobs_BV, noise)

    @staticmethod
    def _draw_from(logprobs_BV: torch.Tensor, noise: Sequence[float]) -> torch.Tensor:
        cumulative_BV = logprobs_BV.double().exp().cumsum(dim=-1)
        target_B = torch.tensor(noise, dtype=torch.float64, device=logprobs_BV.device) * cumulative_BV[:, -1]
        # right=True skips tokens of probability zero when the number falls on a boundary.
        chosen_B = torch.searchsorted(cumulative_BV, target_B[:, None], right=True).squeeze(1)
        return chosen_B.clamp_(max=logprobs_BV.shape[1] - 1)


def truncated_logprobs(logits_BV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Log-probabilities ``[B, V]``, float32, after temperature, top-k and top-p, in that order."""
    logits_BV = logits_BV / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[1]:
        kth_B1 = logits_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)
    if sampling.top_p < 1:
        ordered_BV, where_BV = logits_BV.sort(dim=-1, descending=True)
        probs_BV = ordered_BV.softmax(dim=-1)
        # A token stays while the mass before it is below top_p, so at least one always stays.
        drop_BV = probs_BV.cumsum(dim=-1) - probs_BV >= sampling.top_p
        logits_BV = logits_BV.masked_fill(drop_BV.scatter(1, where_BV, drop_BV), -torch.inf)
    return torch.log_softmax(logits_BV, dim=-1)
