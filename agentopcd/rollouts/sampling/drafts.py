"""Guesses at the next tokens of a reply, so that one step of the model can sample several of them.

Replies to one game resemble each other: what followed the last few tokens before will often follow them again. The
model reads the guesses together with the reply's last token, and each place draws its token as it would without them,
by the noise of its position. As long as what is drawn is what was guessed, the next place is right as well. So guesses
change how many steps a reply takes, and never what is said, up to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from agentopcd.rollouts.sampling.choices import Choices, allowed_ids

BEFORE = 4
"""A token is guessed from so many tokens before it."""
LIKELY = 0.5
"""A guess is made if it and all guesses before it are right together with this probability, judged by the past."""
MOST = 3
"""The most tokens guessed at once: each costs room in the scores of all rows."""
KEPT = 1 << 16
"""The most sequences of tokens that are remembered, about 200 bytes each; then the older half is forgotten."""


class Drafts:
    """What followed a few tokens in the replies so far."""

    def __init__(self) -> None:
        self._seen: dict[int, list[int]] = {}
        """By the hash of the tokens before: a token, how often it came, how often any came."""
        self.made, self.right = 0, 0
        """Guesses that were read, and those of them that were sampled, too."""

    def learn(self, ids: Sequence[int]) -> None:
        """Note that the last of these tokens came after the others."""
        seen = self._seen.setdefault(hash(tuple(ids[-1 - BEFORE : -1])), [ids[-1], 0, 0])
        seen[2] += 1
        if seen[0] == ids[-1]:
            seen[1] += 1
        elif 2 * seen[1] < seen[2]:  # another one may be the commonest by now
            seen[0] = ids[-1]
        if len(self._seen) > KEPT:
            for key in list(itertools.islice(self._seen, KEPT // 2)):
                del self._seen[key]

    def guess(
        self, ids: Sequence[int], said: Sequence[int], most: int, ends: Collection[int], choices: Choices = ()
    ) -> list[int]:
        """The tokens that are likely to come next.

        Args:
            ids: the prompt and the reply so far.
            said: the reply so far.
            most: how many tokens at most.
            ends: tokens that end a reply; they need not be guessed, since nothing comes after them.
            choices: the only replies that there may be; a token without an alternative is certain.
        """
        guessed: list[int] = []
        before, share = list(ids[-BEFORE:]), 1.0
        while len(guessed) < min(most, MOST):
            allowed = allowed_ids(choices, (*said, *guessed)) if choices else ()
            if choices and not allowed:
                break
            if len(allowed) == 1:
                token = allowed[0]
            else:
                token, likely = self._next(before)
                share *= likely
                if share < LIKELY or (allowed and token not in allowed):
                    break
            if token in ends:
                break
            guessed.append(token)
            before = [*before, token][-BEFORE:]
        return guessed

    def _next(self, before: Sequence[int]) -> tuple[int, float]:
        """The commonest token after these, and its share, as if another had come once more."""
        seen = self._seen.get(hash(tuple(before)))
        return (seen[0], seen[1] / (seen[2] + 1)) if seen is not None else (0, 0.0)
