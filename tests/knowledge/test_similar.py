"""Near-duplicates and contradictions: what is offered, what is never called a repetition, and large stores."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from agentopcd.core.types import Context
from agentopcd.knowledge import Item, identify, placebo
from agentopcd.knowledge.similar import MOST, kind_of, similar, tokens


def items(*texts: str) -> list[Item]:
    return [Item(identify(text), text) for text in texts]


CONTRADICTIONS = [
    ("Step on tiles marked H.", "Do not step on tiles marked H."),
    ("Always push the box first.", "Never push the box first."),
    ("Go up when a wall is on your left.", "Go down when a wall is on your left."),
    ("Open the red door before the blue door.", "Open the blue door before the red door."),
    ("Add 3 to both sides.", "Add 4 to both sides."),
    ("The key [w] moves the player up.", "The key [s] moves the player up."),
    ("x stands for a wall on this board.", "X stands for a wall on this board."),
    ("Turn left at each corner of the maze.", "Turn right at each corner of the maze."),
    ("A hole is safe.", "A hole isn't safe."),
    ("Area is 10² here.", "Area is 102 here."),
    ("Go up.", "Go down."),
    ("[up] wins.", "[down] wins."),
]


@pytest.mark.parametrize(("first", "second"), CONTRADICTIONS)
def test_a_contradiction_is_offered_as_one(first: str, second: str) -> None:
    offer = similar(items(first, second))
    assert [(pair.kind, {pair.first.text, pair.second.text}) for pair in offer.pairs] == [
        ("conflict?", {first, second})
    ]
    assert offer.total == 1
    assert kind_of(second, first) == "conflict?"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Never step on a tile marked with H.", "Never step on any tile marked with an H."),
        ("Avoid the holes!", "avoid the holes"),
        ("Push the box towards the target slowly.", "Push the box towards the targets slowly."),
    ],
)
def test_a_rewording_is_offered_as_a_repetition(first: str, second: str) -> None:
    (pair,) = similar(items(first, second)).pairs
    assert pair.kind == "dup?" and pair.ratio >= 80


def test_what_is_different_is_not_offered() -> None:
    texts = ["Avoid holes.", "A wall stops you.", "Multiply before you add.", "The goal is the letter G."]
    assert similar(items(*texts)).total == 0
    assert similar(items("Avoid holes.")).pairs == [] and similar([]).pairs == []


def test_a_decided_pair_is_not_offered_whichever_way_round() -> None:
    for first, second in CONTRADICTIONS:
        found = items(first, second)
        assert similar(found, [frozenset((identify(second), identify(first)))]).total == 0
    three = items("Go north at the gate.", "Go south at the gate.", "Go east at the gate.")
    offer = similar(three, [frozenset((three[0].id, three[2].id)), frozenset((three[0].id, "gone"))])
    assert {frozenset((pair.first, pair.second)) for pair in offer.pairs} == {
        frozenset(three[:2]), frozenset(three[1:]),
    }  # fmt: skip


def test_the_most_alike_come_first() -> None:
    texts = ["Push the box into the room.", "Push the box into the rooms.", "Push the boxes into rooms."]
    ratios = [pair.ratio for pair in similar(items(*texts)).pairs]
    assert ratios == sorted(ratios, reverse=True) and len(ratios) == 3


def test_the_blocks_see_every_pair() -> None:
    """Two of 1,100 items are alike, in several ways in which they can lie in blocks of 200."""
    rng = random.Random(0)
    words = [f"{a}{b}{c}" for a in "bdgklmnprst" for b in "aeiou" for c in "bdgklmnprst"]
    texts = [" ".join(rng.sample(words, 8)) for _ in range(1100)]
    for first, second in ((0, 1), (0, 1099), (199, 200), (400, 599), (1000, 1099)):
        changed = list(texts)
        changed[second] = changed[first] + " x"
        (pair,) = similar(items(*changed)).pairs
        assert (pair.first.text, pair.second.text) == (changed[first], changed[second])


def test_a_store_full_of_repetitions_takes_little_memory() -> None:
    """All 2,000 are alike: two million pairs, of which the most alike are kept."""
    many = items(*(f"Rule number {number} says that the door on the left opens." for number in range(2000)))
    tracemalloc.start()
    offer = similar(many)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert offer.total == 2000 * 1999 // 2 and len(offer.pairs) == MOST
    assert {pair.kind for pair in offer.pairs} == {"conflict?"}  # they differ in a number
    assert peak < 200e6


def test_a_large_group_hides_no_contradiction_behind_it() -> None:
    sums = [f"{a} * {b} = {a * b}" for a in range(2, 17) for b in range(2, 17)]
    offer = similar(items(*sums, "Go up.", "Go down."))
    assert ("conflict?", {"Go up.", "Go down."}) in [(p.kind, {p.first.text, p.second.text}) for p in offer.pairs]
    assert offer.total == similar(items(*sums)).total + 1


@pytest.mark.parametrize(
    "text", ["दीवार की ओर मत जाओ", "กำแพง อยู่ ทางซ้าย ให้ไป", "me\u0301nage e\u0302tre de\u0301ja\u0300"]
)
def test_words_are_not_torn_apart_at_combining_marks(text: str) -> None:
    assert tokens(text) == text.split()
    moved = placebo(Context(text)).text
    assert moved != text and sorted(moved.split()) == sorted(text.split())
