r"""The formulas of training: divergences between student and teacher, and entropy. Weights are in ``weights.py``.

Every function takes the logits ``[N, V]`` of the rows that are trained on. Row ``n`` holds the scores before
softmax for one sampled response token. Select those rows first (``logits[mask]``). Multiplying the other rows by
zero is not enough: 0 times NaN is NaN, in the value and in the gradient.

With :math:`p` the student, :math:`q` the teacher, :math:`S` a support of :math:`k` tokens and the masses
:math:`P = \sum_S p`, :math:`Q = \sum_S q`:

========  ===========================================================  =====================================
form      reverse direction, per token                                 what it is
========  ===========================================================  =====================================
full      :math:`\sum_V p (\log p - \log q)`                           the definition
tail      ``raw`` :math:`+ (1-P) \log \frac{1-P}{1-Q}`                 a KL of k+1 outcomes, never above full
renorm    :math:`\sum_S \frac{p}{P} (\log \frac{p}{P} - \log \frac{q}{Q})`  a KL on S, blind to the rest
raw       :math:`\sum_S p (\log p - \log q)`                           the paper's form; can be negative
stopgrad  ``raw``, with the gradient of :math:`\sum_S [p \log \frac{p}{q}] \log p`, bracket held fixed
========  ===========================================================  =====================================

The forward direction swaps :math:`p` and :math:`q`. The Jensen-Shannon divergence, half the sum of the KLs of both to
their mean, has the forms full and tail.

All numbers are computed in float32, whatever the dtype of the logits (float64 stays float64). Logarithms are
natural. The functions detach the teacher's logits, so gradients reach the student only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from agentopcd.core.errors import ConfigError, did_you_mean

Direction = Literal["reverse", "forward", "jensen-shannon"]
Form = Literal["full", "tail", "renorm", "raw", "stopgrad"]
ForwardForm = Literal["full", "tail", "renorm", "raw"]
SymmetricForm = Literal["full", "tail"]
FORMS = {"reverse": get_args(Form), "forward": get_args(ForwardForm), "jensen-shannon": get_args(SymmetricForm)}

LOG_FLOOR_NATS = -1e4
"""Lowest log-probability used, the same for both models. Its ``exp`` is exactly 0, so it changes no value that a
model can produce. It keeps a logit of -inf and an empty remainder finite, forward and backward."""


class TokenDivergence(NamedTuple):
    """The divergence of each token, in nats, and the probability mass on its support."""

    loss_N: Float[Tensor, " N"]
    """Carries the gradient. For ``stopgrad`` its value has no meaning; read ``value_N`` instead."""
    value_N: Float[Tensor, " N"]
    """The divergence, detached. For ``stopgrad`` it is the ``raw`` value."""
    student_mass_N: Float[Tensor, " N"]
    """The student's probability mass on the support, detached; 1 for ``full``."""
    teacher_mass_N: Float[Tensor, " N"]
    """The teacher's probability mass on the same support, detached; 1 for ``full``."""


class Outcomes(NamedTuple):
    """Log-probabilities of a model on a support, and of everything outside it."""

    support_NK: Tensor
    rest_N: Tensor

    @property
    def all_NJ(self) -> Tensor:
        """The tokens of the support, and the rest as one more outcome; J = K + 1."""
        return torch.cat([self.support_NK, self.rest_N[:, None]], -1)


