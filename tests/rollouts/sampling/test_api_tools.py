"""Tools through an API: what is sent, and what becomes of the calls that come back."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from agentopcd.core.calls import read_written
from agentopcd.core.errors import CallError
from agentopcd.core.types import Completion, Message
from agentopcd.rollouts.chat import ApiChat
from agentopcd.rollouts.sampling.chat_api import _as_api, _with_calls

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "price",
            "description": "Looks up a price.",
            "parameters": {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]},
        },
    }
]
CALL = {"type": "function", "id": "call00000", "function": {"name": "price", "arguments": {"item": "lamp"}}}


def made(name: str, arguments: str) -> Any:
    return SimpleNamespace(id="x", function=SimpleNamespace(name=name, arguments=arguments))


def said(text: str) -> tuple[str, int]:
    return ApiChat().with_calls(Completion(token_ids=(), logprobs=(), finish_reason="stop", text=text), text, TOOLS)


def test_arguments_go_out_as_text_and_tools_with_them() -> None:
    talk: list[Any] = [
        Message(role="user", content="How much?"), Message(role="assistant", content="", tool_calls=[CALL]),
        Message(role="tool", content="3", tool_call_id="call00000", name="price"),
    ]  # fmt: skip
    sent = _as_api(talk)
    assert json.loads(sent[1]["tool_calls"][0]["function"]["arguments"]) == {"item": "lamp"}
    assert sent[0] == talk[0] and sent[2] == talk[2]
    assert talk[1]["tool_calls"][0]["function"]["arguments"] == {"item": "lamp"}  # ours stays as it was
    assert ApiChat().request(talk, seed=0, tools=TOOLS).tools == tuple(TOOLS)


def test_calls_that_come_back_are_those_an_environment_gets() -> None:
    text = _with_calls("One moment.", [made("price", '{"item": "lamp"}'), made("price", '{"item": "rug"}')])
    action, calls = said(text)
    content, read = read_written(action)
    assert (content, calls) == ("One moment.", 2)
    assert [one["function"]["arguments"]["item"] for one in read] == ["lamp", "rug"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (_with_calls("", [made("price", "{item")]), "no JSON"),
        (_with_calls("", [made("prize", '{"item": "lamp"}')]), 'no tool is called "prize"'),
        (_with_calls("", [made("price", "{}")]), "price was called wrongly"),
    ],
)
def test_a_call_that_cannot_be_read_says_why(text: str, says: str) -> None:
    action, calls = said(text)
    assert calls == 0
    with pytest.raises(CallError, match=says):
        read_written(action)


def test_words_stay_words() -> None:
    assert said("Three pounds.") == ("Three pounds.", 0)
