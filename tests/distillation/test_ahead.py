"""``--async-steps 1``: a batch is played while the one before it is learned from."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ConfigError, EngineError
from agentopcd.core.types import Episode, Job
from agentopcd.distillation.played import Batches, draw
from agentopcd.rollouts.sampling.vllm_server import ServerSampler
from tests import tiny
from tests.rollouts.sampling.fake_server import FakeServer
from tests.training import LESSONS, SMALL, TRAIN, Killed, play_some, train

SERVED: dict[str, Any] = SMALL | {"server": "http://there", "steps": 3}
FROZEN: dict[str, Any] = {"learning_rate": 1e-12, "weight_decay": 0.0, "keep_checkpoints": True}
"""With a rate as small as this no float32 weight moves."""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("untied") / "model", tie=False, hearing=4.0)


@pytest.fixture
def fake(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(ServerSampler, "current", None)
    found = FakeServer(model_dir)
    yield found
    found.stop()


class Slow:
    """A method whose second batch is not played before ``learned`` is set, and whose third breaks."""

    by_teacher = False
    parts = ()

    def __init__(self, model_dir: Path, async_steps: int) -> None:
        self.config = ConsolidateConfig(**{**SERVED, "async_steps": async_steps})
        episodes, chat = play_some(model_dir)
        self.episodes = {episode.task: episode for episode in episodes}
        self.player: Any = type("Player", (), {"chat": chat, "game": type("Game", (), {"form": "transcript"})})
        self.learned = threading.Event()
        self.begun: list[int] = []

    def shares(self, jobs: Sequence[Job]) -> Any:
        return [(self, jobs)]

    def play(self, jobs: Sequence[Job]) -> Iterator[Episode]:
        step = next(n for n in (1, 2, 3) if draw(TRAIN, n, self.config) == list(jobs))
        self.begun.append(step)
        if step == 2:
            assert self.learned.wait(20), "the batch before was not learned from meanwhile"
        if step == 3:
            raise EngineError("the server is gone")
        yield from (self.episodes[job.task] for job in jobs)


def batches(method: Any) -> Batches:
    return Batches(method, TRAIN, LESSONS, lambda sample: True, print)


def test_the_next_batch_is_played_meanwhile_and_what_breaks_it_is_told(model_dir: Path) -> None:
    method = Slow(model_dir, async_steps=1)
    of_steps = batches(method)
    first = of_steps.take(1)  # would wait for ever, if the second were played first
    method.learned.set()
    of_steps.settle(lambda phase: None)
    assert method.begun == [1, 2]
    second = of_steps.take(2)
    assert (first.policy_step, second.policy_step) == (0, 0)
    assert [e.task for e in second.episodes] == sorted(job.task for job in draw(TRAIN, 2, method.config))
    of_steps.settle(lambda phase: None)  # the third breaks, which shows where it is taken
    with pytest.raises(EngineError, match="the server is gone"):
        of_steps.take(3)


def test_without_it_a_batch_is_played_when_it_is_taken(model_dir: Path) -> None:
    method = Slow(model_dir, async_steps=0)
    method.learned.set()
    of_steps = batches(method)
    assert [of_steps.take(step).policy_step for step in (1, 2)] == [0, 1]
    assert method.begun == [1, 2]


def test_on_a_student_that_stands_still_it_changes_nothing(model_dir: Path, fake: FakeServer, tmp_path: Path) -> None:
    plain = train(model_dir, tmp_path / "plain", server=fake.url, **FROZEN)
    ahead = train(model_dir, tmp_path / "ahead", server=fake.url, async_steps=1, **FROZEN)
    for one, other in zip(plain.steps, ahead.steps, strict=True):
        same = {name: value for name, value in one.items() if isinstance(value, float) and not name.startswith("time/")}
        assert {name: other[name] for name in same} == pytest.approx(same, rel=1e-4, abs=1e-5)
    assert (ahead.result.best_step, ahead.result.select) == (plain.result.best_step, plain.result.select)
    assert [record["engine/policy_step"] for record in plain.steps] == [0, 1, 2, 3]
    assert [record["engine/policy_step"] for record in ahead.steps] == [0, 0, 1, 2]


def test_replies_of_older_weights_are_no_fault_and_can_be_weighed(
    model_dir: Path, fake: FakeServer, tmp_path: Path
) -> None:
    fast: dict[str, Any] = {"learning_rate": 3e-3, "server": fake.url, "async_steps": 1, "importance_cap": 2.0}
    steps = train(model_dir, tmp_path, **fast).steps
    gaps = [record["engine/logprob_gap_mean_nats"] for record in steps]
    assert gaps[0] < 1e-4 and min(gaps[1:]) > 1e-3  # more than an engine may be off
    assert max(record["engine/drift_nats"] for record in steps) < 1e-4  # after each update it has the weights
    assert steps[0]["loss/importance_max"] == pytest.approx(1, abs=1e-3) and steps[-1]["loss/importance_max"] > 1.01


def test_weights_do_not_change_while_a_batch_is_played(
    model_dir: Path, fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, update = [], ServerSampler.update

    def spy(sampler: ServerSampler) -> float | None:
        under_way.append(len(sampler._asked))
        return update(sampler)

    monkeypatch.setattr(ServerSampler, "update", spy)
    fake.delay_s = 0.1  # the trainer is done first
    train(model_dir, tmp_path, server=fake.url, async_steps=1, steps=3, select_every=3)
    assert under_way == [0, 0, 0, 0]  # at the start and after each step


def test_after_a_kill_the_batch_under_way_is_played_again(model_dir: Path, fake: FakeServer, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"server": fake.url, "async_steps": 1}
    with pytest.raises(Killed):
        train(model_dir, tmp_path, kill_at=5, **settings)  # in the third step; the second was saved
    resumed = train(model_dir, tmp_path, **settings)
    assert "resumed after step 2" in resumed.lines
    assert [record["step"] for record in resumed.steps] == [1, 2, 3, 4]
    assert [record["engine/policy_step"] for record in resumed.steps] == [0, 0, 2, 2]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"async_steps": 2, "server": "http://there"}, "async_steps is 2; it must be at most 1"),
        ({"async_steps": 1}, "--async-steps is for --server and the student's answers; leave it out, or add that"),
        ({"async_steps": 1, "server": "http://there", "method": "seqkd"}, "leave it out, or add that"),
    ],
)
def test_where_nothing_can_overlap_it_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ConsolidateConfig(**{**SMALL, **changes})
