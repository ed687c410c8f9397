"""Items that say nearly the same, or nearly the same but for a word that turns the meaning around.

Similarity cannot tell a repetition from a contradiction: "go up at a wall" and "go down at a wall" differ in one word.
So pairs are only offered to a person, who decides.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from agentopcd.core.text import MARKS
from agentopcd.knowledge.items import Item

ALIKE = 80
"""Likeness from which two items are offered, in percent: RapidFuzz's ``token_sort_ratio``."""
BLOCK = 200
"""Items that are compared with all others at once: with 10,000 of them, a table of 2 MB."""
MOST = 10_000
"""Pairs that are kept, the most alike; of a store full of repetitions nobody reads more."""
TRIED = 100_000
"""Pairs that are tried for contradictions, of small groups of items first: about a second."""
FEW = 2
"""Words by which less alike items may differ to be called a contradiction."""

_TOKEN = re.compile(rf"\[[^\[\]]+\]|[\w'][\w'{MARKS}]*|[<>=+*/²³-]")
_ALONE = re.compile(rf"\b[^\W\d_](?![\w{MARKS}])")
_TURNS = re.compile(
    r"\[.*\]|[<>=+*/²³-]|.*\d.*|not|no|never|none|nor|neither|nobody|nothing|without|cannot|do|does|did|is|are|be|should"
    r"|\w+n't|dont|cant|only|except|unless|always|sometimes|must|may|can|avoid|if|until|one|two|three|four|five|six|seven"
    r"|eight|nine|ten|once|twice|first|second|third|last|next|up|down|left|right|north|south|east|west|above|below|over"
    r"|under|before|after|forward|backward|forwards|backwards|in|out|inside|outside|on|off|top|bottom|front|behind|near|far"
    r"|toward|towards|away|clockwise|counterclockwise|anticlockwise|horizontal|vertical|horizontally|vertically|row|column"
    r"|more|less|fewer|most|least|higher|lower|larger|smaller|bigger|greater|even|odd|true|false|same|different|to|from"
    r"|add|subtract|multiply|divide|plus|minus|all|any|both|either|every|each|safe|unsafe|good|bad|win|lose|wins|loses"
)
"""Tokens that can turn a rule around: negations, numbers, directions, what stands in brackets."""

Kind = Literal["dup?", "conflict?"]


class Pair(NamedTuple):
    """Two items that a person should look at."""

    kind: Kind
    ratio: int
    """Likeness in percent."""
    first: Item
    second: Item


class Offer(NamedTuple):
    """The most alike pairs, at most :data:`MOST` of them, and how many were found."""

    pairs: list[Pair]
    total: int


def tokens(text: str) -> list[str]:
    """The words of an item, its bracketed keys and signs of arithmetic, without regard to case."""
    return _TOKEN.findall(text.casefold())


def kind_of(first: str, second: str) -> Kind:
    """Whether two alike texts seem to repeat or to contradict each other.

    They contradict if the tokens are the same in another order, or differ only in tokens that turn a rule around, or in
    the case of a single letter, which can be the name of a piece.
    """
    a, b = tokens(first), tokens(second)
    differing = (Counter(a) - Counter(b)) + (Counter(b) - Counter(a))
    if differing:
        return "conflict?" if all(_TURNS.fullmatch(token) for token in differing) else "dup?"
    letters = [_ALONE.findall(text) for text in (first, second)]
    return "conflict?" if a != b or letters[0] != letters[1] else "dup?"


def similar(items: Sequence[Item], decided: Iterable[frozenset[str]] = ()) -> Offer:
    """Pairs of items to look at, the most alike first.

    Args:
        decided: ids of the two items of each pair that somebody has decided about.
    """
    known = set(decided)
    found, total = _alike(items, known)
    turned = dict(_turned(items, known))
    found, total = found | turned, total + len(turned)
    best = sorted(found.items(), key=lambda entry: (-entry[1], entry[0]))[:MOST]
    pairs = [Pair(kind_of(items[i].text, items[j].text), ratio, items[i], items[j]) for (i, j), ratio in best]
    return Offer(pairs, total)


def _sorted_tokens(text: str) -> str:
    return " ".join(sorted(text.casefold().split()))


def _alike(items: Sequence[Item], decided: set[frozenset[str]]) -> tuple[dict[tuple[int, int], int], int]:
    """Places of the pairs that are alike, with their likeness, and their number. Block by block, to spare memory."""
    import numpy
    from rapidfuzz import fuzz, process

    place = {item.id: number for number, item in enumerate(items)}
    skip = [sorted(place[id_] for id_ in pair) for pair in decided if pair <= place.keys() and len(pair) == 2]
    texts = [_sorted_tokens(item.text) for item in items]  # sorted once, not once for each pair
    best, total = numpy.empty((0, 3), dtype=numpy.int32), 0
    for start in range(0, len(texts), BLOCK):
        block = texts[start : start + BLOCK]
        table = process.cdist(block, texts[start:], scorer=fuzz.ratio, score_cutoff=ALIKE, dtype=numpy.uint8)
        table = numpy.triu(table, 1)  # each pair once, and none of an item with itself
        for i, j in skip:
            if start <= i < start + BLOCK:
                table[i - start, j - start] = 0
        rows, columns = numpy.nonzero(table)
        total += len(rows)
        new = numpy.column_stack((rows + start, columns + start, table[rows, columns])).astype(numpy.int32)
        best = numpy.concatenate((best, new))
        best = best[numpy.argsort(-best[:, 2], kind="stable")[:MOST]]
    return {(int(i), int(j)): int(ratio) for i, j, ratio in best}, total


def _turned(items: Sequence[Item], decided: set[frozenset[str]]) -> Iterator[tuple[tuple[int, int], int]]:
    """Pairs that are less alike and differ in few tokens, all of which turn a rule around: short items, for example."""
    from rapidfuzz import fuzz

    groups: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    counted = [Counter(tokens(item.text)) for item in items]
    for number, count in enumerate(counted):
        rest = sorted(token for token in count.elements() if not _TURNS.fullmatch(token))
        groups[tuple(rest)].append(number)
    few_first = sorted(groups.values(), key=len)  # so that no large group hides what others hold
    pairs = itertools.chain.from_iterable(itertools.combinations(group, 2) for group in few_first)
    for i, j in itertools.islice(pairs, TRIED):
        a, b = counted[i], counted[j]
        if max((a - b).total(), (b - a).total()) > FEW or frozenset((items[i].id, items[j].id)) in decided:
            continue
        ratio = fuzz.ratio(_sorted_tokens(items[i].text), _sorted_tokens(items[j].text))
        if ratio < ALIKE:
            yield (i, j), int(ratio)
