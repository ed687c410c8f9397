"""Which positions predict the response tokens, and the hidden states at those positions.

:func:`sequences` alone chooses positions. :func:`response_hidden` reads prompts from their first token on;
:class:`agentopcd.distillation.prefix.SharedPrefix` returns the same for prompts with a common beginning.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agentopcd import models
from agentopcd.core.errors import AlignmentError
from agentopcd.rollouts.chat import common_length

LEAST_SHARED = 16
"""Prompts that share fewer tokens stand in rows of their own."""
UNSEEN_TOKENS = 512
"""Attention to so many tokens that are not seen is taken to cost as much as reading a token again; the wider the model,
the less it costs beside that."""


@dataclasses.dataclass
class Row:
    """Tokens to read in one row: one prompt with its response, or several that begin alike.

    What they share is read once. Each token sees the tokens of its own prompt and response alone.
    """

    tokens: list[int] = dataclasses.field(default_factory=list)
    before: list[int] = dataclasses.field(default_factory=list)
    """The place of the token that each token follows; -1: none, it is a first token."""
    positions: list[int] = dataclasses.field(default_factory=list)
    """How many tokens each token sees before itself."""
    predicting: list[int] = dataclasses.field(default_factory=list)
    """The places that predict response tokens, in the order of pairs."""
    path: list[int] = dataclasses.field(default_factory=list)
    """The places of the last prompt and its response."""

    @property
    def branches(self) -> bool:
        """Whether it is more than one sequence of tokens that see all before them."""
        return self.before != list(range(-1, len(self.tokens) - 1))

    def shared(self, prompt: Sequence[int], response: Sequence[int], branch: bool) -> int:
        """How many tokens of the last path a prompt can go on from; 0 if it must stand in a row of its own."""
        same = common_length([self.tokens[at] for at in self.path], prompt)
        goes_on = same == len(self.path) < len(prompt)
        new = len(prompt) + len(response) - same
        pays = same >= LEAST_SHARED and len(self.tokens) * new <= UNSEEN_TOKENS * same
        return same if goes_on or (branch and pays) else 0

    def add(self, prompt: Sequence[int], response: Sequence[int], shared: int) -> None:
        """Let a prompt and its response go on from the first ``shared`` tokens of the last path."""
        del self.path[shared:]
        for token in (*prompt[shared:], *response):
            self.before.append(self.path[-1] if self.path else -1)
            self.positions.append(len(self.path))
            self.path.append(len(self.tokens))
            self.tokens.append(token)
        # A position predicts the token after it: the last prompt token predicts the first response token.
        self.predicting += self.path[len(prompt) - 1 : len(prompt) - 1 + len(response)]

    def sees(self) -> Tensor:
        """Whether the token in a row of the result sees the one in a column, ``[T, T]``."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for at, earlier in enumerate(self.before):
            if earlier >= 0:
                seen[at] |= seen[earlier]
        return seen


def response_hidden(
    model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int, *, branch: bool | None = None
) -> Tensor:
    """Hidden states that predict each response token, one response after the other.

    A model that cannot read several sequences in one pass reads them one by one (:func:`alone_hidden`). For the others,
    :func:`sequences` chooses what is read. Sequences are padded on the left, so that they all end in the last column.
    If the model's attention needs no padding (:func:`agentopcd.models.attend_without_padding`), they are packed into
    one row instead.

    Args:
        model: a causal language model.
        pairs: ``(prompt ids, response ids)``.
        pad_id: the token id of the padding, which is masked.
        branch: whether prompts that begin alike may stand in one row; None: if the model can read that.

    Returns:
        Last hidden states ``[N, H]``, the input of the output head, in the order of ``pairs``. ``N`` is the sum of the
        response lengths.

    Raises:
        AlignmentError: an empty prompt, which has no position to predict the first token from.
        ModelError: a row has more tokens than the model has positions.
    """
    rows = sequences(pairs, branch=can_branch(model) if branch is None else branch)
    models.check_positions(model, max(len(prompt) + len(response) for prompt, response in pairs))
    if not models.shortcuts_of(model).together:
        return torch.cat([alone_hidden(model, prompt, response) for prompt, response in pairs])
    if models.attends_without_padding(model):
        return packed_hidden(model, rows)
    width = max(len(row.tokens) for row in rows)
    device = next(model.parameters()).device
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    position_ids = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        left = width - len(row.tokens)
        ids[number, left:] = torch.tensor(row.tokens)
        mask[number, left:] = 1
        # Positions count from the first real token. A model with absolute positions would see the padding otherwise.
        position_ids[number, left:] = torch.tensor(row.positions)
    out = models.decoder(model)(
        input_ids=ids.to(device),
        attention_mask=(_who_sees_whom(model, rows, width) if any(row.branches for row in rows) else mask).to(device),
        position_ids=position_ids.to(device),
        use_cache=False,
    )
    keep = [n * width + width - len(row.tokens) + at for n, row in enumerate(rows) for at in row.predicting]
    return out.last_hidden_state.flatten(0, 1)[keep]


