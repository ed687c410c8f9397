"""Which positions predict the response tokens, and the hidden states at those positions.

:func:`sequences` alone chooses positions. :func:`response_hidden` reads prompts in full;
:class:`agentopcd.distillation.prefix.SharedPrefix` returns the same for prompts with a common beginning.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agentopcd import models
from agentopcd.core.errors import AlignmentError


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


def begins_with(whole: Sequence[int], beginning: Sequence[int]) -> bool:
    """Whether ``whole`` begins with ``beginning`` and is longer."""
    return len(whole) > len(beginning) and tuple(whole[: len(beginning)]) == tuple(beginning)
