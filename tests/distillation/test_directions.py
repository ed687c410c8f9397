"""Forward and Jensen-Shannon on the student's answers, the teacher's strength, and what weighs tokens and steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.config import training as settings
from agentopcd.core.errors import ConfigError, TrainingError
from agentopcd.core.stats import Mean, Rate
from agentopcd.distillation import losses
from agentopcd.distillation.checkpoint import Progress
from agentopcd.distillation.learner import scheduled
from agentopcd.distillation.losses import divergence, full_kl, strengthened
from agentopcd.distillation.weights import cap_weights, token_weights
from tests import tiny
from tests.distillation.divergences import STUDENT, TEACHER, near, row
from tests.training import Killed, train

ROWS = st.integers(2, 9).flatmap(lambda n: st.tuples(*[st.lists(st.floats(-8, 8), min_size=n, max_size=n)] * 2))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("model"), tie=False, hearing=4.0)


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def js(p: list[float], q: list[float]) -> float:
    half = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    kl = [sum(a * math.log(a / m) for a, m in zip(one, half, strict=True)) for one in (p, q)]
    return sum(kl) / 2


# ---------------------------------------------------------------- Jensen-Shannon


def test_jensen_shannon_is_half_the_kls_to_the_mean() -> None:
    near(full_kl(row(STUDENT), row(TEACHER), direction="jensen-shannon"), js(softmax(STUDENT), softmax(TEACHER)))


def test_the_support_is_the_union_of_both() -> None:
    # The student's likeliest token is 0, the teacher's 1: outcomes 0, 1 and the rest.
    p, q = softmax(STUDENT), softmax(TEACHER)
    got = divergence(row(STUDENT), row(TEACHER), direction="jensen-shannon", k=1)
    near(got.value_N, js([p[0], p[1], sum(p[2:])], [q[0], q[1], sum(q[2:])]))
    near(got.student_mass_N, p[0] + p[1])
    near(got.teacher_mass_N, q[0] + q[1])


def test_a_token_of_both_supports_counts_once() -> None:
    # Both top-2 are {0, 1}, so the union has two tokens and not four.
    p, q = softmax(STUDENT), softmax(TEACHER)
    got = divergence(row(STUDENT), row(TEACHER), direction="jensen-shannon", k=2)
    near(got.value_N, js([p[0], p[1], sum(p[2:])], [q[0], q[1], sum(q[2:])]))
    near(got.student_mass_N, p[0] + p[1])


@given(rows=ROWS, k=st.integers(1, 10))
def test_jensen_shannon_laws(rows: tuple[list[float], list[float]], k: int) -> None:
    """Symmetric, between 0 and log 2, never above the full one, and equal to it with the whole vocabulary."""
    student, teacher = row(rows[0]), row(rows[1])
    got = divergence(student, teacher, direction="jensen-shannon", k=k).value_N.item()
    other = divergence(teacher, student, direction="jensen-shannon", k=k).value_N.item()
    full = full_kl(student, teacher, direction="jensen-shannon").item()
    assert got == pytest.approx(other, abs=1e-9)
    assert -1e-12 <= got <= full + 1e-9 and full <= math.log(2) + 1e-9
    if k >= len(rows[0]):
        assert got == pytest.approx(full, abs=1e-9)


@pytest.mark.parametrize("form", ["full", "tail"])
def test_jensen_shannon_gradients(form: losses.SymmetricForm) -> None:
    student = row(STUDENT, grad=True)
    teacher = row(TEACHER)
    assert torch.autograd.gradcheck(
        lambda z: divergence(z, teacher, direction="jensen-shannon", form=form, k=2).loss_N, (student,)
    )
    at_teacher = row(TEACHER, grad=True)
    divergence(at_teacher, teacher, direction="jensen-shannon", form=form, k=2).loss_N.sum().backward()
    assert at_teacher.grad is not None
    near(at_teacher.grad, [0.0] * 6)


def test_ruled_out_tokens_stay_finite() -> None:
    student = torch.tensor([[1.0, 0.0, -math.inf], [900.0, 0.0, -900.0]], requires_grad=True)
    teacher = torch.tensor([[-math.inf, 0.0, 1.0], [-900.0, 0.0, 900.0]])
    got = divergence(student, teacher, direction="jensen-shannon", k=1)
    got.loss_N.sum().backward()
    assert student.grad is not None
    assert torch.isfinite(got.loss_N).all() and torch.isfinite(student.grad).all()
    near(got.value_N[1:], math.log(2))


@pytest.mark.parametrize("form", ["renorm", "raw", "stopgrad"])
def test_other_forms_are_refused(form: losses.Form) -> None:
    with pytest.raises(ConfigError, match=f"unknown form '{form}'"):
        divergence(row(STUDENT), row(TEACHER), direction="jensen-shannon", form=form)


# ---------------------------------------------------------------- the strength of the teacher


def test_strength_moves_along_the_log_probabilities() -> None:
    base, shown = row([1.0, 0.0, -1.0]), row([0.0, 2.0, 0.0])
    near(strengthened(base, shown, 1.0).softmax(-1), softmax([0.0, 2.0, 0.0]))
    near(strengthened(base, shown, 0.5).softmax(-1), softmax([0.5, 1.0, -0.5]))
    near(strengthened(base, shown, 2.0).softmax(-1), softmax([-1.0, 4.0, 1.0]))


def test_what_a_model_rules_out_stays_ruled_out() -> None:
    base, shown = torch.tensor([[0.0, -math.inf, 1.0]]), torch.tensor([[0.0, 1.0, -math.inf]])
    near(strengthened(base, shown, 0.5).softmax(-1), [1.0, 0.0, 0.0])
    near(strengthened(base, shown, 2.0).softmax(-1), [1.0, 0.0, 0.0])
    with pytest.raises(ConfigError, match="strength of the teacher must be above 0"):
        strengthened(base, shown, 0.0)


def test_a_weak_context_teaches_less(model_dir: Path, tmp_path: Path) -> None:
    """With next to no strength, the target is the student itself, so there is next to nothing to learn."""
    falls = {}
    for strength in (0.0, 1.0, 0.01, 2.0):
        done = train(model_dir, tmp_path / str(strength), teacher_strength=strength, steps=1, select_every=1)
        falls[strength] = done.steps[0]["loss/value_nats"]
    assert falls[1.0] == falls[0.0]
    assert falls[0.01] < 0.01 * falls[1.0] < falls[1.0] < falls[2.0]


def test_the_distance_is_that_to_the_teacher_that_teaches(model_dir: Path, tmp_path: Path) -> None:
    """Before training the student is the teacher without the context, so a weak context is hardly any distance."""
    far = {}
    for strength in (0.0, 1.0, 0.01):
        how: dict[str, Any] = {"teacher_strength": strength, "steps": 1, "select_every": 1, "by": "distance"}
        far[strength] = train(model_dir, tmp_path / str(strength), **how).result.select[0].rate
    assert far[1.0] == far[0.0]
    assert far[0.01] < 0.01 * far[1.0]


# ---------------------------------------------------------------- weights and steps


def test_a_capped_token_pulls_as_if_it_were_at_the_cap() -> None:
    assert cap_weights(torch.tensor([0.5, 2.0, 8.0, -3.0]), 2.0).tolist() == [1.0, 1.0, 0.25, 1.0]
    with pytest.raises(ConfigError, match="cap of a token's loss must be above 0"):
        cap_weights(torch.tensor([1.0]), 0.0)


def test_the_share_of_capped_tokens_is_logged(model_dir: Path, tmp_path: Path) -> None:
    free = train(model_dir, tmp_path / "free", steps=1, select_every=1)
    assert "loss/capped_share" not in free.steps[0]
    capped = train(model_dir, tmp_path / "capped", token_cap=1e-6, steps=1, select_every=1)
    assert capped.steps[0]["loss/capped_share"] > 0.9
    assert capped.steps[0]["train/grad_norm"] < 0.01 * free.steps[0]["train/grad_norm"]
    assert capped.steps[0]["loss/value_nats"] == free.steps[0]["loss/value_nats"], "the divergence itself is reported"


def test_later_turns_may_weigh_less() -> None:
    assert token_weights([2, 4, 0], "seq_mean", turns=[0, 1, 2], fade=0.5) == pytest.approx([1 / 3, 1 / 12, 0])
    assert token_weights([2, 4, 0], "token_mean", turns=[0, 1, 2], fade=0.5) == pytest.approx([1 / 4, 1 / 8, 0])
    assert token_weights([2, 4], "seq_mean", turns=[0, 1]) == [1 / 4, 1 / 8]
    assert token_weights([3, 4], "seq_mean", turns=[200, 201], fade=0.99) == pytest.approx([1 / 3.03, 0.01 / 4.04])
    late = token_weights([0, 3, 4], "token_mean", turns=[0, 200, 201], fade=0.99)
    assert late == pytest.approx([0, 1 / 3.04, 0.01 / 3.04]), "an empty reply does not count"
    with pytest.raises(ConfigError, match="fade of later turns"):
        token_weights([1], "seq_mean", turns=[0], fade=1.0)


def test_the_rate_rises_and_falls() -> None:
    def rates(**given: object) -> list[float]:
        config = ConsolidateConfig(env="math", steps=5, **given)  # type: ignore[arg-type]
        return [scheduled(step, config) for step in range(1, 6)]

    assert rates() == [1.0] * 5
    assert rates(warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(decay="linear") == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert rates(decay="cosine")[0] == 1.0 and 0 < rates(decay="cosine")[-1] < 0.2
    assert rates(decay="linear", warmup_steps=2) == pytest.approx([0.5, 1.0, 0.75, 0.5, 0.25])


def test_the_rate_of_each_step_is_the_optimizers(model_dir: Path, tmp_path: Path) -> None:
    done = train(model_dir, tmp_path, decay="linear")
    assert [one["train/learning_rate"] for one in done.steps] == pytest.approx([3e-4, 2.25e-4, 1.5e-4, 0.75e-4])


def test_training_stops_when_nothing_gets_better(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentopcd import consolidate as loop

    scores = iter([Rate(1, 3), Rate(2, 3), Rate(1, 3), Rate(2, 3), Rate(3, 3)])
    monkeypatch.setattr(loop, "score_student", lambda *_: next(scores))
    done = train(model_dir, tmp_path, steps=8, select_every=2, patience=2)
    assert [one["step"] for one in done.steps] == [1, 2, 3, 4, 5, 6] and done.result.best_step == 2
    assert done.result.steps == 6
    assert "stopped before step 7: 2 evaluations on select tasks brought nothing better" in done.lines


def test_a_run_that_was_killed_after_it_stopped_early_ends_the_same(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentopcd import consolidate as loop

    how: dict[str, Any] = {"steps": 6, "select_every": 1, "patience": 1}
    results = []
    for name in ("straight", "killed"):
        scores = iter([Rate(1, 3), Rate(2, 3), Rate(1, 3)])
        monkeypatch.setattr(loop, "score_student", lambda *_, scores=scores: next(scores))
        if name == "killed":
            stop = next(n for n, line in enumerate(results[0].lines, 1) if line.startswith("stopped before step 3"))
            with pytest.raises(Killed):
                train(model_dir, tmp_path / name, kill_at=stop, **how)
        results.append(train(model_dir, tmp_path / name, **how))
    assert results[0].weights == results[1].weights and [one["step"] for one in results[1].steps] == [1, 2]


def test_stopping_early_makes_no_student_of_the_base(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentopcd import consolidate as loop

    monkeypatch.setattr(loop, "score_student", lambda *_: Rate(1, 3))
    how: dict[str, Any] = {
        "steps": 6,
        "select_every": 1,
        "patience": 1,
        "max_tokens": 1,
        "cut_replies": "drop",
        "ends": (tiny.END,),
    }
    with pytest.raises(TrainingError, match="2 of 2 steps were skipped"):  # every reply is cut, so nothing is learned
        train(model_dir, tmp_path, **how)


def test_waiting_counts_from_the_best() -> None:
    progress = Progress(step=6, best_step=2, select={0: Rate(3, 3), 2: Rate(2, 3), 4: Rate(1, 3), 6: Rate(2, 3)})
    assert progress.waited() == 2


@pytest.mark.parametrize(("nothing", "some"), [(Rate(0, 0), Rate(1, 4)), (Mean(0, 0, 0, 0), Mean(-0.3, -1, 1, 4))])
def test_a_checkpoint_without_a_finished_game_is_never_the_better(nothing: Rate | Mean, some: Rate | Mean) -> None:
    progress = Progress(best_step=2, select={2: nothing, 4: some, 6: nothing})
    assert progress.better(4) and not progress.better(6)
    progress.best_step = 4
    assert not progress.better(6) and not progress.better(6, lowest=True)


# ---------------------------------------------------------------- settings


def test_settings_and_formulas_have_the_same_forms() -> None:
    assert settings.FORMS == losses.FORMS


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"direction": "jensen-shannon", "divergence": "raw"}, "--direction jensen-shannon has no form 'raw'; its"),
        ({"direction": "forward", "divergence": "stopgrad"}, "--direction forward has no form 'stopgrad'"),
        ({"direction": "forward", "method": "seqkd"}, "--direction is about the student's own answers"),
        ({"teacher_strength": 2.0, "teacher": "pocket"}, "--teacher-strength compares the teacher with itself"),
        ({"teacher_strength": -1.0}, "teacher_strength"),
        ({"token_cap": -1.0}, "token_cap"),
        ({"turn_fade": 1.0}, "turn_fade is 1.0"),
        ({"warmup_steps": 30}, "warmup_steps is 30, more than the 24 steps"),
        ({"patience": -1}, "patience"),
        ({"patience": 2}, "could stop after step 24 at the earliest, and has 24"),
        ({"decay": "linear", "warmup_steps": 24}, "warmup_steps is 24 of 24 steps, which leaves none for --decay"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ConsolidateConfig(env="math", **given)  # type: ignore[arg-type]


def test_settings_that_act_once_are_taken() -> None:
    ConsolidateConfig(env="math", patience=1)  # may stop after step 16 of 24
    ConsolidateConfig(env="math", decay="cosine", warmup_steps=23)
    ConsolidateConfig(env="math", warmup_steps=24)


@pytest.mark.parametrize("direction", ["forward", "jensen-shannon"])
def test_a_run_learns_by_another_direction_and_resumes_bit_equal(
    direction: str, model_dir: Path, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"direction": direction, "decay": "cosine", "teacher_strength": 1.5}
    how |= {"steps": 6, "patience": 1}
    straight = train(model_dir, tmp_path / "straight", **how)
    with pytest.raises(Killed):
        train(model_dir, tmp_path / "killed", kill_at=6, **how)
    again = train(model_dir, tmp_path / "killed", **how)
    assert any(line.startswith("resumed after step") for line in again.lines)
    assert again.weights == straight.weights
    name = {"forward": "forward_kl", "jensen-shannon": "js"}[direction]
    assert {one["loss/name"] for one in straight.steps} == {f"{name}_topk256_tail"}
    assert straight.run.records()[0]["loss/definition"]["direction"] == direction
