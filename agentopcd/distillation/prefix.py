"""The common beginning of many prompts, which a model reads once; the rest follows in packed rows."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from agentopcd import models
from agentopcd.distillation.positions import sequences
from agentopcd.rollouts.chat import common_length

ROW_TOKENS = 512
"""The least room of a packed row, in tokens. A longer shared prefix raises it to the prefix's length."""


class SharedPrefix:
    """A common beginning of many prompts, which a frozen model reads only once.

    The rest of each prompt is scored in packed rows. A row holds many remainders one after the other; each attends to
    the shared keys and values and to itself. One copy of the keys and values serves all samples. The result
    equals :func:`agentopcd.distillation.positions.response_hidden` up to rounding.

    Args:
        model: a causal language model for which :func:`agentopcd.models.attends_to_all` is true. Its weights must not
            change after the first use of :attr:`keys_and_values`.
        ids: the shared token ids.
    """

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        self.model, self.ids = model, tuple(ids)

    @functools.cached_property
    def keys_and_values(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values ``[1, H, C, D]`` of the shared tokens, for each layer."""
        ids = torch.tensor([self.ids], device=next(self.model.parameters()).device)
        cache = models.decoder(self.model)(input_ids=ids, use_cache=True).past_key_values
        return [(layer.keys, layer.values) for layer in cache.layers]

    def forget(self) -> None:
        """Drop the keys and values: the model has changed, and the next use computes them again."""
        vars(self).pop("keys_and_values", None)

    def shared_by(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> int:
        """The number of tokens that all prompts of ``pairs`` share with the prefix; 0 if sharing does not pay.

        A packed row spends attention between its samples only to mask it. So sharing pays only if the shared tokens are
        at least as many as the others.
        """
        # The last prompt token is never shared: its hidden state predicts the first response token.
        shared = min(common_length(self.ids, prompt[:-1]) for prompt, _ in pairs)
        rows = sequences(pairs)
        rest = sum(len(tokens) - shared for tokens, _ in rows)
        return shared if shared * len(rows) >= rest else 0

    def response_hidden(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], shared: int) -> Tensor:
        """The same as :func:`response_hidden`, for prompts that begin with the prefix's first ``shared`` tokens."""
        models.check_positions(self.model, max(len(prompt) + len(response) for prompt, response in pairs))
        return torch.cat([self._row(row, shared) for row in self.rows(pairs, shared)])

    def rows(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], shared: int
    ) -> list[list[tuple[list[int], list[int]]]]:
        """The :func:`sequences` after the shared tokens, packed into rows. Each row is one forward pass."""
        rows: list[list[tuple[list[int], list[int]]]] = [[]]
        room = max(shared, ROW_TOKENS)
        for tokens, predicting in sequences([(prompt[shared:], response) for prompt, response in pairs]):
            if rows[-1] and len(tokens) > room:
                rows.append([])
                room = max(shared, ROW_TOKENS)
            rows[-1].append((tokens, predicting))
            room -= len(tokens)
        return rows

    def _row(self, parts: Sequence[tuple[list[int], list[int]]], shared: int) -> Tensor:
        device = next(self.model.parameters()).device
        lengths = [len(tokens) for tokens, _ in parts]
        starts = itertools.accumulate(lengths, initial=0)
        keep = [start + at for start, (_, predicting) in zip(starts, parts, strict=False) for at in predicting]
        ids = torch.tensor([[token for tokens, _ in parts for token in tokens]], device=device)
        positions = torch.cat([torch.arange(shared, shared + n) for n in lengths])[None].to(device)
        # Each part attends causally to itself and fully to the shared tokens, never to another part.
        own = torch.block_diag(*(torch.ones(n, n).tril() for n in lengths)).bool()
        seen = torch.cat([torch.ones(sum(lengths), shared, dtype=torch.bool), own], dim=1).to(device)
        known = [(keys[:, :, :shared], values[:, :, :shared]) for keys, values in self.keys_and_values]
        mask = torch.zeros(seen.shape, dtype=known[0][0].dtype, device=device)
        out = models.decoder(self.model)(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)[None, None],
            past_key_values=DynamicCache(ddp_cache_data=known),
            use_cache=True,
        )
        return out.last_hidden_state[0, keep]
