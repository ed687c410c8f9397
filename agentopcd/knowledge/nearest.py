"""The items of a context that fit what a turn shows: the notes that a teacher sees at that turn."""

from __future__ import annotations

import itertools
from collections import Counter
from math import log

from agentopcd.core.text import keep_lines
from agentopcd.core.types import MARKER, Context, Turn
from agentopcd.knowledge.placebo import FUNCTION_WORDS
from agentopcd.knowledge.similar import tokens


def notes_for(context: Context, turn: Turn, k: int) -> Context:
    r"""The context with only the ``k`` items whose words a turn shows most of, in their own order.

    What a turn shows are the parts of its observation without the rules; where it has none, the last message. An item's
    score is the share of its words that stand there, rarer words counting more:

    .. math:: s_i = \frac{\sum_{w \in W_i \cap O} \log(1 + n / n_w)}{\sum_{w \in W_i} \log(1 + n / n_w)}

    over the distinct words :math:`W_i` of the item, without function words, with :math:`O` the words that the turn
    shows, :math:`n` the number of items and :math:`n_w` how many of them hold the word. Of equals, the first is taken.

    Args:
        k: how many; the whole context is returned, as it is, if it has no more items.
    """
    items = context.lines
    if len(items) <= k:
        return context
    shown = "\n".join(text for kind, text in turn.parts if kind != "rules") or turn.messages[-1]["content"]
    seen, words = set(tokens(shown)), [set(tokens(item)) - FUNCTION_WORDS for item in items]
    held = Counter(word for one in words for word in one)
    weight = {word: log(1 + len(items) / n) for word, n in held.items()}

    def score(number: int) -> float:
        of = words[number]
        return sum(weight[word] for word in sorted(of & seen)) / sum(weight[word] for word in sorted(of)) if of else 0.0

    chosen = set(sorted(range(len(items)), key=lambda number: (-score(number), number))[:k])
    numbers = itertools.count()
    text = keep_lines(context.text, lambda line: not line.startswith(MARKER) or next(numbers) in chosen)
    return Context(text, context.placement)  # with the lines that are no items
