"""Observations that grow too long for the model, and games that hang, cost their own episode."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.errors import EnvError
from agentopcd.core.types import Job, Task
from agentopcd.envs import TextEnv
from agentopcd.knowledge import Bench, Store
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import play
from tests.rollouts.scripted import Scripted, player_of


class Talks(TextEnv):
    """Odd seeds repeat all that was said before; seed 4 hangs."""

    limit_s = 0.2

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.n, self.left, self.said = int(seed or 0), 4, "word " * 10
        return self.first(key=self.n, state=f"Room {self.n}.")

    def step(self, action: str) -> Any:
        self.left -= 1
        while self.n == 4:
            time.sleep(0.01)
        if not self.left:
            return self.turn(success=True)
        self.said *= 4 if self.n % 2 else 1
        return self.turn(state=self.said)


class Small(Scripted):
    @property
    def room(self) -> int:
        return 1000


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


def test_what_does_not_fit_and_what_hangs_costs_one_episode(tokenizer: Any) -> None:
    player = player_of(tokenizer, lambda prompt: "go", "tests.rollouts.test_room:Talks", history="chat", retries=0)
    player = dataclasses.replace(player, sampler=Small(tokenizer, lambda prompt: "go"))
    episodes = {e.task.seed: e for e in play(player, [Job(Task(seed, str(seed))) for seed in range(5)])}
    assert {seed: e.stop_reason for seed, e in episodes.items()} == {
        0: "solved", 1: "env_error", 2: "solved", 3: "env_error", 4: "env_error"
    }  # fmt: skip
    assert "do not fit into the 1000 positions of the model" in str(episodes[1].error)
    assert "step gave no answer within 0 s" in str(episodes[4].error)


def test_a_run_whose_every_episode_breaks_ends_with_a_word(tmp_path: Path) -> None:
    def broken(label: str, jobs: Any) -> Any:
        for job in jobs:
            yield dataclasses.replace(_episode(job), stop_reason="env_error", error="GameFault: step called exit(0)")

    with Store.open(tmp_path / "store.db") as store:
        bench = Bench(store=store, env="e", setup="s", model_id="m", run_id=1, play=broken)
        with pytest.raises(EnvError, match="all 2 episodes broke off"):
            bench.play_missing("play", [Job(Task(seed, str(seed))) for seed in range(2)])


def _episode(job: Job) -> Any:
    from agentopcd.core.types import Episode

    return Episode(
        env="e", task=job.task, rep=0, context_id=job.context.id, turns=[], outcome=[], success=False, reward=0.0,
        stop_reason="failed",
    )  # fmt: skip


def test_the_rule_is_part_of_the_setup_only_if_given() -> None:
    assert "success_when" not in Game(ref="math").describe()
    assert Game(ref="math", success_when="reward >= 1").describe()["success_when"] == "reward >= 1"
