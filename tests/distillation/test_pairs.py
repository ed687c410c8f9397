"""A teacher of another size: other rows in its vocabulary, another template, other positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.consolidate import learn_from
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ModelError
from agentopcd.core.types import Context, Episode, Task, Turn
from agentopcd.distillation import losses
from agentopcd.distillation.learner import Learner
from agentopcd.distillation.methods import METHODS
from agentopcd.distillation.metrics import Clock, StepMeter
from agentopcd.distillation.samples import Batch, samples_of
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests import odd_tokenizers as odd
from tests.training import turn_sample

PAPER = {
    "Qwen3 1.7B and 4B with 8B": (151936, 151936),
    "Qwen2.5 3B with 7B": (151936, 152064),
    "Qwen2.5 7B with 3B": (152064, 151936),
}
"""Rows of student and teacher, of every pair of two sizes in the paper's tables and figures, and one turned round."""


def load(folder: Path, **settings: Any) -> models.LoadedModel:
    return models.load_model(str(odd.model(folder, odd.tokenizer(), tie=False, **settings)))


def learned(student: models.LoadedModel, teacher: FrozenTeacher, form: Any, samples: Any) -> tuple[float, torch.Tensor]:
    """The logged value of one batch, and the gradient of the student's output head."""
    config = ConsolidateConfig(env="math", divergence=form, compute="float32", temperature=1.0)
    learner = Learner(student, config, torch.float32)
    sampler = TransformersSampler(student, compute=torch.float32)
    player = Player(game=Game(ref="math"), sampler=sampler, chat=Chat(student.tokenizer), sampling=config.sampling)
    method = METHODS["opcd"](config, player)
    meter = StepMeter(method.temperature, 1.0, config.importance_cap)
    n = sum(sample.num_tokens for sample in samples)
    learn_from(Batch(samples=samples, weights_N=torch.full((n,), 1 / n)), learner, teacher, method, meter, Clock())
    return meter.result()["loss/value_nats"], student.model.get_output_embeddings().weight.grad


SAMPLES = [turn_sample([5, 6, 7], [9, 5, 6, 7], [8, 30, 40]), turn_sample([5, 6], [9, 5, 6], [8])]


@pytest.mark.parametrize("form", ["full", "tail"])
@pytest.mark.parametrize("pair", PAPER)
def test_two_paddings_of_one_vocabulary_are_compared_on_the_rows_that_both_have(
    pair: str, form: Any, tmp_path: Path
) -> None:
    mine, theirs = PAPER[pair]
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    student, other = load(tmp_path / "s", rows=mine, **sizes), load(tmp_path / "t", rows=theirs, seed=1, **sizes)
    with torch.no_grad():  # rows that only one of them has would change every value, if they counted
        for model in (student, other):
            model.model.lm_head.weight[min(PAPER["Qwen2.5 3B with 7B"]) :] = 3.0
            model.model.lm_head.weight[:400].mul_(40)
    models.check_pair(student, other)
    teacher = FrozenTeacher(other, student, compute=torch.float32)
    assert teacher.rows == 151936
    value, gradient = learned(student, teacher, form, SAMPLES)
    with torch.no_grad():
        rows = [
            (model.model(torch.tensor([[*prompt, *s.response_ids]])).logits[0, len(prompt) - 1 : -1, :151936], s)
            for s in SAMPLES for model, prompt in ((student, s.student_ids), (other, s.teacher_ids))
        ]  # fmt: skip
    student_NV, teacher_NV = (torch.cat([logits for logits, _ in rows[start::2]]) for start in (0, 1))
    p, q = student_NV.log_softmax(-1), teacher_NV.log_softmax(-1)
    if form == "full":
        assert value == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    expected = losses.divergence(student_NV, teacher_NV, form=form, k=256).value_N
    assert value == pytest.approx(float(expected.mean()), rel=1e-4)
    assert float(gradient[151936:].abs().sum()) == 0 and float(gradient[:151936].abs().sum()) > 0


def test_equal_rows_are_compared_as_ever(tmp_path: Path) -> None:
    student, other = load(tmp_path / "s"), load(tmp_path / "t", seed=1)
    teacher = FrozenTeacher(other, student, compute=torch.float32)
    assert teacher.rows == len(student.tokenizer)


def turn(chat: Chat, ids: tuple[int, ...], text: str = "hi") -> Turn:
    messages: Any = [{"role": "user", "content": text}]
    return Turn(
        parts=[], messages=messages, prompt_ids=chat.render(messages), response_ids=ids, logprobs=(0.0,) * len(ids),
        reply="", finish_reason="stop", reward=0.0, invalid=False,
    )  # fmt: skip


def episode(*turns: Turn) -> Episode:
    return Episode(
        env="math", task=Task(0, "k"), rep=0, context_id="", turns=list(turns), outcome=[], success=False, reward=0.0,
        stop_reason="failed",
    )  # fmt: skip


def test_a_reply_with_a_token_that_the_teacher_has_no_row_for_is_left_out(tmp_path: Path) -> None:
    student, other = load(tmp_path / "s", rows=448), load(tmp_path / "t", rows=410, seed=1)
    teacher = FrozenTeacher(other, student, compute=torch.float32)
    chat, context = Chat(student.tokenizer), Context("Zebras")
    known, unknown = turn(chat, (8, 409, 2)), turn(chat, (8, 410, 2))
    samples, dropped = samples_of([episode(known, unknown)], chat, context, "keep", fits=teacher.fits)
    assert [sample.response_ids for sample in samples] == [(8, 409, 2)] and dropped == 1


def test_a_turn_that_does_not_fit_into_the_teachers_positions_is_left_out(tmp_path: Path) -> None:
    student, other = load(tmp_path / "s"), load(tmp_path / "t", seed=1, max_position_embeddings=64)
    teacher = FrozenTeacher(other, student, compute=torch.float32)
    chat, context = Chat(student.tokenizer), Context("Zebras walk left")
    messages: Any = [{"role": "user", "content": "hi"}]
    room = 64 - len(chat.render(messages, context))
    fits, not_any_more = turn(chat, (8,) * room), turn(chat, (8,) * (room + 1))
    samples, dropped = samples_of([episode(fits, not_any_more)], chat, context, "keep", fits=teacher.fits)
    assert [sample.num_tokens for sample in samples] == [room] and dropped == 1


def test_vocabularies_that_differ_in_a_shared_row_do_not_pair(tmp_path: Path) -> None:
    student, other = load(tmp_path / "s", rows=448), load(tmp_path / "t", rows=512)
    models.check_pair(student, other)
    other.tokenizer.add_tokens(["brand-new"])
    with pytest.raises(ModelError, match=f"token {len(student.tokenizer)} is 'brand-new' in one of them"):
        models.check_pair(student, other)


def test_a_new_token_beyond_the_shared_rows_is_no_hindrance(tmp_path: Path) -> None:
    student = load(tmp_path / "s")
    made = odd.tokenizer()
    made.add_tokens(["<box>"])
    other = models.load_model(str(odd.model(tmp_path / "t", made)))
    models.check_pair(student, other)
    models.check_pair(other, student)
