"""What a step logs, and figures that match hand counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests import tiny
from tests.training import LESSONS, Trained, play_some, train


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("untied") / "model", tie=False, hearing=4.0)


@pytest.fixture(scope="module")
def whole(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """An uninterrupted run; read it, do not change it."""
    return train(model_dir, tmp_path_factory.mktemp("whole"))


LOGGED = """
    loss/name loss/value_nats loss/kl_full_sampled_nats loss/negative_share
    kl/student_mass_mean kl/student_mass_p05 kl/teacher_mass_mean kl/teacher_mass_p05 kl/student_mass_outside_topk
    kl/top16_overlap kl/student_entropy_nats kl/teacher_entropy_nats
    train/grad_norm train/clipped train/skipped train/skipped_total train/learning_rate
    time/rollout_s time/teacher_s time/update_s time/step_s
    rollout/episodes rollout/env_errors rollout/success rollout/turns rollout/samples rollout/dropped
    rollout/response_tokens_mean rollout/response_tokens_p95 rollout/clipped_share rollout/repetition_mean
    rollout/looping_share rollout/empty_share rollout/invalid_share
    position/token0_nats position/tokens1_7_nats
    turn/0/nats turn/0/student_mass turn/0/tokens
    engine/logprob_gap_mean_nats engine/logprob_gap_max_nats engine/policy_step
    teacher/context_tokens
"""


def test_every_step_logs_what_the_method_asks_for(whole: Trained) -> None:
    for record in whole.steps:
        assert not set(LOGGED.split()) - set(record)


def test_tokens_after_the_eighth_have_a_figure_of_their_own(model_dir: Path, tmp_path: Path) -> None:
    assert "position/rest_nats" in train(model_dir, tmp_path, steps=1, max_tokens=24, ends=(tiny.END,)).steps[0]


def test_the_loss_is_defined_once_per_run(whole: Trained) -> None:
    first, *rest = whole.run.records()
    assert first["loss/definition"]["name"] == "kl_topk256_tail"
    assert first["loss/definition"]["context"] == LESSONS.id
    assert first["loss/definition"]["teacher_hash"] == whole.teacher.hash
    assert not any("loss/definition" in record for record in rest)


def test_the_loss_on_neutral_prompts_stands_apart_and_a_definition_names_the_anchor(
    model_dir: Path, tmp_path: Path
) -> None:
    held = train(model_dir, tmp_path, steps=2, anchor=1.0)
    first, second = held.steps
    assert abs(first["loss/anchor_nats"]) < 1e-6, "teacher and student are still the same model"
    for record in (first, second):
        low, high = sorted((record["loss/anchor_nats"], record["loss/on_policy_nats"]))
        assert low < record["loss/value_nats"] < high
    assert held.run.records()[0]["loss/definition"]["anchor"] == 1.0


def test_sampler_and_trainer_agree_on_the_sampled_tokens(whole: Trained) -> None:
    assert max(record["engine/logprob_gap_max_nats"] for record in whole.steps) < 1e-3


def test_the_figures_of_rollouts_match_hand_counts(model_dir: Path) -> None:
    from agentopcd.distillation.metrics import repetition, rollout_record

    assert repetition([1, 2, 3]) == 0.0
    assert repetition([1] * 8) == pytest.approx(1 - 1 / 5)
    episodes, _ = play_some(model_dir)
    broken = dataclasses.replace(episodes[0], stop_reason="env_error")
    won = dataclasses.replace(episodes[1], success=True, stop_reason="solved")
    found = rollout_record([broken, won, episodes[2]], [], 1)
    turns = [*won.turns, *episodes[2].turns]
    assert (found["rollout/episodes"], found["rollout/env_errors"], found["rollout/success"]) == (2, 1, 0.5)
    assert found["rollout/response_tokens_mean"] == sum(len(t.response_ids) for t in turns) / 2
    assert found["rollout/clipped_share"] == sum(t.finish_reason == "length" for t in turns) / 2
