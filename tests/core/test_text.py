"""Texts: numbers with what they count."""

from __future__ import annotations

import pytest

from agentopcd.core.text import counted


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (0, "item", "0 items"),
        (1, "item", "1 item"),
        (2, "train episode", "2 train episodes"),
        (1200, "row", "1,200 rows"),
    ],
)
def test_one_is_no_plural(number: int, noun: str, said: str) -> None:
    assert counted(number, noun) == said
