"""Chat messages in the layouts that people have: what is read, and what is refused with the message's number."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentopcd.core import messages
from agentopcd.core.errors import EnvError

USER = {"role": "user", "content": "Hi."}


def read_messages(cell: Any) -> list[Any]:
    return list(messages.read_messages(cell))


def call(name: str = "f", arguments: Any = '{"x": 1}', id_: Any = "call_abcdefghijkl") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    made = {"id": id_, "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [made]}


def test_calls_and_results_get_ids_that_every_template_takes() -> None:
    talk = [USER, call(), {"role": "tool", "tool_call_id": "call_abcdefghijkl", "content": "2"}, call("g", {}, "other")]
    asked, made, result, again = read_messages(talk)
    assert asked == USER and made["content"] == ""
    assert made["tool_calls"] == [
        {"type": "function", "id": "call00000", "function": {"name": "f", "arguments": {"x": 1}}}
    ]
    assert result == {"role": "tool", "content": "2", "tool_call_id": "call00000", "name": "f"}
    assert again["tool_calls"][0]["id"] == "call00001"


def test_reading_twice_changes_nothing() -> None:
    once = read_messages([USER, call(), {"role": "tool", "tool_call_id": "call_abcdefghijkl", "content": "2"}])
    assert read_messages(once) == once == read_messages(json.dumps(once))


def test_other_layouts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert read_messages([{"role": "developer", "content": parts}]) == [{"role": "system", "content": "ab"}]
    shared = [
        {"from": "human", "value": "Hi."}, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "2"}, {"from": "gpt", "value": "Two."},
    ]  # fmt: skip
    roles = [message["role"] for message in read_messages(shared)]
    assert roles == ["user", "assistant", "tool", "assistant"]
    legacy = [USER, {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}, {"role": "function",
              "name": "f", "content": "ok"}]  # fmt: skip
    assert read_messages(legacy)[2] == {"role": "tool", "content": "ok", "tool_call_id": "call00000", "name": "f"}


def test_nulls_that_parquet_fills_in_are_left_out_and_nulls_that_were_written_stay() -> None:
    filled, meant = (read_messages([USER, call(arguments=one)])[1] for one in ({"x": 1, "y": None}, '{"y": null}'))
    assert filled["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert meant["tool_calls"][0]["function"]["arguments"] == {"y": None}
    assert read_messages([USER | {"tool_calls": None, "name": None}]) == [USER]


@pytest.mark.parametrize(
    ("talk", "says"),
    [
        ("hello", "must be a list of objects"),
        ([], "must be a list"),
        ({"role": "user"}, "must be a list"),
        ([USER, 3], "message 2 must be an object"),
        ([{"role": "alien", "content": "x"}], "message 1 is by 'alien'"),
        ([{"role": ["user"], "content": "x"}], "message 1 is by"),
        ([{"content": "x"}], "message 1 is by None"),
        ([{"role": "user", "content": None}], "message 1 must have text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "part of type 'image_url'; only text",
        ),
        ([{"role": "user", "content": "\ud800"}], "half a surrogate pair"),
        ([USER | {"tool_calls": [{}]}], "is by the user and calls a tool"),
        ([USER, call("")], "without the name of a function"),
        ([USER, call(arguments="{x")], "message 2 has a call of 'f' that is no JSON"),
        ([USER, call(arguments="[1]")], "arguments that are no object"),
        ([USER, {"role": "assistant", "tool_calls": "f"}], "tool_calls that are no list"),
        ([USER, {"role": "tool", "content": "2"}], "answers a call that no message before it makes"),
        ([USER, {"role": "tool", "tool_call_id": "z", "content": "2"}], "answers the call 'z', which no message"),
    ],
)
def test_what_is_refused(talk: Any, says: str) -> None:
    with pytest.raises(EnvError, match=says):
        read_messages(talk)


def test_a_result_without_an_id_answers_the_call_of_its_tool_and_not_an_older_one() -> None:
    def made(name: str) -> dict[str, Any]:
        return {"role": "assistant", "function_call": {"name": name, "arguments": "{}"}}

    talk = [USER, made("f"), {"role": "user", "content": "Never mind."}, made("g"), {"role": "tool", "content": "2"}]
    for result in ({"role": "function", "name": "g", "content": "2"}, talk[-1]):
        assert read_messages([*talk[:-1], result])[-1]["name"] == "g"
    late = [*talk[:-1], {"role": "function", "name": "f", "content": "1"}, talk[-1]]
    assert [one["name"] for one in read_messages(late)[-2:]] == ["f", "g"]
    twice = [USER, made("f"), made("f"), *[{"role": "function", "name": "f", "content": text} for text in "12"]]
    assert [one["tool_call_id"] for one in read_messages(twice)[-2:]] == ["call00000", "call00001"]


def test_an_empty_id_is_none() -> None:
    both = [call("f", id_="")["tool_calls"][0], call("g", id_="")["tool_calls"][0]]
    results = [{"role": "tool", "tool_call_id": "", "content": text} for text in "12"]
    found = read_messages([USER, {"role": "assistant", "content": None, "tool_calls": both}, *results])
    assert [one["name"] for one in found[-2:]] == ["f", "g"]
    assert read_messages([USER, call("f", id_=None), results[0]])[-1]["name"] == "f"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"a": "\ud83d"}, "half a surrogate pair"),
        ('{"a": "\\ud83d"}', "half a surrogate pair"),
        ('{"a": NaN}', "arguments that are no JSON"),
        ({"a": object()}, "arguments that are no JSON"),
    ],
)
def test_arguments_that_no_template_can_show_are_refused(arguments: Any, says: str) -> None:
    with pytest.raises(EnvError, match=f"message 2 .*{says}"):
        read_messages([USER, call("f", arguments)])
