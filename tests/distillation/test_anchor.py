"""The anchor: neutral prompts among the samples keep the student near its base, and change nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ConfigError, TrainingError
from agentopcd.core.types import EMPTY, Message
from agentopcd.distillation import anchor, played
from agentopcd.distillation.anchor import anchors, neutral_prompts, neutral_samples
from agentopcd.distillation.samples import Sample
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests import tiny
from tests.training import ENDS, LESSONS, SMALL, Killed, plain_logits, train


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("anchor") / "model", tie=False, hearing=4.0)


def player_of(folder: Path, config: ConsolidateConfig) -> Player:
    loaded = models.load_model(str(folder))
    return Player(
        game=Game(ref="math"), sampler=TransformersSampler(loaded, compute=torch.float32),
        chat=Chat(loaded.tokenizer), sampling=config.sampling, seed=config.seed,
    )  # fmt: skip


def test_what_is_trained_on_is_not_measured_with() -> None:
    train_on, measure_with = neutral_prompts("train"), neutral_prompts("test")
    assert len(train_on) == len(measure_with) == 32 == len(set(train_on) - set(measure_with))


def test_both_prompts_of_a_neutral_sample_are_the_same_and_its_noise_is_its_own(model_dir: Path) -> None:
    config = replace(ConsolidateConfig(**SMALL), anchor=1.0)
    player = player_of(model_dir, config)
    first = anchors(player, 1, config, Ranks())
    assert sorted(first) == [0, 1, 2], "as many as a step has episodes"
    for sample in first.values():
        assert sample.student_ids == sample.teacher_ids and sample.context == EMPTY.id
        assert len(sample.logprobs) == sample.num_tokens
        assert any(text in player.chat.tokenizer.decode(sample.student_ids) for text in neutral_prompts("train"))
    assert anchors(player, 1, config, Ranks()) == first != anchors(player, 2, config, Ranks())
    assert anchors(player, 1, ConsolidateConfig(**SMALL), Ranks()) == {}


def test_which_neutral_prompts_come_and_their_noise_follow_the_seed(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(ConsolidateConfig(**SMALL), anchor=2.0)
    player = player_of(model_dir, config)

    def drawn() -> list[list[Sample]]:
        return [list(anchors(player, 1, replace(config, seed=seed), Ranks()).values()) for seed in (0, 1)]

    one, other = drawn()
    assert [sample.student_ids for sample in one] != [sample.student_ids for sample in other]
    monkeypatch.setattr(anchor, "neutral_prompts", lambda part: ("Name a fruit.",))
    one, other = drawn()
    assert [sample.student_ids for sample in one] == [sample.student_ids for sample in other]
    assert [sample.response_ids for sample in one] != [sample.response_ids for sample in other]


def test_a_teacher_with_another_template_reads_neutral_prompts_in_its_own(model_dir: Path) -> None:
    config = replace(ConsolidateConfig(**SMALL), anchor=1.0)
    player, other = player_of(model_dir, config), models.load_model(str(model_dir)).tokenizer
    other.chat_template = other.chat_template.replace("<|im_start|>", "<|im_start|>the ", 1)
    assert player.chat.taught_by(other)
    for sample in anchors(player, 1, config, Ranks()).values():
        assert sample.teacher_ids != sample.student_ids
        assert player.chat.teacher is not None
        text = next(text for text in neutral_prompts("train") if text in other.decode(sample.teacher_ids))
        assert sample.teacher_ids == player.chat.teacher.render([Message(role="user", content=text)])


def test_the_anchor_holds_the_student_and_is_no_episode(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Sample]] = []
    take = played.Batches.take

    def spy(self: Any, step: int) -> Any:
        found = take(self, step)
        seen.append(list(found.samples))
        assert len(found.episodes) == 3
        return found

    monkeypatch.setattr(played.Batches, "take", spy)
    much = {"steps": 12, "learning_rate": 1e-3, "select_every": 12, "save_every": 12}
    free = train(model_dir, tmp_path / "free", **much)
    assert all(sample.context == LESSONS.id for samples in seen for sample in samples)
    seen.clear()
    held = train(model_dir, tmp_path / "held", anchor=2.0, **much)
    assert [sum(sample.context == EMPTY.id for sample in samples) for samples in seen] == [6] * 12
    assert held.result.model_id != free.result.model_id
    base = models.load_model(str(model_dir))
    far = [_drift(model_dir, base, done.student) for done in (free, held)]
    assert far[1] < far[0] * 0.8, far


def _drift(folder: Path, base: Any, student: Any) -> float:
    """Mean reverse KL to the base on the student's replies to neutral prompts, computed whole."""
    config = ConsolidateConfig(**SMALL)
    player = player_of(folder, config)
    prompts = dict(enumerate(neutral_prompts("test")))
    samples = neutral_samples(player, prompts, seed=1, what="t", max_tokens=4, temperature=1.0)
    total, tokens = 0.0, 0
    for sample in samples.values():
        sides = (plain_logits(one.model, sample.student_ids, sample.response_ids) for one in (student, base))
        own, other = (logits.log_softmax(-1) for logits in sides)
        total += float((own.exp() * (own - other)).sum())
        tokens += sample.num_tokens
    return total / tokens


