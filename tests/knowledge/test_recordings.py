"""Recordings: which session a request belongs to, what is kept of it, and what its ratings add up to."""

from __future__ import annotations

import dataclasses
import itertools
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.errors import StoreError
from agentopcd.core.messages import read_messages
from agentopcd.core.transcript import pack
from agentopcd.core.types import EMPTY
from agentopcd.knowledge import Store
from agentopcd.knowledge.care import problems
from agentopcd.knowledge.database import now
from agentopcd.knowledge.recordings import Answered, Place, Rating, continued, known_answer, rate, record, recordings
from agentopcd.knowledge.recordings import sessions as sessions_of
from agentopcd.knowledge.repair import repair

Make = Callable[..., Answered]


@pytest.fixture
def answered(kit) -> Make:
    """Makes a finished request from texts: user, assistant, user ... and the reply."""
    numbers = itertools.count()

    def make(*texts: str, **more: Any) -> Answered:
        *said, reply = texts
        messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(said)]
        given: dict[str, Any] = {
            "name": f"chatcmpl-{next(numbers)}", "asked": "0" * 64, "model_id": kit.model, "context_id": EMPTY.id,
            "messages": messages, "prompt_ids": (1, 2, 3), "response_ids": (4, 5), "logprobs": (-0.5, -0.25),
            "reply": reply, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop",
            "sampling": {"temperature": 1.0, "seed": 7}, "prompt_tokens": 3, "output_tokens": 2, "begun_at": now(),
        }  # fmt: skip
        return Answered(**{**given, **more})

    return make


def test_a_request_comes_back_as_it_was_sampled(store: Store, answered: Make) -> None:
    one = answered("hello", "hi", key="k1")
    assert record(store, Place("shop", "s", "task-1"), one)
    (session,) = sessions_of(store, "shop")
    (again,) = session.requests
    assert dataclasses.replace(again, at="") == one and again.at >= one.begun_at
    assert (session.key, session.task, session.model_id, session.arm) == ("s", "task-1", one.model_id, "")
    assert session.rating == Rating()
    assert list(sessions_of(store, "another")) == []


def test_who_goes_on_from_the_last_reply_continues_the_session(store: Store, answered: Make) -> None:
    record(store, Place("shop", "a"), answered("hello", "hi"))
    further = answered("hello", " hi\n", "how are you?", "well")
    assert continued(store, "shop", further.messages) == "a"
    assert continued(store, "another", further.messages) is None
    assert continued(store, "shop", further.messages, taken={"a"}) is None  # someone else is going on from there
    assert continued(store, "shop", answered("hello", "ho", "how are you?", "").messages) is None
    assert continued(store, "shop", answered("hello", "").messages) is None
    record(store, Place("shop", "a"), further)
    # From an earlier request than the last: a branch.
    assert continued(store, "shop", answered("hello", "hi", "who are you?", "").messages) is None
    record(store, Place("shop", "b"), answered("hello", "hi"))
    assert continued(store, "shop", answered("hello", "hi", "who are you?", "").messages) == "b"


def test_calls_are_compared_by_what_they_call(store: Store, answered: Make) -> None:
    call = {"type": "function", "id": "x", "function": {"name": "look", "arguments": {"at": "map"}}}
    record(store, Place("shop", "a"), answered("go", "", message={"role": "assistant", "content": "", "tool_calls": [call]}))  # fmt: skip  # noqa: E501

    def next_(arguments: str) -> list[Any]:
        made = [{"id": "abc", "type": "function", "function": {"name": "look", "arguments": arguments}}]
        return read_messages([
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": None, "tool_calls": made, "refusal": None},
            {"role": "tool", "tool_call_id": "abc", "content": "a map"},
        ])  # fmt: skip

    assert continued(store, "shop", next_('{"at":  "map"}')) == "a"
    assert continued(store, "shop", next_('{"at": "door"}')) is None


