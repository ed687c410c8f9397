"""A sampler with a script, an environment that breaks when told to, and a player of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from agentopcd import envs
from agentopcd.core.types import Completion, Episode, Job, Request, Sampling, Task
from agentopcd.envs import TextEnv
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player, play
from agentopcd.rollouts.sampling import InBatches
from tests import tiny

WINNING = ["[right]", "[right]", "[down]", "[down]"]
"""Wins the frozen lake of seed 0."""


class Scripted(InBatches):
    """A sampler that answers with ``reply(prompt text)``."""

    engine = "scripted"

    def __init__(self, tokenizer: Any, reply: Callable[[str], str]) -> None:
        super().__init__()
        self.tokenizer, self.reply = tokenizer, reply
        self.asked: list[list[Request]] = []

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        self.asked.append(list(requests))
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Completion:
        text = self.reply(self.tokenizer.decode(list(request.prompt_ids)))
        ids = (*self.tokenizer(text, add_special_tokens=False)["input_ids"], tiny.END)
        return Completion(token_ids=ids, logprobs=tuple(-0.5 - i for i in range(len(ids))), finish_reason="stop")


def by_turn(replies: Sequence[str]) -> Callable[[str], str]:
    return lambda prompt: replies[prompt.count("You answered:")]


class Walk(TextEnv):
    """Counts to three. What it does wrong is said by ``faults``: ``(where, seed)`` to how many times."""

    faults: ClassVar[Counter[tuple[str, int]]] = Counter()
    opened: ClassVar[Counter[str]] = Counter()
    seed_now = 0

    def __init__(self) -> None:
        Walk.opened["all"] += 1

    def _maybe(self, where: str) -> None:
        if Walk.faults[where, self.seed_now] > 0:
            Walk.faults[where, self.seed_now] -= 1
            raise RuntimeError(f"the {where} of {self.seed_now} broke")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.seed_now, self.at = int(seed or 0), 0
        self._maybe("reset")
        return self.first(key=f"walk-{seed}", rules="Secret rules.", state="at 0", actions="say something")

    def step(self, action: str) -> Any:
        self.at += 1
        if self.at == 2:
            self._maybe("step")
        if "lose" in action:
            return self.turn(success=False, feedback="lost")
        if self.at == 3:
            return self.turn(success=True, outcome="You counted to three.", metrics={"steps": self.at})
        return self.turn(state=f"at {self.at}", actions="say something", reward=0.25, invalid="?" in action)

    def close(self) -> None:
        Walk.opened["closed"] += 1
        self._maybe("close")


WALK = "tests.rollouts.scripted:Walk"


def player_of(tokenizer: Any, reply: Callable[[str], str], ref: str = WALK, **options: Any) -> Player:
    game = Game(ref=ref, **{name: options.pop(name) for name in ("rules", "max_steps", "history") if name in options})
    sampler = Scripted(tokenizer, reply)
    return Player(game=game, sampler=sampler, chat=Chat(tokenizer), sampling=Sampling(), **options)


def walks(*seeds: int) -> list[Job]:
    return [Job(Task(seed, f"walk-{seed}")) for seed in seeds]


def one(player: Player, job: Job) -> Episode:
    (episode,) = play(player, [job])
    return episode


def lake_job(seed: int = 0) -> Job:
    env = envs.make("frozen-lake")
    return Job(Task(seed, envs.task_key(*env.reset(seed=seed))))
