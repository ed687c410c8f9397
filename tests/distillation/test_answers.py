"""The file of the teacher's answers: what a kill, a broken environment and a damaged disk leave of it."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core import transcript
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Episode, Job
from agentopcd.distillation import methods
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests import tiny
from tests.training import LESSONS, SMALL, TRAIN

SEQKD = dataclasses.replace(ConsolidateConfig(**SMALL), method="seqkd")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("answers") / "model", tie=False, hearing=4.0)


@pytest.mark.parametrize("damage", [b"{", b"\xff", b"[]", b"9"])
def test_a_damaged_answer_is_told_with_its_line(damage: bytes, tmp_path: Path) -> None:
    episode = transcript.to_json(methods._read(_answers(tmp_path))[0])
    assert methods._read(_answers(tmp_path, json.dumps(episode) + "\n"))[1] == transcript.from_json(
        episode
    )  # as in 0.1
    body = (tmp_path / "answers-0.jsonl").read_bytes()
    for at in (b'"rep": 0', b"\n"):  # a changed digit, and a line of another kind
        broken = body.replace(b'"rep": 0', b'"rep": 1', 1) if at != b"\n" else body + damage + b"\n"
        (tmp_path / "answers-0.jsonl").write_bytes(broken)
        with pytest.raises(ConfigError, match=r"line [13] of .*answers-0.jsonl is damaged .*remove that line") as error:
            methods._read(tmp_path / "answers-0.jsonl")
        assert "\n" not in str(error.value)


def _answers(folder: Path, more: str = "") -> Path:
    """A file with one answer, and a line cut by a kill unless ``more`` follows."""
    episode = Episode(
        env="math", task=TRAIN[0], rep=0, context_id="c", turns=[], outcome=[], success=False, reward=0.0,
        stop_reason="failed",
    )  # fmt: skip
    file = folder / "answers-0.jsonl"
    file.write_text(methods._line(transcript.to_json(episode)) + (more or '{"env": "ma'))
    return file


def test_answers_that_are_there_are_not_asked_for_again(model_dir: Path, tmp_path: Path) -> None:
    student = models.load_model(str(model_dir))
    asked: list[Job] = []

    class Counting(Player):
        def play(self, jobs: Sequence[Job]) -> Any:
            asked.extend(jobs)
            return super().play(jobs)

    player = Counting(
        game=Game(ref="math"), sampler=TransformersSampler(student, compute=torch.float32),
        chat=Chat(student.tokenizer), sampling=SEQKD.sampling,
    )  # fmt: skip
    jobs = [Job(task) for task in TRAIN]
    whole = methods.answers(SEQKD, player, LESSONS, jobs, tmp_path, Ranks())
    file = tmp_path / "answers-0.jsonl"
    text = file.read_text()
    assert [json.loads(line.split("\t")[0])["context_id"] for line in text.splitlines()] == [LESSONS.id] * len(TRAIN)
    file.write_text(text[:-5])  # a kill cut the last line
    asked.clear()
    again = methods.answers(SEQKD, player, LESSONS, jobs, tmp_path, Ranks())
    assert len(asked) == 1
    replies = [{(e.task, e.rep, e.turns[0].response_ids) for e in some} for some in (again, whole)]
    assert replies[0] == replies[1]
    assert file.read_text().count("\n") == len(TRAIN)


@pytest.mark.parametrize("index", [0, 1])
def test_the_main_process_alone_mends_a_cut_file_of_answers(index: int, tmp_path: Path) -> None:
    class Two(Ranks):
        def __init__(self) -> None:
            self.count, self.index = 2, index

        def wait(self) -> None:
            waited.append(_answers_are_whole(file))

        def everyone(self, value: Any) -> list[Any]:
            return [value]

    waited: list[bool] = []
    file = _answers(tmp_path)
    player: Any = types.SimpleNamespace(play=lambda jobs: iter(()))  # nothing is missing
    (found,) = methods.answers(SEQKD, player, LESSONS, [Job(TRAIN[0])], tmp_path, Two())
    assert found.task == TRAIN[0]
    assert waited == [index == 0] * 2  # mended before the other processes read
    assert _answers_are_whole(file) == (index == 0)


def _answers_are_whole(file: Path) -> bool:
    return file.read_text().endswith("\n")


def test_answers_that_the_environment_broke_are_asked_for_again(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = models.load_model(str(model_dir))
    player = Player(
        game=Game(ref="math"), sampler=TransformersSampler(student, compute=torch.float32),
        chat=Chat(student.tokenizer), sampling=SEQKD.sampling,
    )  # fmt: skip
    jobs = [Job(task) for task in TRAIN]
    play = Player.play

    def broken(self: Player, jobs: Sequence[Job]) -> Any:
        for episode in play(self, jobs):
            yield dataclasses.replace(episode, stop_reason="env_error", error="the server is away")

    monkeypatch.setattr(Player, "play", broken)
    with pytest.raises(ConfigError, match="broke all 5 episodes of the teacher: the server is away"):
        methods.answers(SEQKD, player, LESSONS, jobs, tmp_path, Ranks())
    monkeypatch.undo()
    for _ in range(2):  # played again, and then found
        again = methods.answers(SEQKD, player, LESSONS, jobs, tmp_path, Ranks())
        assert {e.task for e in again} == set(TRAIN) and len(again) == len(TRAIN)
        assert all(e.stop_reason != "env_error" for e in again)
    assert (tmp_path / "answers-0.jsonl").read_text().count("\n") == 2 * len(TRAIN)
