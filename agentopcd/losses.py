r"""The divergences between student and teacher, one home per formula.

Every function takes logits of the rows that are trained on, ``[N, V]``: row ``n`` holds the scores before
softmax for one sampled response token. Select those rows first (``logits[mask]``): a row that is multiplied
by zero instead still poisons the gradient when it holds a NaN.

With :math:`p` the student, :math:`q` the teacher, :math:`S` a support of :math:`k` tokens and the masses
:math:`P = \sum_S p`, :math:`Q = \sum_S q`:

========  ===========================================================  =====================================
form      reverse direction, per token                                 what it is
========  ===========================================================  =====================================
full      :math:`\sum_V p (\log p - \log q)`                           the definition
tail      ``raw`` :math:`+ (1-P) \log \frac{1-P}{1-Q}`                 a KL of k+1 outcomes, never above full
renorm    :math:`\sum_S \frac{p}{P} (\log \frac{p}{P} - \log \frac{q}{Q})`  a KL inside S, blind outside
raw       :math:`\sum_S p (\log p - \log q)`                           the paper's form; can be negative
stopgrad  ``raw``, with the gradient of :math:`\sum_S [p \log \frac{p}{q}] \log p`, bracket held fixed
========  ===========================================================  =====================================

Numbers are computed in float32 whatever the logits are (float64 stays float64), logarithms are natural,
and the teacher is detached in here, so gradients reach the student only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from agentopcd.errors import ConfigError, did_you_mean

ReverseForm = Literal["tail", "renorm", "raw", "stopgrad"]
ForwardForm = Literal["tail", "renorm", "raw"]
Form = Literal["full", "tail", "renorm", "raw", "stopgrad"]
Reduction = Literal["seq_mean", "token_mean"]

LOG_FLOOR_NATS = -1e4
"""Lowest log-probability used, the same for both models. ``exp`` of it is exactly 0, so it changes no value a
model can produce; it only keeps a logit of -inf and an empty remainder finite, forward and backward."""


CHUNK_LOGITS = 1 << 22
"""Logits of one model that are alive at once in :func:`in_chunks`: 16 MiB."""


class TokenDivergence(NamedTuple):
    """One divergence per token, in nats, and how much probability its support covers."""

    loss_N: Float[Tensor, " N"]
    """Carries the gradient. For ``stopgrad`` its own value means nothing: read ``value_N``."""
    value_N: Float[Tensor, " N"]
    """The divergence, detached. For ``stopgrad`` the ``raw`` value."""
    student_mass_N: Float[Tensor, " N"]
    """The student's probability of the support, detached; 1 for ``full``."""
    teacher_mass_N: Float[Tensor, " N"]
    """The teacher's probability of the same support, detached; 1 for ``full``."""


