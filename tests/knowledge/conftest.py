"""A store in a temporary folder, and a player that tosses coins instead of running a model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from agentopcd.core.types import EMPTY, MARKER, Context, Episode, Job, Task, Turn
from agentopcd.knowledge import Bench, Found, Item, Store

ENV, MODEL, SETUP = "lake", "m" * 64, "s" * 64


class FakePlayer:
    """Wins with the probability ``rate(context)``; the same job always ends the same way."""

    def __init__(self, rate: Callable[[Context], float], seed: int = 0, broken: Sequence[int] = ()) -> None:
        self.rate, self.seed, self.broken = rate, seed, set(broken)
        self.played: list[Job] = []

    def __call__(self, jobs: Sequence[Job]) -> Iterator[Episode]:
        for job in jobs:
            self.played.append(job)
            rng = random.Random(f"{self.seed}/{job.context.id}/{job.task.seed}/{job.rep}")
            won = rng.random() < self.rate(job.context)
            yield make_episode(job, won, error=job.task.seed in self.broken)


def make_episode(job: Job, won: bool, *, error: bool = False, turns: list[Turn] | None = None) -> Episode:
    return Episode(
        env=ENV,
        task=job.task,
        rep=job.rep,
        context_id=job.context.id,
        turns=turns or [],
        outcome=[("outcome", "You reached the goal." if won else "You fell into a hole.")],
        success=won and not error,
        reward=float(won),
        stop_reason="env_error" if error else ("solved" if won else "failed"),
        error="Traceback: the board broke" if error else None,
    )


def make_turn(parts: list[tuple[str, str]], reply: str) -> Turn:
    return Turn(
        parts=parts,
        messages=[{"role": "user", "content": "\n".join(text for _, text in parts)}],
        prompt_ids=(1, 2, 3),
        response_ids=(4, 5),
        logprobs=(-0.1, -1.0 / 3.0),
        reply=reply,
        finish_reason="stop",
        reward=0.0,
        invalid=False,
    )


def context_of(*texts: str) -> Context:
    return Context("\n".join(f"{MARKER} {text}" for text in texts))


def tasks_of(n: int, start: int = 0, boards: int | None = None) -> list[Task]:
    """``n`` seeds on ``boards`` distinct boards (by default one each)."""
    return [Task(start + i, f"board-{start + (i % boards if boards else i):05d}") for i in range(n)]


class Kit:
    """What the tests of this folder share, handed out by one fixture."""

    env, model, setup, empty = ENV, MODEL, SETUP, EMPTY
    player = FakePlayer
    episode = staticmethod(make_episode)
    turn = staticmethod(make_turn)
    context = staticmethod(context_of)
    tasks = staticmethod(tasks_of)

    @staticmethod
    def open(path: Path | str = ":memory:") -> Store:
        """A store with one model and one run."""
        store = Store.open(path)
        store.add_model(MODEL, "tiny")
        store.start("score", {"env": ENV}, seed=0)
        return store

    @staticmethod
    def bench(store: Store, play: Callable[[Sequence[Job]], Iterable[Episode]], model: str = MODEL) -> Bench:
        """What every scoring function wants, with the run that opened the store last."""
        run_id = store.runs("score")[-1]["id"]
        return Bench(
            store=store, env=ENV, setup=SETUP, model_id=model, run_id=run_id, play=lambda label, jobs: play(jobs)
        )

    @staticmethod
    def item(store: Store, text: str) -> Item:
        """An item of the store, pending."""
        (item_id,) = store.add_items(1, [Found(text)])
        return store.item(item_id)


@pytest.fixture
def kit() -> Kit:
    return Kit()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Kit.open(tmp_path / "store.db")
    with store:
        yield store
