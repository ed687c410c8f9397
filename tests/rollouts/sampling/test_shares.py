"""Several processes that answer for a small model, each a share of the requests."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import ConfigError, EngineError
from agentopcd.core.types import Episode, Request, Sampling
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling import decoding, shares
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests.rollouts.scripted import WALK, Walk, walks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
JOBS = walks(*range(9))


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(shares, "LEAST_JOBS", 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    assert not multiprocessing.active_children()  # every process ends with the play


@pytest.fixture(scope="module")
def loaded(tiny_model_dir: Path) -> models.LoadedModel:
    return models.load_model(str(tiny_model_dir))


def player_of(loaded: models.LoadedModel, **options: Any) -> Player:
    sampler = TransformersSampler(loaded, compute=torch.float32, batch_size=2)
    hot = Sampling(temperature=30.0, max_tokens=8)  # else this model says one token for ever
    return Player(game=Game(ref=WALK), sampler=sampler, chat=Chat(loaded.tokenizer), sampling=hot, **options)


def replies_of(episodes: list[Episode]) -> list[list[tuple[int, ...]]]:
    return [[turn.response_ids for turn in e.turns] for e in sorted(episodes, key=lambda e: e.task)]


def logprobs_of(episodes: list[Episode]) -> list[list[tuple[float, ...]]]:
    return [[turn.logprobs for turn in e.turns] for e in sorted(episodes, key=lambda e: e.task)]


def test_the_replies_are_those_of_one_process_and_the_same_every_time(loaded: models.LoadedModel) -> None:
    player = player_of(loaded, concurrency=3)
    first, again = (list(player.play(JOBS)) for _ in range(2))
    assert len(first) == len(JOBS) and replies_of(first) == replies_of(again)
    assert len({reply for replies in replies_of(first) for reply in replies}) > len(JOBS)
    assert logprobs_of(first) == logprobs_of(again)  # to the last bit: nothing depends on who is faster
    torch.set_num_threads(1)
    alone = list(player.play(JOBS))
    assert replies_of(alone) == replies_of(first)
    for mine, other in zip(logprobs_of(alone), logprobs_of(first), strict=True):
        assert [pytest.approx(one, abs=1e-4) for one in mine] == other


def test_new_weights_are_those_that_play(tiny_model_dir: Path) -> None:
    loaded = models.load_model(str(tiny_model_dir))
    player = player_of(loaded)
    before = replies_of(list(player.play(JOBS)))
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.normal_()
    player.sampler.update()
    after = replies_of(list(player.play(JOBS)))
    assert after != before
    torch.set_num_threads(1)
    assert replies_of(list(player.play(JOBS))) == after


def test_games_stay_in_this_process(loaded: models.LoadedModel) -> None:
    opened, closed = Walk.opened["all"], Walk.opened["closed"]
    list(player_of(loaded).play(JOBS))
    assert Walk.opened["all"] - opened == Walk.opened["closed"] - closed == len(JOBS)


def test_a_play_that_is_broken_off_leaves_no_process(loaded: models.LoadedModel) -> None:
    running = iter(player_of(loaded).play(JOBS))
    next(running)
    assert len(multiprocessing.active_children()) == 2
    running.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def test_a_process_that_is_killed_is_told_in_one_line(loaded: models.LoadedModel) -> None:
    running = iter(player_of(loaded, concurrency=1).play(JOBS))
    next(running)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    with pytest.raises(
        EngineError, match=r"has ended \(signal 9; out of memory\?\); what was played is kept"
    ) as caught:
        list(running)
    assert "\n" not in str(caught.value)


def test_an_error_in_a_process_reaches_this_one(loaded: models.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> Any:
        raise MemoryError("no room")

    player = player_of(loaded)
    list(player.play(JOBS[:1]))  # the way is chosen here, before anything breaks
    monkeypatch.setattr(shares, "Continuous", breaks)
    with pytest.raises(EngineError, match="cannot be answered: MemoryError: no room"):
        list(player.play(JOBS))


def test_a_prompt_that_is_too_long_is_refused_as_ever(loaded: models.LoadedModel) -> None:
    player = player_of(loaded)
    long = dataclasses.replace(player, sampling=Sampling(max_tokens=10_000))
    assert {e.stop_reason for e in long.play(JOBS)} == {"env_error"}
    samplers = player.sampler.split(4)
    for sampler in samplers:
        sampler.submit(Request(prompt_ids=(1,) * 5000, seed=0), Sampling())
    with pytest.raises(ConfigError, match="do not fit"):
        shares.ready(samplers)
    for sampler in samplers:
        sampler.drop([0])


def test_a_model_that_is_sampled_a_slower_way_stays_here(
    loaded: models.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    player = player_of(loaded)
    fast = replies_of(list(player.play(JOBS)))
    monkeypatch.setattr(TransformersSampler, "way", lambda *_: "padded")
    episodes = []
    for episode in player.play(JOBS):
        assert not multiprocessing.active_children()
        episodes.append(episode)
    assert replies_of(episodes) == fast


def number_now(loaded: models.LoadedModel, jobs: int = 9) -> int:
    return len(player_of(loaded).sampler.split(jobs))


def test_when_a_play_is_divided(loaded: models.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert number_now(loaded) == 2
    assert number_now(loaded, jobs=3) == 1
    torch.set_num_threads(1)
    assert number_now(loaded) == 1
    torch.set_num_threads(2)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(number_now(loaded)))
    thread.start()
    thread.join()
    assert found == [1]  # another thread may hold a lock that the new process would wait for
    monkeypatch.setattr(decoding, "SMALL", 10)
    assert number_now(loaded) == 1


def test_slow_games_have_processes_of_their_own(loaded: models.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    player = player_of(loaded)
    slow = dataclasses.replace(player.game.spec, slow=True)
    monkeypatch.setattr(Game, "spec", slow)
    monkeypatch.setattr(Game, "make", lambda self: Walk())
    monkeypatch.setattr(TransformersSampler, "split", lambda *_: pytest.fail("it was divided"))
    assert len(list(player.play(JOBS))) == len(JOBS)


def test_the_process_ends_when_the_one_that_started_it_does(loaded: models.LoadedModel) -> None:
    group = shares.Group(player_of(loaded).sampler, 2)
    group._begun = group._forked = True
    one, other = group.shares
    one.start([])
    other.start([one.line])
    processes = [one._process, other._process]
    one.line.close()  # as the end of this process would; the other share must not hold it open
    processes[0].join(20)
    assert processes[0].exitcode == 0 and processes[1].is_alive()
    other.line.close()
    processes[1].join(20)
    assert processes[1].exitcode == 0
