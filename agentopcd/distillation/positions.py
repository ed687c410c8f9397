"""Which positions predict the response tokens, and the hidden states at those positions.

:func:`sequences` alone chooses positions. :func:`response_hidden` reads prompts in full; :class:`SharedPrefix` returns
the same for prompts with a common beginning. A test compares the two.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from agentopcd import models
from agentopcd.core.errors import AlignmentError
from agentopcd.rollouts.chat import common_length

ROW_TOKENS = 512
"""The least room of a packed row, in tokens. A longer shared prefix raises it to the prefix's length."""


def response_hidden(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> Tensor:
    """Hidden states that predict each response token, one response after the other.

    A model that cannot read several sequences in one pass reads them one by one (:func:`alone_hidden`). For the others,
    :func:`sequences` chooses what is read. Sequences are padded on the left, so that they all end in the last column.
    If the model's attention needs no padding (:func:`agentopcd.models.attend_without_padding`), they are packed into
    one row instead.

    Args:
        model: a causal language model.
        pairs: ``(prompt ids, response ids)``.
        pad_id: the token id of the padding, which is masked.

    Returns:
        Last hidden states ``[N, H]``, the input of the output head, in the order of ``pairs``. ``N`` is the sum of the
        response lengths.

    Raises:
        AlignmentError: an empty prompt, which has no position to predict the first token from.
        ModelError: a row has more tokens than the model has positions.
    """
    rows = sequences(pairs)
    models.check_positions(model, max(len(tokens) for tokens, _ in rows))
    if not models.shortcuts_of(model).together:
        return torch.cat([alone_hidden(model, prompt, response) for prompt, response in pairs])
    if models.attends_without_padding(model):
        return packed_hidden(model, rows)
    width = max(len(tokens) for tokens, _ in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    keep = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (tokens, predicting) in enumerate(rows):
        left = width - len(tokens)
        ids[row, left:] = torch.tensor(tokens)
        mask[row, left:] = 1
        keep[row, left + torch.tensor(predicting, dtype=torch.long)] = True
    device = next(model.parameters()).device
    # Positions count from the first real token. A model with absolute positions would see the padding otherwise.
    position_ids = (mask.cumsum(-1) - 1).clamp_(min=0)
    out = models.decoder(model)(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=position_ids.to(device),
        use_cache=False,
    )
    return out.last_hidden_state[keep.to(device)]


def alone_hidden(model: Any, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """The same as :func:`response_hidden` for one pair, with nothing but its tokens: no padding, mask or position ids.

    Raises:
        AlignmentError: the prompt is empty.
    """
    ((tokens, predicting),) = sequences([(prompt, response)])
    ids = torch.tensor([tokens], device=next(model.parameters()).device)
    return models.decoder(model)(input_ids=ids, use_cache=False).last_hidden_state[0, predicting]


def packed_hidden(model: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """The same as :func:`response_hidden` for these :func:`sequences`, with all of them packed into one row ``[1, T]``.

    Without a mask and a cache, transformers starts a new sequence wherever the position ids do not go on counting, and
    lets no sequence attend to another.
    """
    device = next(model.parameters()).device
    starts = itertools.accumulate((len(tokens) for tokens, _ in rows), initial=0)
    keep = [start + at for start, (_, predicting) in zip(starts, rows, strict=False) for at in predicting]
    out = models.decoder(model)(
        input_ids=torch.tensor([[token for tokens, _ in rows for token in tokens]], device=device),
        position_ids=torch.cat([torch.arange(len(tokens)) for tokens, _ in rows])[None].to(device),
        use_cache=False,
    )
    return out.last_hidden_state[0, keep]


def sequences(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[list[int], list[int]]]:
    """The token sequences to read for the responses of ``pairs``, and the positions in them that predict the tokens.

    With prompt length X and response length Y, positions ``X-1 .. X+Y-2`` predict ``y_0 .. y_{Y-1}``
    (``docs/method.md``, "Which rows are compared"). A prompt that begins with the whole pair before it (the next turn
    of a growing chat) continues that pair's sequence, so that the earlier turns are read once.

    Returns:
        ``(token ids, positions)`` of each sequence. Positions ascend, and over all sequences they follow the order of
        ``pairs``.

    Raises:
        AlignmentError: an empty prompt, which has no position to predict the first token from.
    """
    found: list[tuple[list[int], list[int]]] = []
    for prompt, response in pairs:
        if not prompt:
            raise AlignmentError("a prompt is empty, so nothing predicts its first response token")
        if not (found and begins_with(prompt, found[-1][0])):
            found.append(([], []))
        tokens, predicting = found[-1]
        tokens += [*prompt[len(tokens) :], *response]  # only what the sequence does not hold yet
        # A position predicts the token after it: the last prompt token predicts the first response token.
        predicting += range(len(prompt) - 1, len(prompt) - 1 + len(response))
    return found


def response_logits(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> Tensor:
    """Logits ``[N, V]``, float32, that predict each response token; see :func:`response_hidden`."""
    return logits_of(model, response_hidden(model, pairs, pad_id))


def logits_of(model: Any, hidden_RH: Tensor) -> Tensor:
    """Logits ``[R, V]``, float32, of rows of last hidden states ``[R, H]``."""
    return models.scaled(model, model.get_output_embeddings()(hidden_RH)).float()


class SharedPrefix:
    """A common beginning of many prompts, which a frozen model reads only once.

    The rest of each prompt is scored in packed rows. A row holds many remainders one after the other; each attends to
    the shared keys and values and to itself. One copy of the keys and values serves all samples. The result equals
    :func:`response_hidden` up to rounding.

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


def begins_with(whole: Sequence[int], beginning: Sequence[int]) -> bool:
    """Whether ``whole`` begins with ``beginning`` and is longer."""
    return len(whole) > len(beginning) and tuple(whole[: len(beginning)]) == tuple(beginning)