def full_kl(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N V"],
    *,
    direction: Direction = "reverse",
    temperature: float = 1.0,
) -> Float[Tensor, " N"]:
    r"""KL divergence between student and teacher over the whole vocabulary, per token.

    .. math::
        \mathrm{reverse}: D_n = \sum_v p_{nv} (\log p_{nv} - \log q_{nv}), \qquad
        \mathrm{forward}: D_n = \sum_v q_{nv} (\log q_{nv} - \log p_{nv})

    or their Jensen-Shannon divergence with :math:`m = (p + q) / 2`

    .. math::
        D_n = \tfrac12 \sum_v p_{nv} (\log p_{nv} - \log m_{nv}) + \tfrac12 \sum_v q_{nv} (\log q_{nv} - \log m_{nv})

    with :math:`p` the student without the context and :math:`q` the teacher with it. Both score the same response
    tokens. Reverse is the on-policy direction (arXiv:2602.12275, eq. 2): the student sampled the tokens, and
    :math:`\partial D / \partial z_j = p_j (\log p_j - \log q_j - D)`. Forward is the off-policy direction: the
    teacher sampled the tokens, and the gradient is :math:`p_j - q_j`. Both gradients are divided by the temperature
    and flow into the student only.

    Args:
        student_logits_NV: scores before softmax, one row per response token.
        teacher_logits_NV: the same rows, scored with the context in the prompt.
        direction: ``reverse`` (student to teacher), ``forward`` (teacher to student) or ``jensen-shannon`` (both to
            their mean; at most log 2).
        temperature: divides both logits; use the temperature that the tokens were sampled with.

    Returns:
        Nats per token, float32: at least 0, and 0 only if the two distributions agree.

    Raises:
        ConfigError: ``direction`` is unknown, ``temperature`` is not positive, or the two shapes differ.
    """
    _one_of("direction", direction, get_args(Direction))
    student_NV, teacher_NV = _prepare(student_logits_NV, teacher_logits_NV, temperature)
    return _directed(_log_probs(student_NV), _log_probs(teacher_NV), direction)


def divergence(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N V"],
    *,
    direction: Direction = "reverse",
    form: Form = "tail",
    k: int = 256,
    temperature: float = 1.0,
) -> TokenDivergence:
    r"""The loss of each token, by direction and form; see the table at the top of this module.

    .. math::
        \mathrm{raw} &= \sum_S p_v (\log p_v - \log q_v) \\
        \mathrm{tail} &= \mathrm{raw} + (1-P) (\log(1-P) - \log(1-Q)) \\
        \mathrm{renorm} &= \sum_S \tfrac{p_v}{P} (\log \tfrac{p_v}{P} - \log \tfrac{q_v}{Q})

    for ``reverse``, with :math:`S` the student's ``k`` likeliest tokens. ``forward`` swaps :math:`p` and :math:`q` and
    takes :math:`S` from the teacher. ``jensen-shannon`` takes the union of both supports, so up to ``2 k`` tokens.
    :math:`S` is the top-k of the very logits that are scored, chosen without gradient. Both models are normalised over
    the whole vocabulary.

    ``raw`` is the form of arXiv:2602.12275. It is not a divergence. In the reverse direction its gradient also lowers
    the student's mass on :math:`S`; in the forward direction it also raises that mass. ``stopgrad`` (reverse only)
    drops the extra term: its gradient is the gradient of ``raw`` minus :math:`\nabla P`. ``tail`` treats everything
    outside :math:`S` as one more outcome. So it is a true KL, between 0 and the full one, and equals the full one
    once ``k`` reaches the size of the vocabulary. The remainder :math:`1-P` is a sum over the tokens outside
    :math:`S`, never a difference, so no digits cancel.

    Args:
        student_logits_NV: scores before softmax, one row per response token.
        teacher_logits_NV: the same rows, scored with the context in the prompt.
        direction: ``reverse``, ``forward`` or ``jensen-shannon``.
        form: ``full``, ``tail``, ``renorm`` or ``raw`` (not Jensen-Shannon), or ``stopgrad`` (reverse only).
        k: size of the support, at most the vocabulary; ``full`` ignores it.
        temperature: divides both logits; use the temperature that the tokens were sampled with.

    Returns:
        Loss and value per token in nats, and both masses, float32. Both masses are 1 for ``full``. With ``k=1``,
        ``renorm`` is 0 everywhere.

    Raises:
        ConfigError: ``direction`` or ``form`` is unknown, ``k`` or ``temperature`` is not positive, or the shapes
            differ.
    """
    _one_of("direction", direction, get_args(Direction))
    _one_of("form", form, FORMS[direction])
    if form == "full":
        loss_N = full_kl(student_logits_NV, teacher_logits_NV, direction=direction, temperature=temperature)
        ones_N = torch.ones_like(loss_N, requires_grad=False)
        return TokenDivergence(loss_N, loss_N.detach(), ones_N, ones_N)
    student_NV, teacher_NV = _prepare(student_logits_NV, teacher_logits_NV, temperature)
    if direction == "jensen-shannon":
        support_NK, again_NK = _union(_support(student_NV, k), _support(teacher_NV, k), student_NV.shape[-1])
        p, q = (_outcomes(z_NV, support_NK, again_NK) for z_NV in (student_NV, teacher_NV))
        loss_N = _directed(p.all_NJ, q.all_NJ, direction)
    else:
        support_NK = _support(student_NV if direction == "reverse" else teacher_NV, k)
        p, q = _outcomes(student_NV, support_NK), _outcomes(teacher_NV, support_NK)
        loss_N = _coarse_kl(p, q, form) if direction == "reverse" else _coarse_kl(q, p, form)
    value_N = loss_N.detach()
    if form == "stopgrad":  # the bracket is detached, so only log p carries a gradient
        loss_N = ((p.support_NK.exp() * (p.support_NK - q.support_NK)).detach() * p.support_NK).sum(-1)
    return TokenDivergence(loss_N, value_N, _mass(p.support_NK), _mass(q.support_NK))


