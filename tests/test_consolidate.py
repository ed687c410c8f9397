"""The loop: it learns, it counts every reply once, and it keeps the best checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import consolidate as loop
from agentopcd import models
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import AlignmentError, ConfigError
from agentopcd.core.stats import Mean, Rate
from agentopcd.core.types import EMPTY, Episode, Job, Request, Sampling
from agentopcd.distillation import deal, distance, learner, losses, played, samples
from agentopcd.distillation.played import draw
from agentopcd.distillation.samples import Sample
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.models import find
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests import tiny, training
from tests.training import LESSONS, SMALL, TRAIN, Killed, Trained, plain_logits, play_some, train


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("untied") / "model", tie=False, hearing=4.0)


@pytest.fixture(scope="module")
def whole(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """An uninterrupted run; read it, do not change it."""
    return train(model_dir, tmp_path_factory.mktemp("whole"))


# -- it learns ----------------------------------------------------------------------------------------


def test_the_divergence_falls(model_dir: Path, tmp_path: Path) -> None:
    done = train(model_dir, tmp_path, steps=20, batch_size=5, max_tokens=8, select_every=20, save_every=20)
    kl = [record["loss/value_nats"] for record in done.steps]
    assert kl[0] > 0.3
    assert max(kl[-3:]) < 0.2 * kl[0]


def test_the_student_alone_moves(whole: Trained, model_dir: Path) -> None:
    base = models.load_model(str(model_dir))
    whole.teacher.assert_unchanged()
    assert models.parameter_hash(whole.teacher.model) == models.parameter_hash(base.model)
    assert models.parameter_hash(whole.student.model) != models.parameter_hash(base.model)
    assert all(parameter.grad is None for parameter in whole.teacher.model.parameters())


def test_a_teacher_that_moved_during_the_run_stops_it(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = FrozenTeacher.hidden

    def drifting(self: FrozenTeacher, samples: Sequence[Sample], passes: int) -> torch.Tensor:
        with torch.no_grad():
            next(iter(self.model.parameters())).mul_(1.001)
        return hidden(self, samples, passes)

    monkeypatch.setattr(FrozenTeacher, "hidden", drifting)
    with pytest.raises(AlignmentError, match="changed"):
        train(model_dir, tmp_path, steps=1)


def test_as_many_items_a_turn_as_there_are_is_the_whole_context(
    whole: Trained, model_dir: Path, tmp_path: Path
) -> None:
    assert train(model_dir, tmp_path / "all", turn_items=2).weights == whole.weights
    assert train(model_dir, tmp_path / "one", turn_items=1).weights != whole.weights


# -- what is scored -----------------------------------------------------------------------------------


def test_only_the_teacher_sees_the_context_and_both_score_the_same_tokens(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, scored = [], []
    submit, logits = TransformersSampler.submit, learner.response_hidden

    def spy_submit(self: TransformersSampler, request: Request, sampling: Sampling) -> int:
        asked.append(request)
        return submit(self, request, sampling)

    def spy(model: Any, pairs: Any, pad: int) -> torch.Tensor:
        scored.append((model, pairs))
        return logits(model, pairs, pad)

    monkeypatch.setattr(TransformersSampler, "submit", spy_submit)
    monkeypatch.setattr(learner, "response_hidden", spy)
    monkeypatch.setattr("agentopcd.distillation.teacher.response_hidden", spy)
    done = train(model_dir, tmp_path, steps=1)
    decode = done.student.tokenizer.decode
    assert asked and not any("always go left" in decode(list(request.prompt_ids)) for request in asked)
    teacher_calls = [pairs for model, pairs in scored if model is done.teacher.model]
    student_calls = [pairs for model, pairs in scored if model is not done.teacher.model]
    assert len(teacher_calls) == len(student_calls) == 2
    for seen, unseen in zip(teacher_calls, student_calls, strict=True):
        assert [response for _, response in seen] == [response for _, response in unseen]
        assert all("always go left" in decode(list(prompt)) for prompt, _ in seen)
        assert not any("always go left" in decode(list(prompt)) for prompt, _ in unseen)


def test_the_loss_has_one_row_per_sampled_token_and_none_for_prompts(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, weights, replies = [], [], []
    divergence, weighted_sum, samples_of = losses.divergence, losses.weighted_sum, samples.samples_of

    def spy_rows(student_NV: torch.Tensor, teacher_NV: torch.Tensor, **kwargs: Any) -> Any:
        rows.append(len(student_NV))
        return divergence(student_NV, teacher_NV, **kwargs)

    def spy_weights(loss_N: torch.Tensor, weights_N: torch.Tensor) -> torch.Tensor:
        weights.extend(weights_N.tolist())
        return weighted_sum(loss_N, weights_N)

    def spy_samples(episodes: Any, *args: Any, **how: Any) -> Any:
        replies.extend(len(turn.response_ids) for episode in episodes for turn in episode.turns)
        return samples_of(episodes, *args, **how)

    monkeypatch.setattr(losses, "divergence", spy_rows)
    monkeypatch.setattr(losses, "weighted_sum", spy_weights)
    monkeypatch.setattr(played, "samples_of", spy_samples)
    done = train(model_dir, tmp_path, steps=1)
    assert sum(rows) == len(weights) == sum(replies) == done.steps[0]["turn/0/tokens"]
    assert sum(weights) == pytest.approx(1.0)  # a mean over the whole step


def plain_step(model_dir: Path, work: Path, monkeypatch: pytest.MonkeyPatch, **how: Any) -> tuple[Trained, int]:
    """A step of plain gradient descent, for Adam's first step is a sign: it would blow a rounding error up to the rate.

    Returns:
        What was trained, and the number of batches that the step was split into.
    """
    monkeypatch.setattr(loop.torch.optim, "AdamW", lambda parameters, lr, **_: torch.optim.SGD(parameters, lr=lr))
    passes = count_passes(monkeypatch)
    done = train(model_dir, work, steps=1, batch_size=5, learning_rate=1.0, max_tokens=12, **how)
    return done, passes[-1]


@pytest.fixture(scope="module")
def singly(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A plain step with a batch for each reply."""
    with pytest.MonkeyPatch.context() as patch:
        done, passes = plain_step(model_dir, tmp_path_factory.mktemp("one"), patch, tokens_per_batch=1)
    assert passes == 5
    first, start = (next(iter(m.model.parameters())) for m in (done.student, models.load_model(str(model_dir))))
    assert (first - start).abs().max() > 1e-2
    return done


