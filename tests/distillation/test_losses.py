"""The divergences against values worked out by hand, then against laws."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agentopcd.core.errors import ConfigError
from agentopcd.distillation import chunks, losses
from agentopcd.distillation.losses import (
    Form,
    ForwardForm,
    Reduction,
    divergence,
    entropy_nats,
    full_kl,
    token_logprobs,
    token_weights,
    topk_overlap,
    weighted_sum,
)

full_reverse_kl, topk_reverse_kl = full_kl, divergence
full_forward_kl = partial(full_kl, direction="forward")
topk_forward_kl = partial(divergence, direction="forward")
FORMS: tuple[Form, ...] = ("full", "tail", "renorm", "raw", "stopgrad")
STUDENT = [2.0, 1.0, 0.0, -1.0, -2.0, -3.0]
TEACHER = [1.0, 2.0, 0.0, 0.0, -1.0, -4.0]


def row(values: list[float], *, grad: bool = False) -> Tensor:
    return torch.tensor([values], dtype=torch.float64, requires_grad=grad)


def near(got: Tensor, wanted: list[float] | float) -> None:
    """Equal to the six decimals the hand values are written with."""
    assert got.flatten().tolist() == pytest.approx(wanted if isinstance(wanted, list) else [wanted], abs=1.5e-6)


def grad_of(form: Form, student: list[float], teacher: list[float], k: int, temperature: float = 1.0) -> Tensor:
    z = row(student, grad=True)
    divergence(z, row(teacher), form=form, k=k, temperature=temperature).loss_N.sum().backward()
    assert z.grad is not None
    return z.grad


@pytest.fixture(scope="module")
def unchecked() -> ModuleType:
    """losses.py as a user imports it: without the type checks of the test run, which would refuse first."""
    return without_type_checks(losses)


def without_type_checks(checked: ModuleType) -> ModuleType:
    assert checked.__file__
    spec = importlib.util.spec_from_file_location("without_type_checks", checked.__file__)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- values worked out by hand


@pytest.mark.parametrize(
    ("k", "temperature", "form", "wanted"),
    [
        (2, 1.0, "full", 0.430701),
        (2, 1.0, "raw", 0.460395),
        (2, 1.0, "renorm", 0.462117),
        (2, 1.0, "tail", 0.412382),
        (2, 1.0, "stopgrad", 0.460395),
        (3, 1.0, "full", 0.430701),
        (3, 1.0, "raw", 0.466314),
        (3, 1.0, "renorm", 0.420512),
        (3, 1.0, "tail", 0.426005),
        (3, 1.0, "stopgrad", 0.466314),
        (2, 0.5, "full", 1.505905),
        (2, 0.5, "raw", 1.510411),
        (2, 0.5, "renorm", 1.523188),
        (2, 0.5, "tail", 1.499457),
        (2, 0.5, "stopgrad", 1.510411),
    ],
)
def test_reverse_values(k: int, temperature: float, form: Form, wanted: float) -> None:
    near(divergence(row(STUDENT), row(TEACHER), form=form, k=k, temperature=temperature).value_N, wanted)


@pytest.mark.parametrize(
    ("k", "temperature", "full", "raw", "tail"),
    [
        (2, 1.0, 0.412859, 0.318020, 0.386872),
        (3, 1.0, 0.412859, 0.392537, 0.402267),
        (2, 0.5, 1.492464, 1.457576, 1.477503),
    ],
)
def test_forward_values(k: int, temperature: float, full: float, raw: float, tail: float) -> None:
    student, teacher = row(STUDENT), row(TEACHER)
    near(full_forward_kl(student, teacher, temperature=temperature), full)
    near(topk_forward_kl(student, teacher, k=k, form="raw", temperature=temperature).value_N, raw)
    near(topk_forward_kl(student, teacher, k=k, form="tail", temperature=temperature).value_N, tail)


def test_forward_support_is_the_teachers() -> None:
    # Softmax of the teacher's two likeliest, logits 2 and 0 (ids 0, 2), over a student that prefers id 1.
    student, teacher = row([0.0, 3.0, 1.0]), row([2.0, -1.0, 0.0])
    q = [math.exp(2) / (math.exp(2) + 1), 1 / (math.exp(2) + 1)]
    p = [1 / (1 + math.e), math.e / (1 + math.e)]
    renorm = topk_forward_kl(student, teacher, k=2, form="renorm")
    near(renorm.value_N, sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)))
    near(renorm.student_mass_N, (1 + math.e) / (1 + math.e + math.exp(3)))
    near(renorm.teacher_mass_N, (math.exp(2) + 1) / (math.exp(2) + 1 + math.exp(-1)))


@pytest.mark.parametrize(("k", "temperature", "P", "Q"), [(2, 1.0, 0.866813, 0.809006), (3, 1.0, 0.952574, 0.889047)])
def test_masses(k: int, temperature: float, P: float, Q: float) -> None:
    got = topk_reverse_kl(row(STUDENT), row(TEACHER), k=k, temperature=temperature)
    near(got.student_mass_N, P)
    near(got.teacher_mass_N, Q)


def test_mass_is_tempered() -> None:
    near(topk_reverse_kl(row(STUDENT), row(TEACHER), k=2, temperature=0.5).student_mass_N, 0.981690)


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ("full", [0.404496, -0.317438, -0.031018, -0.042961, -0.015804, 0.002725]),
        ("tail", [0.416104, -0.313168, -0.066282, -0.024384, -0.008970, -0.003300]),
        ("raw", [0.470078, -0.293312, -0.113822, -0.041873, -0.015404, -0.005667]),
        ("stopgrad", [0.385679, -0.324361, -0.039484, -0.014525, -0.005344, -0.001966]),
    ],
)
def test_reverse_gradients(form: Form, wanted: list[float]) -> None:
    near(grad_of(form, STUDENT, TEACHER, k=2), wanted)


def test_gradient_at_the_teacher_is_zero_except_for_raw() -> None:
    for form in ("full", "tail", "renorm", "stopgrad"):
        near(grad_of(form, TEACHER, TEACHER, k=2), [0.0] * 6)
    near(
        grad_of("raw", TEACHER, TEACHER, k=2),
        [0.041556, 0.112960, -0.064754, -0.064754, -0.023822, -0.001186],
    )


def test_raw_gradient_is_stopgrad_plus_the_gradient_of_the_mass() -> None:
    z = row(STUDENT, grad=True)
    (mass_gradient,) = torch.autograd.grad(z.softmax(-1)[:, :2].sum(), z)
    difference = grad_of("raw", STUDENT, TEACHER, k=2) - grad_of("stopgrad", STUDENT, TEACHER, k=2)
    torch.testing.assert_close(difference, mass_gradient)


def test_forward_gradient_is_student_minus_teacher() -> None:
    z = row(STUDENT, grad=True)
    (got,) = torch.autograd.grad(full_forward_kl(z, row(TEACHER)).sum(), z)
    torch.testing.assert_close(got, z.detach().softmax(-1) - row(TEACHER).softmax(-1))


def test_entropy_and_logprobs_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, -math.inf, -math.inf]])
    near(entropy_nats(logits), [math.log(4), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))])
    near(token_logprobs(logits, torch.tensor([2, 1])), [-math.log(4), math.log(0.25)])
    # Halving the temperature squares the odds: 3 to 1 becomes 9 to 1.
    near(token_logprobs(logits, torch.tensor([2, 1]), 0.5), [-math.log(4), math.log(0.1)])
    near(entropy_nats(logits[1:], 0.5), -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)))


def test_overlap_by_hand() -> None:
    student = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]] * 3)
    teacher = torch.tensor(
        [[5.0, 4.0, 3.0, 2.0, 1.0, 0.0], [0.0, 5.0, 4.0, 3.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]
    )
    near(topk_overlap(student, teacher, k=3), [1.0, 2 / 3, 0.0])
    near(topk_overlap(student, teacher), [1.0, 1.0, 1.0])  # 16 of 6 tokens is all of them


# ---------------------------------------------------------------- laws

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


# ---------------------------------------------------------------- weights


def test_token_weights_by_hand() -> None:
    assert token_weights([2, 0, 8], "seq_mean") == pytest.approx([1 / 4, 0, 1 / 16])
    assert token_weights([2, 0, 8], "token_mean") == pytest.approx([1 / 10, 0, 1 / 10])
    for reduction in ("seq_mean", "token_mean"):
        assert token_weights([0, 0], reduction) == [0.0, 0.0]
        assert token_weights([], reduction) == []


@given(lengths=st.lists(st.integers(0, 50), min_size=1, max_size=12))
def test_the_weights_of_all_tokens_sum_to_one(lengths: list[int]) -> None:
    for reduction in ("seq_mean", "token_mean"):
        total = sum(n * w for n, w in zip(lengths, token_weights(lengths, reduction), strict=True))
        assert total == pytest.approx(1.0 if any(lengths) else 0.0)


def test_weighted_sum_by_hand() -> None:
    loss = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    got = weighted_sum(loss, torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64))
    assert got.item() == 2.0
    assert got.dtype == torch.float32
    got.backward()
    assert loss.grad is not None
    assert loss.grad.tolist() == [0.5, 0.25, 0.25]


# ---------------------------------------------------------------- refusals


def test_misaligned_shapes_are_refused(unchecked: ModuleType) -> None:
    student = torch.zeros(3, 6)
    for teacher in (torch.zeros(2, 6), torch.zeros(3, 7), torch.zeros(1, 6), torch.zeros(6)):
        for function in (
            unchecked.full_kl,
            partial(unchecked.full_kl, direction="forward"),
            unchecked.divergence,
            partial(unchecked.divergence, direction="forward"),
            unchecked.topk_overlap,
        ):
            with pytest.raises(ConfigError, match="rows that predict the same tokens"):
                function(student, teacher)
    with pytest.raises(ConfigError, match="one token per row"):
        unchecked.token_logprobs(student, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ConfigError, match="one weight per response token"):
        unchecked.weighted_sum(torch.zeros(3), torch.zeros(1))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_must_be_positive(temperature: float) -> None:
    logits = torch.zeros(1, 6)
    calls: list[Callable[[], object]] = [
        lambda: entropy_nats(logits, temperature),
        lambda: token_logprobs(logits, torch.zeros(1, dtype=torch.long), temperature),
        lambda: full_forward_kl(logits, logits, temperature=temperature),
        lambda: topk_forward_kl(logits, logits, temperature=temperature),
        *(partial(divergence, logits, logits, form=form, temperature=temperature) for form in FORMS),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="temperature must be above 0"):
            call()


def test_unknown_names_and_empty_supports_are_refused(unchecked: ModuleType) -> None:
    logits = torch.zeros(1, 6)
    with pytest.raises(ConfigError, match="unknown form 'tial'; did you mean 'tail'"):
        unchecked.divergence(logits, logits, form="tial")
    with pytest.raises(ConfigError, match="unknown form 'stopgrad'"):
        unchecked.divergence(logits, logits, direction="forward", form="stopgrad")
    with pytest.raises(ConfigError, match="unknown reduction 'mean'"):
        unchecked.token_weights([1], "mean")
    with pytest.raises(ConfigError, match="cannot have -1 tokens"):
        unchecked.token_weights([3, -1], "seq_mean")
    with pytest.raises(ConfigError, match="k must be 1 or more"):
        unchecked.divergence(logits, logits, k=0)


def test_the_type_checks_of_the_test_run_are_on() -> None:
    with pytest.raises(Exception, match=r"[Tt]ype-check"):
        full_reverse_kl(torch.zeros(3, 6), torch.zeros(2, 6))


# -- in chunks ---------------------------------------------------------------------------------------------


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


def test_importance_weights_are_ratios_up_to_the_cap() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05], [0.2, 0.4, 0.4]]))
    ids = torch.tensor([0, 0, 0])
    sampled = torch.log(torch.tensor([0.25, 0.1, 0.4]))
    found = losses.importance_weights(logits.requires_grad_(), ids, sampled, cap=3.0)
    torch.testing.assert_close(found, torch.tensor([2.0, 3.0, 0.5]))
    assert not found.requires_grad
    tempered = losses.importance_weights(logits, ids, sampled, cap=100.0, temperature=0.5)
    torch.testing.assert_close(tempered[0], torch.tensor(0.25 / 0.375 / 0.25))
    with pytest.raises(ConfigError, match="cap of importance weights must be above 0"):
        losses.importance_weights(logits, ids, sampled, cap=0.0)


def test_importance_weights_make_another_policys_tokens_count_as_ones_own() -> None:
    own = torch.tensor([0.7, 0.2, 0.1])
    engine = torch.tensor([0.5, 0.3, 0.2])
    score = torch.tensor([1.0, -2.0, 5.0])
    weights = losses.importance_weights(own.log().expand(3, 3), torch.arange(3), engine.log(), cap=10.0)
    assert float((engine * weights * score).sum()) == pytest.approx(float((own * score).sum()), abs=1e-5)
