"""The shortcuts of scoring, compared with the model's own forward pass on the first rows of a run.

The rows are read alone, each by the model's own forward pass, and then together, after a shared prefix, and through the
output head. A shortcut that gives other distributions is set aside in :class:`agentopcd.models.Shortcuts`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from agentopcd import models
from agentopcd.core.errors import ModelError
from agentopcd.core.text import first_line
from agentopcd.distillation import losses
from agentopcd.distillation.positions import (
    alone_hidden,
    begins_with,
    can_branch,
    logits_of,
    response_hidden,
    sequences,
)
from agentopcd.distillation.prefix import prefix_of

Pair = tuple[Sequence[int], Sequence[int]]
"""Prompt ids and response ids."""
LIMIT_NATS = {torch.float32: 1e-5, torch.bfloat16: 0.02}
"""The largest mean KL per token of a row that counts as rounding. In bfloat16, the order of a sum alone shows."""
PROMPT_TOKENS, RESPONSE_TOKENS = 960, 64
"""The most tokens of a row that are compared."""
INSTEAD = {
    "head": "logits come from whole forward passes; those from hidden states and output head",
    "together": "each sequence is read alone; several in one pass",
    "branch": "each prompt is read in a row of its own; together with others that begin alike",
    "prefix": "each prompt is read in full; after a beginning that is read once it",
}
"""What is done instead of each shortcut, and how the line that says so goes on."""


def few(pairs: Sequence[Pair]) -> list[Pair]:
    """The rows to compare: the shortest and the longest, one cut row, and two turns of a growing chat, if there is one.

    Rows of one length would need no padding, so the cut row makes sure that there is some.
    """
    pairs = [(tuple(prompt), tuple(response)) for prompt, response in pairs if response]
    if not pairs:
        return []
    by_length = sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
    brief = [(prompt[:PROMPT_TOKENS], response[:RESPONSE_TOKENS]) for prompt, response in (by_length[0], by_length[-1])]
    prompt, response = brief[-1]
    chosen: list[Pair] = [*brief, (prompt[: max(1, 2 * len(prompt) // 3)], response)]
    for before, after in itertools.pairwise(pairs):
        if len(after[0]) <= PROMPT_TOKENS and begins_with(after[0], (*before[0], *before[1])):
            return [*chosen, before, (after[0], after[1][:RESPONSE_TOKENS])]
    return chosen


@torch.no_grad()
def compare(
    model: Any, pairs: Sequence[Pair], pad_id: int, compute: torch.dtype, *, prefix: bool = False, name: str = ""
) -> list[str]:
    """Compare the shortcuts of scoring with the model's own forward pass, and set aside those that differ.

    Args:
        model: in the state in which it scores: autocast, eval mode, adapter on or off.
        pairs: rows of the run; :func:`few` of them are read.
        pad_id: the token id of the padding.
        compute: dtype of the matrix products, which says how far apart rounding is.
        prefix: whether prompts will be read after a shared prefix.
        name: the model's name, for the lines.

    Returns:
        A line for each shortcut that was set aside.

    Raises:
        ModelError: the model's own forward pass fails on these rows.
    """
    known, rows, lines = models.shortcuts_of(model), few(pairs), []
    if not rows:
        return []
    with known.timed():
        for shortcut, (own, read) in _ways(model, rows, pad_id, prefix=prefix).items():
            limit, (off, fault) = LIMIT_NATS[compute], _off_nats(model, own, read)
            if shortcut == "prefix" and not off <= limit and not models.attends_to_all(model):
                known.at_once = False  # read the rest token by token, as in decoding
                off, fault = _off_nats(model, own, read)
            known.off_nats[shortcut] = off
            if not off <= limit:  # also refuses NaN
                setattr(known, shortcut, False)
                lines.append(f"note: {name}: {INSTEAD[shortcut]} {fault}")
            if not known.head:
                break  # nothing is scored by hidden states then
    return lines


def _ways(
    model: Any, rows: Sequence[Pair], pad_id: int, *, prefix: bool
) -> dict[str, tuple[list[Tensor], Callable[[], Tensor]]]:
    """For each shortcut, the logits to compare with, row by row, and what gives the hidden states of these rows."""

    def own_of(rows: Sequence[Pair]) -> list[Tensor]:
        if not isinstance(model, FSDPModule):
            return _own(model, rows)
        hidden = torch.cat([alone_hidden(model, *row) for row in rows])  # it gives hidden states only
        return list(logits_of(model, hidden).split([len(response) for _, response in rows]))

    ways: dict[str, tuple[list[Tensor], Callable[[], Tensor]]] = {}
    own = own_of(rows)
    if not isinstance(model, FSDPModule):
        ways["head"] = (own, lambda: torch.cat([alone_hidden(model, *row) for row in rows]))
    ways["together"] = (own, lambda: response_hidden(model, rows, pad_id, branch=False))
    forked = _forked(*rows[1])
    if can_branch(model) and len(sequences(forked, branch=True)) == 1:
        apart = own_of(forked)
        ways["branch"] = (apart, lambda: response_hidden(model, forked, pad_id, branch=True))
    else:
        models.shortcuts_of(model).branch = False  # not compared, so not used
    # The longest row and its cut copy begin alike. All but one token of the cut prompt is shared: what a reply sees of
    # the beginning shows best right after it.
    long, cut = rows[1:3]
    if prefix and (shared := len(cut[0]) - 1):
        beginning = prefix_of(model, cut[0][:shared])
        ways["prefix"] = (own[1:3], lambda: beginning.response_hidden([long, cut], shared))
    return ways


def _forked(prompt: Sequence[int], response: Sequence[int]) -> list[Pair]:
    """Three rows that begin alike and go on in three ways, so that most of their tokens are shared."""
    few, cut = response[: max(1, len(prompt) // 4)], prompt[: max(1, 4 * len(prompt) // 5)]
    return [(prompt, few), ((*cut, *few), few), (cut, few)]


def _own(model: Any, rows: Sequence[Pair]) -> list[Tensor]:
    try:
        return [models.own_logits(model, *row) for row in rows]
    except Exception as error:  # whatever the code of an architecture raises
        why = first_line(error, otherwise=type(error).__name__)
        raise ModelError(f"{type(model).__name__} cannot be run here: its forward pass fails ({why})") from error


def _off_nats(model: Any, own: Sequence[Tensor], read: Callable[[], Tensor]) -> tuple[float, str]:
    """The largest mean KL of a row, and the words for it."""
    try:
        found = logits_of(model, read()).split([len(row) for row in own])
    except Exception as error:  # whatever the code of an architecture raises
        return math.inf, f"would fail ({first_line(error, otherwise=type(error).__name__)})"
    off = max(float(losses.full_kl(one, other).mean()) for one, other in zip(own, found, strict=True))
    return off, f"would be off by {off:.2g} nats a token"
