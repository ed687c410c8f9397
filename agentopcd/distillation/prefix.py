"""The common beginning of many prompts, which a model reads once: :func:`prefix_of`.

Where every layer attends to everything before it, the rest of the prompts follows in packed rows
(:class:`SharedPrefix`). Where a layer has a window or a state, it follows on copies of the model's own cache
(:class:`CopiedPrefix`).
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from agentopcd import models
from agentopcd.core.errors import ModelError
from agentopcd.distillation.positions import Row, sequences
from agentopcd.rollouts.chat import common_length

ROW_TOKENS = 512
"""The least room of a packed row, in tokens. A longer shared prefix raises it to the prefix's length."""
GPU_ROW_TOKENS = 4096
"""The same on a GPU, where a short pass takes as long as a long one."""
COPIED_BYTES = 2**30
"""The most that the copies of a cache take in one pass; one copy is always made."""
STEPS_PAY = 4
"""Token by token, sharing pays if the prefix is so many times as long as the longest rest: a pass of one token reads
all weights, as a pass of many does."""

Pair = tuple[Sequence[int], Sequence[int]]
"""Prompt ids and response ids."""


def prefix_of(model: Any, ids: Sequence[int]) -> SharedPrefix:
    """The shared ``ids`` in the form that ``model`` can go on from."""
    return SharedPrefix(model, ids) if models.attends_to_all(model) else CopiedPrefix(model, ids)


class SharedPrefix:
    """A common beginning of many prompts, which a frozen model reads only once.

    The rest of each prompt is scored in packed rows. A row holds many remainders one after the other; each attends to
    the shared keys and values and to itself. One copy of the keys and values serves all samples. The result
    equals :func:`agentopcd.distillation.positions.response_hidden` up to rounding.

    Args:
        model: a causal language model for which :func:`agentopcd.models.attends_to_all` is true. Its weights must not
            change after the first use of :attr:`state`.
        ids: the shared token ids.
    """

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        self.model, self.ids = model, tuple(ids)

    @property
    def how(self) -> str:
        """How the rest is read, and why, for people."""
        return "the rest follows in packed rows, because every layer attends to all of it"

    @functools.cached_property
    def state(self) -> Any:
        """The model's own cache after the shared tokens, of one row.

        Raises:
            ModelError: the model gives none.
        """
        ids = torch.tensor([self.ids], device=next(self.model.parameters()).device)
        out = models.decoder(self.model)(input_ids=ids, use_cache=True)
        if (found := getattr(out, self._takes, None)) is None:
            raise ModelError(f"{type(self.model).__name__} gives no cache to go on from")
        return found

    @functools.cached_property
    def _takes(self) -> str:
        """The name of the argument that takes a cache; models without attention have a name of their own."""
        known = inspect.signature(models.decoder(self.model).forward).parameters
        return "cache_params" if "cache_params" in known else "past_key_values"

    def forget(self) -> None:
        """Drop the state: the model has changed, and the next use computes it again."""
        vars(self).pop("state", None)

    def begins(self, prompt: Sequence[int]) -> int:
        """How many of the shared tokens ``prompt`` begins with."""
        return common_length(self.ids, prompt)

    def shared_by(self, pairs: Sequence[Pair]) -> int:
        """The number of tokens that all prompts of ``pairs`` share with the prefix; 0 if sharing does not pay."""
        # The last prompt token is never shared: its hidden state predicts the first response token.
        shared = min(self.begins(prompt[:-1]) for prompt, _ in pairs)
        if not shared:
            return 0
        rest = [len(part.tokens) for part in self._parts(pairs, shared)]
        return shared if self._pays(rest, shared) else 0

    def _pays(self, rest: Sequence[int], shared: int) -> bool:
        """A packed row spends attention between its samples only to mask it. So the shared tokens must be at least as
        many as the others."""
        return shared * len(rest) >= sum(rest)

    def response_hidden(self, pairs: Sequence[Pair], shared: int) -> Tensor:
        """The same as :func:`agentopcd.distillation.positions.response_hidden`, for prompts that begin with the
        prefix's first ``shared`` tokens."""
        models.check_positions(self.model, max(len(prompt) + len(response) for prompt, response in pairs))
        return torch.cat([self._row(row, shared) for row in self.rows(pairs, shared)])

    def passes(self, pairs: Sequence[Pair], shared: int) -> int:
        """The number of forward passes that :meth:`response_hidden` makes."""
        return len(self.rows(pairs, shared))

    def rows(self, pairs: Sequence[Pair], shared: int) -> list[list[Row]]:
        """The :func:`sequences` after the shared tokens, packed into rows. Each row is one forward pass."""
        rows: list[list[Row]] = [[]]
        on_gpu = next(self.model.parameters()).device.type == "cuda"
        most = max(shared, GPU_ROW_TOKENS if on_gpu else ROW_TOKENS)
        room = most
        for part in self._parts(pairs, shared):
            if rows[-1] and len(part.tokens) > room:
                rows.append([])
                room = most
            rows[-1].append(part)
            room -= len(part.tokens)
        return rows

    def _parts(self, pairs: Sequence[Pair], shared: int) -> list[Row]:
        """What is read after the shared tokens."""
        return sequences([(prompt[shared:], response) for prompt, response in pairs], branch=self._branches)

    @property
    def _branches(self) -> bool:
        return models.shortcuts_of(self.model).branch

    def _row(self, parts: Sequence[Row], shared: int) -> Tensor:
        device = next(self.model.parameters()).device
        starts = itertools.accumulate((len(part.tokens) for part in parts), initial=0)
        keep = [start + at for start, part in zip(starts, parts, strict=False) for at in part.predicting]
        ids = torch.tensor([[token for part in parts for token in part.tokens]], device=device)
        positions = torch.tensor([[shared + at for part in parts for at in part.positions]], device=device)
        # Each part attends to what it sees of itself and fully to the shared tokens, never to another part.
        own = torch.block_diag(*(part.sees() for part in parts))
        seen = torch.cat([torch.ones(len(own), shared, dtype=torch.bool), own], dim=1).to(device)
        known = [(layer.keys[:, :, :shared], layer.values[:, :, :shared]) for layer in self.state.layers]
        mask = torch.zeros(seen.shape, dtype=known[0][0].dtype, device=device)
        out = models.decoder(self.model)(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)[None, None],
            past_key_values=DynamicCache(ddp_cache_data=known),
            use_cache=True,
        )
        return out.last_hidden_state[0, keep]


