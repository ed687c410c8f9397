"""Who the teacher is, and how student and teacher score the same response tokens.

:func:`response_hidden` is the one place where positions are chosen, :class:`SharedPrefix` its equal for prompts with
a common beginning; a test compares the two, so a misalignment would have to come from the prompts.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from agentopcd import models
from agentopcd.errors import AlignmentError

ROW_TOKENS = 512
"""Tokens of a packed row where the shared prefix is shorter; else as many as the prefix has."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One turn to learn from: two prompts, one response, token ids throughout."""

    student_ids: tuple[int, ...]
    """The prompt without the context."""
    teacher_ids: tuple[int, ...]
    """The prompt with it; ends in the same generation header."""
    response_ids: tuple[int, ...]
    """What the student sampled, its end token included; the very same ids for both models."""
    logprobs: tuple[float, ...]
    """Of the response, as sampled."""
    turn: int
    """Index of the turn in its episode."""

    @property
    def num_tokens(self) -> int:
        return len(self.response_ids)


class FrozenTeacher:
    """A model that never learns: a copy of the student as it was, or another one.

    Args:
        loaded: the model to score with. It is copied when it is the student itself.
        student: refused when their tokens do not match.
        compute: dtype of matrix products.
        prefix_ids: what the prompts with the context have in common at their beginning. It is read once, and its keys
            and values serve every sample of the run; empty: each prompt is read whole.
    """

    kind = "frozen"

    def __init__(
        self,
        loaded: models.LoadedModel,
        student: models.LoadedModel,
        *,
        compute: torch.dtype,
        prefix_ids: Sequence[int] = (),
    ) -> None:
        if loaded is not student:
            models.check_pair(student, loaded)
            models.check_head(loaded.model)
            self.kind = "other"
        self.model = copy.deepcopy(loaded.model) if loaded is student else loaded.model
        models.freeze(self.model, compute)
        self.compute = compute
        self.pad_id = student.tokenizer.pad_token_id
        self.hash = models.parameter_hash(self.model)
        self.prefix = SharedPrefix(self.model, prefix_ids) if prefix_ids and can_share(self.model) else None

    @torch.no_grad()
    def hidden(self, samples: Sequence[Sample]) -> Tensor:
        """Last hidden states ``[N, H]`` that predict the response tokens of ``samples``, after the prompts with it."""
        pairs = [(s.teacher_ids, s.response_ids) for s in samples]
        with models.autocast(next(self.model.parameters()).device, self.compute):
            if self.prefix is not None and (shared := self.prefix.shared_by(pairs)):
                return self.prefix.response_hidden(pairs, shared)
            return response_hidden(self.model, pairs, self.pad_id)

    @torch.no_grad()
    def logits(self, hidden_RH: Tensor) -> Tensor:
        """Logits ``[R, V]`` before softmax, float32, of some of those rows."""
        return models.scaled(self.model, self.model.get_output_embeddings()(hidden_RH)).float()

    def score(self, samples: Sequence[Sample]) -> Tensor:
        """Logits ``[N, V]`` of all response tokens of ``samples`` at once."""
        return self.logits(self.hidden(samples))

    def assert_unchanged(self) -> None:
        """Raise if a parameter moved since the teacher was made."""
        if models.parameter_hash(self.model) != self.hash:
            raise AlignmentError("the frozen teacher's parameters changed during the run; its scores mean nothing")


