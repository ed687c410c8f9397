"""The example teaches what the package does: the same prompts, the same loss, the same gradient, in a hundred lines."""

from __future__ import annotations

import ast
import importlib.util
import io
import tokenize
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from agentopcd import envs, models
from agentopcd.consolidate import deal, learn_from
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.types import Context, Episode, Job, Sampling
from agentopcd.distillation.learner import Learner
from agentopcd.distillation.methods import METHODS
from agentopcd.distillation.metrics import Clock, StepMeter
from agentopcd.distillation.samples import Sample, samples_of
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler

CLOSE = 1e-4
"""Largest difference of two gradients, as a share of their norm: float32 sums in another order. Seen: under 1e-5."""


@pytest.fixture
def example(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("opcd_in_100_lines", root / "examples" / "opcd_in_100_lines.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pocket() -> models.LoadedModel:
    return models.load_model("pocket")


@pytest.fixture(scope="module")
def episodes(pocket: models.LoadedModel) -> list[Episode]:
    """Three games that the package plays, without a context."""
    player = Player(
        game=Game(ref="frozen-lake-4x4"), sampler=TransformersSampler(pocket, compute=torch.float32),
        chat=Chat(pocket.tokenizer), sampling=Sampling(temperature=0.7, max_tokens=128),
    )  # fmt: skip
    jobs = [Job(task) for task in envs.build_splits("frozen-lake-4x4", seeds=400).splits["train"][:3]]
    return sorted(player.play(jobs), key=lambda episode: episode.task.seed)


@pytest.fixture
def turns(
    example: ModuleType, pocket: models.LoadedModel, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> list:
    """The same games as the example plays them, when it gives the same replies to the same prompts."""
    replies = {turn.prompt_ids: list(turn.response_ids) for episode in episodes for turn in episode.turns}

    def replay(model: object, tokenizer: object, prompts: Sequence[list[int]]) -> list[list[int]]:
        return [replies[tuple(prompt)] for prompt in prompts]

    with monkeypatch.context() as patch:
        patch.setattr(example, "sample", replay)
        won, turns = example.play(None, pocket.tokenizer, [episode.task.seed for episode in episodes])
    assert won == sum(episode.success for episode in episodes)
    return turns


def samples(example: ModuleType, pocket: models.LoadedModel, episodes: list[Episode]) -> list[Sample]:
    return samples_of(episodes, Chat(pocket.tokenizer), Context(example.CONTEXT), "keep")[0]


def loops_gradient(student: models.LoadedModel, samples: Sequence[Sample], k: int) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of a step as the loop computes them, in float32."""
    config = ConsolidateConfig(env="math", support=k)
    player: Any = None  # nothing is played here
    method = METHODS["opcd"](config, player)
    teacher = FrozenTeacher(student, student, compute=torch.float32)
    learner = Learner(student, config, torch.float32)
    student.model.zero_grad()
    meter, loss = StepMeter(method.temperature, config.temperature), 0.0
    for batch in deal(samples, learner, teacher, Ranks()):
        learn_from(batch, learner, teacher, method, meter, Clock())
        values_N = torch.cat(meter.rows["value"])[-len(batch.weights_N) :]
        loss += float((values_N * batch.weights_N).sum())
    return loss, gradient(student.model)


def gradient(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_it_asks_what_the_package_asks(
    example: ModuleType, pocket: models.LoadedModel, episodes: list[Episode], turns: list
) -> None:
    def asked(context: str) -> set[tuple[int, ...]]:
        return {tuple(example.prompt_ids(pocket.tokenizer, question, context)) for question, _ in turns}

    ours = samples(example, pocket, episodes)
    assert len(turns) == len(ours) > 0
    assert asked("") == {s.student_ids for s in ours}
    assert asked(example.CONTEXT) == {s.teacher_ids for s in ours}


@pytest.mark.parametrize("k", [256, 1])  # pocket is so sure that 256 words leave no tail
def test_its_loss_and_gradient_are_those_of_the_loop(
    example: ModuleType,
    pocket: models.LoadedModel,
    episodes: list[Episode],
    turns: list,
    monkeypatch: pytest.MonkeyPatch,
    k: int,
) -> None:
    assert example.TOP_K == 256
    monkeypatch.setattr(example, "TOP_K", k)
    monkeypatch.setattr(example, "ROWS", 4)
    assert len(turns) > example.ROWS, "more than one forward pass"
    loss, wanted = loops_gradient(pocket, samples(example, pocket, episodes), k)
    teacher = models.load_model("pocket").model.requires_grad_(False)
    pocket.model.zero_grad()
    assert example.learn(pocket.model, teacher, pocket.tokenizer, turns) == pytest.approx(loss, rel=1e-5)
    got = gradient(pocket.model)
    pocket.model.zero_grad()
    assert got.keys() == wanted.keys() == dict(pocket.model.named_parameters()).keys()
    for name, expected in wanted.items():
        assert expected.norm() > 0, name
        assert (got[name] - expected).norm() <= CLOSE * expected.norm(), name


def test_it_runs_from_end_to_end(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    success = example.main(steps=1, games=1, test_games=1)
    assert list(success) == ["before", "in context", "after"]
    printed = capsys.readouterr().out
    assert printed.count("n = 1 ") == 3
    assert "step 1: loss " in printed


def test_a_reply_without_a_move_is_shown_as_it_is(
    example: ModuleType, pocket: models.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = pocket.tokenizer("nothing", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(example, "sample", lambda model, tokenizer, prompts: [said for _ in prompts])
    won, turns = example.play(None, pocket.tokenizer, [0])
    assert won == 0 and len(turns) == 2  # the second one ends the game
    assert f"You answered: {pocket.tokenizer.decode(said).strip()}" in turns[1][0]


def test_it_has_at_most_a_hundred_lines_of_code(root: Path) -> None:
    source = (root / "examples" / "opcd_in_100_lines.py").read_text()
    assert len(code_lines(source)) <= 100


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that are neither blank nor comment nor docstring."""
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            said = node.body[0]
            lines -= set(range(said.lineno, (said.end_lineno or said.lineno) + 1))
    return lines
