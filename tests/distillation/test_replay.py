"""Prefix replay meets stored turns of all kinds: later ones, ones that are too long, and ones of another tokenizer."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import consolidate, models
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.stats import Mean, Rate
from agentopcd.core.types import Episode, Job, Sampling, Task, Turn
from agentopcd.distillation.checkpoint import Progress
from agentopcd.distillation.learner import Learner
from agentopcd.distillation.methods import PrefixReplay
from agentopcd.distillation.played import Batches
from agentopcd.distillation.samples import samples_of
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.fault_log import FaultLog
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests import tiny
from tests.training import LESSONS, TRAIN, train


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("replay") / "model")


def stored(model_dir: Path, *prompts: str, task: Task = TRAIN[0]) -> Episode:
    chat = Chat(models.load_model(str(model_dir)).tokenizer)
    turns = []
    for prompt in prompts:
        messages: Any = [{"role": "user", "content": prompt}]
        request = chat.request(messages, seed=0)
        turns.append(
            Turn(
                parts=[("text", prompt)], messages=messages, prompt_ids=request.prompt_ids, response_ids=(5, 6),
                logprobs=(0.0, 0.0), reply="x", finish_reason="stop", reward=0.0, invalid=False,
            )
        )  # fmt: skip
    return Episode(
        env="math", task=task, rep=0, context_id="", turns=turns, outcome=[], success=True, reward=0.0,
        stop_reason="solved",
    )  # fmt: skip


def replay(model_dir: Path, episode: Episode, *, room: int = 0, faults: FaultLog | None = None) -> PrefixReplay:
    student = models.load_model(str(model_dir))
    sampler: Any = TransformersSampler(student, compute=torch.float32)
    if room:
        sampler = type("Narrow", (), {"room": room, "sample": sampler.sample})()
    player = Player(
        game=Game(ref="math"), sampler=sampler, chat=Chat(student.tokenizer),
        sampling=Sampling(max_tokens=3, temperature=5.0), faults=faults,
    )  # fmt: skip
    return PrefixReplay(ConsolidateConfig(env="math", method="prefix-replay"), player, [episode])


def test_a_turn_keeps_its_number_so_that_turns_can_fade(model_dir: Path) -> None:
    method = replay(model_dir, stored(model_dir, "one", "two", "three", "four"))
    played = [next(iter(method.play([Job(TRAIN[0], rep=rep)]))) for rep in range(12)]
    numbers = {episode.first for episode in played}
    assert len(numbers) > 2 and numbers <= {0, 1, 2, 3}
    for episode in played:
        assert episode.turns[0].messages == method.turns[TRAIN[0]][episode.first][1].messages
        samples, _ = samples_of([episode], method.player.chat, LESSONS, "keep")
        assert [sample.turn for sample in samples] == [episode.first] * len(samples)


def test_turns_and_their_noise_follow_the_seed(model_dir: Path) -> None:
    jobs = [Job(TRAIN[0], rep=rep) for rep in range(12)]

    def played(*prompts: str) -> list[list[Episode]]:
        method, found = replay(model_dir, stored(model_dir, *prompts)), []
        for seed in (0, 1):
            method.config = dataclasses.replace(method.config, seed=seed)
            found.append(list(method.play(jobs)))
        return found

    one, other = played("one", "two", "three", "four")
    assert [episode.first for episode in one] != [episode.first for episode in other]
    one, other = played("one")
    assert [e.turns[0].response_ids for e in one] != [e.turns[0].response_ids for e in other]


def test_a_turn_that_is_too_long_costs_itself_and_is_written_down(model_dir: Path, tmp_path: Path) -> None:
    log = FaultLog(tmp_path / "errors" / "run.log")
    method = replay(model_dir, stored(model_dir, "short", "long " * 60), room=120, faults=log)
    played = [next(iter(method.play([Job(TRAIN[0], rep=rep)]))) for rep in range(12)]
    assert {(episode.first, episode.stop_reason) for episode in played} == {(0, "max_steps"), (1, "env_error")}
    broken = next(episode for episode in played if episode.first)
    assert "do not fit into the 120 positions" in (broken.error or "") and not broken.turns
    assert "turn 1 of a stored episode" in log.file.read_text()
    assert samples_of([broken], method.player.chat, LESSONS, "keep") == ([], 0)


def test_turns_held_to_another_tokenizer_are_refused(model_dir: Path) -> None:
    episode = stored(model_dir, "go")
    chat = Chat(models.load_model(str(model_dir)).tokenizer)
    choices = chat.choices(["left", "right"])

    def held(reply: str, choices: Any) -> Episode:
        turn = dataclasses.replace(episode.turns[0], choices=choices, reply=reply)
        return dataclasses.replace(episode, turns=[turn])

    replay(model_dir, held("left", choices))
    for others in ([(*ids[:-1], 9) for ids in choices], [(*ids[:-1], 10**6, ids[-1]) for ids in choices]):
        with pytest.raises(ConfigError, match="held to token ids of another tokenizer, so this student cannot"):
            replay(model_dir, held("left", tuple(others)))
    with pytest.raises(ConfigError, match="another tokenizer"):
        replay(model_dir, held("up", choices))  # the ids are there, but stand for other words


# -- what else a training must not do ------------------------------------------------------------------


def test_a_checkpoint_of_which_nothing_was_measured_is_never_the_best() -> None:
    nothing, some = Mean(0.0, 0.0, 0.0, 0), Mean(-0.5, -0.6, -0.4, 9)
    select: dict[int, Rate | Mean] = {1: some, 2: nothing, 3: Mean(-0.4, -0.5, -0.3, 9)}
    assert not Progress(step=2, best_step=1, select=select).better(2)
    assert not Progress(step=2, best_step=1, select=select).better(2, lowest=True)
    assert Progress(step=3, best_step=2, select=select).better(3)
    assert Progress(step=3, best_step=2, select=select).better(3, lowest=True)
    assert not Progress(step=2, best_step=1, select={1: nothing, 2: nothing}).better(2)


def test_the_weights_stand_still_until_the_next_batch_is_played(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    settle, step = Batches.settle, Learner.step
    monkeypatch.setattr(Batches, "settle", lambda self, lap: (order.append("settle"), settle(self, lap))[1])
    monkeypatch.setattr(Learner, "step", lambda self, *a, **kw: (order.append("step"), step(self, *a, **kw))[1])
    train(model_dir, tmp_path, steps=2, select_every=2)
    assert order == ["settle", "step"] * 2


def test_no_other_thread_compares_the_model_in_the_midst_of_a_batch(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free: list[bool] = []

    def elsewhere(*args: Any) -> Any:
        """What a thread that plays ahead would find, while the teacher has its adapter off."""
        with ThreadPoolExecutor(1) as pool:
            taken = pool.submit(models.PASSES.acquire, blocking=False).result()
            if taken:
                pool.submit(models.PASSES.release).result()
        free.append(taken)
        return learn_from(*args)

    learn_from = consolidate.learn_from
    monkeypatch.setattr(consolidate, "learn_from", elsewhere)
    train(model_dir, tmp_path, steps=1, select_every=1)
    assert free and not any(free)
    assert models.PASSES.acquire(blocking=False)
    models.PASSES.release()