def full_reverse_kl(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N V"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, " N"]:
    r"""Reverse KL from the student to the teacher over the whole vocabulary, per token.

    .. math:: D_n = \sum_v p_{nv} (\log p_{nv} - \log q_{nv})

    with :math:`p` the student without the context and :math:`q` the teacher with it, both scored on the
    same response tokens, which the student sampled (arXiv:2602.12275, eq. 2). Gradients flow into the
    student only: :math:`\partial D / \partial z_j = p_j (\log p_j - \log q_j - D)`, divided by the
    temperature.

    Args:
        student_logits_NV: scores before softmax, one row per response token.
        teacher_logits_NV: the same rows, scored with the context in the prompt.
        temperature: divides both logits; use the one the student sampled with.

    Returns:
        Nats per token, float32; at least 0, and 0 only where the two distributions agree.

    Raises:
        ConfigError: ``temperature`` is not positive, or the two shapes differ.
    """
    student_NV, teacher_NV = _prepare(student_logits_NV, teacher_logits_NV, temperature)
    return _kl(_log_probs(student_NV), _log_probs(teacher_NV))


def full_forward_kl(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N V"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, " N"]:
    r"""Forward KL from the teacher to the student over the whole vocabulary, per token.

    .. math:: D_n = \sum_v q_{nv} (\log q_{nv} - \log p_{nv})

    The off-policy direction: the teacher sampled the tokens. The teacher's entropy is included, so the
    value is 0 at the teacher; it adds nothing to the gradient :math:`p_j - q_j` (divided by the
    temperature), which flows into the student only.

    Args:
        student_logits_NV: scores before softmax, one row per response token.
        teacher_logits_NV: the same rows, scored with the context in the prompt.
        temperature: divides both logits; use the one the teacher sampled with.

    Returns:
        Nats per token, float32; at least 0.

    Raises:
        ConfigError: ``temperature`` is not positive, or the two shapes differ.
    """
    student_NV, teacher_NV = _prepare(student_logits_NV, teacher_logits_NV, temperature)
    return _kl(_log_probs(teacher_NV), _log_probs(student_NV))


def topk_reverse_kl(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N V"],
    *,
    k: int = 256,
    form: ReverseForm = "tail",
    temperature: float = 1.0,
) -> TokenDivergence:
    r"""Reverse KL from the student to the teacher on the student's ``k`` likeliest tokens, per token.

    .. math::
        \mathrm{raw} &= \sum_S p_v (\log p_v - \log q_v) \\
        \mathrm{tail} &= \mathrm{raw} + (1-P) (\log(1-P) - \log(1-Q)) \\
        \mathrm{renorm} &= \sum_S \tfrac{p_v}{P} (\log \tfrac{p_v}{P} - \log \tfrac{q_v}{Q})

    :math:`S` is the top-k of the very logits that are differentiated, taken without gradient; both models
    are normalised over the whole vocabulary. ``raw`` is the form of arXiv:2602.12275: it is not a
    divergence, and its gradient also lowers the student's mass on :math:`S`. ``stopgrad`` drops that extra
    term: its gradient is the one of ``raw`` minus :math:`\nabla P`. ``tail`` treats everything outside
    :math:`S` as one more outcome, which makes it a true KL between 0 and the full one; with ``k`` at least
    the vocabulary it is the full one. The remainder :math:`1-P` is summed over the tokens outside
    :math:`S`, never subtracted, so nothing cancels.

    Args:
        student_logits_NV: scores before softmax, one row per response token the student sampled.
        teacher_logits_NV: the same rows, scored with the context in the prompt.
        k: size of the support; cut to the vocabulary.
        form: which of the four.
        temperature: divides both logits; use the one the student sampled with.

    Returns:
        Loss, value and the two masses per token, float32. ``renorm`` is 0 everywhere for ``k=1``.

    Raises:
        ConfigError: ``form`` is unknown, ``k`` or ``temperature`` is not positive, or the shapes differ.
    """
    _one_of("form", form, get_args(ReverseForm))
    student_NV, teacher_NV = _prepare(student_logits_NV, teacher_logits_NV, temperature)
    support_NK = _support(student_NV, k)
    p_NK, p_rest_N = _outcomes(student_NV, support_NK)
    q_NK, q_rest_N = _outcomes(teacher_NV, support_NK)
    loss_N = _coarse_kl(p_NK, p_rest_N, q_NK, q_rest_N, "raw" if form == "stopgrad" else form)
    value_N = loss_N.detach()
    if form == "stopgrad":
        loss_N = ((p_NK.exp() * (p_NK - q_NK)).detach() * p_NK).sum(-1)
    return TokenDivergence(loss_N, value_N, _mass(p_NK), _mass(q_NK))


def topk_forward_kl(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N V"],
    *,
    k: int = 256,
    form: ForwardForm = "tail",
    temperature: float = 1.0,
) -> TokenDivergence:
    r"""Forward KL from the teacher to the student on the teacher's ``k`` likeliest tokens, per token.

    .. math::
        \mathrm{raw} &= \sum_S q_v (\log q_v - \log p_v) \\
        \mathrm{tail} &= \mathrm{raw} + (1-Q) (\log(1-Q) - \log(1-P)) \\
        \mathrm{renorm} &= \sum_S \tfrac{q_v}{Q} (\log \tfrac{q_v}{Q} - \log \tfrac{p_v}{P})

    The off-policy baseline: the teacher sampled the tokens and :math:`S` is the teacher's top-k. ``raw``
    has the opposite bias of the reverse one: it pulls student mass onto :math:`S`. Gradients flow into the
    student only.

    Args:
        student_logits_NV: scores before softmax, one row per response token the teacher sampled.
        teacher_logits_NV: the same rows, scored with the context in the prompt.
        k: size of the support; cut to the vocabulary.
        form: which of the three.
        temperature: divides both logits; use the one the teacher sampled with.

    Returns:
        Loss, value and the two masses per token, float32.

    Raises:
        ConfigError: ``form`` is unknown, ``k`` or ``temperature`` is not positive, or the shapes differ.
    """
    _one_of("form", form, get_args(ForwardForm))
    student_NV, teacher_NV = _prepare(student_logits_NV, teacher_logits_NV, temperature)
    support_NK = _support(teacher_NV, k)
    p_NK, p_rest_N = _outcomes(student_NV, support_NK)
    q_NK, q_rest_N = _outcomes(teacher_NV, support_NK)
    loss_N = _coarse_kl(q_NK, q_rest_N, p_NK, p_rest_N, form)
    return TokenDivergence(loss_N, loss_N.detach(), _mass(p_NK), _mass(q_NK))


def divergence(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N V"],
    *,
    form: Form = "tail",
    k: int = 256,
    temperature: float = 1.0,
) -> TokenDivergence:
    """The reverse KL by the name of its form: :func:`full_reverse_kl` or :func:`topk_reverse_kl`.

    Args:
        student_logits_NV: scores before softmax, one row per response token the student sampled.
        teacher_logits_NV: the same rows, scored with the context in the prompt.
        form: ``full``, ``tail``, ``renorm``, ``raw`` or ``stopgrad``.
        k: size of the support; ``full`` has none and ignores it.
        temperature: divides both logits; use the one the student sampled with.

    Returns:
        Loss, value and masses per token, in nats, float32; both masses are 1 for ``full``.

    Raises:
        ConfigError: ``form`` is unknown, ``k`` or ``temperature`` is not positive, or the shapes differ.
    """
    _one_of("form", form, get_args(Form))
    if form != "full":
        return topk_reverse_kl(student_logits_NV, teacher_logits_NV, k=k, form=form, temperature=temperature)
    loss_N = full_reverse_kl(student_logits_NV, teacher_logits_NV, temperature=temperature)
    ones_N = torch.ones_like(loss_N, requires_grad=False)
    return TokenDivergence(loss_N, loss_N.detach(), ones_N, ones_N)


def forward_divergence(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N V"],
    *,
    form: Literal["full", "tail", "renorm", "raw"] = "tail",
    k: int = 256,
    temperature: float = 1.0,
) -> TokenDivergence:
    """The forward KL by the name of its form: :func:`full_forward_kl` or :func:`topk_forward_kl`.

    Args:
        student_logits_NV: scores before softmax, one row per response token the teacher sampled.
        teacher_logits_NV: the same rows, scored with the context in the prompt.
        form: ``full``, ``tail``, ``renorm`` or ``raw``.
        k: tokens of the teacher's top-k; ``full`` has none and ignores it.
        temperature: divides both logits; use the one the teacher sampled with.

    Returns:
        Loss, value and masses per token, in nats, float32; both masses are 1 for ``full``.

    Raises:
        ConfigError: ``form`` is unknown, ``k`` or ``temperature`` is not positive, or the shapes differ.
    """
    if form != "full":
        return topk_forward_kl(student_logits_NV, teacher_logits_NV, k=k, form=form, temperature=temperature)
    loss_N = full_forward_kl(student_logits_NV, teacher_logits_NV, temperature=temperature)
    ones_N = torch.ones_like(loss_N, requires_grad=False)
    return TokenDivergence(loss_N, loss_N.detach(), ones_N, ones_N)


def token_weights(lengths: Sequence[int], reduction: Reduction) -> list[float]:
    r"""The weight of each token of response ``i`` in the loss of one optimizer step.

    .. math:: L = \sum_i w_i \sum_t D_{it}, \qquad
        w_i = \frac{1}{B |y_i|} \;(\mathrm{seq\_mean}), \qquad
        w_i = \frac{1}{\sum_j |y_j|} \;(\mathrm{token\_mean})

    ``seq_mean`` (arXiv:2602.12275) lets every response vote once, ``token_mean`` every token. Call it once
    with the lengths of the whole step, over all micro-batches and ranks: then a split of the step changes
    nothing.

    Args:
        lengths: response tokens per response, in tokens. An empty response gets weight 0 and does not
            count in :math:`B`, the number of responses.
        reduction: ``seq_mean`` or ``token_mean``.

    Returns:
        One weight per response; with it the weights of all tokens sum to 1. All 0 when every response is
        empty.

    Raises:
        ConfigError: ``reduction`` is unknown or a length is negative.
    """
    _one_of("reduction", reduction, get_args(Reduction))
    if any(length < 0 for length in lengths):
        raise ConfigError(f"a response cannot have {min(lengths)} tokens; lengths must be 0 or more")
    responses, tokens = sum(length > 0 for length in lengths), sum(lengths)
    if reduction == "seq_mean":
        return [1 / (responses * length) if length else 0.0 for length in lengths]
    return [1 / tokens if length else 0.0 for length in lengths]


def weighted_sum(loss_N: Float[Tensor, " N"], weights_N: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Sum of the token losses times their weights: what ``backward`` is called on.

    Args:
        loss_N: token losses in nats, with a graph.
        weights_N: the weight of each token, see :func:`token_weights`; moved to the loss's device and dtype.

    Returns:
        A scalar in nats. With ``N = 0`` it is 0 and still has a graph, provided the empty loss came from
        student logits that have one (``logits[mask]`` with an all-false mask), so that every rank can run
        backward.

    Raises:
        ConfigError: there is not exactly one weight per token.
    """
    if loss_N.shape != weights_N.shape:
        raise ConfigError(
            f"{tuple(weights_N.shape)} weights for {tuple(loss_N.shape)} token losses; "
            "give one weight per response token"
        )
    return (loss_N * weights_N.to(loss_N)).sum()


def in_chunks(
    loss_of: Callable[[Tensor, slice], Tensor],
    hidden_NH: Float[Tensor, "N H"],
    weights_N: Float[Tensor, " N"],
    head: torch.nn.Linear,
    *,
    rows: int = 0,
) -> Float[Tensor, ""]:
    r"""Weighted sum of token losses over an output head, without logits of all tokens at once.

    .. math:: L = \sum_n w_n D_n(z_n), \qquad z_n = W h_n + b

    A chunk of rows at a time: logits, losses, their gradient :math:`G` with respect to the logits by autograd, then
    :math:`\partial h = G W` and :math:`\partial W \mathrel{+}= G^\top h`, both kept. ``backward`` only scales them, so
    nothing is computed twice and at most ``rows`` rows of logits are alive, however many tokens and however large
    the vocabulary. Values and gradients are those of ``weighted_sum(loss_of(head(hidden)))`` up to rounding.

    Args:
        loss_of: takes float32 logits ``[R, V]`` of a chunk and its place among the ``N`` rows, and returns the token
            losses ``[R]`` in nats.
        hidden_NH: the last hidden states of the positions that predict response tokens; gradients flow into them.
        weights_N: the weight of each token, see :func:`token_weights`; moved to the device of ``hidden_NH``.
        head: the output head. Gradients flow into its parameters where they ask for any.
        rows: rows of a chunk; 0: as many as have :data:`CHUNK_LOGITS` logits, a multiple of four.

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
    """A sum whose gradients are computed with it."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, loss_of: Callable[[Tensor, slice], Tensor], weights_N: Tensor, rows: int,
        hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None,
    ) -> Tensor:  # fmt: skip
        total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
        wanted = ctx.needs_input_grad[3:]
        make = torch.empty_like if len(hidden_NH) else torch.zeros_like
        into = [make(t) if t is not None and w else None
                for t, w in zip((hidden_NH, weight_VH, bias_V), wanted, strict=True)]  # fmt: skip
        weight32_VH = weight_VH.detach().float()
        bias32_V = None if bias_V is None else bias_V.detach().float()
        with torch.autocast(hidden_NH.device.type, enabled=False):
            for start in range(0, len(hidden_NH), rows):
                where = slice(start, start + rows)
                h_RH = hidden_NH[where].detach().float()
                logits_RV = torch.nn.functional.linear(h_RH, weight32_VH, bias32_V).requires_grad_()
                with torch.enable_grad():
                    loss = weighted_sum(loss_of(logits_RV, where), weights_N[where])
                (grad_RV,) = torch.autograd.grad(loss, logits_RV)
                total += loss.detach()
                if into[0] is not None:
                    into[0][where] = grad_RV @ weight32_VH
                if into[1] is not None:  # the first chunk only writes: reading zeros costs as much as the product
                    into[1].addmm_(grad_RV.T.to(into[1].dtype), h_RH.to(into[1].dtype), beta=int(start > 0))
                if into[2] is not None:
                    into[2].copy_(grad_RV.sum(0)) if start == 0 else into[2].add_(grad_RV.sum(0))
        ctx.into = into
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        into, ctx.into = ctx.into, None  # scaled in place and given away: a second gradient of a large head costs
        if into is None:
            raise RuntimeError("the gradients of in_chunks were handed out; it can go backward once")
        return (None, None, None, *(None if g is None else g.mul_(grad) for g in into))


def entropy_nats(
    logits_NV: Float[Tensor, "N V"],
    temperature: float = 1.0,
) -> Float[Tensor, " N"]:
    r"""Entropy of each row's distribution, :math:`-\sum_v p_v \log p_v`.

    Args:
        logits_NV: scores before softmax.
        temperature: divides the logits.

    Returns:
        Nats per row, float32, between 0 and the log of the vocabulary size.

    Raises:
        ConfigError: ``temperature`` is not positive.
    """
    log_probs_NV = _log_probs(_tempered(logits_NV, temperature))
    return -(log_probs_NV.exp() * log_probs_NV).sum(-1)


def token_logprobs(
    logits_NV: Float[Tensor, "N V"],
    ids_N: Int[Tensor, " N"],
    temperature: float = 1.0,
) -> Float[Tensor, " N"]:
    r"""Log-probability of one token per row, :math:`z_{n,y_n} - \log \sum_v e^{z_{nv}}`.

    Args:
        logits_NV: scores before softmax; gradients flow into them if they ask for any.
        ids_N: the token of each row, for instance the one that was sampled.
        temperature: divides the logits.

    Returns:
        Nats per row, float32, at most 0.

    Raises:
        ConfigError: ``temperature`` is not positive, or there is not exactly one token per row.
    """
    if logits_NV.shape[:-1] != ids_N.shape:
        raise ConfigError(
            f"{tuple(ids_N.shape)} tokens for logits of shape {tuple(logits_NV.shape)}; give one token per row"
        )
    z_NV = _tempered(logits_NV, temperature)
    return z_NV.gather(-1, ids_N.long()[:, None])[:, 0] - z_NV.logsumexp(-1)


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

    Where an engine with other numerics drew the token, its loss times this weight is, up to the cap, that of tokens
    which the model in training would have drawn. No gradient flows through it.

    Args:
        logits_NV: the trained model's scores before softmax.
        ids_N: the tokens that were sampled.
        sampled_N: their log-probabilities as sampled, in nats.
        cap: largest weight; bounds the variance.
        temperature: the one they were sampled with.

    Returns:
        A weight per token, float32, between 0 and ``cap``.

    Raises:
        ConfigError: ``cap`` or ``temperature`` is not positive, or there is not exactly one token per row.
    """
    if not cap > 0:
        raise ConfigError(f"the cap of importance weights must be above 0, got {cap}")
    own_N = token_logprobs(logits_NV.detach(), ids_N, temperature)
    return (own_N - sampled_N.to(own_N)).exp().clamp(max=cap)


def topk_overlap(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N V"],
    k: int = 16,
) -> Float[Tensor, " N"]:
    """Share of the student's ``k`` likeliest tokens that are also among the teacher's, per row.

    Args:
        student_logits_NV: scores before softmax, one row per response token.
        teacher_logits_NV: the same rows, scored with the context in the prompt.
        k: size of both sets; cut to the vocabulary.

    Returns:
        A fraction from 0 to 1 per row, float32, without gradient.

    Raises:
        ConfigError: ``k`` is not positive or the shapes differ.
    """
    _same_shape(student_logits_NV, teacher_logits_NV)
    mine_NK, theirs_NK = _support(student_logits_NV, k), _support(teacher_logits_NV, k)
    return (mine_NK[:, :, None] == theirs_NK[:, None, :]).any(-1).float().mean(-1)


def _prepare(student_NV: Tensor, teacher_NV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both logits checked, in float32 and tempered; the teacher's without a graph."""
    _same_shape(student_NV, teacher_NV)
    return _tempered(student_NV, temperature), _tempered(teacher_NV.detach(), temperature)


def _same_shape(student_NV: Tensor, teacher_NV: Tensor) -> None:
    if student_NV.shape != teacher_NV.shape or student_NV.ndim != 2:
        raise ConfigError(
            f"student logits {tuple(student_NV.shape)} and teacher logits {tuple(teacher_NV.shape)} "
            "must both be [tokens, vocabulary] with one row per response token; select the rows "
            "that predict the same tokens and slice both to the shared vocabulary"
        )


def _tempered(logits_NV: Tensor, temperature: float) -> Tensor:
    if not temperature > 0:  # also refuses NaN
        raise ConfigError(f"temperature must be above 0, got {temperature}; use 1 to leave the logits as they are")
    if logits_NV.dtype != torch.float64:
        logits_NV = logits_NV.float()
    return logits_NV if temperature == 1 else logits_NV / temperature


def _one_of(name: str, got: str, known: Sequence[str]) -> None:
    if got not in known:
        raise ConfigError(f"unknown {name} {got!r}{did_you_mean(got, known)}")


def _support(logits_NV: Tensor, k: int) -> Tensor:
    """Ids of the ``k`` likeliest tokens per row, or of all if there are fewer."""
    if k < 1:
        raise ConfigError(f"k must be 1 or more, got {k}")
    return logits_NV.detach().topk(min(k, logits_NV.shape[-1]), dim=-1).indices


def _log_probs(z_NV: Tensor) -> Tensor:
    return z_NV.log_softmax(-1).clamp(min=LOG_FLOOR_NATS)


def _outcomes(z_NV: Tensor, support_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each token of the support, and of everything outside it together."""
    lse_N = z_NV.logsumexp(-1)
    support_log_NK = z_NV.gather(-1, support_NK) - lse_N[:, None]
    # The lowest finite number stands in for -inf: a row without remainder would turn -inf into NaN backward.
    rest_NV = z_NV.scatter(-1, support_NK, torch.finfo(z_NV.dtype).min)
    rest_log_N = rest_NV.logsumexp(-1) - lse_N
    return support_log_NK.clamp(min=LOG_FLOOR_NATS), rest_log_N.clamp(min=LOG_FLOOR_NATS)


def _coarse_kl(a_NK: Tensor, a_rest_N: Tensor, b_NK: Tensor, b_rest_N: Tensor, form: str) -> Tensor:
    """KL from ``a`` to ``b`` on a support: plus the remainder (``tail``), renormalised, or bare (``raw``)."""
    if form == "tail":
        a_NK, b_NK = torch.cat([a_NK, a_rest_N[:, None]], -1), torch.cat([b_NK, b_rest_N[:, None]], -1)
    elif form == "renorm":
        a_NK, b_NK = a_NK.log_softmax(-1), b_NK.log_softmax(-1)
    return _kl(a_NK, b_NK)


def _kl(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the last axis of exp(a) (a - b)."""
    return (a.exp() * (a - b)).sum(-1)


def _mass(log_NK: Tensor) -> Tensor:
    return log_NK.detach().exp().sum(-1)
