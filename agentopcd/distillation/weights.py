"""The weights of tokens in the loss of a step: of replies and turns, of capped tokens, of tokens from an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from agentopcd.core.errors import ConfigError, did_you_mean
from agentopcd.distillation.losses import token_logprobs

Reduction = Literal["seq_mean", "token_mean"]


def token_weights(
    lengths: Sequence[int], reduction: Reduction, *, turns: Sequence[int] = (), fade: float = 0.0
) -> list[float]:
    r"""For each response, the weight of its tokens in the loss of one optimizer step.

    .. math:: L = \sum_i w_i \sum_t D_{it}, \qquad
        w_i = \frac{v_i}{|y_i| \sum_j v_j} \;(\mathrm{seq\_mean}), \qquad
        w_i = \frac{v_i}{\sum_j v_j |y_j|} \;(\mathrm{token\_mean}), \qquad v_i = (1 - f)^{t_i}

    ``seq_mean`` (arXiv:2602.12275) gives every response the same weight, ``token_mean`` every token; with a ``fade``
    :math:`f`, those of turn :math:`t` weigh :math:`(1-f)^t` of those of the first turn. Call this function once with
    the lengths of the whole step, over all micro-batches and ranks. Then the loss does not depend on how the step is
    split.

    Args:
        lengths: the length of each response :math:`|y_i|`, in tokens. An empty response gets weight 0 and does not
            count in the sums.
        reduction: ``seq_mean`` or ``token_mean``.
        turns: the number of each response's turn in its episode, from 0; needed with a ``fade``.
        fade: from 0 (all turns alike) to below 1.

    Returns:
        One weight :math:`w_i` per response. The weights of all tokens sum to 1, or to 0 if every response is empty.

    Raises:
        ConfigError: ``reduction`` is unknown, a length is negative, or ``fade`` is not at least 0 and below 1.
    """
    if reduction not in get_args(Reduction):
        raise ConfigError(f"unknown reduction {reduction!r}{did_you_mean(reduction, get_args(Reduction))}")
    if any(length < 0 for length in lengths):
        raise ConfigError(f"a response cannot have {min(lengths)} tokens; lengths must be 0 or more")
    if not 0 <= fade < 1:
        raise ConfigError(f"the fade of later turns must be at least 0 and below 1, got {fade}")
    # Counted from the earliest turn that has a reply: the same weights, and those of late turns do not all become 0.
    first = min((turn for turn, length in zip(turns, lengths, strict=True) if length), default=0) if fade else 0
    values = [(1 - fade) ** max(0, turn - first) for turn in turns] if fade else [1] * len(lengths)
    counted = list(zip(values, lengths, strict=True))
    if reduction == "seq_mean":
        total = sum(value for value, length in counted if length)
        return [value / (total * length) if length else 0.0 for value, length in counted]
    tokens = sum(value * length for value, length in counted)
    return [value / tokens if length else 0.0 for value, length in counted]


def cap_weights(
    value_N: Float[Tensor, " N"],
    cap_nats: float,
) -> Float[Tensor, " N"]:
    r"""The weight that keeps each token's loss at or below a cap: :math:`w_n = \min(1, c / D_n)`.

    A token above the cap pulls with the gradient of its own loss, scaled so that the loss is :math:`c`.

    Args:
        value_N: the divergence of each token, in nats.
        cap_nats: the cap :math:`c`.

    Returns:
        One weight per token, between 0 and 1, without gradient.

    Raises:
        ConfigError: ``cap_nats`` is not positive.
    """
    if not cap_nats > 0:
        raise ConfigError(f"the cap of a token's loss must be above 0, got {cap_nats}")
    value_N = value_N.detach()
    return torch.where(value_N > cap_nats, cap_nats / value_N.clamp(min=cap_nats), torch.ones_like(value_N))


def importance_weights(
    logits_NV: Float[Tensor, "N V"],
    ids_N: Int[Tensor, " N"],
    sampled_N: Float[Tensor, " N"],
    *,
    cap: float,
    temperature: float = 1.0,
) -> Float[Tensor, " N"]:
    r"""Truncated importance weight of each sampled token (Ionides, 2008).

    .. math:: w_n = \min\left(c, \frac{p_n(y_n)}{p^{\mathrm{engine}}_n(y_n)}\right)

    An engine with other numerics samples from a slightly different distribution than the model in training. Weighting
    each token's loss by :math:`w_n` corrects for the difference, up to the cap. No gradient flows through the weight.

    Args:
        logits_NV: the trained model's scores before softmax.
        ids_N: the sampled tokens.
        sampled_N: their log-probabilities under the engine, in nats.
        cap: largest weight :math:`c`; it bounds the variance.
        temperature: the temperature that the tokens were sampled with.

    Returns:
        One weight per token, float32, between 0 and ``cap``.

    Raises:
        ConfigError: ``cap`` or ``temperature`` is not positive, or there is not exactly one token per row.
    """
    if not cap > 0:
        raise ConfigError(f"the cap of importance weights must be above 0, got {cap}")
    trainer_N = token_logprobs(logits_NV.detach(), ids_N, temperature)
    return (trainer_N - sampled_N.to(trainer_N)).exp().clamp(max=cap)