def strengthened(
    base_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N V"],
    strength: float,
) -> Float[Tensor, "N V"]:
    r"""The logits of a teacher on whom the context has more or less effect.

    .. math:: \log q_\lambda = (1 - \lambda) \log q_{\mathrm{base}} + \lambda \log q + \mathrm{const}

    with :math:`q` the teacher with and :math:`q_{\mathrm{base}}` the same model without the context. 1 is the teacher
    as it is; below 1 the target lies between the two, above 1 beyond the teacher.

    Args:
        base_logits_NV: scores without the context, one row per response token.
        teacher_logits_NV: the same rows, scored with the context in the prompt.
        strength: :math:`\lambda`, above 0.

    Returns:
        Scores before softmax, float32. A token that either model rules out (a logit of -inf) stays ruled out.

    Raises:
        ConfigError: ``strength`` is not positive or the two shapes differ.
    """
    if not strength > 0:
        raise ConfigError(f"the strength of the teacher must be above 0, got {strength}")
    _same_shape(base_logits_NV, teacher_logits_NV)
    base_NV, teacher_NV = (_log_probs(_tempered(z, 1.0)) for z in (base_logits_NV, teacher_logits_NV))
    mixed_NV = base_NV + strength * (teacher_NV - base_NV)
    ruled_out = (base_NV <= LOG_FLOOR_NATS) | (teacher_NV <= LOG_FLOOR_NATS)
    return mixed_NV.masked_fill(ruled_out, torch.finfo(mixed_NV.dtype).min)


