"""The built-in model, its real tokenizer and template: 135 M parameters, fetched once from the package index."""

from __future__ import annotations

import pytest
import torch

from agentopcd import models
from agentopcd.core.types import Context, Episode, Job, Sampling
from agentopcd.distillation import losses
from agentopcd.distillation.positions import response_logits
from agentopcd.distillation.samples import samples_of
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.envs import build_splits
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler

HINT = Context("Work out the result, write only that number, and stop.")


@pytest.fixture(scope="module")
def loaded() -> models.LoadedModel:
    return models.load_model("smollm2-135m")


@pytest.fixture(scope="module")
def episodes(loaded: models.LoadedModel) -> list[Episode]:
    game = Game(ref="math", kwargs={"level": 1, "grader": "last-number"})
    player = Player(
        game=game,
        sampler=TransformersSampler(loaded, compute=torch.float32),
        chat=Chat(loaded.tokenizer),
        sampling=Sampling(max_tokens=10),
    )
    tasks = build_splits("math", dict(game.kwargs), seeds=40).tasks("train")[:4]
    return list(player.play([Job(task) for task in tasks]))


def test_it_is_what_it_says(loaded: models.LoadedModel) -> None:
    assert "dequantised 4-bit" in loaded.note
    assert sum(p.numel() for p in loaded.model.parameters()) == 134_515_008
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.tokenizer.convert_ids_to_tokens(loaded.end_ids[0]) == "<|im_end|>"


def test_its_template_brings_a_system_message_that_both_views_keep(loaded: models.LoadedModel) -> None:
    chat = Chat(loaded.tokenizer)
    assert chat.default_system.startswith("You are a helpful AI assistant named SmolLM")
    placed = chat.text([{"role": "user", "content": "hello"}], Context("Be brief.", "system"))
    assert f"{chat.default_system}\n\nBe brief.<|im_end|>" in placed


def test_it_speaks(loaded: models.LoadedModel) -> None:
    prompt = torch.tensor([loaded.tokenizer("The capital of France is")["input_ids"]])
    with torch.no_grad():
        best = int(loaded.model(prompt).logits[0, -1].argmax())
    assert loaded.tokenizer.decode([best]).strip() == "Paris"


def test_teacher_and_student_agree_without_a_context_and_differ_with_one(
    loaded: models.LoadedModel, episodes: list[Episode]
) -> None:
    chat, pad = Chat(loaded.tokenizer), loaded.tokenizer.pad_token_id
    teacher = FrozenTeacher(loaded, loaded, compute=torch.float32)
    found = {}
    for name, context in (("none", Context()), ("hint", HINT)):
        samples, dropped = samples_of(episodes, chat, context, "keep")
        assert dropped == 0 and len(samples) == 4
        with torch.no_grad():
            student_NV = response_logits(loaded.model, [(s.student_ids, s.response_ids) for s in samples], pad)
        found[name] = losses.divergence(student_NV, teacher.score(samples), temperature=0.7).value_N
        assert len(found[name]) == sum(len(t.response_ids) for e in episodes for t in e.turns)
    assert found["none"].abs().max() < 1e-4
    assert found["hint"].mean() > 0.02
