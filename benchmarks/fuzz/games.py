"""Environments of other people: what ``reset``, ``step`` and ``close`` return and raise is drawn at random."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np

from agentopcd.core.transcript import from_json, pack, to_json, unpack
from agentopcd.core.types import Completion, Job, Request, Sampling, Task
from agentopcd.envs import check_env, make, task_key
from agentopcd.envs.base import AnyText
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling import InBatches
from benchmarks.fuzz import stock
from benchmarks.fuzz.harness import Case, Silent
from benchmarks.fuzz.mutate import odd_text, odd_value

ERRORS: tuple[BaseException, ...] = (
    RuntimeError("broken"), KeyError("x"), SystemExit(0), SystemExit("bye"), RecursionError("deep"), MemoryError(),
    AssertionError(), OSError(28, "No space left"), ValueError("\ud800"), StopIteration(), Exception(""),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), ZeroDivisionError("a\nb"), TimeoutError(),
)  # fmt: skip
REWARDS: tuple[Any, ...] = (
    0, 1, 0.5, -1, True, None, "1", float("nan"), float("inf"), np.float32(1), np.array([1.0]),
    np.array([1.0, 2.0]), [], 1j,
    10**400, np.int64(3), "x",
)  # fmt: skip


class Odd(gymnasium.Env[Any, Any]):
    """Three steps to win, with the faults of ``plan``: place to what is returned or raised there."""

    plan: ClassVar[dict[str, Any]] = {}
    observation_space = AnyText()
    action_space = AnyText()

    def __init__(self) -> None:
        self.at = 0
        self._maybe("init")

    def _maybe(self, place: str, otherwise: Any = None) -> Any:
        if place not in self.plan:
            return otherwise
        found = self.plan[place]
        if isinstance(found, BaseException):
            raise type(found)(*found.args)  # a new one each time: an exception keeps its traceback
        return found

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at = 0
        info = {"task_key": f"odd-{seed}", **self._maybe("reset info", {})}
        return self._maybe("reset", (self._maybe("obs", f"room {seed}"), info))

    def step(self, action: Any) -> Any:
        self.at += 1
        done = self.at >= 3
        reward, info = self._maybe("reward", float(done)), self._maybe("step info", {})
        obs, ended = self._maybe("step obs", f"at {self.at}"), self._maybe("ended", done)
        return self._maybe("step", (obs, reward, ended, False, info))

    def close(self) -> None:
        self._maybe("close")


def _plan(rng: random.Random) -> dict[str, Any]:
    places = ("init", "reset", "reset info", "obs", "step", "step info", "step obs", "reward", "ended", "close")
    return {place: _odd(rng, place) for place in rng.sample(places, rng.choice((1, 1, 2)))}


def _odd(rng: random.Random, place: str) -> Any:
    if place == "reward":
        return rng.choice(REWARDS)
    if place.endswith("info"):
        names = ("task_key", "parts", "success", "invalid", "metrics", "action", "split", "choices")
        return {rng.choice(names): odd_value(rng) for _ in range(rng.randint(1, 2))}
    if place in ("init", "close") or (place in ("reset", "step") and rng.random() < 0.7):
        return rng.choice(ERRORS)
    if place in ("obs", "step obs"):
        return rng.choice((odd_text(rng), odd_value(rng), np.zeros(3), b"bytes", 5, None))
    return rng.choice((None, (), ("a",), ("a", {}, 1), "text", {}, ("a", None), (None, 1.0, True, False, {})))


class Parrot(InBatches):
    """Says what it is given, in turn."""

    engine = "parrot"

    def __init__(self, tokenizer: Any, replies: Sequence[str]) -> None:
        super().__init__()
        self.tokenizer, self.replies, self.said = tokenizer, replies, 0

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        return [self._one() for _ in requests]

    def _one(self) -> Completion:
        text = self.replies[self.said % len(self.replies)]
        self.said += 1
        ids = (*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id)
        return Completion(token_ids=ids, logprobs=(-1.0,) * len(ids), finish_reason="stop")


_LOADED: list[Any] = []


def _player() -> Player:
    from agentopcd import models

    if not _LOADED:
        _LOADED.append(models.load_model(str(stock.MODEL)).tokenizer)
    parrot = Parrot(_LOADED[0], ("[up]", "[down]", "go"))
    return Player(
        game=Game(ref="benchmarks.fuzz.games:Odd"), sampler=parrot, chat=Chat(_LOADED[0]), sampling=Sampling()
    )


def _jobs() -> list[Job]:
    env = make("benchmarks.fuzz.games:Odd")
    return [Job(Task(seed, task_key(*env.reset(seed=seed)))) for seed in range(3)]


def try_game(case: Case) -> None:
    """A game with faults costs its own episodes, and what is stored of an episode comes back as it was."""
    Odd.plan = {}
    jobs = _jobs()
    Odd.plan = _plan(case.rng)
    case.shown = repr(Odd.plan)[:300]
    if "task_key" in Odd.plan.get("reset info", {}):
        del Odd.plan["reset info"]["task_key"]  # another task under the same seed is rightly refused
    try:
        played = list(_player().play(jobs))
    except SystemExit as stop:
        raise RuntimeError(f"SystemExit({stop.code!r}) came out of the game") from stop
    if len(played) != len(jobs):
        raise Silent(f"{len(jobs)} jobs, {len(played)} episodes")
    for episode in played:
        if not math.isfinite(episode.reward) or not all(map(math.isfinite, episode.metrics.values())):
            raise Silent(f"an episode with the reward {episode.reward} and the metrics {episode.metrics} counts")
        if from_json(unpack(pack(to_json(episode)))) != episode:
            raise Silent("an episode does not come back from its transcript as it was")
        json.dumps(to_json(episode), allow_nan=False)


def try_check(case: Case) -> None:
    """``envs check`` of an environment with faults ends with a report; where a step raises, it is no ``ok``."""
    Odd.plan = _plan(case.rng)
    case.shown = repr(Odd.plan)[:300]
    try:
        report = check_env(lambda: make("benchmarks.fuzz.games:Odd"), 3)
    except SystemExit as stop:
        raise RuntimeError(f"SystemExit({stop.code!r}) came out of the game") from stop
    if report.ok and any(isinstance(Odd.plan.get(place), BaseException) for place in ("reset", "step")):
        raise Silent(f"ok, although it raises: {report}")
    Odd.plan, plan = {}, Odd.plan
    jobs = _jobs()
    Odd.plan = plan
    if report.ok and (lost := [episode for episode in _player().play(jobs) if episode.stop_reason == "env_error"]):
        raise Silent(f"ok, but {len(lost)} of {len(jobs)} episodes break off: {(lost[0].error or '')[-200:]!r}")


KINDS: dict[str, tuple[Callable[[Case], None], int]] = {"games": (try_game, 400), "checks of games": (try_check, 250)}