def weighted_sum(loss_N: Float[Tensor, " N"], weights_N: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """The loss that ``backward`` is called on: the sum of the token losses times their weights.

    Args:
        loss_N: token losses in nats, with a graph.
        weights_N: the weight of each token, see
            :func:`agentopcd.distillation.weights.token_weights`. It is moved to the device and dtype of the loss.

    Returns:
        A scalar in nats. With ``N = 0`` it is 0. It still has a graph if the empty loss comes from student logits that
        have one (``logits[mask]`` with an all-false mask), so that every rank can run backward.

    Raises:
        ConfigError: there is not exactly one weight per token.
    """
    if loss_N.shape != weights_N.shape:
        raise ConfigError(
            f"{tuple(weights_N.shape)} weights for {tuple(loss_N.shape)} token losses; "
            "give one weight per response token"
        )
    return (loss_N * weights_N.to(loss_N)).sum()


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
        logits_NV: scores before softmax. Gradients flow into them if they require any.
        ids_N: the token of each row, for instance the sampled one.
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


def topk_overlap(
    student_logits_NV: Float[Tensor, "N V"],
    teacher_logits_NV: Float[Tensor, "N V"],
    k: int = 16,
) -> Float[Tensor, " N"]:
    """Share of the student's ``k`` likeliest tokens that are also among the teacher's, per row.

    Args:
        student_logits_NV: scores before softmax, one row per response token.
        teacher_logits_NV: the same rows, scored with the context in the prompt.
        k: size of both sets, at most the vocabulary.

    Returns:
        A fraction from 0 to 1 per row, float32, without gradient.

    Raises:
        ConfigError: ``k`` is not positive or the shapes differ.
    """
    _same_shape(student_logits_NV, teacher_logits_NV)
    mine_NK, theirs_NK = _support(student_logits_NV, k), _support(teacher_logits_NV, k)
    return (mine_NK[:, :, None] == theirs_NK[:, None, :]).any(-1).float().mean(-1)


def _prepare(student_NV: Tensor, teacher_NV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Check both logits, and return them in float32 and divided by the temperature, the teacher's without a graph."""
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
    """Logits in float32 (float64 stays float64), divided by the temperature."""
    if not temperature > 0:  # also refuses NaN
        raise ConfigError(f"temperature must be above 0, got {temperature}; use 1 to leave the logits as they are")
    if logits_NV.dtype != torch.float64:
        logits_NV = logits_NV.float()
    return logits_NV if temperature == 1 else logits_NV / temperature


def _one_of(name: str, got: str, known: Sequence[str]) -> None:
    if got not in known:
        raise ConfigError(f"unknown {name} {got!r}{did_you_mean(got, known)}")


def _support(logits_NV: Tensor, k: int) -> Tensor:
    """Ids ``[N, K]`` of the ``k`` likeliest tokens of each row, or of all tokens if there are fewer."""
    if k < 1:
        raise ConfigError(f"k must be 1 or more, got {k}")
    return logits_NV.detach().topk(min(k, logits_NV.shape[-1]), dim=-1).indices


def _log_probs(z_NV: Tensor) -> Tensor:
    return z_NV.log_softmax(-1).clamp(min=LOG_FLOOR_NATS)


def _union(mine_NK: Tensor, theirs_NK: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Both supports side by side ``[N, 2 K]``, and where a token stands for the second time."""
    mine_NV = torch.zeros(len(mine_NK), vocabulary, dtype=torch.bool, device=mine_NK.device)
    mine_NV.scatter_(-1, mine_NK, True)
    again_NK = mine_NV.gather(-1, theirs_NK)
    return torch.cat([mine_NK, theirs_NK], -1), torch.cat([torch.zeros_like(again_NK), again_NK], -1)


def _outcomes(z_NV: Tensor, support_NK: Tensor, again_NK: Tensor | None = None) -> Outcomes:
    """Log-probability of each support token ``[N, K]``, and of all tokens outside the support together ``[N]``.

    Args:
        again_NK: where a token of the support stands for the second time; there it has no probability.
    """
    lse_N = z_NV.logsumexp(-1)
    support_log_NK = z_NV.gather(-1, support_NK) - lse_N[:, None]
    # The lowest finite number stands in for -inf. With -inf, a row without remainder would give NaN gradients.
    rest_NV = z_NV.scatter(-1, support_NK, torch.finfo(z_NV.dtype).min)
    rest_log_N = rest_NV.logsumexp(-1) - lse_N
    if again_NK is not None:
        support_log_NK = support_log_NK.masked_fill(again_NK, LOG_FLOOR_NATS)
    return Outcomes(support_log_NK.clamp(min=LOG_FLOOR_NATS), rest_log_N.clamp(min=LOG_FLOOR_NATS))


def _coarse_kl(a: Outcomes, b: Outcomes, form: str) -> Tensor:
    """KL from ``a`` to ``b`` on the support, with the rest (``tail``), renormalised (``renorm``), or bare (``raw``).

    The value of ``stopgrad`` is that of ``raw``.
    """
    match form:
        case "tail":
            return _kl(a.all_NJ, b.all_NJ)
        case "renorm":
            return _kl(a.support_NK.log_softmax(-1), b.support_NK.log_softmax(-1))
        case "raw" | "stopgrad":
            return _kl(a.support_NK, b.support_NK)
    raise AssertionError(f"the form {form!r} has no formula")  # a new one must not pass for another


def _directed(p: Tensor, q: Tensor, direction: Direction) -> Tensor:
    """The divergence of log-probabilities ``p``, the student's, and ``q``, over the last axis."""
    if direction == "jensen-shannon":
        m = torch.logaddexp(p, q) - math.log(2)
        return (_kl(p, m) + _kl(q, m)) / 2
    return _kl(p, q) if direction == "reverse" else _kl(q, p)


def _kl(a: Tensor, b: Tensor) -> Tensor:
    """The sum over the last axis of ``exp(a) * (a - b)``, for log-probabilities ``a`` and ``b``."""
    return (a.exp() * (a - b)).sum(-1)


def _mass(log_NK: Tensor) -> Tensor:
    """The probability mass ``[N]`` of the tokens with these log-probabilities, detached."""
    return log_NK.detach().exp().sum(-1)
