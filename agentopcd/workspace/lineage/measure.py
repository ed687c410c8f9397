r"""How much of an item's effect a student shows without any context: the figures, from stored replies.

At each token of a reply there are four distributions over the next token, as vectors of square roots of probabilities:
:math:`b` of the base without a context, :math:`o` of the teacher with the context minus the item, :math:`w` of the
teacher with the whole context, and :math:`s` of the student without any. The item's share :math:`s_i` is the
coefficient of a regression over all tokens and the whole vocabulary,

.. math:: s - b = a (o - b) + s_i (w - o) + e.

It is 1 for a student that does what the teacher does with the context, 0 for one that does what the teacher does
without the item, and 0 for one that has learned nothing, whatever the other items do. Between square roots of
probabilities, the squared distance is at most 2 and for near distributions half the KL divergence, so no single token
outweighs all others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from agentopcd.core.groups import Products, shown_share
from agentopcd.core.stats import Mean, ratio
from agentopcd.distillation import losses
from agentopcd.workspace.lineage.found import Shown

Logits = Callable[[slice], Tensor]
"""What gives the logits ``[R, V]`` of some of the reply tokens; what was not allowed there is -inf."""


class Sums(NamedTuple):
    """The sums over the tokens of one turn, or of all turns of a task."""

    tokens: int
    item_nats: float
    """KL divergence from the teacher with the whole context to the teacher without the item."""
    context_nats: float
    """The same to the base without a context."""
    products: Products
    """Of what the rest of the context, the item, and the student's training change."""


def sums(base: Logits, without: Logits, whole: Logits, student: Logits, tokens: Sequence[int], rows: int,
         temperature: float) -> list[Sums]:  # fmt: skip
    """The sums of each turn.

    Args:
        base: of the base without a context.
        without: of the teacher with the context minus the item.
        whole: of the teacher with the context.
        student: of the student without a context.
        tokens: the number of reply tokens of each turn; the rows of all four are in this order.
        rows: rows whose logits are in memory at once.
        temperature: divides all logits.
    """
    found = []
    for start in range(0, sum(tokens), rows):
        where = slice(start, min(start + rows, sum(tokens)))
        logits = [one(where) for one in (base, without, whole, student)]
        b, o, w, s = ((one / temperature).softmax(-1).sqrt() for one in logits)
        rest, part, shown = o - b, w - o, s - b
        pairs = ((rest, rest), (rest, part), (part, part), (rest, shown), (part, shown))
        kl = [losses.full_kl(logits[2], other, temperature=temperature) for other in (logits[1], logits[0])]
        found.append(torch.stack([*kl, *((one * other).sum(-1) for one, other in pairs)], -1).double().cpu())
    of_turns = torch.cat(found).split([*tokens])
    return [
        Sums(n, row[0], row[1], Products(*row[2:]))
        for n, row in zip(tokens, (one.sum(0).tolist() for one in of_turns), strict=True)
    ]


def by_task(keys: Sequence[str], turns: Iterable[Sums]) -> list[Sums]:
    """The sums of each task, in the order of their keys: turns of one task are not independent."""
    groups: defaultdict[str, list[Sums]] = defaultdict(list)
    for key, one in zip(keys, turns, strict=True):
        groups[key].append(one)
    return [
        Sums(
            sum(one.tokens for one in group), sum(one.item_nats for one in group),
            sum(one.context_nats for one in group),
            Products(*(sum(values) for values in zip(*(one.products for one in group), strict=True))),
        )
        for _, group in sorted(groups.items())
    ]  # fmt: skip


def shown(tasks: Sequence[Sums], size_of: Sequence[Sums] = ()) -> Shown:
    """The figures of one sentence, from two tasks or more.

    Args:
        size_of: the sums of another sentence, in units of whose effect the share is told.
    """
    item, context = [one.item_nats for one in tasks], [one.context_nats for one in tasks]
    of_context = Mean(*ratio(item, context), len(tasks)) if sum(context) > 0 else Mean(0.0, 0.0, 0.0, len(tasks))
    return Shown(
        effect=Mean(*ratio(item, [one.tokens for one in tasks]), len(tasks)), of_context=of_context,
        share=shown_share([one.products for one in tasks], [one.products for one in size_of]),
    )  # fmt: skip
