"""What a stream has sent adds up to the reply, is never taken back, and cuts no character and no stop string."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from agentopcd.core.types import Completion
from agentopcd.rollouts.chat import Chat
from agentopcd.workspace.gateway.said import Said, Words, split
from tests import tiny
from tests.rollouts.layouts import LAYOUTS, TOOLS, functions, tokenizer_of

THINKING = [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|START_THINKING|>", "<|END_THINKING|>")]


@pytest.fixture(scope="module")
def plain(tiny_model_dir: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture(scope="module")
def chat(plain: Any) -> Chat:
    return Chat(plain)


def thinking_chat(plain: Any, opening: str, closing: str, *, special: bool, opens: str = "") -> Chat:
    own = copy.deepcopy(plain)
    own.add_tokens([AddedToken(word, special=special, normalized=False) for word in (opening, closing)])
    own.chat_template = tiny.TEMPLATE.replace("assistant\n' }}", f"assistant\n{opens}' }}}}")
    return Chat(own)


def streamed(
    chat: Chat, ids: Sequence[int], *, tools: Any = (), stop: Sequence[str] = (), at_once: int = 1
) -> tuple[Said, dict[str, str], list[str]]:
    """A reply token by token: what it is, all that was sent, and what was sent of the content before the end."""
    early: list[str] = []
    words, sent = Words(chat, tools, stop), {"reasoning_content": "", "content": ""}
    for start in range(0, len(ids), at_once):
        piece = list(ids[start : start + at_once])
        if words.hear(piece, [-0.5] * len(piece)):
            break
        news = words.news()
        early.append(news.get("content", ""))
        for field, text in news.items():
            sent[field] += text
    said, more = words.finish(None if words.stopped else whole(ids))
    for field, text in more.items():
        sent[field] += text
    return said, sent, early


def whole(ids: Sequence[int]) -> Completion:
    return Completion(token_ids=tuple(ids), logprobs=(-0.5,) * len(ids), finish_reason="stop")


def ids_of(chat: Chat, text: str) -> list[int]:
    return [*chat.tokenizer(text, add_special_tokens=False)["input_ids"], tiny.END]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_tokens_come_the_parts_add_up(chat: Chat, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(3, len(chat.tokenizer) - 1), max_size=40))
    stop = data.draw(st.lists(st.text("ae<b ", min_size=1, max_size=3), max_size=2))
    at_once = data.draw(st.integers(1, 5))
    said, sent, _ = streamed(chat, ids, stop=stop, at_once=at_once)
    assert sent == {"reasoning_content": said.thinking, "content": said.message["content"]}
    assert not any(text in said.message["content"] for text in stop)
    alone, _ = Words(chat, (), stop).finish(whole(ids))
    assert (alone.message, alone.thinking) == (said.message, said.thinking)
    assert list(said.token_ids) == ids[: len(said.token_ids)]  # as sampled, up to the stop string
    assert len(said.logprobs) == len(said.token_ids)


def test_characters_of_several_tokens_are_sent_whole(chat: Chat) -> None:
    said, sent, early = streamed(chat, ids_of(chat, "Größe 你好 👩‍👩‍👧 naïve"))
    assert sent["content"] == said.message["content"] == "Größe 你好 👩‍👩‍👧 naïve"
    assert "\ufffd" not in "".join(early) and len([part for part in early if part]) > 5


def test_an_end_of_turn_that_is_not_special_is_not_sent(plain: Any) -> None:
    own = copy.deepcopy(plain)
    own.add_tokens([AddedToken("<|turn_end|>", special=False, normalized=False)])
    own.chat_template = tiny.TEMPLATE.replace("<|im_end|>", "<|turn_end|>")
    chat = Chat(own)
    for tools in ((), TOOLS):
        ids = [*ids_of(chat, "go north")[:-1], chat.end or 0]
        said, sent, _ = streamed(chat, ids, tools=tools)
        assert said.text == said.message["content"] == sent["content"] == "go north"
    ids = [
        *ids_of(chat, 'So: <tool_call>{"name": "lookup", "arguments": {"word": "a"}}</tool_call>')[:-1],
        chat.end or 0,
    ]
    said, sent, _ = streamed(chat, ids, tools=TOOLS)
    assert said.message.get("tool_calls") and said.message["content"] == sent["content"] == "So:"


def test_half_a_character_at_the_end_is_told_as_it_decodes(chat: Chat) -> None:
    ids = ids_of(chat, "ab你")[:-2]
    said, sent, early = streamed(chat, ids)
    assert sent["content"] == said.message["content"] == chat.tokenizer.decode(ids) and "\ufffd" in sent["content"]
    assert "".join(early) == "ab"


def test_a_stop_string_ends_a_reply_where_it_begins(chat: Chat) -> None:
    ids = ids_of(chat, "move the box STOP and go on")
    said, sent, early = streamed(chat, ids, stop=["nowhere", " STOP"])
    assert said.message["content"] == sent["content"] == "move the box" and said.finish_reason == "stop"
    assert "S" not in "".join(early)
    told = chat.tokenizer.decode(list(said.token_ids))
    assert told.endswith("STOP") and ids[: len(said.token_ids)] == list(said.token_ids)
    assert streamed(chat, ids_of(chat, "move STO"), stop=["STOP"])[1]["content"] == "move STO"  # it was none


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("marks", THINKING)
def test_thinking_is_sent_apart(plain: Any, marks: tuple[str, str], special: bool) -> None:
    chat = thinking_chat(plain, *marks, special=special)
    said, sent, _ = streamed(chat, ids_of(chat, f"{marks[0]}Is it 5?{marks[1]}It is 4."))
    assert sent == {"reasoning_content": "Is it 5?", "content": "It is 4."}
    assert (said.thinking, said.message["content"]) == ("Is it 5?", "It is 4.")
    cut, sent, _ = streamed(chat, ids_of(chat, f"{marks[0]}Is it 5?")[:-1])
    assert (cut.thinking, cut.message["content"], sent["content"]) == ("Is it 5?", "", "")


def test_thinking_that_the_prompt_has_opened(plain: Any) -> None:
    chat = thinking_chat(plain, *THINKING[0], special=False, opens="<think>\n")
    said, sent, _ = streamed(chat, ids_of(chat, "Is it 5?</think>It is 4."), stop=["5"])  # a thought stops nothing
    assert sent == {"reasoning_content": "Is it 5?", "content": "It is 4."} and said.message["content"] == "It is 4."


@pytest.mark.parametrize("layout", LAYOUTS)
def test_calls_of_every_layout_are_sent_whole_and_not_as_words(plain: Any, layout: str) -> None:
    shown, special, reply, wanted = LAYOUTS[layout]
    chat = Chat(tokenizer_of(plain, shown, special))
    said, sent, early = streamed(chat, ids_of(chat, reply), tools=TOOLS)
    assert functions(said.message.get("tool_calls", [])) == wanted and said.finish_reason == "tool_calls"
    assert sent["content"] == said.message["content"] == "" and "".join(early) == ""


@pytest.mark.parametrize("layout", ["hermes", "mistral", "gigachat"])
def test_words_before_a_call_are_sent_as_they_come(plain: Any, layout: str) -> None:
    shown, special, reply, wanted = LAYOUTS[layout]
    chat = Chat(tokenizer_of(plain, shown, special))
    said, sent, early = streamed(chat, ids_of(chat, f"I look it up.\n{reply}"), tools=TOOLS)
    assert functions(said.message.get("tool_calls", [])) == wanted and said.message["content"] == "I look it up."
    assert sent["content"] == "".join(early) == "I look it up."


@pytest.mark.parametrize("reply", ["move < the box", "I <tool_call> it", '{"name": 3}', "[1, 2]", "", "  { x"])
@pytest.mark.parametrize("layout", ["hermes", "llama", "mistral"])
def test_what_looks_like_a_call_and_is_none_stays_text(plain: Any, layout: str, reply: str) -> None:
    shown, special, _, _ = LAYOUTS[layout]
    chat = Chat(tokenizer_of(plain, shown, special))
    said, sent, _ = streamed(chat, ids_of(chat, reply), tools=TOOLS)
    assert (
        "tool_calls" not in said.message
        and sent["content"] == said.message["content"] == reply
        and said.finish_reason == "stop"
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("answer", ("", "answer")), ("<think>a</think>b", ("a", "b")), ("<think>a", ("a", "")), ("", ("", "")),
        ("a</think>b", ("", "ab")), ("x<think>a</think>y<think>b</think>z", ("ab", "xyz")),
    ],
)  # fmt: skip
def test_thinking_and_the_rest(text: str, parts: tuple[str, str]) -> None:
    assert split(text) == parts