def test_a_retry_is_not_stored_again(store: Store, answered: Make) -> None:
    assert record(store, Place("shop", "a"), answered("hello", "hi", key="k"))
    assert not record(store, Place("shop", "b"), answered("hello", "ho", key="k"))
    assert record(store, Place("other", "a"), answered("hello", "ho", key="k"))
    found = known_answer(store, "shop", "k")
    assert found and found[0] == "a" and found[1].reply == "hi"
    assert recordings(store) == [
        {"name": "other", "sessions": 1, "rated": 0, "requests": 1},
        {"name": "shop", "sessions": 1, "rated": 0, "requests": 1},
    ]


def test_of_each_figure_the_last_word_counts(store: Store, answered: Make) -> None:
    one = answered("hello", "hi")
    record(store, Place("shop", "a"), one)
    rate(store, "shop", "a", success=True, metrics={"stars": 3, "seconds": 9})
    rate(store, "shop", one.name, reward=0.5, metrics={"stars": 4})
    (session,) = sessions_of(store, "shop")
    assert session.rating == Rating(True, 0.5, {"stars": 4, "seconds": 9})
    rate(store, "shop", "a", success=False)
    assert next(sessions_of(store, "shop")).rating.success is False
    assert rate(store, "shop", "a", success=False) and not rate(store, "shop", "b", success=True)
    with pytest.raises(StoreError, match="says nothing"):
        rate(store, "shop", "a")


def test_since_and_until(store: Store, answered: Make) -> None:
    record(store, Place("shop", "a"), answered("hello", "hi"))
    record(store, Place("shop", "b"), answered("bye", "bye"))
    later = now()
    assert [one.key for one in sessions_of(store, "shop", since=later)] == []
    assert [one.key for one in sessions_of(store, "shop", until=later)] == ["a", "b"]
    rate(store, "shop", "b", reward=1)
    record(store, Place("shop", "c"), answered("new", "new"))
    assert [one.key for one in sessions_of(store, "shop", since=later)] == ["b", "c"]


def test_a_session_is_about_one_task(store: Store, answered: Make) -> None:
    record(store, Place("shop", "a", "t1"), answered("hello", "hi"))
    with pytest.raises(StoreError, match="is about task 't1' and got a request about 't2'"):
        record(store, Place("shop", "a", "t2"), answered("hello", "hi", "more", "yes"))
    record(store, Place("shop", "a"), answered("hello", "hi", "more", "yes"))
    (session,) = sessions_of(store, "shop")
    assert len(session.requests) == 2


@pytest.mark.parametrize("table", ["session", "request", "feedback"])
def test_recordings_are_frozen(store: Store, answered: Make, table: str) -> None:
    record(store, Place("shop", "a"), answered("hello", "hi"))
    rate(store, "shop", "a", success=True)
    with pytest.raises(sqlite3.IntegrityError, match="immutable"):
        store._connection.execute(f"UPDATE {table} SET id = id")


def test_damage_is_found_and_the_rest_saved(kit, tmp_path: Path, answered: Make) -> None:
    path = tmp_path / "work" / "store.db"
    with kit.open(path) as store:
        for name in "abc":
            record(store, Place("shop", name), answered(name, "hi"))
            rate(store, "shop", name, success=True)
        assert problems(store) == []
        store.change("DROP TRIGGER request_frozen")
        store.change("UPDATE request SET body = ? WHERE id = 2", (pack({"messages": []}),))
        assert len(problems(store)) == 1 and "request 2" in problems(store)[0]
        with pytest.raises(StoreError, match=r"damaged .*agentopcd store"):
            list(sessions_of(store, "shop"))
    assert repair(path).lost == [
        "request: 1 rows are not as they were written",
        "session: 1 rows belong to rows that are gone",
        "feedback: 1 rows belong to rows that are gone",
    ]
    with kit.open(path) as store:
        assert [(one.key, len(one.requests)) for one in sessions_of(store, "shop")] == [("a", 1), ("c", 1)]
        assert [row["sessions"] for row in recordings(store)] == [2]
        assert problems(store) == []


def test_a_session_that_an_older_repair_left_without_requests_is_none(store: Store, answered: Make) -> None:
    for name in "ab":
        record(store, Place("shop", name), answered(name, "hi"))
    store.change("DELETE FROM request WHERE id = 1")
    assert [one.key for one in sessions_of(store, "shop")] == ["b"]
