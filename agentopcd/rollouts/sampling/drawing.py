"""Draw the next tokens, with noise that depends only on a request's seed and the token's position."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from agentopcd.core.errors import AlignmentError
from agentopcd.core.types import Request, Sampling
from agentopcd.rollouts.sampling.choices import allowed_ids, keep


def draw(
    logits_BV: Tensor, rows: Sequence[tuple[Request, tuple[int, ...]]], sampling: Sampling
) -> tuple[list[int], list[float]]:
    """The next token of each row, and its log-probability.

    The draw is by inversion: one uniform number per (seed, position) is looked up in the cumulative distribution.

    Args:
        logits_BV: float32.
        rows: each row's request and its reply so far.

    Raises:
        AlignmentError: the logits of a row are no numbers.
    """
    if any(request.choices for request, _ in rows):
        logits_BV = keep(logits_BV, [allowed_ids(request.choices, said) for request, said in rows])
    if sampling.temperature == 0:
        logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
        chosen_B = logits_BV.argmax(dim=-1)
    else:
        logprobs_BV = truncated_logprobs(logits_BV, sampling)
        noise = [random.Random(f"{request.seed}:{len(said)}").random() for request, said in rows]
        if logprobs_BV.device.type == "mps":  # MPS has no float64
            chosen_B = at_noise(logprobs_BV.cpu(), noise).to(logprobs_BV.device)
        else:
            chosen_B = at_noise(logprobs_BV, noise)
    ids, logprobs = chosen_B.tolist(), logprobs_BV.gather(1, chosen_B[:, None])[:, 0].tolist()
    if any(map(math.isnan, logprobs)):
        raise AlignmentError(
            "the model's logits are no numbers (NaN), so no token can be drawn; its weights are damaged, or its "
            "numbers leave the range of --compute: try --compute float32"
        )
    return ids, logprobs


def at_noise(logprobs_BV: Tensor, noise: Sequence[float]) -> Tensor:
    """The token of each row at which its cumulative distribution passes a number between 0 and 1."""
    cumulative_BV = logprobs_BV.double().exp().cumsum(dim=-1)
    target_B = torch.tensor(noise, dtype=torch.float64, device=logprobs_BV.device) * cumulative_BV[:, -1]
    # right=True skips tokens of probability zero when the number falls on a boundary.
    chosen_B = torch.searchsorted(cumulative_BV, target_B[:, None], right=True).squeeze(1)
    return chosen_B.clamp_(max=logprobs_BV.shape[1] - 1)


def truncated_logprobs(logits_BV: Tensor, sampling: Sampling) -> Tensor:
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
