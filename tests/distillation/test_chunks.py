"""The loss in chunks gives the value and the gradients of the whole."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from agentopcd.core.errors import ConfigError
from agentopcd.distillation import chunks, losses
from tests.distillation.divergences import without_type_checks


def head_and_rows(n: int, *, bias: bool, dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Linear, Tensor, Tensor]:
    """An output head, hidden states of the student that ask for gradients, and the teacher's logits."""
    generator = torch.Generator().manual_seed(n)
    head = torch.nn.Linear(8, 40, bias=bias)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    hidden_NH = torch.randn(n, 8, generator=generator).to(dtype).requires_grad_()
    return head, hidden_NH, 3 * torch.randn(n, 40, generator=generator)


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", get_args(losses.Form))
def test_chunks_give_the_value_and_the_gradients_of_the_whole(form: losses.Form, bias: bool, rows: int) -> None:
    head, hidden_NH, teacher_NV = head_and_rows(7, bias=bias)
    weights_N = torch.rand(7, generator=torch.Generator().manual_seed(1))

    def loss_of(student_RV: Tensor, where: slice) -> Tensor:
        return losses.divergence(student_RV, teacher_NV[where], form=form, k=5, temperature=0.7).loss_N

    inputs = [hidden_NH, *head.parameters()]
    whole = losses.weighted_sum(loss_of(head(hidden_NH), slice(None)), weights_N)
    expected = torch.autograd.grad(2 * whole, inputs)
    chunked = chunks.in_chunks(loss_of, hidden_NH, weights_N, head, rows=rows)
    found = torch.autograd.grad(2 * chunked, inputs)
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_chunks_leave_a_frozen_head_without_gradient_and_keep_the_graph_of_nothing() -> None:
    head, hidden_NH, teacher_NV = head_and_rows(3, bias=True)
    head.requires_grad_(False)

    def loss_of(student_RV: Tensor, where: slice) -> Tensor:
        return losses.full_kl(student_RV, teacher_NV[where])

    chunks.in_chunks(loss_of, hidden_NH, torch.ones(3), head).backward()
    assert head.weight.grad is None and hidden_NH.grad is not None and hidden_NH.grad.abs().max() > 0
    empty_NH = torch.empty(0, 8, requires_grad=True)
    head.requires_grad_(True)
    chunks.in_chunks(loss_of, empty_NH, torch.ones(0), head).backward()
    assert empty_NH.grad is not None and empty_NH.grad.shape == (0, 8)
    assert head.weight.grad is not None and head.weight.grad.abs().max() == 0


def test_chunks_go_backward_once_for_their_gradients_are_given_away() -> None:
    head, hidden_NH, teacher_NV = head_and_rows(3, bias=False)
    loss = chunks.in_chunks(lambda z, where: losses.full_kl(z, teacher_NV[where]), hidden_NH, torch.ones(3), head)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward once"):
        loss.backward()


def test_chunks_hold_few_logits_however_many_tokens_there_are() -> None:
    head, hidden_NH, teacher_NV = head_and_rows(50, bias=False, dtype=torch.bfloat16)
    seen = []

    def loss_of(student_RV: Tensor, where: slice) -> Tensor:
        seen.append((student_RV.shape[0], student_RV.dtype, where))
        return losses.full_kl(student_RV, teacher_NV[where])

    chunks.in_chunks(loss_of, hidden_NH, torch.ones(50), head, rows=16).backward()
    assert [n for n, *_ in seen] == [16, 16, 16, 2]
    assert {dtype for _, dtype, _ in seen} == {torch.float32}
    assert [where.start for *_, where in seen] == [0, 16, 32, 48]
    assert hidden_NH.grad is not None and hidden_NH.grad.dtype == torch.bfloat16


def test_chunks_refuse_what_does_not_fit() -> None:
    unchecked = without_type_checks(chunks)
    head, hidden_NH, _ = head_and_rows(3, bias=False)
    for weights_N, rows, what in ((torch.ones(2), 1, "one weight"), (torch.ones(3), -1, "rows")):
        with pytest.raises(ConfigError, match=what):
            unchecked.in_chunks(lambda logits, where: logits.sum(-1), hidden_NH, weights_N, head, rows=rows)
