"""The student while it learns: float32 masters, weights of each token, and gradients that are not finite."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import envs, models
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ConfigError, TrainingError
from agentopcd.distillation import checkpoint, deal, learner, losses
from agentopcd.distillation.checkpoint import Progress
from agentopcd.distillation.methods import METHODS
from agentopcd.distillation.metrics import update_record
from agentopcd.distillation.played import Batches
from agentopcd.distillation.samples import Sample
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.envs import registry
from agentopcd.models.parallel import sharding
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.sampling import drawing, same_weights
from tests import tiny
from tests.training import SMALL, Killed, plain_logits, train, turn_sample


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
    exact = drawing.draw

    def drawn_by_another(*asked: Any) -> Any:
        ids, logprobs = exact(*asked)
        return ids, [logprob + math.log(2) for logprob in logprobs]  # twice as likely there

    monkeypatch.setattr(drawing, "draw", drawn_by_another)
    other = train(model_dir, tmp_path / "other", steps=1, importance_cap=2.0)
    assert other.steps[0]["loss/importance_max"] == pytest.approx(0.5, abs=1e-3)
    assert other.steps[0]["train/grad_norm"] == pytest.approx(plain.steps[0]["train/grad_norm"] / 2, rel=1e-3)


def test_replies_that_were_held_to_a_list_are_scored_on_the_list_by_both_models(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tuple(f"[{n}]" for n in range(12))
    spec = dataclasses.replace(envs.get_spec("math"), choices=words)
    monkeypatch.setitem(registry._SPECS, "math", spec)
    steps: list[list[Sample]] = []
    take = Batches.take

    def spy(self: Batches, step: int) -> Any:
        found = take(self, step)
        steps.append(list(found.samples))
        return found

    monkeypatch.setattr(Batches, "take", spy)
    held = train(model_dir, tmp_path, steps=2, max_tokens=8, game={"constrain": True})
    for step in held.steps:
        assert step["kl/student_mass_mean"] == pytest.approx(1, abs=1e-5)  # of eleven tokens at most, not of all
        assert step["kl/teacher_mass_p05"] == pytest.approx(1, abs=1e-5)
        assert step["engine/logprob_gap_max_nats"] < 1e-3
        assert step["rollout/clipped_share"] == 0
    # By hand: one reply at a time, each token among those that the list allows there. Both models are still the base.
    base, divergences = models.load_model(str(model_dir)).model, []
    for sample in steps[0]:
        rows = [plain_logits(base, ids, sample.response_ids) for ids in (sample.student_ids, sample.teacher_ids)]
        for at, (own, taught) in enumerate(zip(*rows, strict=True)):
            so_far = sample.response_ids[:at]
            ids = sorted({one[at] for one in sample.choices if len(one) > at and one[:at] == so_far})
            p, q = own[ids].log_softmax(-1), taught[ids].log_softmax(-1)
            divergences.append(float((p.exp() * (p - q)).sum()))
    assert sum(value > 0.01 for value in divergences) > 2, "else nothing could be told apart"
    assert held.steps[0]["loss/value_nats"] == pytest.approx(sum(divergences) / len(divergences), rel=1e-3)


# -- settings that must reach what they are of ----------------------------------------------------------


def learner_of(model_dir: Path, *, adapt: bool = False, **changes: Any) -> learner.Learner:
    config = ConsolidateConfig(**SMALL | changes)
    student = models.load_model(str(model_dir))
    if adapt:
        models.add_adapter(student, 4, torch.float32, 0)
    return learner.Learner(student, config, torch.float32)


def test_weight_decay_is_the_optimizers(model_dir: Path) -> None:
    groups = learner_of(model_dir, weight_decay=0.07).optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0.07}


def test_an_adapter_learns_at_ten_times_the_rate(model_dir: Path) -> None:
    whole, adapted = (learner_of(model_dir, adapt=adapt, learning_rate=0) for adapt in (False, True))
    assert whole.learning_rate == whole.student.learning_rate > 0
    assert adapted.learning_rate == pytest.approx(10 * adapted.student.learning_rate)
    assert learner_of(model_dir, adapt=True).learning_rate == SMALL["learning_rate"], "a rate that is given holds"


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_has_a_temperature_of_its_own(method: str) -> None:
    player: Any = None
    given: dict[str, Any] = {**SMALL, "method": method, "temperature": 2.0}
    changes: list[dict[str, Any]] = [{}, {"loss_temperature": 0.5}]
    ways = [METHODS[method](ConsolidateConfig(**given | more), player, []) for more in changes]
    assert [[part.temperature for part in (way, *way.parts)] for way in ways] == [
        [2.0] * (1 + len(ways[0].parts)),
        [0.5] * (1 + len(ways[0].parts)),
    ]


def test_later_turns_fade_in_the_weights_of_a_step(model_dir: Path) -> None:
    fading = learner_of(model_dir, turn_fade=0.5, tokens_per_batch=4096)
    teacher = FrozenTeacher(models.load_model(str(model_dir)), fading.student, compute=torch.float32)
    samples = [dataclasses.replace(turn_sample([5, 6], [9, 5, 6], [8, 30]), turn=turn) for turn in (0, 1, 2)]
    found = {
        sample.turn: float(weight)
        for batch in deal.deal(samples, fading, teacher, Ranks())
        for sample, weight in zip(batch.samples, batch.weights_N[::2], strict=True)
    }
    assert found == pytest.approx({0: 4 / 14, 1: 2 / 14, 2: 1 / 14})


@pytest.mark.parametrize("limit", [1e-3, 1e6])
def test_a_gradient_above_the_limit_is_clipped_and_that_is_logged(limit: float, model_dir: Path) -> None:
    one, seen = learner_of(model_dir, clip_norm=limit), []
    for p in one.trained.values():
        p.grad = torch.ones_like(p)
    whole = sum(p.numel() for p in one.trained.values()) ** 0.5
    one.optimizer.step = lambda: seen.append(sharding.norm_of([p.grad for p in one.trained.values()]))  # type: ignore
    norm, moved = one.step(Ranks(), 1, learned=True)
    assert norm == pytest.approx(whole, rel=1e-4) and seen == [pytest.approx(min(whole, limit), rel=1e-3)]
    assert update_record(Progress(select={}), one, norm, moved, None)["train/clipped"] is (limit < whole)


# -- bad gradients ------------------------------------------------------------------------------------


def weights_hash(trained: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in trained.values())).hexdigest()


def poison(patch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """Make the loss of the given steps (counted by token_weights calls) infinite."""
    token_weights, weighted_sum = deal.token_weights, losses.weighted_sum
    step = 0

    def count(*args: Any, **more: Any) -> Any:
        nonlocal step
        step += 1
        return token_weights(*args, **more)

    patch.setattr(deal, "token_weights", count)
    patch.setattr(
        losses, "weighted_sum",
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


def test_a_step_without_a_sample_changes_nothing_and_goes_on(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[models.LoadedModel] = []
    load_model = models.load_model
    monkeypatch.setattr(models, "load_model", lambda name: loaded.append(load_model(name)) or loaded[-1])
    with pytest.raises(TrainingError, match="2 of 2 steps were skipped"):
        train(model_dir, tmp_path, steps=2, max_tokens=1, cut_replies="drop", ends=(tiny.END,))
    (log,) = tmp_path.glob("runs/*/metrics.jsonl")
    steps = [json.loads(line) for line in log.read_text().splitlines()][1:]
    assert [step["rollout/samples"] for step in steps] == [0, 0]
    assert [step["rollout/dropped"] for step in steps] == [3, 3]
    assert [step["train/skipped"] for step in steps] == [True, True]
    assert models.parameter_hash(loaded[0].model) == models.parameter_hash(load_model(str(model_dir)).model)


def test_a_run_whose_steps_were_all_skipped_has_failed(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {1, 2})
    for _ in range(2):  # the same command again says the same
        with pytest.raises(TrainingError, match=r"2 of 2 steps were skipped: .* there is no student"):
            train(model_dir, tmp_path, steps=2)
    assert not list(tmp_path.glob("runs/*/student"))


def test_some_skipped_steps_are_told(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, {2})
    done = train(model_dir, tmp_path, steps=3)
    assert done.lines[-1].startswith("warning: 1 of 3 steps were skipped: no finite gradient")
    assert done.result.skipped == 1


def test_weights_that_are_not_finite_end_the_run(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"weights are not finite any more \(learning rate 1e\+\d+\)"):
        train(model_dir, tmp_path, steps=4, learning_rate=1e38)
    assert not list(tmp_path.glob("runs/*/student"))


def test_a_loss_that_is_not_finite_ends_the_run(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    divergence = losses.divergence

    def endless(*args: Any, **kwargs: Any) -> Any:
        token = divergence(*args, **kwargs)
        return token._replace(value_N=token.value_N * float("inf"))

    monkeypatch.setattr(losses, "divergence", endless)
    with pytest.raises(TrainingError, match="the loss of step 1 is"):
        train(model_dir, tmp_path, steps=2)


@pytest.mark.parametrize(("values", "norm"), [([1.0, -2.0, 2.0], 3.0), ([1.0, float("-inf")], float("inf"))])
def test_the_norm_of_weights_shows_one_that_is_not_finite(values: list[float], norm: float) -> None:
    parts = [torch.nn.Parameter(torch.tensor(values)), torch.nn.Parameter(torch.zeros(2, 2))]
    assert sharding.norm_of(parts) == norm
    parts[1].data[1, 0] = float("nan")
    assert math.isnan(sharding.norm_of(parts))