def _who_sees_whom(model: Any, rows: Sequence[Row], width: int) -> Tensor:
    """The mask ``[B, 1, T, T]`` to add to the scores of attention. Padding sees itself, so that nothing is divided by
    zero."""
    seen = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)
    for number, row in enumerate(rows):
        left = width - len(row.tokens)
        seen[number, left:, left:] = row.sees()
    dtype = model.get_input_embeddings().weight.dtype
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def can_branch(model: Any) -> bool:
    """Whether ``model`` can read several prompts that begin alike in one row: it takes a mask of its own for that."""
    known = models.shortcuts_of(model)
    masked = models.attends_to_all(model) and not models.attends_without_padding(model)
    return known.together and known.branch and masked


def alone_hidden(model: Any, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """The same as :func:`response_hidden` for one pair, with nothing but its tokens: no padding, mask or position ids.

    Raises:
        AlignmentError: the prompt is empty.
    """
    (row,) = sequences([(prompt, response)])
    ids = torch.tensor([row.tokens], device=next(model.parameters()).device)
    return models.decoder(model)(input_ids=ids, use_cache=False).last_hidden_state[0, row.predicting]


def packed_hidden(model: Any, rows: Sequence[Row]) -> Tensor:
    """The same as :func:`response_hidden` for these :func:`sequences`, with all of them packed into one row ``[1, T]``.

    Without a mask and a cache, transformers starts a new sequence wherever the position ids do not go on counting, and
    lets no sequence attend to another.
    """
    device = next(model.parameters()).device
    starts = itertools.accumulate((len(row.tokens) for row in rows), initial=0)
    keep = [start + at for start, row in zip(starts, rows, strict=False) for at in row.predicting]
    out = models.decoder(model)(
        input_ids=torch.tensor([[token for row in rows for token in row.tokens]], device=device),
        position_ids=torch.tensor([[at for row in rows for at in row.positions]], device=device),
        use_cache=False,
    )
    return out.last_hidden_state[0, keep]


def sequences(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, branch: bool = False) -> list[Row]:
    """The token sequences to read for the responses of ``pairs``, and the positions in them that predict the tokens.

    With prompt length X and response length Y, positions ``X-1 .. X+Y-2`` predict ``y_0 .. y_{Y-1}``
    (``docs/method.md``, "Which rows are compared"). A prompt that begins with the whole pair before it (the next turn
    of a growing chat) continues that pair's sequence, so that the earlier turns are read once.

    Args:
        pairs: ``(prompt ids, response ids)``.
        branch: whether a prompt that begins like the pair before it, and then goes another way, may stand in one row
            with it. It does where attention to tokens that are not seen costs less than reading the shared ones again.

    Returns:
        Rows, in the order of ``pairs``.

    Raises:
        AlignmentError: an empty prompt, which has no position to predict the first token from.
    """
    found: list[Row] = []
    for prompt, response in pairs:
        if not prompt:
            raise AlignmentError("a prompt is empty, so nothing predicts its first response token")
        shared = found[-1].shared(prompt, response, branch) if found else 0
        if not shared:
            found.append(Row())
        found[-1].add(prompt, response, shared)
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
