"""Replies that hold no answer since they were cut, and the lines that tell of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from agentopcd.core.text import still_thinking
from agentopcd.core.types import Turn

WORTH_TELLING = 0.05
"""The share of replies that may be cut with nothing in them before it is told: then a result measures the limit."""


@dataclasses.dataclass
class Unread:
    """Counts them."""

    turns: int = 0
    thinking: int = 0
    """Replies that never came out of their thinking."""
    cut: int = 0
    """Other replies that were cut, and that the environment could not use."""

    def add(self, turns: Iterable[Turn]) -> None:
        for turn in turns:
            self.turns += 1
            if still_thinking(turn.reply):
                self.thinking += 1
            elif turn.invalid and turn.finish_reason == "length":
                self.cut += 1

    def lines(self, max_tokens: int, *, graded: bool) -> Iterator[str]:
        """Warnings for the person; none if there is nothing worth one.

        Args:
            graded: whether something says which replies are right; else all are measured and learned from.
        """
        counts = "count as no answer" if graded else "are measured and learned from as they are"
        of = f"of {self.turns:,} replies"
        if self.thinking:
            yield (
                f"warning: {self.thinking} {of} were cut in their thinking, or never came out of it, and {counts}; "
                "raise --max-tokens, or let the model think less (--template-arg enable_thinking=false)"
            )
        if self.cut > WORTH_TELLING * self.turns:
            yield (
                f"warning: {self.cut} {of} were cut at {max_tokens} tokens with nothing in them that could be used, "
                f"and {counts}; raise --max-tokens"
            )
