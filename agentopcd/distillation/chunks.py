"""The loss over an output head, one chunk of rows at a time, so that memory does not grow with the vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from agentopcd.core.errors import ConfigError
from agentopcd.distillation import losses

CHUNK_LOGITS = 1 << 22
"""The number of logits of one model that are alive at once in :func:`in_chunks`: 16 MiB in float32."""


def in_chunks(
    loss_of: Callable[[Tensor, slice], Tensor],
    hidden_NH: Float[Tensor, "N H"],
    weights_N: Float[Tensor, " N"],
    head: torch.nn.Linear,
    *,
    rows: int = 0,
) -> Float[Tensor, ""]:
    r"""Weighted sum of token losses over an output head, without the logits of all tokens at once.

    .. math:: L = \sum_n w_n D_n(z_n), \qquad z_n = W h_n + b

    The forward pass takes one chunk of rows at a time. It computes the logits, the losses and, by autograd, the
    gradient :math:`G` of the loss with respect to the logits. It then computes :math:`\partial h = G W` and
    :math:`\partial W \mathrel{+}= G^\top h`, and keeps both. ``backward`` only scales them, so nothing is computed
    twice. At most ``rows`` rows of logits are alive, whatever the number of tokens and the size of the vocabulary.
    Values and gradients equal those of ``losses.weighted_sum(loss_of(head(hidden)))`` up to rounding.

    Args:
        loss_of: takes the float32 logits ``[R, V]`` of a chunk and the chunk's place among the ``N`` rows, and returns
            the token losses ``[R]`` in nats.
        hidden_NH: the last hidden states of the positions that predict response tokens; gradients flow into them.
        weights_N: the weight of each token, see :func:`agentopcd.distillation.weights.token_weights`. It is moved to
            the device of ``hidden_NH``.
        head: the output head. Gradients flow into those of its parameters that require any.
        rows: rows per chunk; 0: the multiple of four whose logits come closest to :data:`CHUNK_LOGITS` from below,
            and at least four.

    Returns:
        A scalar in nats, float32. With ``N = 0`` it is 0 and still has a graph.

    Raises:
        ConfigError: ``rows`` is negative, or there is not exactly one weight per token.
    """
    if rows < 0:
        raise ConfigError(f"rows must be 0 or more, got {rows}")
    if hidden_NH.shape[:1] != weights_N.shape:
        raise ConfigError(
            f"{tuple(weights_N.shape)} weights for hidden states {tuple(hidden_NH.shape)}; give one weight per token"
        )
    rows = rows or max(4, CHUNK_LOGITS // head.weight.shape[0] // 4 * 4)
    return _InChunks.apply(loss_of, weights_N.to(hidden_NH.device), rows, hidden_NH, head.weight, head.bias)  # type: ignore


class _InChunks(torch.autograd.Function):
    """The sum of :func:`in_chunks`, whose forward pass computes the gradients, too."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, loss_of: Callable[[Tensor, slice], Tensor], weights_N: Tensor, rows: int,
        hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None,
    ) -> Tensor:  # fmt: skip
        total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
        wanted = ctx.needs_input_grad[3:]
        make = torch.empty_like if len(hidden_NH) else torch.zeros_like
        # The gradients of hidden states, weight and bias, in this order.
        grads = [make(t) if t is not None and w else None
                 for t, w in zip((hidden_NH, weight_VH, bias_V), wanted, strict=True)]  # fmt: skip
        # The head works in float32 even under autocast, as agentopcd.models.Float32Head does.
        weight32_VH = weight_VH.detach().float()
        bias32_V = None if bias_V is None else bias_V.detach().float()
        with torch.autocast(hidden_NH.device.type, enabled=False):
            for start in range(0, len(hidden_NH), rows):
                where = slice(start, start + rows)
                h_RH = hidden_NH[where].detach().float()
                logits_RV = torch.nn.functional.linear(h_RH, weight32_VH, bias32_V).requires_grad_()
                with torch.enable_grad():
                    loss = losses.weighted_sum(loss_of(logits_RV, where), weights_N[where])
                (grad_RV,) = torch.autograd.grad(loss, logits_RV)
                total += loss.detach()
                if grads[0] is not None:
                    grads[0][where] = grad_RV @ weight32_VH
                if grads[1] is not None:  # the first chunk overwrites: adding to zeros costs as much as the product
                    grads[1].addmm_(grad_RV.T.to(grads[1].dtype), h_RH.to(grads[1].dtype), beta=int(start > 0))
                if grads[2] is not None:
                    grads[2].copy_(grad_RV.sum(0)) if start == 0 else grads[2].add_(grad_RV.sum(0))
        ctx.grads = grads
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # The gradients are scaled in place, which saves a copy of a large head's gradient and allows one backward only.
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("in_chunks has handed its gradients out already; it can go backward once per forward")
        return (None, None, None, *(None if g is None else g.mul_(grad) for g in grads))
