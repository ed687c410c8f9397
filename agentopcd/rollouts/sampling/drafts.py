"""Guesses at the next tokens of a reply, so that one step of the model can sample several of them.

Replies to one game resemble each other: what followed the last few tokens before will often follow them again. The
model reads the guesses together with the reply's last token, and each place draws its token as it would without them,
by the noise of its position. As long as what is drawn is what was guessed, the next place is right as well. So guesses
change how many steps a reply takes, and never what is said, up to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

from agentopcd.rollouts.sampling.choices import Choices

BEFORE = 4
"""A token is guessed from so many tokens before it."""
LIKELY = 0.5
"""A guess is made if it and those before it are all right with at least this probability, judged by the past."""
MOST = 3
"""The most tokens guessed at once: each costs room in the scores of all rows."""
KEPT = 1 << 16
"""The most sequences of tokens that are remembered, about 200 bytes each; then the half that was met first is
forgotten."""


class Drafts:
    """What followed a few tokens in the replies so far.

    Args:
        kept: see :data:`KEPT`.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self._seen: dict[int, list[int]] = {}
        """By the hash of the tokens before: a token, and since it is this one, how often it came and how often any."""
        self.made, self.right = 0, 0
        """Guesses that were read, and those of them that were sampled, too."""

    def learn(self, ids: Sequence[int]) -> None:
        """Note that the last of these tokens came after the others."""
        seen = self._seen.setdefault(hash(tuple(ids[-1 - BEFORE : -1])), [ids[-1], 0, 0])
        seen[2] += 1
        if seen[0] == ids[-1]:
            seen[1] += 1
        elif 2 * seen[1] < seen[2]:  # another one may be the commonest by now
            seen[:] = [ids[-1], 1, 1]
        if len(self._seen) > self.kept:
            for key in list(itertools.islice(self._seen, self.kept // 2)):
                del self._seen[key]

    def guess(
        self, ids: Sequence[int], start: int, most: int, ends: Collection[int], choices: Choices = ()
    ) -> list[int]:
        """The tokens that are likely to come next.

        Args:
            ids: the prompt and the reply so far.
            start: where the reply begins.
            most: how many tokens at most.
            ends: tokens that end a reply; they need not be guessed, since nothing comes after them.
            choices: the only replies that there may be; a token without an alternative is certain.
        """
        guessed: list[int] = []
        before, share = list(ids[-BEFORE:]), 1.0
        said = tuple(ids[start:]) if choices else ()
        left = [choice[len(said) :] for choice in choices if choice[: len(said)] == said]
        while len(guessed) < min(most, MOST):
            allowed = {rest[0] for rest in left if rest}
            if choices and not allowed:
                break
            if len(allowed) == 1:
                (token,) = allowed
            else:
                token, likely = self._next(before)
                share *= likely
                if share < LIKELY or (allowed and token not in allowed):
                    break
            if token in ends:
                break
            guessed.append(token)
            before = [*before, token][-BEFORE:]
            left = [rest[1:] for rest in left if rest and rest[0] == token]
        return guessed

    def _next(self, before: Sequence[int]) -> tuple[int, float]:
        """The commonest token after these, and its share, as if another had come once more."""
        seen = self._seen.get(hash(tuple(before)))
        return (seen[0], seen[1] / (seen[2] + 1)) if seen is not None else (0, 0.0)


class Rehearsed(Drafts):
    """Guesses of replies that are known, as many as there may be, and now and then a wrong one: what guesses may bring
    about, for a comparison.

    Args:
        known: replies by their prompts.
    """

    def __init__(self, known: Mapping[tuple[int, ...], Sequence[int]]) -> None:
        super().__init__()
        self.known = known

    def guess(
        self, ids: Sequence[int], start: int, most: int, ends: Collection[int], choices: Choices = ()
    ) -> list[int]:
        """See :meth:`Drafts.guess`."""
        said = len(ids) - start
        guessed = list(self.known[tuple(ids[:start])][said : said + min(most, MOST)])
        return [*guessed[:-1], ids[0]] if guessed and said % 2 else guessed
