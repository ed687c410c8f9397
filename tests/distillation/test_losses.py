"""The losses against values worked out by hand, their weights, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import get_args, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agentopcd.core.config import TrainConfig
from agentopcd.core.errors import ConfigError
from agentopcd.distillation import losses, weights
from agentopcd.distillation.losses import (
    Form,
    divergence,
    entropy_nats,
    token_logprobs,
    topk_overlap,
    weighted_sum,
)
from agentopcd.distillation.weights import importance_weights, token_weights
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
    without_type_checks,
)


def grad_of(form: Form, student: list[float], teacher: list[float], k: int, temperature: float = 1.0) -> Tensor:
    z = row(student, grad=True)
    divergence(z, row(teacher), form=form, k=k, temperature=temperature).loss_N.sum().backward()
    assert z.grad is not None
    return z.grad


@pytest.fixture(scope="module")
def unchecked() -> ModuleType:
    """losses.py as a user imports it: without the type checks of the test run, which would refuse first."""
    return without_type_checks(losses)


# ---------------------------------------------------------------- divergences


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


def test_importance_weights_are_ratios_up_to_the_cap() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05], [0.2, 0.4, 0.4]]))
    ids = torch.tensor([0, 0, 0])
    sampled = torch.log(torch.tensor([0.25, 0.1, 0.4]))
    found = importance_weights(logits.requires_grad_(), ids, sampled, cap=3.0)
    torch.testing.assert_close(found, torch.tensor([2.0, 3.0, 0.5]))
    assert not found.requires_grad
    tempered = importance_weights(logits, ids, sampled, cap=100.0, temperature=0.5)
    torch.testing.assert_close(tempered[0], torch.tensor(0.25 / 0.375 / 0.25))
    with pytest.raises(ConfigError, match="cap of importance weights must be above 0"):
        importance_weights(logits, ids, sampled, cap=0.0)


def test_importance_weights_make_another_policys_tokens_count_as_ones_own() -> None:
    own = torch.tensor([0.7, 0.2, 0.1])
    engine = torch.tensor([0.5, 0.3, 0.2])
    score = torch.tensor([1.0, -2.0, 5.0])
    w = importance_weights(own.log().expand(3, 3), torch.arange(3), engine.log(), cap=10.0)
    assert float((engine * w * score).sum()) == pytest.approx(float((own * score).sum()), abs=1e-5)


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


def test_settings_offer_the_forms_that_have_a_formula() -> None:
    (offered,) = (get_args(hint) for name, hint in get_type_hints(TrainConfig).items() if name == "divergence")
    assert set(offered) == set(get_args(Form)) == set(FORMS)


def test_unknown_names_and_empty_supports_are_refused(unchecked: ModuleType) -> None:
    unchecked_weights = without_type_checks(weights)
    logits = torch.zeros(1, 6)
    with pytest.raises(ConfigError, match="unknown form 'tial'; did you mean 'tail'"):
        unchecked.divergence(logits, logits, form="tial")
    with pytest.raises(ConfigError, match="unknown form 'stopgrad'"):
        unchecked.divergence(logits, logits, direction="forward", form="stopgrad")
    with pytest.raises(ConfigError, match="unknown reduction 'mean'"):
        unchecked_weights.token_weights([1], "mean")
    with pytest.raises(ConfigError, match="cannot have -1 tokens"):
        unchecked_weights.token_weights([3, -1], "seq_mean")
    with pytest.raises(ConfigError, match="k must be 1 or more"):
        unchecked.divergence(logits, logits, k=0)


def test_the_type_checks_of_the_test_run_are_on() -> None:
    with pytest.raises(Exception, match=r"[Tt]ype-check"):
        full_reverse_kl(torch.zeros(3, 6), torch.zeros(2, 6))
