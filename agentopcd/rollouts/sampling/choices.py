"""Replies restricted to a list: which tokens may come next, and the mask that removes all others.

Engines sample under this mask. The loss applies the same mask to the logits of student and teacher, so that both are
distributions over the tokens that could have been sampled.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

Choices = tuple[tuple[int, ...], ...]
"""Token ids of each allowed reply, end token included; empty if every reply is allowed."""


@functools.lru_cache(maxsize=1 << 14)
def allowed_ids(choices: Choices, so_far: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens that may follow ``so_far``, sorted; empty if all tokens are allowed or the reply is complete."""
    n = len(so_far)
    return tuple(sorted({choice[n] for choice in choices if len(choice) > n and choice[:n] == so_far}))


def allowed_in(choices: Choices, reply: tuple[int, ...]) -> list[tuple[int, ...]]:
    """For each token of ``reply``, the tokens that were allowed at its position."""
    return [allowed_ids(choices, reply[:n]) for n in range(len(reply))]


def keep(logits_NV: Tensor, allowed: Sequence[tuple[int, ...]]) -> Tensor:
    """``logits_NV`` with -inf for each token that its row does not allow. A row with an empty list stays unchanged."""
    if not any(allowed):
        return logits_NV
    forbidden_NV = torch.zeros(logits_NV.shape, dtype=torch.bool, device=logits_NV.device)
    for row, ids in enumerate(allowed):
        if ids:
            forbidden_NV[row] = True
            forbidden_NV[row, list(ids)] = False
    return logits_NV.masked_fill(forbidden_NV, -torch.inf)
