"""The turns that are kept for people: the figures are those of the loss, and keeping them changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import consolidate as loop
from agentopcd import models
from agentopcd.core.runs import TOKENS_FILE
from agentopcd.distillation import losses
from agentopcd.distillation.tokens import TIMES, TOKENS, TURNS, Watch, watched
from tests import tiny
from tests.training import Killed, Trained, train, turn_sample


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("untied") / "model", tie=False, hearing=4.0)


@pytest.fixture(scope="module")
def whole(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """An uninterrupted run; read it, do not change it."""
    return train(model_dir, tmp_path_factory.mktemp("whole"))


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / TOKENS_FILE).read_text().splitlines()]


class Letters:
    """A tokenizer of letters, by number."""

    def decode(self, ids: Any) -> str:
        return "".join("abc"[i] for i in ids)


def test_the_figures_of_a_token_are_those_worked_out_by_hand() -> None:
    """Student (1/2, 1/4, 1/4), teacher (1/4, 1/2, 1/4): the reverse KL is 1/2 ln 2 - 1/4 ln 2."""
    first, second = turn_sample([0], [1, 0], [0, 2]), turn_sample([0], [1, 0], [1])
    watch = Watch([first, second], temperature=1.0)
    student = torch.tensor([[0.5, 0.25, 0.25]] * 3).log()
    teacher = torch.tensor([[0.25, 0.5, 0.25]] * 3).log()
    watch.begin([second, first])  # rows come in the order of the batch, records in the order of play
    for where in (slice(0, 2), slice(2, 4)):  # chunks cut through a turn
        ids = torch.tensor([1, 0, 2])[where]
        value = losses.full_kl(student[where], teacher[where])
        watch.add(where, student[where], teacher[where], ids, value)
    one, two = watch.records(7, Letters())
    assert [token["text"] for token in one["tokens"]] == ["a", "c"] and [t["text"] for t in two["tokens"]] == ["b"]
    assert one["step"] == 7 and one["prompt"] == "a" and (one["prompt_tokens"], one["teacher_tokens"]) == (1, 2)
    wanted = {"nats": math.log(2) / 4, "student": math.log(0.5), "teacher": math.log(0.25)}
    assert {name: one["tokens"][0][name] for name in wanted} == pytest.approx(wanted, abs=1e-5)
    assert two["tokens"][0]["likeliest"] == "b"
    assert two["tokens"][0]["likeliest_logprob"] == pytest.approx(math.log(0.5), abs=1e-5)


def test_a_step_keeps_few_turns_and_long_replies_are_cut() -> None:
    samples = [turn_sample([0], [1, 0], [2] * (TOKENS + 3)) for _ in range(100)]
    watch = Watch(samples, temperature=1.0)
    assert len(watch.samples) == TURNS and watch.samples[0] is samples[0]
    logits = torch.zeros(TOKENS + 3, 3)
    watch.begin(samples[:1])
    watch.add(slice(0, TOKENS + 3), logits, logits, torch.full((TOKENS + 3,), 2), logits[:, 0])
    (record,) = watch.records(1, Letters())
    assert len(record["tokens"]) == TOKENS and record["tokens_left_out"] == 3


def test_a_batch_without_a_kept_turn_keeps_nothing_of_it() -> None:
    kept, other = turn_sample([0], [1, 0], [2]), turn_sample([0], [1, 0], [2])
    watch, logits = Watch([kept], temperature=1.0), torch.zeros(1, 3)
    watch.begin([other])
    watch.add(slice(0, 1), logits, logits, torch.tensor([2]), logits[:, 0])
    assert watch.rows == {} and watch.records(1, Letters()) == []


@pytest.mark.parametrize(("steps", "every"), [(4, 2), (50, 5), (1000, 1), (7, 100), (1, 1), (997, 10)])
def test_turns_are_kept_at_few_steps_and_at_the_first_and_last(steps: int, every: int) -> None:
    kept = [step for step in range(1, steps + 1) if watched(step, steps, every)]
    assert kept[0] == 1 and kept[-1] == steps and len(kept) <= TIMES + 1
    assert all(step % every == 0 for step in kept[1:-1])
    assert len(kept) >= min(steps // every, TIMES // 2)


def test_tokens_join_to_the_reply_and_those_outside_the_vocabulary_of_letters_get_a_name(model_dir: Path) -> None:
    tokenizer = models.load_model(str(model_dir)).tokenizer
    ids = tokenizer("Go  left,\nthen é 🦓.", add_special_tokens=False)["input_ids"]
    watch, logits = Watch([turn_sample(ids, ids, ids)], temperature=1.0), torch.zeros(len(ids), 300)
    watch.begin(watch.samples)
    watch.add(slice(0, len(ids)), logits, logits, torch.tensor(ids), logits[:, 0])
    (record,) = watch.records(1, tokenizer)
    texts = [token["text"] for token in record["tokens"]]
    assert "".join(texts).startswith("Go  left,\nthen ") and all(texts) and "\ufffd" not in "".join(texts)


def test_keeping_turns_changes_no_bit_of_the_training(
    whole: Trained, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "watched", lambda *_: False)
    bare = train(model_dir, tmp_path)
    assert not (bare.run.folder / TOKENS_FILE).exists()
    assert whole.weights == bare.weights
    for a, b in zip(whole.steps, bare.steps, strict=True):
        assert {k: v for k, v in a.items() if "time/" not in k} == {k: v for k, v in b.items() if "time/" not in k}
    found = records(whole.run.folder)
    assert [record["step"] for record in found] == [1] * 3 + [2] * 3 + [4] * 3
    step_1 = [token["nats"] for record in found[:3] for token in record["tokens"]]  # the batch holds three turns
    assert sum(step_1) / len(step_1) == pytest.approx(whole.steps[0]["loss/value_nats"], abs=1e-4)


def test_a_killed_training_keeps_each_turn_once(whole: Trained, model_dir: Path, tmp_path: Path) -> None:
    step_2 = next(place for place, line in enumerate(whole.lines, 1) if line.startswith("step 002"))
    with pytest.raises(Killed):
        train(model_dir, tmp_path, kill_at=step_2)  # the step is logged and its checkpoint is not yet saved
    again = train(model_dir, tmp_path)
    assert records(again.run.folder) == records(whole.run.folder)
