"""What an item is worth: complementary random halves of the items play the same tasks, in rounds."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from agentopcd.core.errors import ConfigError
from agentopcd.core.stats import benjamini_hochberg, ratio, two_sided, widened
from agentopcd.core.types import Context, Job, Placement, Task
from agentopcd.knowledge.assemble import render
from agentopcd.knowledge.bench import Bench, check_scores
from agentopcd.knowledge.items import Item

FALSE_DISCOVERIES = 0.1
"""The expected share of false names among the items that are called helpful or harmful, at most."""
EPISODES_AN_ITEM = (20, 40)
"""Episodes for each item of the pool from which on the strongest items are named; see docs/LOG.md, "Planted items"."""

ROUNDS, KEPT, LEAST_KEPT = 3, 0.6, 8
"""The most rounds, the share of the items that stays after one, and the fewest that may stay."""

_Pair = TypeVar("_Pair")
Verdict = Literal["helpful", "harmful", "not shown"]


@dataclasses.dataclass(frozen=True, slots=True)
class ItemValue:
    """Average gain from an item: success (or the score asked for) of the half that holds it minus the other half's."""

    item_id: str
    value: float
    low: float
    high: float
    n: int
    """Pairs of halves that were played."""
    p: float
    """Two-sided: at most the probability of a value at least so far from 0 if the item does nothing. Over several
    rounds it counts the chances to leave with a low value as well."""
    q: float
    """The share of false names to expect if every item with a p up to this one is named (Benjamini-Hochberg)."""
    round: int = 1
    """The last round that it played in; all figures are of that round."""

    @property
    def verdict(self) -> Verdict:
        """What is shown, at :data:`FALSE_DISCOVERIES`."""
        if self.q > FALSE_DISCOVERIES:
            return "not shown"
        return "helpful" if self.value > 0 else "harmful"


def plan(items: int, pairs: int) -> str:
    """What :func:`subsets` plays, and what it would take to name items."""
    least, most = (items * one for one in EPISODES_AN_ITEM)
    return (
        f"{pairs} pairs of halves, {2 * pairs} episodes, for {items} items: {2 * pairs / items:.0f} an item; to name "
        f"helpful and harmful items takes {EPISODES_AN_ITEM[0]} to {EPISODES_AN_ITEM[1]} an item or more, {least} to "
        f"{most} episodes"
    )


def subsets(
    bench: Bench, items: Sequence[Item], tasks: Sequence[Task], *, pairs: int | None = None, seed: int = 0,
    placement: Placement = "user", by: str = "success",
) -> list[ItemValue]:  # fmt: skip
    """Value items by complementary random halves: on each task, one half of the items plays, then the other.

    The value of an item is the mean over pairs of success(its half) minus success(the other half). The complement
    cancels the difficulty of the task. The interval counts each task as one observation (:func:`.stats.ratio`), and so
    does the test (:func:`.stats.two_sided`). Over all items, Benjamini-Hochberg keeps false names rare.

    A large pool plays in rounds (:func:`rounds`): the items that did worst leave after each. One wrong item can undo
    all that is right beside it, so as long as many are there, hardly any half wins and little is learned of the rest.
    The value, interval and test of an item are of its last round alone, whose halves know nothing of the earlier ones.
    Those of an item that has left are too low, since it left for them. So each round but the last is one more chance of
    a low value: over R rounds an item that does nothing falls below a p with up to (R - 1) / 2 + 1 times its
    probability, and each p is multiplied by that.

    The half of an item depends only on ``seed``, the task, the repetition and the items of the round, so a call with
    more tasks or pairs extends the first round of an earlier one.

    Items that say the same split their credit: where either does, the other adds nothing, so both can look worthless.
    Leave one of them out before believing that neither helps.

    Args:
        tasks: tasks of the ``select`` split; they are registered there.
        pairs: pairs of halves to play, in all rounds together; if they are more than the tasks, tasks come again with
            other halves. None: one on each task.
        by: what counts in place of success: reward, or a metric.

    Returns:
        The items: those of the last round, most valuable first, then those that left before it, and so on.

    Raises:
        ConfigError: fewer than two items, no task, or no pair of a round could be played on two tasks.
        TaskLeak: as in :func:`score`.
    """
    # Always oldest first: the order is part of a context, and a resumed call must build the same contexts.
    pool = sorted({item.id: item for item in items}.values(), key=lambda item: (item.created_at, item.id))
    if len(pool) < 2:
        raise ConfigError(f"subsets compares items with each other; got {len(pool)}, two are needed")
    endless = ((task, rep) for rep in itertools.count() for task in tasks)
    planned = list(itertools.islice(endless, len(tasks) if pairs is None else pairs)) if tasks else []
    gains: dict[str, Mapping[str, Sequence[float]]] = {}
    last: dict[str, int] = {}
    for number, (size, part) in enumerate(rounds(len(pool), planned), start=1):
        if number > 1:
            best = values_of({item.id: gains[item.id] for item in pool})[:size]
            pool = [item for item in pool if item.id in {one.item_id for one in best}]
        gains |= _round(bench, pool, tasks, part, seed, placement, by)
        last |= dict.fromkeys((item.id for item in pool), number)
    return values_of(gains, last)


