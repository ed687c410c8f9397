"""The divergences against laws: signs, limits, gradients, precision."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agentopcd.distillation import losses
from agentopcd.distillation.losses import (
    Form,
    ForwardForm,
    divergence,
    entropy_nats,
    token_logprobs,
    weighted_sum,
)
from agentopcd.distillation.weights import Reduction, token_weights
from tests.distillation.divergences import (
    FORMS,
    STUDENT,
    TEACHER,
    full_forward_kl,
    full_reverse_kl,
    near,
    row,
    topk_forward_kl,
    topk_reverse_kl,
)

logit_rows = st.integers(2, 9).flatmap(
    lambda v: st.tuples(*(st.lists(st.floats(-8, 8), min_size=v, max_size=v) for _ in range(2)))
)


@given(rows=logit_rows, k=st.integers(1, 10), temperature=st.sampled_from([0.5, 1.0, 1.7]))
@settings(max_examples=60)
def test_divergences_are_not_negative_and_tail_is_below_full(
    rows: tuple[list[float], list[float]], k: int, temperature: float
) -> None:
    student, teacher = row(rows[0]), row(rows[1])
    value = {form: divergence(student, teacher, form=form, k=k, temperature=temperature).value_N for form in FORMS}
    for form in ("full", "tail", "renorm"):
        assert value[form].item() >= -1e-12, form
    assert value["tail"].item() <= value["full"].item() + 1e-12
    assert topk_forward_kl(student, teacher, k=k, temperature=temperature).value_N.item() <= (
        full_forward_kl(student, teacher, temperature=temperature).item() + 1e-12
    )


@given(rows=logit_rows, k=st.integers(1, 10))
@settings(max_examples=60)
def test_raw_and_tail_decompose(rows: tuple[list[float], list[float]], k: int) -> None:
    """raw = P N + P log(P/Q) and tail = raw + (1-P) log((1-P)/(1-Q)), N the renormalised value."""
    student, teacher = row(rows[0]), row(rows[1])
    raw, P, Q = (topk_reverse_kl(student, teacher, k=k, form="raw")[i].item() for i in (1, 2, 3))
    inner = topk_reverse_kl(student, teacher, k=k, form="renorm").value_N.item()
    tail = topk_reverse_kl(student, teacher, k=k, form="tail").value_N.item()
    assert raw == pytest.approx(P * inner + P * math.log(P / Q), abs=1e-9)
    if k < len(rows[0]) and min(1 - P, 1 - Q) > 1e-6:
        assert tail == pytest.approx(raw + (1 - P) * math.log((1 - P) / (1 - Q)), abs=1e-7)


@given(values=st.lists(st.floats(-8, 8), min_size=2, max_size=9), shift=st.floats(-20, 20), k=st.integers(1, 10))
def test_zero_at_the_teacher_and_logits_may_be_shifted(values: list[float], shift: float, k: int) -> None:
    student, teacher = row(values), row([v + shift for v in values])
    for form in FORMS:
        assert divergence(student, teacher, form=form, k=k).value_N.item() == pytest.approx(0, abs=1e-10)
    for form in get_args(ForwardForm):
        assert topk_forward_kl(student, teacher, k=k, form=form).value_N.item() == pytest.approx(0, abs=1e-10)
    assert full_forward_kl(student, teacher).item() == pytest.approx(0, abs=1e-10)


def test_support_is_the_students_own() -> None:
    # The student is sure of id 0; the teacher's top-1 is id 1. raw on S = {0} is p_0 log(p_0 / q_0).
    got = topk_reverse_kl(row([3.0, 0.0, 0.0]), row([0.0, 3.0, 0.0]), k=1, form="raw")
    p, q = math.exp(3) / (math.exp(3) + 2), 1 / (math.exp(3) + 2)
    near(got.value_N, p * math.log(p / q))
    near(got.student_mass_N, p)
    near(got.teacher_mass_N, q)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k_of_the_whole_vocabulary_is_the_full_divergence(form: Form, dtype: torch.dtype) -> None:
    student = torch.tensor([STUDENT], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([TEACHER], dtype=dtype)
    wanted = full_reverse_kl(student, teacher)
    (wanted_grad,) = torch.autograd.grad(wanted.sum(), student)
    for k in (6, 256):
        got = divergence(student, teacher, form=form, k=k)
        torch.testing.assert_close(got.value_N, wanted.detach())
        torch.testing.assert_close(torch.autograd.grad(got.loss_N.sum(), student)[0], wanted_grad, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(got.student_mass_N, torch.ones(1, dtype=dtype))
        torch.testing.assert_close(got.teacher_mass_N, torch.ones(1, dtype=dtype))


@pytest.mark.parametrize("form", FORMS)
def test_minus_infinity_and_huge_logits_stay_finite(form: Form) -> None:
    inf = math.inf
    student = torch.tensor(
        [[1.0, 0.0, -inf, -inf], [900.0, 0.0, -900.0, -900.0], [80.0, 0.0, 0.0, 0.0]], requires_grad=True
    )
    teacher = torch.tensor([[0.0, 1.0, -inf, -inf], [900.0, 1.0, -900.0, -900.0], [80.0, 0.0, 0.0, 0.0]])
    for k in (1, 2, 3, 4):
        got = divergence(student, teacher, form=form, k=k)
        (gradient,) = torch.autograd.grad(got.loss_N.sum(), student)
        assert got.loss_N.isfinite().all()
        assert gradient.isfinite().all()


def test_what_the_teacher_rules_out_costs_at_most_the_floor() -> None:
    student, teacher = row([1.0, 0.0, -1.0], grad=True), row([1.0, 0.0, -math.inf])
    full, tail = full_reverse_kl(student, teacher), topk_reverse_kl(student, teacher, k=2).loss_N
    torch.testing.assert_close(tail, full)  # one token outside the support: nothing is lumped together
    p = math.exp(-1) / (math.exp(1) + 1 + math.exp(-1))
    assert full.item() == pytest.approx(-p * losses.LOG_FLOOR_NATS, rel=1e-3)


def test_tail_does_not_cancel_when_almost_nothing_is_outside() -> None:
    # 1 - P is about 4e-10, far below float32's resolution at 1; the true value is known to six digits.
    student, teacher = torch.tensor([[22.0, 0.0, -1.0]]), torch.tensor([[2.0, 0.0, -1.0]])
    got = topk_reverse_kl(student, teacher, k=1, form="tail").value_N
    assert got.item() == pytest.approx(full_reverse_kl(student.double(), teacher.double()).item(), rel=1e-6)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(topk_reverse_kl(student, teacher, k=1, form="tail").loss_N.sum(), student)
    student64 = student.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(
        topk_reverse_kl(student64, teacher.double(), k=1, form="tail").loss_N.sum(), student64
    )
    torch.testing.assert_close(gradient.double()[0, 1:], wanted[0, 1:], rtol=1e-4, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_splitting_a_step_into_micro_batches_changes_nothing(form: Form) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(11, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = [4, 0, 1, 6]
    for reduction in get_args(Reduction):
        weights = torch.tensor(token_weights(lengths, reduction), dtype=torch.float64)
        weights_N = weights.repeat_interleave(torch.tensor(lengths))

        def total(pieces: list[slice], weights_N: Tensor = weights_N) -> tuple[Tensor, Tensor]:
            z = student.clone().requires_grad_()
            losses_ = [weighted_sum(divergence(z[s], teacher[s], form=form, k=5).loss_N, weights_N[s]) for s in pieces]
            for loss in losses_:
                loss.backward()
            assert z.grad is not None
            return torch.stack(losses_).sum().detach(), z.grad

        whole = total([slice(0, 11)])
        for cuts in ([slice(0, 4), slice(4, 11)], [slice(0, 5), slice(5, 5), slice(5, 6), slice(6, 11)]):
            torch.testing.assert_close(total(cuts), whole)


@pytest.mark.parametrize("form", FORMS)
def test_nan_outside_the_selection_leaks_nowhere(form: Form) -> None:
    logits = torch.tensor([STUDENT, [math.nan] * 6, STUDENT], requires_grad=True)
    teacher = torch.tensor([TEACHER, [math.nan] * 6, TEACHER])
    mask = torch.tensor([True, False, True])
    got = divergence(logits[mask], teacher[mask], form=form, k=2)
    loss = weighted_sum(got.loss_N, torch.full((2,), 0.5))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[1] == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_selection_keeps_a_graph(form: Form) -> None:
    logits = torch.randn(3, 6, requires_grad=True)
    mask = torch.zeros(3, dtype=torch.bool)
    got = divergence(logits[mask], torch.randn(3, 6)[mask], form=form, k=2)
    loss = weighted_sum(got.loss_N, torch.zeros(0))
    assert loss.item() == 0
    assert loss.requires_grad
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_the_student_only(form: Form) -> None:
    student, teacher = row(STUDENT, grad=True), row(TEACHER, grad=True)
    got = divergence(student, teacher, form=form, k=2)
    got.loss_N.sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    for name in ("value_N", "student_mass_N", "teacher_mass_N"):
        assert not getattr(got, name).requires_grad, name


def test_forward_gradients_reach_the_student_only() -> None:
    student, teacher = row(STUDENT, grad=True), row(TEACHER, grad=True)
    forms = get_args(ForwardForm)
    results = [topk_forward_kl(student, teacher, k=2, form=form).loss_N for form in forms]
    (torch.stack(results).sum() + full_forward_kl(student, teacher).sum()).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("form", ["full", "tail", "renorm", "raw"])
def test_gradcheck(form: Form) -> None:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: divergence(z, teacher, form=form, k=3, temperature=0.7).loss_N, (student,)
    )


@pytest.mark.parametrize("form", get_args(ForwardForm))
def test_gradcheck_forward(form: ForwardForm) -> None:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: topk_forward_kl(z, teacher, k=3, form=form).loss_N, (student,))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(form: Form, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    student, teacher = (3 * torch.randn(5, 40, generator=generator).to(dtype) for _ in range(2))
    for temperature in (1.0, 0.7):
        got = divergence(student, teacher, form=form, k=8, temperature=temperature)
        wanted = divergence(student.double(), teacher.double(), form=form, k=8, temperature=temperature)
        assert got.loss_N.dtype == got.value_N.dtype == got.student_mass_N.dtype == torch.float32
        torch.testing.assert_close(got.value_N.double(), wanted.value_N, rtol=2e-5, atol=1e-6)
    assert wanted.value_N.dtype == torch.float64
    assert (
        entropy_nats(student).dtype == token_logprobs(student, torch.zeros(5, dtype=torch.long)).dtype == torch.float32
    )


def test_full_forward_is_the_mirror_of_full_reverse() -> None:
    student, teacher = row(STUDENT), row(TEACHER)
    torch.testing.assert_close(full_forward_kl(student, teacher), full_reverse_kl(teacher, student))


def test_one_step_down_the_gradient_lowers_the_divergence() -> None:
    for form in ("full", "tail", "renorm"):
        z = row(STUDENT, grad=True)
        before = divergence(z, row(TEACHER), form=form, k=3)
        before.loss_N.sum().backward()
        assert z.grad is not None
        after = divergence((z - 0.1 * z.grad).detach(), row(TEACHER), form=form, k=3)
        assert after.value_N.item() < before.value_N.item(), form
