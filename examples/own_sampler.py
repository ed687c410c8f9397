"""A player of your own: anything that turns messages into text can play, and be compared.

    python examples/own_sampler.py

Two functions play the cave of the quickstart: one at random, one that goes straight for T. Put your own client in their
place, such as an agent framework, a search, or an inference server that speaks no known API. Such a player plays and is
scored. It cannot be trained, because training scores the very tokens that were sampled.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from agentopcd import Sampling, play
from agentopcd.core.stats import Rate
from agentopcd.core.types import Completion, Job, Message, Request
from agentopcd.envs import build_splits
from agentopcd.rollouts.chat import ApiChat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling.protocol import InBatches

CAVE = f"{Path(__file__).with_name('cave.py')}:Cave"
MOVES = ("[up]", "[right]", "[down]", "[left]")

Answers = Callable[[Sequence[Message], random.Random], str]


class FromFunction(InBatches):
    """Answers each request by a function of its messages. All chance comes from the request's seed."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers = answers
        self.engine = answers.__name__  # part of the setup: replies of two engines are never pooled

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        replies = [self.answers(one.messages, random.Random(one.seed)) for one in requests]
        return [Completion(token_ids=(), logprobs=(), finish_reason="stop", text=text) for text in replies]


def at_random(messages: Sequence[Message], rng: random.Random) -> str:
    """Any move."""
    return rng.choice(MOVES)


def straight(messages: Sequence[Message], rng: random.Random) -> str:
    """Towards T, whatever lies between; the newest board is the last one in the prompt."""
    board = [line.split("|")[1:-1] for line in messages[-1]["content"].splitlines() if line.startswith("|")][-4:]
    at = {cell.strip(): (row, column) for row, cells in enumerate(board) for column, cell in enumerate(cells)}
    (row, column), (wanted_row, wanted_column) = at["P"], at["T"]
    if row != wanted_row:
        return "[up]" if wanted_row < row else "[down]"
    return "[left]" if wanted_column < column else "[right]"


def measure(answers: Answers, games: int) -> Rate:
    """Play test tasks; the share that was solved, with its interval."""
    player = Player(game=Game(ref=CAVE), sampler=FromFunction(answers), chat=ApiChat(), sampling=Sampling())
    jobs = [Job(task) for task in build_splits(CAVE).splits["test"][:games]]
    return Rate(sum(bool(episode.success) for episode in play(player, jobs)), len(jobs))


def main(games: int = 200) -> dict[str, Rate]:
    """Let both play."""
    found = {answers.__name__: measure(answers, games) for answers in (at_random, straight)}
    for name, rate in found.items():
        print(f"{name:<10} {rate}")
    return found


if __name__ == "__main__":
    main()
