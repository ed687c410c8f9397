"""Mutated and very long replies: calls are read from them, or a CallError says why not, and nothing else happens."""

from __future__ import annotations

import json
import random

import pytest
from tokenizers import AddedToken

from agentopcd.core.calls import LONGEST
from agentopcd.core.errors import CallError
from agentopcd.rollouts import replies
from agentopcd.rollouts.calls import calls_of
from agentopcd.rollouts.replies import Reader
from tests.rollouts.layouts import CALL_NOW, LAYOUTS, TOOLS


class Letters:
    """A tokenizer that decodes at once: the marks of all layouts, and letters."""

    eos_token_id = None

    def __init__(self, shown: str, special: tuple[str, ...]) -> None:
        self.chat_template = shown
        self.words = special
        self.added_tokens_decoder = {
            0x200000 + at: AddedToken(word, special=True) for at, word in enumerate(special)
        }  # fmt: skip

    def ids(self, text: str) -> list[int]:
        for at, word in enumerate(self.words):
            text = text.replace(word, chr(0x10F000 + at))
        return [0x200000 + ord(c) - 0x10F000 if ord(c) >= 0x10F000 else ord(c) for c in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(
            chr(id_) if id_ < 0x200000 else "" if skip_special_tokens else self.words[id_ - 0x200000] for id_ in ids
        )


PIECES = [
    "<tool_call>", "</tool_call>", "{", "}", "[", "]", '"', "'", ",", ":", ";", "(", ")", "=", "\\", "\n", "\\ud800",
    "\ud800", "\x00", "1e999", "NaN", "9" * 5000, "null",
    "[" * 2000, '{"a":' * 2000, "-" * 5000, "<think>", "</think>",
    "<parameter=word>", "</parameter>", "<function=now>", "</function>", "<arg_key>", "</arg_value>", "[TOOL_CALLS]",
    "[ARGS]", "```", "lookup", "now", "word", '"name"', '"arguments"', "<|message|>", "<|start|>",
    "to=functions.now",
]  # fmt: skip


def mutated(reply: str, draw: random.Random) -> str:
    for _ in range(draw.randint(1, 2)):
        a, b = sorted(draw.randint(0, len(reply)) for _ in range(2))
        match draw.randrange(4):
            case 0:
                reply = reply[:a]
            case 1:
                reply = reply[:a] + reply[min(b, a + 8) :]
            case 2:
                reply = reply[:a] + draw.choice(PIECES) + reply[a:]
            case _:
                reply = reply[:a] + draw.choice(PIECES) + reply[min(b, a + 8) :]
    return reply


def test_no_reply_raises_anything_else() -> None:
    draw = random.Random(0)
    readers = [(Letters(shown, special), reply) for shown, special, reply, _ in LAYOUTS.values()]
    seen = {"calls": 0, "words": 0, "error": 0}
    for number in range(5000):
        tokenizer, reply = readers[number % len(readers)]
        ids = tokenizer.ids(mutated(reply, draw))
        text = Reader(tokenizer, "").text(ids)
        try:
            words, calls = calls_of(tokenizer, ids, text, TOOLS)
        except CallError as error:
            assert "\n" not in str(error) and len(str(error)) <= 300
            str(error).encode()
            seen["error"] += 1
            continue
        assert isinstance(words, str)
        json.dumps(calls, allow_nan=False, ensure_ascii=False).encode()
        seen["calls" if calls else "words"] += 1
    assert min(seen.values()) > 300, seen


MEGABYTE = 10**6
LONG = [
    "x", " ", "<", "[", "{", '{"a":', "<tool_call>", "<tool_call>{", f"<tool_call>{CALL_NOW}</tool_call>",
    "</tool_call>", "<tool_call><function=now></function></tool_call>",
    "<function=now>", "<parameter=a>", "</parameter> ", CALL_NOW,
    "[now(), ", "[now(", "-", "1+", "[TOOL_CALLS]", "[TOOL_CALLS]now[ARGS]{}", "<|python_tag|>", "a.", "<think>", ";",
    "<|start|>assistant to=functions.now<|message|>{}<|call|>", "\ud800", "9", "<arg_key>a</arg_key><arg_value>",
]  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "before", ["", "<tool_call>", '<tool_call>{"name": "now", "arguments": {"a": ', "{", "[now(a="]
)
def test_a_megabyte_is_read_or_refused(before: str) -> None:
    for piece in LONG:
        reply = (before + piece * (MEGABYTE // len(piece) + 1))[:MEGABYTE]
        for text in (reply, reply[:LONGEST]):
            try:
                words, calls = calls_of(None, (), text, TOOLS)
            except CallError:
                continue
            assert calls or not words or words == replies.read_text(text)
