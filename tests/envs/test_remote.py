"""Slow environments: each steps in a process of its own, and its death costs one episode."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentopcd.core.errors import EnvError
from agentopcd.core.types import Job, Sampling, Task
from agentopcd.envs.remote import RemoteEnv
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player, _InThreads, play
from tests.rollouts.scripted import Scripted

NAP = '''
import os, pathlib, time
from agentopcd.envs import EnvSpec, TextEnv
from agentopcd.core.errors import EnvError

class Nap(TextEnv):
    """Each step waits for the partner (seed 0 and 1 are one another's) to have come as far."""

    def __init__(self, folder="", exits=-1, refuses=False, hangs=-1, unsendable=False, stays=False) -> None:
        self.folder, self.exits, self.refuses = pathlib.Path(folder), exits, refuses
        self.hangs, self.unsendable, self.stays = hangs, unsendable, stays

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.own, self.at = seed, 0
        if self.refuses:
            raise EnvError("no such level")
        return self.first(key=f"nap-{seed}", state="at 0")

    def step(self, action):
        self.at += 1
        if self.exits == self.own:
            os._exit(3)
        while self.hangs == self.own:
            try:
                time.sleep(60)
            except:
                pass  # the alarm does not get through
        if self.own in (0, 1):
            (self.folder / f"{self.own}-{self.at}").touch()
            until = time.monotonic() + 20
            while not (self.folder / f"{1 - self.own}-{self.at}").exists():
                assert time.monotonic() < until, "the partner never came"
                time.sleep(0.01)
        if self.at == 2:
            obs, *rest, info = self.turn(success=True, outcome=action, metrics={"pid": os.getpid()})
            return obs, *rest, (info | {"redo": lambda: None} if self.unsendable else info)
        return self.turn(state=f"at {self.at}")

    def close(self):
        (self.folder / f"closed-{self.own}").touch()
        while self.stays:
            time.sleep(60)

SLOW = EnvSpec(id="nap", entry_point=Nap, slow=True, limit_s=LIMIT_S)
'''


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


def naps(tokenizer: Any, folder: Path, *, concurrency: int = 64, retries: int = 1, **kwargs: Any) -> Player:
    (folder / "nap.py").write_text(NAP.replace("LIMIT_S", "2" if "hangs" in kwargs else "30"))
    game = Game(ref=f"{folder / 'nap.py'}:SLOW", kwargs={"folder": str(folder), **kwargs})
    return Player(
        game=game, sampler=Scripted(tokenizer, lambda prompt: "[go]"), chat=Chat(tokenizer), sampling=Sampling(),
        concurrency=concurrency, retries=retries,
    )  # fmt: skip


def test_slow_environments_step_at_the_same_time_each_in_its_own_process(tokenizer: Any, tmp_path: Path) -> None:
    jobs = [Job(Task(seed, f"nap-{seed}")) for seed in range(4)]
    episodes = list(play(naps(tokenizer, tmp_path), jobs))
    assert {episode.stop_reason for episode in episodes} == {"solved"}, [episode.error for episode in episodes]
    assert sorted(episode.task.seed for episode in episodes) == [0, 1, 2, 3]
    assert all(dict(episode.outcome)["outcome"] == "[go]" and len(episode.turns) == 2 for episode in episodes)
    assert len({episode.metrics["pid"] for episode in episodes} | {os.getpid()}) == 5
    assert not multiprocessing.active_children()
    assert sorted(file.name for file in tmp_path.glob("closed-*")) == [f"closed-{seed}" for seed in range(4)]


def test_a_process_that_dies_costs_its_episode_only(tokenizer: Any, tmp_path: Path) -> None:
    jobs = [Job(Task(seed, f"nap-{seed}")) for seed in (2, 3, 4)]
    episodes = {e.task.seed: e for e in play(naps(tokenizer, tmp_path, exits=3, concurrency=2), jobs)}
    assert {seed: e.stop_reason for seed, e in episodes.items()} == {2: "solved", 3: "env_error", 4: "solved"}
    assert "the environment's process died (exit code 3)" in str(episodes[3].error)
    assert not multiprocessing.active_children()


def test_what_a_slow_environment_refuses_costs_its_episode_and_leaves_no_process(
    tokenizer: Any, tmp_path: Path
) -> None:
    player = naps(tokenizer, tmp_path, refuses=True)
    episodes = list(play(player, [Job(Task(2, "nap-2")), Job(Task(3, "nap-3"))]))
    assert [episode.stop_reason for episode in episodes] == ["env_error", "env_error"]
    assert all("GameFault: reset(seed=" in str(e.error) and "no such level" in str(e.error) for e in episodes)
    with pytest.raises(EnvError, match="gave task nap-2, the splits say other"):
        list(play(naps(tokenizer, tmp_path), [Job(Task(2, "other"))]))
    assert not multiprocessing.active_children()


def test_a_process_that_hangs_is_killed_whatever_it_does(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentopcd.envs.remote._GRACE_S", 0.0)
    player = naps(tokenizer, tmp_path, hangs=3, retries=0)
    episodes = {e.task.seed: e for e in play(player, [Job(Task(2, "nap-2")), Job(Task(3, "nap-3"))])}
    assert {seed: e.stop_reason for seed, e in episodes.items()} == {2: "solved", 3: "env_error"}
    assert "step gave no answer within 2 s; its process was killed" in str(episodes[3].error)
    assert not multiprocessing.active_children()


def test_an_environment_that_does_not_close_is_killed(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentopcd.envs.remote._CLOSE_S", 1.0)
    (episode,) = play(naps(tokenizer, tmp_path, stays=True), [Job(Task(2, "nap-2"))])
    assert episode.stop_reason == "solved" and (tmp_path / "closed-2").exists()
    assert not multiprocessing.active_children()


def test_an_environment_closes_when_nobody_is_there_any_more(tokenizer: Any, tmp_path: Path) -> None:
    env = naps(tokenizer, tmp_path).game.make()
    env.reset(seed=2)
    env._pipe.close()  # as where this process is killed
    env._process.join(20)
    assert (env._process.exitcode, (tmp_path / "closed-2").exists()) == (0, True)


def test_only_what_this_package_reads_crosses_the_pipe(tokenizer: Any, tmp_path: Path) -> None:
    (episode,) = play(naps(tokenizer, tmp_path, unsendable=True), [Job(Task(2, "nap-2"))])
    assert episode.stop_reason == "solved", episode.error


def test_whoever_stops_early_leaves_no_process_behind(tokenizer: Any, tmp_path: Path) -> None:
    playing: Any = play(naps(tokenizer, tmp_path, concurrency=4), [Job(Task(s, f"nap-{s}")) for s in (2, 3, 4, 0)])
    assert next(playing).task.seed in (2, 3, 4)
    playing.close()  # seed 0 waits for a partner that never comes
    assert not multiprocessing.active_children()


def test_whoever_stops_early_closes_all_at_once() -> None:
    """Each environment may take seconds to close."""
    meeting = threading.Barrier(4)
    episodes: Any = [SimpleNamespace(close=lambda: meeting.wait(20)) for _ in range(4)]
    _InThreads(4).close(episodes)
    assert not meeting.broken


def test_whoever_stops_while_several_steps_are_done_leaves_no_process_behind(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def together(running: Any, timeout: float | None, return_when: str) -> Any:
        """The last step of seed 2 and, behind it, the first ones of the others."""
        first = next((future for future, live in running.items() if live.job.task.seed == 2), None)
        if timeout == 0 or first is None:
            return [], running
        first.result()
        if not running[first].episode:
            return [first], running
        wait(running)
        return [first, *(future for future in running if future is not first)], []

    closed = set()
    close = RemoteEnv.close
    monkeypatch.setattr(RemoteEnv, "close", lambda env: (closed.add(env), close(env)))
    monkeypatch.setattr("agentopcd.rollouts.player.wait_for", together)
    playing: Any = play(naps(tokenizer, tmp_path, concurrency=4), [Job(Task(s, f"nap-{s}")) for s in (2, 3, 4, 5)])
    assert next(playing).task.seed == 2
    playing.close()
    assert len(closed) == 4  # a process that nobody ends goes by itself, but later
    assert not multiprocessing.active_children()


PARENT = """
import multiprocessing
from agentopcd.envs import EnvSpec, TextEnv

class Parent(TextEnv):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        child = multiprocessing.get_context("spawn").Process(target=print)
        child.start()
        child.join()
        return self.first(state=f"child {child.exitcode}")

SLOW = EnvSpec(id="parent", entry_point=Parent, slow=True)
"""


def test_a_slow_environment_may_have_processes_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    env = RemoteEnv(f"{tmp_path / 'parent.py'}:SLOW", 5, {})
    try:
        assert env.reset(seed=0)[0] == "child 0"
    finally:
        env.close()
    assert not multiprocessing.active_children()