class CopiedPrefix(SharedPrefix):
    """A :class:`SharedPrefix` for a model with windows, recurrent or convolution states, or a bias by distance.

    Each remainder is a row of its own, and goes on from a copy of the model's cache. Rows are padded on the right:
    what stands before the padding does not see it. A state stands for all its tokens, so all of the prefix is shared
    or none of it. Call it without gradients, for a cache with gradients cannot be copied.

    Some models' scans begin anew at every pass of several tokens (transformers' Mamba-1). Where a comparison has set
    :attr:`agentopcd.models.Shortcuts.at_once` aside, tokens are therefore read one by one.
    """

    @property
    def how(self) -> str:
        if self._at_once:
            return "the rest follows on copies of its state, because some layer has a window, a state or ALiBi"
        return "the rest follows on copies of its state token by token, because some layer's scan takes no state"

    @property
    def _at_once(self) -> bool:
        return models.shortcuts_of(self.model).at_once

    def begins(self, prompt: Sequence[int]) -> int:
        shared = super().begins(prompt)
        return shared if shared == len(self.ids) else 0

    @property
    def _branches(self) -> bool:
        return False

    def _pays(self, rest: Sequence[int], shared: int) -> bool:
        return self._at_once or shared >= STEPS_PAY * max(rest)

    @functools.cached_property
    def state(self) -> Any:
        """The model's own cache after the shared tokens, of one row.

        Raises:
            ModelError: the model gives none.
        """
        found = super().state
        # A window's keys are a view of all keys so far, which every copy would take along. This keeps the window alone.
        found.reorder_cache(torch.zeros(1, dtype=torch.long, device=next(self.model.parameters()).device))
        return found

    def rows(self, pairs: Sequence[Pair], shared: int) -> list[list[Row]]:
        """The :func:`sequences` after the shared tokens, in groups of as many as copies may be made at once."""
        parts = self._parts(pairs, shared)
        one = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(self.state))
        most = max(1, COPIED_BYTES // max(1, one))
        return [parts[at : at + most] for at in range(0, len(parts), most)]

    def passes(self, pairs: Sequence[Pair], shared: int) -> int:
        rows = self.rows(pairs, shared)
        return len(rows) if self._at_once else sum(max(len(part.tokens) for part in row) for row in rows)

    def _row(self, parts: Sequence[Row], shared: int) -> Tensor:
        device, decoder = next(self.model.parameters()).device, models.decoder(self.model)
        width = max(len(part.tokens) for part in parts)
        ids = torch.zeros(len(parts), width, dtype=torch.long)
        keep = torch.zeros(ids.shape, dtype=torch.bool)
        for row, part in enumerate(parts):
            ids[row, : len(part.tokens)] = torch.tensor(part.tokens)
            keep[row, part.predicting] = True
        ids, positions = ids.to(device), torch.arange(shared, shared + width, device=device).expand(len(parts), -1)
        state = copy.deepcopy(self.state)
        state.reorder_cache(torch.zeros(len(parts), dtype=torch.long, device=device))  # its one row, for each part
        told = "position_ids" in inspect.signature(decoder.forward).parameters
        step = width if self._at_once else 1
        hidden = [
            decoder(
                input_ids=ids[:, at : at + step],
                use_cache=True,
                **{self._takes: state},
                **({"position_ids": positions[:, at : at + step]} if told else {}),
            ).last_hidden_state
            for at in range(0, width, step)
        ]
        return torch.cat(hidden, dim=1)[keep.to(device)]


def _tensors(cache: Any) -> Iterator[Tensor]:
    """The keys, values and states of ``cache``."""
    for layer in cache.layers:
        for value in vars(layer).values():  # a tensor, or a dict of states
            yield from (one for one in (value.values() if isinstance(value, dict) else [value]) if torch.is_tensor(one))