def test_a_killed_run_with_an_anchor_ends_as_an_unbroken_one(model_dir: Path, tmp_path: Path) -> None:
    whole = train(model_dir, tmp_path / "whole", anchor=0.7)
    with pytest.raises(Killed):
        train(model_dir, tmp_path / "cut", anchor=0.7, kill_at=5)
    assert train(model_dir, tmp_path / "cut", anchor=0.7).weights == whole.weights


def test_an_anchor_that_adds_nothing_is_refused_with_one_that_does() -> None:
    for size in (3, 7, 32, 48):
        with pytest.raises(ConfigError, match=rf"adds no reply to a step of {size} episodes; 0\.\d+ adds one") as told:
            ConsolidateConfig(**SMALL | {"batch_size": size, "anchor": 0.5 / size})
        least = float(str(told.value).split()[-3])
        assert round(ConsolidateConfig(**SMALL | {"batch_size": size, "anchor": least}).anchor * size) == 1


def test_cut_neutral_replies_are_dropped_where_cut_replies_are(model_dir: Path) -> None:
    config = replace(ConsolidateConfig(**SMALL), anchor=1.0)
    loaded = models.load_model(str(model_dir))
    loaded.end_ids = ENDS
    sampler = TransformersSampler(loaded, compute=torch.float32)
    player = replace(player_of(model_dir, config), sampler=sampler)
    found = anchors(player, 1, config, Ranks())
    whole = {place: one for place, one in found.items() if one.response_ids[-1] in ENDS}
    assert whole, "some are not cut"
    assert anchors(player, 1, replace(config, cut_replies="drop"), Ranks()) == whole != found


def test_an_anchor_has_an_upper_bound() -> None:
    with pytest.raises(ConfigError, match=r"anchor is 10\.5; .* at most 10"):
        replace(ConsolidateConfig(**SMALL), anchor=10.5)
    with pytest.raises(ConfigError, match="anchor is inf"):
        replace(ConsolidateConfig(**SMALL), anchor=float("inf"))


def test_an_anchor_needs_the_students_answers() -> None:
    with pytest.raises(ConfigError, match="--anchor is for methods that learn from the student's own answers"):
        ConsolidateConfig(**SMALL | {"anchor": 0.5, "method": "seqkd"})
    with pytest.raises(ConfigError, match="anchor"):
        replace(ConsolidateConfig(**SMALL), anchor=-1.0)


def test_neutral_replies_alone_teach_nothing(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reply of the games is cut or does not fit, and the anchor's replies are there."""
    monkeypatch.setattr(played, "samples_of", lambda episodes, *_, **__: ([], len(episodes)))
    with pytest.raises(TrainingError, match=r"2 of 2 steps were skipped.*nothing was learned, so there is no student"):
        train(model_dir, tmp_path, anchor=1.0, steps=2)