@pytest.mark.parametrize("budget", [450, 4096])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_how_a_step_is_computed_changes_nothing(
    budget: int, checkpointing: bool, singly: Trained, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"tokens_per_batch": budget, "gradient_checkpointing": checkpointing}
    other, passes = plain_step(model_dir, tmp_path, monkeypatch, **how)
    assert passes < 5
    for a, b in zip(singly.student.model.parameters(), other.student.model.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-6


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many batches each step was split into."""
    found: list[int] = []
    whole_step = deal.micro_batches

    def spy(*args: Any, **how: Any) -> Any:
        batches = list(whole_step(*args, **how))
        found.append(len(batches))
        return batches

    monkeypatch.setattr(deal, "micro_batches", spy)
    return found


@pytest.mark.parametrize("reduction", ["seq_mean", "token_mean"])
def test_the_step_follows_the_reduction(
    reduction: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    weighted_sum = losses.weighted_sum
    monkeypatch.setattr(losses, "weighted_sum", lambda loss_N, w_N: seen.append(w_N) or weighted_sum(loss_N, w_N))
    done = train(model_dir, tmp_path, steps=1, batch_size=5, max_tokens=12, reduction=reduction, tokens_per_batch=4096)
    tokens = done.steps[0]["turn/0/tokens"]
    per_token = {round(float(w) * tokens, 4) for w in seen[0]}
    assert (per_token == {1.0}) is (reduction == "token_mean")


# -- tasks --------------------------------------------------------------------------------------------


def test_every_task_comes_once_per_epoch_and_epochs_differ() -> None:
    config = ConsolidateConfig(**dict(SMALL, batch_size=5))
    epochs = [[job.task for job in draw(TRAIN, step, config)] for step in range(1, 9)]
    assert all(sorted(epoch) == sorted(TRAIN) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_order_of_tasks_follows_the_seed() -> None:
    orders = [draw(TRAIN, 1, ConsolidateConfig(**dict(SMALL, batch_size=5, seed=seed))) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_a_task_that_comes_twice_in_a_step_is_two_jobs_without_a_context() -> None:
    jobs = draw(TRAIN, 1, ConsolidateConfig(**dict(SMALL, batch_size=12)))
    assert len(set(jobs)) == 12
    assert {job.context for job in jobs} == {EMPTY}


def test_a_task_that_comes_again_gets_other_noise() -> None:
    jobs = [job for step in range(1, 9) for job in draw(TRAIN, step, ConsolidateConfig(**SMALL))]
    assert len(set(jobs)) == len(jobs) > len(TRAIN)


# -- which checkpoint ---------------------------------------------------------------------------------


def scripted(scores: Sequence[Rate | Mean]) -> Callable[..., Rate | Mean]:
    left = iter(scores)
    return lambda player, tasks, ranks, by: next(left)


def test_the_best_checkpoint_follows_the_select_scores(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base never competes, the earlier of two equal ones wins, and its weights are those of its step."""
    rates = [Rate(9, 10), Rate(1, 10), Rate(5, 10), Rate(10, 20), Rate(2, 10)]
    monkeypatch.setattr(distance, "score_on", scripted(rates))
    done = train(model_dir, tmp_path / "a", select_every=1)
    monkeypatch.setattr(distance, "score_on", scripted([Rate(0, 1), Rate(0, 1)]))
    until_2 = train(model_dir, tmp_path / "b", steps=2)
    assert done.result.best_step == 2
    assert done.result.select == dict(enumerate(rates))
    assert done.weights == until_2.weights
    assert json.loads((done.result.folder / "agentopcd.json").read_text())["step"] == 2
    assert [r["select/success"] for r in done.run.records()] == [0.9, 0.1, 0.5, 0.5, 0.2]


def test_the_shortcuts_are_compared_before_the_first_distance_is_taken(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def spy(owner: Any, name: str) -> None:
        whole = getattr(owner, name)

        def noted(*args: Any, **how: Any) -> Any:
            order.append(name)
            return whole(*args, **how)

        monkeypatch.setattr(owner, name, noted)

    spy(distance, "deal")
    spy(learner.Learner, "compare")
    replies: list[Sample] = []
    samples_of = distance.samples_of

    def spy_samples(*args: Any, **how: Any) -> Any:
        found = samples_of(*args, **how)
        replies.extend(found[0])
        return found

    monkeypatch.setattr(distance, "samples_of", spy_samples)
    done = train(model_dir, tmp_path, by="distance", steps=2, temperature=5.0)
    assert order == ["compare", "deal", "deal"]  # the distances before training and after step 2
    assert (done.run.folder / "shortcuts.json").is_file()
    base, nats, before = models.load_model(str(model_dir)).model, [], done.result.select[0]
    for sample in replies[: len(replies) // 2]:  # by hand, those before training
        sides = (plain_logits(base, ids, sample.response_ids) for ids in (sample.student_ids, sample.teacher_ids))
        p, q = ((logits / 5.0).log_softmax(-1) for logits in sides)
        nats.append((p.exp() * (p - q)).sum(-1))
    assert isinstance(before, Mean) and before.n == len(nats) == len(training.SELECT)
    assert before.rate == pytest.approx(float(torch.cat(nats).mean()), rel=1e-3)


def test_the_best_checkpoint_follows_the_mean_reward_if_asked(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = [
        Mean(0.9, 0.8, 1.0, 10),
        Mean(0.25, 0.2, 0.3, 10),
        Mean(0.5, -math.inf, math.inf, 1),
        Mean(0.5, 0.4, 0.6, 10),
    ]
    monkeypatch.setattr(distance, "score_on", scripted(means))
    done = train(model_dir, tmp_path / "a", select_every=1, steps=3)
    assert done.result.best_step == 2 and done.result.select == dict(enumerate(means))
    assert [(r["select/score"], r["select/low"]) for r in done.run.records()][2:] == [(0.5, None), (0.5, 0.4)]


def test_the_result_is_an_ordinary_model_folder(whole: Trained, model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(whole.result.folder)
    tokenizer = AutoTokenizer.from_pretrained(whole.result.folder)
    assert tokenizer.chat_template
    facts = json.loads((whole.result.folder / "agentopcd.json").read_text())
    assert facts["parent_id"] == find.fingerprint(model_dir)
    assert facts["context"] == LESSONS.id
    assert whole.result.model_id == find.fingerprint(whole.result.folder)
    ids = torch.tensor([[1, 40, 50]])
    assert not torch.equal(model(ids).logits, models.load_model(str(model_dir)).model(ids).logits)


def test_select_success_leaves_broken_episodes_out(model_dir: Path) -> None:
    episodes, _ = play_some(model_dir)
    mixed = [
        dataclasses.replace(episodes[0], success=True),
        dataclasses.replace(episodes[1], success=False),
        dataclasses.replace(episodes[2], success=False, stop_reason="env_error"),
    ]

    class Fixed:
        def play(self, jobs: Sequence[Job]) -> Iterator[Episode]:
            return iter(mixed)

    def score(by: str) -> Rate | Mean:
        return distance.score_on(Fixed(), TRAIN[:3], Ranks(), by)  # type: ignore[arg-type]

    assert score("success") == Rate(1, 2)
    mixed[:2] = [dataclasses.replace(mixed[i], reward=i / 2, metrics={"boxes": 3.0}) for i in range(2)]
    assert (score("reward").rate, score("reward").n, score("boxes").rate) == (0.25, 2, 3.0)
    with pytest.raises(ConfigError, match="no episode reports 'boxs'; wanted one of: success, reward, boxes"):
        score("boxs")


def test_selection_does_not_depend_on_the_step(whole: Trained, model_dir: Path, tmp_path: Path) -> None:
    """A student that does not move scores the same at every evaluation: same tasks, same noise."""
    seen: list[list[Request]] = []
    usual = Player.play

    def spy(self: Player, jobs: Sequence[Job]) -> Iterator[Episode]:
        seen.append([])
        submit = self.sampler.submit
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.sampler, "submit", lambda *asked: seen[-1].append(asked[0]) or submit(*asked))
            yield from usual(self, jobs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Player, "play", spy)
        train(model_dir, tmp_path, steps=2, select_every=1)
    select = [requests for requests in seen if requests[:1] == seen[0][:1]]
    assert len(select) == 3 and len(seen) == 5
    assert all({r.seed for r in requests} == {r.seed for r in select[0]} for requests in select)


# -- an engine with weights of its own ----------------------------------------------------------------


def test_a_sampler_with_weights_of_its_own_hears_of_every_change(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    def update(self: TransformersSampler) -> float:
        heard.append(models.parameter_hash(self.loaded.model))
        return 0.5

    monkeypatch.setattr(TransformersSampler, "update", update)
    with pytest.raises(Killed):
        train(model_dir, tmp_path, kill_at=5, steps=4, save_every=2, select_every=2)
    before = list(heard)
    again = train(model_dir, tmp_path, steps=4, save_every=2, select_every=2)
    assert again.lines[0] == "resumed after step 2"
    assert heard[len(before)] == before[2]  # the restored weights, before anything is played with them
    assert len(heard) == len(before) + 3  # and after steps 3 and 4
    assert [step["engine/drift_nats"] for step in again.steps] == [0.5] * 4


# -- what is refused ----------------------------------------------------------------------------------


def test_an_empty_context_is_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="empty"):
        train(model_dir, tmp_path, context=EMPTY)


@pytest.mark.parametrize("missing", ["TRAIN", "SELECT"])
def test_no_tasks_are_refused(missing: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, missing, [])
    with pytest.raises(ConfigError, match="needs both"):
        train(model_dir, tmp_path)
