"""An environment of your own with tools: questions about a stock. Change it into what you want done.

agentopcd envs check ./FILE.py:Mine     whether results from it can be trusted
agentopcd envs try ./FILE.py:Mine       play it yourself; a line such as count(item="forks") is a call
"""

from __future__ import annotations

import re
from typing import Any

from agentopcd.envs import ToolEnv, call, tool

GOODS = ("apples", "bolts", "candles", "drums", "envelopes", "forks")


class Mine(ToolEnv):
    """Answer a question about the stock of a shop, which only the tool knows.

    Observation: the question; then what the tool returns.
    Action: calls of the tool, then an answer in words whose last number counts.
    Reward: 1 for the right number, else 0.
    Seeds: a seed draws the goods and the stock.
    """

    # Settings on the class; leave out what you do not need (agentopcd.envs.EnvSpec lists them all).
    max_steps = 6  # replies in an episode: calls, and the answer
    rules = "You work in a shop. Look up what you do not know, then answer with a number."

    def begin(self) -> str:
        """Draw a task with ``self.np_random`` only, and return the request to the model."""
        self.stock = {name: int(self.np_random.integers(1, 50)) for name in GOODS}
        first, second = self.np_random.choice(GOODS, size=2, replace=False)
        self.wanted = (str(first), str(second))
        return f"How many {first} and {second} do we have together?"

    def key(self) -> object:
        """What tells tasks apart that begin with the same request; a task is in one split only."""
        return [self.stock[name] for name in self.wanted]

    @tool
    def count(self, item: str) -> int:
        """How many of one kind are in stock.

        Args:
            item: the kind, in plural.
        """
        if item not in self.stock:
            raise ValueError(f"no {item} here; we have {', '.join(GOODS)}")  # the model reads this and may try again
        return self.stock[item]

    def grade(self, answer: str) -> Any:
        """Whether the answer is right: a bool, a number (1 or more passes), or numbers by name."""
        right = sum(self.stock[name] for name in self.wanted)
        self.feedback = f"{right} was right."  # for the lessons; the model sees it after the episode only
        numbers = re.findall(r"-?\d+", answer)
        return bool(numbers) and int(numbers[-1]) == right

    def solution(self) -> list[str]:
        """Replies that solve the task, for `agentopcd envs try --solve`; leave it out if you know none."""
        total = sum(self.stock[name] for name in self.wanted)
        return [*(call("count", item=item) for item in self.wanted), f"{total}"]