def response_hidden(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> Tensor:
    """Hidden states that predict each response token, all responses one after the other.

    With prompt length X and response length Y, rows ``X-1 .. X+Y-2`` of the model's output predict
    ``y_0 .. y_{Y-1}`` (``method.md`` §3). Sequences are padded on the left, so that responses end
    together.

    Args:
        model: a causal language model.
        pairs: ``(prompt ids, response ids)``.
        pad_id: fills up on the left; masked.

    Returns:
        Last hidden states ``[N, H]``, the input of the output head, with ``N`` the sum of response lengths, in order.

    Raises:
        AlignmentError: an empty prompt, which has no position to predict the first token from.
    """
    if any(len(prompt) == 0 for prompt, _ in pairs):
        raise AlignmentError("a prompt is empty, so nothing predicts its first response token")
    width = max(len(prompt) + len(response) for prompt, response in pairs)
    ids = torch.full((len(pairs), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    keep = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (prompt, response) in enumerate(pairs):
        tokens = [*prompt, *response]
        ids[row, width - len(tokens) :] = torch.tensor(tokens)
        mask[row, width - len(tokens) :] = 1
        keep[row, width - len(response) - 1 : width - 1] = True  # the last position predicts nothing we have
    device = next(model.parameters()).device
    position_ids = (mask.cumsum(-1) - 1).clamp_(min=0)
    out = model.get_decoder()(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=position_ids.to(device),
        use_cache=False,
    )
    return out.last_hidden_state[keep.to(device)]


def response_logits(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> Tensor:
    """Scores ``[N, V]`` before softmax, float32, that predict each response token: see :func:`response_hidden`."""
    return models.scaled(model, model.get_output_embeddings()(response_hidden(model, pairs, pad_id))).float()


class SharedPrefix:
    """A beginning that many prompts share, read by a frozen model once.

    What follows it is scored in packed rows: all remainders one after the other, each seeing the shared keys and
    values and itself. There is one copy of them however many samples there are, and the result differs from
    :func:`response_hidden` by rounding only.

    Args:
        model: a causal language model that :func:`can_share`; it must not change afterwards.
        ids: the shared token ids.
    """

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        self.model, self.ids = model, tuple(ids)

    @functools.cached_property
    def keys_and_values(self) -> list[tuple[Tensor, Tensor]]:
        """For each layer, keys and values ``[1, H, C, D]`` of the shared tokens."""
        ids = torch.tensor([self.ids], device=next(self.model.parameters()).device)
        cache = self.model.get_decoder()(input_ids=ids, use_cache=True).past_key_values
        return [(layer.keys, layer.values) for layer in cache.layers]

    def shared_by(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> int:
        """How many tokens all prompts of ``pairs`` share with the prefix; 0 where sharing does not pay.

        A packed row costs attention between its samples, so what is shared must be longer than what is not.
        """
        shared = min(common_length(self.ids, prompt[:-1]) for prompt, _ in pairs)
        rest = sum(len(prompt) + len(response) - shared for prompt, response in pairs)
        return shared if shared * len(pairs) >= rest else 0

    def response_hidden(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], shared: int) -> Tensor:
        """What :func:`response_hidden` returns, for prompts that begin with the first ``shared`` tokens."""
        rows: list[list[tuple[Sequence[int], Sequence[int]]]] = [[]]
        room = max(shared, ROW_TOKENS)
        for prompt, response in pairs:
            size = len(prompt) - shared + len(response)
            if rows[-1] and size > room:
                rows.append([])
                room = max(shared, ROW_TOKENS)
            rows[-1].append((prompt[shared:], response))
            room -= size
        return torch.cat([self._row(row, shared) for row in rows])

    def _row(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], shared: int) -> Tensor:
        device = next(self.model.parameters()).device
        lengths = [len(rest) + len(response) for rest, response in pairs]
        ids = torch.tensor([[t for rest, response in pairs for t in (*rest, *response)]], device=device)
        positions = torch.cat([torch.arange(shared, shared + n) for n in lengths])[None].to(device)
        own = torch.block_diag(*(torch.ones(n, n).tril() for n in lengths)).bool()
        seen = torch.cat([torch.ones(sum(lengths), shared, dtype=torch.bool), own], dim=1).to(device)
        keep, start = [], 0
        for n, (rest, response) in zip(lengths, pairs, strict=True):
            keep += range(start + len(rest) - 1, start + len(rest) - 1 + len(response))
            start += n
        known = [(keys[:, :, :shared], values[:, :, :shared]) for keys, values in self.keys_and_values]
        mask = torch.zeros(seen.shape, dtype=known[0][0].dtype, device=device)
        out = self.model.get_decoder()(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)[None, None],
            past_key_values=DynamicCache(ddp_cache_data=known),
            use_cache=True,
        )
        return out.last_hidden_state[0, keep]


def can_share(model: Any) -> bool:
    """Whether every layer of ``model`` attends to everything before it, so that a prefix can be cached and packed."""
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
