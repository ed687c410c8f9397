"""The items that a teacher sees at a turn: those whose words the turn shows, worked out by hand."""

from __future__ import annotations

from math import log
from typing import Any

import pytest

from agentopcd.core.types import MARKER, Context, Part, Turn
from agentopcd.knowledge.nearest import notes_for

ITEMS = ["a red door needs the red key", "the blue door is open", "a key lies under the table", "never jump"]
CONTEXT = Context("\n".join(["Notes:", *(f"{MARKER} {item}" for item in ITEMS)]), "system")


def turn(*parts: Part, last: str = "x") -> Turn:
    said: Any = {"role": "user", "content": last}
    return Turn(
        parts=list(parts), messages=[said], prompt_ids=(1,), response_ids=(2,), logprobs=(0.0,), reply="",
        finish_reason="stop", reward=0.0, invalid=False,
    )  # fmt: skip


def shown(seen: Turn, k: int) -> list[str]:
    return notes_for(CONTEXT, seen, k).lines


def test_the_items_whose_words_stand_there_are_chosen_in_their_own_order() -> None:
    assert shown(turn(("state", "A blue door.")), 1) == [ITEMS[1]]
    assert shown(turn(("state", "You see a table and a Key.")), 1) == [ITEMS[2]]
    assert shown(turn(("state", "A table."), ("actions", "jump")), 2) == [ITEMS[2], ITEMS[3]]
    assert shown(turn(("feedback", "The red key fits the door.")), 2) == [ITEMS[0], ITEMS[1]]


def test_rarer_words_count_more() -> None:
    """Shown is `door key`. Both stand in two of four items; the words around them decide, by the formula."""
    two, one = log(1 + 4 / 2), log(1 + 4 / 1)
    first = 2 * two / (2 * two + 2 * one)  # red, door, needs, key
    second = two / (two + 2 * one)  # blue, door, open
    third = two / (two + 3 * one)  # key, lies, under, table: `under` is a function word
    third = two / (two + 2 * one)
    assert first > second == third
    assert shown(turn(("state", "door key")), 1) == [ITEMS[0]]
    assert shown(turn(("state", "door key")), 2) == [ITEMS[0], ITEMS[1]]  # of equals, the first


def test_the_rules_do_not_choose_and_the_last_message_does_where_there_are_no_parts() -> None:
    assert shown(turn(("rules", "never jump"), ("state", "a table")), 1) == [ITEMS[2]]
    assert shown(turn(last="jump?"), 1) == [ITEMS[3]]
    assert shown(turn(("state", "nothing of it")), 2) == ITEMS[:2]


def test_what_is_no_item_stays_and_a_context_of_few_items_is_the_same_object() -> None:
    found = notes_for(CONTEXT, turn(("state", "table")), 1)
    assert found.text == f"Notes:\n{MARKER} {ITEMS[2]}" and found.placement == "system"
    assert notes_for(CONTEXT, turn(), 4) is CONTEXT and notes_for(CONTEXT, turn(), 9) is CONTEXT


@pytest.mark.parametrize("k", [1, 2, 3])
def test_exactly_so_many_items_are_shown(k: int) -> None:
    assert len(shown(turn(("state", "door")), k)) == k
