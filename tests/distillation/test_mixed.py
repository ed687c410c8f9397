"""A mixed step: which half is whose, the loss of each half, and that no batch and no figure mixes the two."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import consolidate as loop
from agentopcd import models
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.runs import TOKENS_FILE
from agentopcd.core.types import EMPTY, Episode
from agentopcd.distillation import played
from agentopcd.distillation.deal import deal
from agentopcd.distillation.learner import Learner
from agentopcd.distillation.methods import METHODS, Mixed, halves
from agentopcd.distillation.metrics import Clock, StepMeter
from agentopcd.distillation.samples import Sample, micro_batches
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.sampling.vllm_server import ServerSampler
from tests import tiny
from tests.rollouts.sampling.fake_server import FakeServer
from tests.training import LESSONS, SMALL, TRAIN, Trained, train, turn_sample

MINE = turn_sample([5, 6, 7], [9, 5, 6, 7], [8, 30, 40])
THEIRS = dataclasses.replace(turn_sample([5, 6], [9, 5, 6], [8, 11]), logprobs=(), by_teacher=True)
"""A reply of the student's and one of the teacher's, of unlike lengths."""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("mixed") / "model", tie=False, hearing=4.0)


def settings(**changes: Any) -> ConsolidateConfig:
    return ConsolidateConfig(**SMALL | changes)


# -- the loss -------------------------------------------------------------------------------------------


def learned(
    model_dir: Path, method: str, samples: Sequence[Sample], monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[float, torch.Tensor, StepMeter]:
    """The loss of a step on ``samples``, its gradient, and its figures."""
    config = settings(**{"method": method, "divergence": "full"} | changes)
    student, other = models.load_model(str(model_dir)), models.load_model(str(model_dir))
    learner = Learner(student, config, torch.float32)
    teacher = FrozenTeacher(other, student, compute=torch.float32)
    player: Any = None
    way = METHODS[method](config, player, [])
    meter = StepMeter(way.temperature, config.temperature, config.importance_cap)
    found, in_chunks = [], loop.in_chunks

    def spy(*args: Any) -> torch.Tensor:
        loss = in_chunks(*args)
        found.append(float(loss.detach()))
        return loss

    with monkeypatch.context() as patched:
        patched.setattr(loop, "in_chunks", spy)
        for batch in deal(samples, learner, teacher, Ranks()):
            loop.learn_from(batch, learner, teacher, way, meter, Clock())
    gradient = torch.cat([p.grad.flatten() for p in student.model.parameters() if p.grad is not None])
    return sum(found), gradient, meter


def test_the_loss_of_one_sample_each_is_the_mean_of_both_worked_out_by_hand(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, gradient, meter = learned(model_dir, "mixed", [MINE, THEIRS], monkeypatch)
    student, teacher = (models.load_model(str(model_dir)).model.eval().requires_grad_() for _ in range(2))
    values = []
    for sample in (MINE, THEIRS):
        log_p, log_q = (
            model(torch.tensor([[*prompt, *sample.response_ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            for model, prompt in ((student, sample.student_ids), (teacher, sample.teacher_ids))
        )
        log_q = log_q.detach()
        reverse = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        forward = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
        assert abs(float((reverse - forward).detach())) > 1e-3, "else this test could not tell them apart"
        values.append(forward if sample.by_teacher else reverse)
    mean = (values[0] + values[1]) / 2
    mean.backward()
    wanted = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    assert loss == pytest.approx(float(mean.detach()), rel=1e-4)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)
    told = dict(
        zip(("loss/on_policy_nats", "loss/off_policy_nats"), (float(value.detach()) for value in values), strict=True)
    )
    assert meter.apart() == pytest.approx(told, rel=1e-4)


@pytest.mark.parametrize(
    "changes", [{"divergence": "tail", "support": 8}, {"divergence": "raw", "support": 8}, {"direction": "forward"}]
)
def test_each_half_has_the_loss_of_its_method(
    changes: dict[str, Any], model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, theirs = dict(changes), {name: value for name, value in changes.items() if name != "direction"}
    both = learned(model_dir, "mixed", [MINE, THEIRS], monkeypatch, **own)
    one = learned(model_dir, "opcd", [MINE], monkeypatch, **own)
    other = learned(model_dir, "context-distillation", [THEIRS], monkeypatch, **theirs)
    assert both[0] == pytest.approx((one[0] + other[0]) / 2, rel=1e-5)
    torch.testing.assert_close(both[1], (one[1] + other[1]) / 2, rtol=1e-4, atol=1e-6)


def test_only_what_the_student_said_is_weighed_by_importance(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, meter = learned(model_dir, "mixed", [MINE, THEIRS], monkeypatch, importance_cap=2.0)
    assert [len(part) for part in meter.rows["importance"]] == [MINE.num_tokens]
    assert [len(part) for part in meter.rows["gap"]] == [MINE.num_tokens]
    assert sum(map(len, meter.rows["value"])) == MINE.num_tokens + THEIRS.num_tokens


def test_no_batch_holds_replies_of_both(model_dir: Path) -> None:
    alike = dataclasses.replace(MINE, logprobs=(), by_teacher=True)
    found = [batch for batch, _ in micro_batches([MINE, alike, MINE, THEIRS], [1.0] * 4, 10_000, branch=True)]
    assert sorted(sorted(sample.by_teacher for sample in batch) for batch in found) == [[False] * 2, [True] * 2]


# -- who plays ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "mine", "theirs"), [(2, 1, 1), (3, 2, 1), (4, 2, 2), (5, 3, 2)])
def test_half_of_the_episodes_are_the_teachers(size: int, mine: int, theirs: int) -> None:
    config = settings(method="mixed", batch_size=size)
    jobs = played.draw(TRAIN, 2, config)
    player: Any = None
    (one, own), (other, rest) = Mixed(config, player, []).shares(jobs)
    assert (len(own), len(rest)) == (mine, theirs) and [*own, *rest] == jobs
    assert (one.by_teacher, other.by_teacher) == (False, True)


def test_the_teacher_answers_its_half_and_no_more(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Episode, Sample]] = []
    samples_of = played.samples_of

    def spy(episodes: Sequence[Episode], *args: Any, **how: Any) -> Any:
        found = samples_of(episodes, *args, **how)
        seen.extend((episodes[0], sample) for sample in found[0])
        return found

    monkeypatch.setattr(played, "samples_of", spy)
    how: dict[str, Any] = {"method": "mixed", "answers": "fresh", "batch_size": 4, "steps": 3}
    done, config = train(model_dir, tmp_path, **how), settings(**how)
    asked = [job for step in (1, 2, 3) for job in halves(played.draw(TRAIN, step, config))[1]]
    answers = [line for file in done.run.folder.glob("answers-*.jsonl") for line in file.read_text().splitlines()]
    assert len(answers) == len(asked) == 6
    assert len(seen) == 12 and sum(sample.by_teacher for _, sample in seen) == 6
    told = done.student.tokenizer.decode
    for episode, sample in seen:
        assert "always go left" in told(sample.teacher_ids) and "always go left" not in told(sample.student_ids)
        assert episode.context_id == (LESSONS.id if sample.by_teacher else EMPTY.id)
        assert episode.turns[0].prompt_ids == (sample.teacher_ids if sample.by_teacher else sample.student_ids)
        assert bool(sample.logprobs) != sample.by_teacher
    theirs = {(episode.task, episode.rep) for episode, sample in seen if sample.by_teacher}
    assert theirs == {(job.task, job.rep) for job in asked}


# -- what a run says ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """An uninterrupted run; read it, do not change it."""
    return train(model_dir, tmp_path_factory.mktemp("run"), method="mixed", batch_size=4, steps=20, learning_rate=2e-3)


def test_both_losses_fall_and_are_logged_apart(mixed: Trained) -> None:
    for record in mixed.steps:
        assert record["off_policy/sample_share"] == 0.5
        assert (record["rollout/episodes"], record["off_policy/episodes"], record["rollout/samples"]) == (2, 2, 4)
        low, high = sorted((record["loss/on_policy_nats"], record["loss/off_policy_nats"]))
        assert low <= record["loss/value_nats"] <= high
        assert record["engine/logprob_gap_max_nats"] < 1e-3, "the teacher's replies are not among the student's"
    for name in ("loss/on_policy_nats", "loss/off_policy_nats"):
        first, last = (sum(record[name] for record in some) / 5 for some in (mixed.steps[:5], mixed.steps[-5:]))
        assert last < 0.8 * first


def test_the_turns_that_people_see_say_who_replied(mixed: Trained) -> None:
    kept = [json.loads(line) for line in (mixed.run.folder / TOKENS_FILE).read_text().splitlines()]
    assert [sum(turn.get("by_teacher", False) for turn in kept if turn["step"] == step) for step in (1, 20)] == [2, 2]
    assert len([turn for turn in kept if turn["step"] == 1]) == 4


def test_the_definition_names_both_halves(mixed: Trained) -> None:
    said = mixed.run.records()[0]["loss/definition"]
    assert said["method"] == "mixed" and said["answers"] == "the student's own + once"
    assert (said["direction"], said["support"]) == ("reverse + forward", "student top-256 + teacher top-256")
    assert said["name"] == mixed.steps[0]["loss/name"] == "kl_topk256_tail + forward_kl_topk256_tail"


def test_other_methods_log_no_halves(model_dir: Path, tmp_path: Path) -> None:
    for method in ("opcd", "context-distillation"):
        done = train(model_dir, tmp_path / method, method=method, steps=1)
        assert not any("off_policy" in name or "on_policy" in name for name in done.steps[0])


# -- beside other settings ------------------------------------------------------------------------------


def test_the_replies_to_neutral_prompts_are_the_students(model_dir: Path, tmp_path: Path) -> None:
    (record,) = train(model_dir, tmp_path, method="mixed", batch_size=4, steps=1, anchor=0.5).steps
    assert record["rollout/samples"] == 6 and record["off_policy/sample_share"] == pytest.approx(2 / 6)


def test_an_adapter_learns_from_both(model_dir: Path, tmp_path: Path) -> None:
    done = train(model_dir, tmp_path, method="mixed", batch_size=2, steps=2, lora_rank=4)
    assert [record["off_policy/sample_share"] for record in done.steps] == [0.5, 0.5]
    assert done.result.skipped == 0


def test_the_students_half_is_played_ahead(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServerSampler, "current", None)
    fake = FakeServer(model_dir)
    try:
        how: dict[str, Any] = {"server": fake.url, "async_steps": 1, "importance_cap": 2.0, "learning_rate": 3e-3}
        steps = train(model_dir, tmp_path, method="mixed", batch_size=4, **how).steps
    finally:
        fake.stop()
    assert [record["engine/policy_step"] for record in steps] == [0, 0, 1, 2]
    assert steps[-1]["engine/logprob_gap_mean_nats"] > 1e-3, "the student's half has older weights"
    assert steps[-1]["loss/importance_max"] > 1.01 and steps[-1]["off_policy/sample_share"] == 0.5