def rounds(items: int, planned: Sequence[_Pair]) -> list[tuple[int, Sequence[_Pair]]]:
    """How many items play in each round, and which of the planned pairs: as many in each.

    Args:
        items: in the pool; after a round, :data:`KEPT` of them stay, as long as these are :data:`LEAST_KEPT`.
        planned: pairs; a round has two at least.
    """
    sizes = [items]
    while len(sizes) < min(ROUNDS, len(planned) // 2) and (kept := math.ceil(KEPT * sizes[-1])) >= LEAST_KEPT:
        sizes.append(kept)
    ends = [len(planned) * number // len(sizes) for number in range(len(sizes) + 1)]
    return [(size, planned[start:end]) for size, (start, end) in zip(sizes, itertools.pairwise(ends), strict=True)]


def _round(
    bench: Bench, pool: Sequence[Item], tasks: Sequence[Task], planned: Sequence[tuple[Task, int]], seed: int,
    placement: Placement, by: str,
) -> dict[str, dict[str, list[float]]]:  # fmt: skip
    """Play the pairs of a round; the gains of each item, by task."""
    halves = {(task, rep): _halves(pool, task, rep, seed, placement) for task, rep in planned}
    contexts = {half.id: half for pair in halves.values() for half, _ in pair}
    bench.prepare(list(contexts.values()), tasks, "select", {"order": "subsets", "seed": seed, "pool": len(pool)})
    jobs = [Job(task, half, rep) for task, rep in halves for half, _ in halves[task, rep]]
    errors = bench.play_missing("subsets", jobs)
    won = {id_: bench.store.outcomes(bench.arm(half), bench.arena("select", by=by)) for id_, half in contexts.items()}
    gains: dict[str, dict[str, list[float]]] = {item.id: defaultdict(list) for item in pool}
    for (task, rep), ((half, inside), (other, _)) in halves.items():
        place = (task.key, task.seed, rep)
        if place in won[half.id] and place in won[other.id]:
            gain = won[half.id][place] - won[other.id][place]  # of two booleans, a whole number
            for item in pool:
                gains[item.id][task.key].append(gain if item.id in inside else -gain)
    if len(gains[pool[0].id]) < 2:
        for arm in map(bench.arm, contexts.values()):
            if bench.store.outcomes(arm, bench.arena("select")):
                check_scores(bench, arm, bench.arena("select", by=by), errors)
        raise ConfigError(
            f"pairs of {bench.env} were played on fewer than two tasks ({errors} environment errors); give more tasks"
        )
    return gains


def values_of(
    gains: Mapping[str, Mapping[str, Sequence[float]]], last: Mapping[str, int] | None = None
) -> list[ItemValue]:
    """The values of items, most valuable first.

    Args:
        gains: by item, then by task: for each pair, success or score of the item's half minus that of the other half.
        last: by item, the round that they are of; None: all of one. Items of later rounds come first.
    """
    sums = {item_id: [sum(found) for found in of_item.values()] for item_id, of_item in gains.items()}
    chances = (max(last.values(), default=1) + 1) / 2 if last else 1.0
    p = {item_id: min(1.0, chances * two_sided(of_item)) for item_id, of_item in sums.items()}
    q = dict(zip(p, benjamini_hochberg(list(p.values())), strict=True))
    values = []
    for item_id, of_item in gains.items():
        sizes = [len(found) for found in of_item.values()]
        value, low, high = ratio(sums[item_id], sizes)
        bounds, number = (low, high), last[item_id] if last else 1
        if all(isinstance(total, int) for total in sums[item_id]):  # successes
            bounds = max(-1.0, low), min(1.0, high)
            if high - low < 1e-12:  # nothing is seen of the variance where all tasks came out alike
                pairs = [gain for found in of_item.values() for gain in found]
                won, lost, even = (pairs.count(gain) for gain in (1, -1, 0))
                cells = {(True, True): 0, (True, False): won, (False, True): lost, (False, False): even}
                found = widened(cells, [*zip(sums[item_id], sizes, strict=True)])
                bounds = found.low, found.high
        elif high - low < 1e-12:
            bounds = -math.inf, math.inf
        values.append(ItemValue(item_id, value, *bounds, sum(sizes), p=p[item_id], q=q[item_id], round=number))
    return sorted(values, key=lambda one: (-one.round, -one.value, one.item_id))


def _halves(
    pool: Sequence[Item], task: Task, rep: int, seed: int, placement: Placement
) -> tuple[tuple[Context, set[str]], tuple[Context, set[str]]]:
    """A random part of the pool and the rest of the pool, each as context and set of ids.

    Each item is in the first part with probability one half, independently. With parts of equal size, an
    item's value would be measured against the mean of the others.
    """
    order = sorted(item.id for item in pool)
    again = f"/{rep}" if rep else ""  # the halves of a first repetition are those of older stores
    rng = random.Random(f"{seed}/{task.key}/{task.seed}/{'/'.join(order)}{again}")
    inside = {item_id for item_id in order if rng.random() < 0.5}
    return _half(pool, inside, placement), _half(pool, set(order) - inside, placement)


def _half(pool: Sequence[Item], inside: set[str], placement: Placement) -> tuple[Context, set[str]]:
    return Context(render([item.text for item in pool if item.id in inside]), placement), inside
