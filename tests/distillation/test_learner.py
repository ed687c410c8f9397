"""The student while it learns: float32 masters, weights of each token, and gradients that are not finite."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import consolidate as loop
from agentopcd import envs, models
from agentopcd.core.errors import ConfigError
from agentopcd.distillation import checkpoint, learner, losses
from agentopcd.envs import registry
from agentopcd.rollouts.sampling import same_weights
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests import tiny
from tests.training import Killed, train


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("untied") / "model", tie=False, hearing=4.0)


# -- precision ----------------------------------------------------------------------------------------


def test_bfloat16_products_leave_float32_masters(model_dir: Path, tmp_path: Path) -> None:
    done = train(model_dir, tmp_path, steps=1, compute="bfloat16")
    assert {p.dtype for p in done.student.model.parameters()} == {torch.float32}
    assert done.steps[0]["engine/logprob_gap_max_nats"] < 0.5
    from safetensors.torch import load_file

    assert {t.dtype for t in load_file(done.result.folder / "model.safetensors").values()} == {torch.float32}


def test_half_precision_masters_are_refused() -> None:
    with pytest.raises(ConfigError, match="float32"):
        learner.check_float32(dict(torch.nn.Linear(2, 2, dtype=torch.bfloat16).named_parameters()))


# -- replies of another policy, replies held to a list ------------------------------------------------


def test_importance_weights_are_one_for_ones_own_tokens_and_weigh_those_of_another_engine(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(model_dir, tmp_path / "plain", steps=1)
    own = train(model_dir, tmp_path / "own", steps=1, importance_cap=2.0)
    assert own.steps[0]["loss/importance_mean"] == pytest.approx(1, abs=1e-3)
    assert own.steps[0]["train/grad_norm"] == pytest.approx(plain.steps[0]["train/grad_norm"], rel=1e-3)
    assert "loss/importance_mean" not in plain.steps[0]
    monkeypatch.setitem(same_weights.GAP_NATS, torch.float32, 1.0)  # an engine that is this far off stops the run
    exact = TransformersSampler._completion

    def drawn_by_another(self: TransformersSampler, ids: list[int], logprobs: list[float]) -> Any:
        return exact(self, ids, [logprob + math.log(2) for logprob in logprobs])  # twice as likely there

    monkeypatch.setattr(TransformersSampler, "_completion", drawn_by_another)
    other = train(model_dir, tmp_path / "other", steps=1, importance_cap=2.0)
    assert other.steps[0]["loss/importance_max"] == pytest.approx(0.5, abs=1e-3)
    assert other.steps[0]["train/grad_norm"] == pytest.approx(plain.steps[0]["train/grad_norm"] / 2, rel=1e-3)


def test_replies_that_were_held_to_a_list_are_scored_on_the_list_by_both_models(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tuple(f"[{n}]" for n in range(12))
    spec = dataclasses.replace(envs.get_spec("math"), choices=words)
    monkeypatch.setitem(registry._SPECS, "math", spec)
    held = train(model_dir, tmp_path, steps=2, max_tokens=8, game={"constrain": True})
    for step in held.steps:
        assert step["kl/student_mass_mean"] == pytest.approx(1, abs=1e-5)  # of eleven tokens at most, not of all
        assert step["kl/teacher_mass_p05"] == pytest.approx(1, abs=1e-5)
        assert step["engine/logprob_gap_max_nats"] < 1e-3
        assert step["loss/value_nats"] == pytest.approx(step["loss/kl_full_sampled_nats"], abs=0.3)
        assert step["loss/value_nats"] > 0
        assert step["rollout/clipped_share"] == 0


# -- bad gradients ------------------------------------------------------------------------------------


def weights_hash(trained: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in trained.values())).hexdigest()


def poison(patch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """Make the loss of the given steps (counted by token_weights calls) infinite."""
    token_weights, weighted_sum = losses.token_weights, losses.weighted_sum
    step = 0

    def count(*args: Any) -> Any:
        nonlocal step
        step += 1
        return token_weights(*args)

    patch.setattr(loop.losses, "token_weights", count)
    patch.setattr(
        loop.losses, "weighted_sum",
        lambda loss_N, w_N: weighted_sum(loss_N, w_N) * (float("inf") if step in bad else 1.0),
    )  # fmt: skip


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {2})
    hashes: list[str] = []
    save = checkpoint.save

    def spy(folder: Path, trained: Any, *rest: Any) -> None:
        hashes.append(weights_hash(trained))
        save(folder, trained, *rest)

    monkeypatch.setattr(checkpoint, "save", spy)
    done = train(model_dir, tmp_path, steps=3, save_every=1)
    hashes.append(weights_hash(dict(done.student.model.named_parameters())))
    assert [record["train/skipped"] for record in done.steps] == [False, True, False]
    assert [record["train/skipped_total"] for record in done.steps] == [0, 1, 1]
    assert hashes[0] == hashes[1] != hashes[2]
    assert all(torch.isfinite(p).all() for p in done.student.model.parameters())


def test_skipped_steps_are_counted_across_a_kill(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        poison(patch, {1})
        train(model_dir, tmp_path, kill_at=5)
    assert train(model_dir, tmp_path).steps[-1]["train/skipped_total"] == 1


def test_a_step_without_a_sample_changes_nothing_and_goes_on(model_dir: Path, tmp_path: Path) -> None:
    done = train(model_dir, tmp_path, steps=1, max_tokens=1, cut_replies="drop", ends=(tiny.END,))
    assert done.steps[0]["rollout/samples"] == 0
    assert done.steps[0]["rollout/dropped"] == 3
    assert done.steps[0]["train/skipped"] is True
    base = models.load_model(str(model_dir))
    assert models.parameter_hash(done.student.model) == models.parameter_hash(base.model)
