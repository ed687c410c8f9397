"""Replies that were cut before they said anything are told, and others are not."""

from __future__ import annotations

from typing import Any

import pytest

from agentopcd.core.types import Turn
from agentopcd.rollouts.unread import Unread


def turn(reply: str = "x", *, cut: bool = False, invalid: bool = False) -> Turn:
    given: dict[str, Any] = {
        "parts": [], "messages": [], "prompt_ids": (), "response_ids": (), "logprobs": (), "reward": 0.0,
    }  # fmt: skip
    return Turn(reply=reply, finish_reason="length" if cut else "stop", invalid=invalid, **given)


THINKING = turn("<think>let me see", cut=True, invalid=True)


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ([turn(), turn(cut=True), turn(invalid=True)], []),  # cut, but used; not cut, and not used
        ([turn(cut=True, invalid=True), turn()], ["1 of 2 replies were cut at 24 tokens"]),
        ([turn(cut=True, invalid=True), *[turn()] * 19], []),  # one in twenty says nothing of the limit
        ([THINKING, turn()], ["1 of 2 replies were cut in their thinking"]),
        ([THINKING, turn(cut=True, invalid=True)], ["1 of 2 replies were cut in", "1 of 2 replies were cut at 24"]),
        ([], []),
    ],
)
def test_what_the_limit_took_is_told(turns: list[Turn], told: list[str]) -> None:
    unread = Unread()
    unread.add(turns)
    lines = list(unread.lines(24, graded=True))
    assert len(lines) == len(told)
    assert all(line.startswith("warning: ") and words in line for line, words in zip(lines, told, strict=True))


def test_what_cut_replies_count_as_depends_on_whether_something_grades_them() -> None:
    unread = Unread()
    unread.add([THINKING, turn(cut=True, invalid=True)])
    for graded, words in ((True, "and count as no answer;"), (False, "and are measured and learned from as they are;")):
        assert all(words in line for line in unread.lines(24, graded=graded))
