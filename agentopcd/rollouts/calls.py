"""Read tool calls from replies, in the layout of each family of models.

A tokenizer that has a response template (transformers 5) reads its own replies. For the others, a call stands between
marks (``FENCES``) or, for Llama 3, is the whole reply; what stands between the marks says itself how it is to be read.
Many marks are special tokens, which vanish when a reply is decoded, so replies are decoded again here.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentopcd.core.calls import LONGEST, Call, calls_from, check_calls, json_at, next_sign
from agentopcd.core.errors import CallError
from agentopcd.core.text import after_thinking, first_line, still_thinking
from agentopcd.rollouts import call_forms, replies
from agentopcd.rollouts.call_forms import Found

FENCES = {
    "<tool_call>": "</tool_call>",  # Hermes, Qwen, GLM, Granite 4, SmolLM3 and many more
    "<seed:tool_call>": "</seed:tool_call>",
    "<tool_calls>": "</tool_calls>",  # Apriel, MiniMax M1
    "<TOOLCALL>": "</TOOLCALL>",  # Nemotron Nano 2
    "<|tool_call|>": "<|/tool_call|>",  # Phi-4-mini; Granite 3 does not close it
    "<|tool_call_start|>": "<|tool_call_end|>",  # LFM2
    "<|START_ACTION|>": "<|END_ACTION|>",  # Command R7B and A
    "<|plugin|>": "<|action_end|>",  # InternLM 2, after <|action_start|>
    "<｜tool▁call▁begin｜>": "<｜tool▁call▁end｜>",  # DeepSeek V3, R1, V3.1
    "<|tool_call_begin|>": "<|tool_call_end|>",  # Kimi K2
    "[TOOL_CALLS]": "",  # Mistral
    "<|function_call|>": "",  # GigaChat 3.1
    "<|python_tag|>": "",  # Llama 3.1
    "<function=": "",  # Functionary 3.1, Llama 3.1, Qwen3-Coder when it forgets the mark around it
}
"""Marks that open and close calls; '' where nothing closes them."""

AROUND = (
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>",
)  # fmt: skip
"""Marks around several calls, which say nothing more."""

_MATTERS = re.compile("tool|call|action|plugin|function|args|python", re.IGNORECASE)
"""In the names of special tokens that may mark calls."""

_BARE = re.compile(r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"(?:name|function)"\s*:\s*"([^"\\]*)"')
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]+)")

_MISTRAL_ID = re.compile("[A-Za-z0-9]{9}")
"""Its templates refuse all others."""


def calls_of(
    tokenizer: Any, ids: Sequence[int], text: str, tools: Sequence[Mapping[str, Any]]
) -> tuple[str, list[Call]]:
    """The words beside the calls of a reply, without its thinking, and the calls. Calls inside the thinking are none.

    A call that is complete but for its closing mark counts.

    Args:
        tokenizer: decodes the ids; its template and tokens tell the layout. None if it is not known.
        ids: the sampled token ids; empty if only the text is known.
        text: the reply as :class:`~agentopcd.rollouts.replies.Reader` gives it.
        tools: what may be called, as :func:`agentopcd.core.calls.tools_of` gives it. Without tools there are no calls.

    Raises:
        CallError: a call is cut off, is no JSON, names no tool, or its arguments are not as the tool's schema says.
    """
    content = after_thinking(text)
    if not tools:
        return content, []
    layout = layout_of(tokenizer)
    if not layout.channels and still_thinking(text):
        return content, []
    if layout.parser:
        words, found = _by_tokenizer(tokenizer, layout.said(tokenizer, ids, text, special=True), tools)
    elif layout.channels:
        words, found = content, list(_in_channels(layout.said(tokenizer, ids, text)))
    else:
        words, found = _between_marks(layout.said(tokenizer, ids, text), layout, tools)
    if not found:
        return content, []
    calls = calls_from(found)
    check_calls(calls, tools)
    return words, calls


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a tokenizer's family writes calls."""

    parser: bool
    """The tokenizer has a parser of its own."""
    channels: bool
    """Replies are messages in channels (gpt-oss)."""
    bare: bool
    """A call is the whole reply, without marks (Llama 3)."""
    fences: tuple[str, ...]
    """The opening marks that count, keys of :data:`FENCES`."""
    kept: Mapping[int, str]
    """Special tokens that may mark calls or thinking, which decoding would leave out."""
    reader: replies.Reader | None
    """Knows the marks around the thinking, and what ends a reply; None if the tokenizer is not known."""

    def said(self, tokenizer: Any, ids: Sequence[int], text: str, *, special: bool = False) -> str:
        """A reply after its thinking, with the tokens that mark calls; with ``special``: with all special tokens."""
        if not ids or self.reader is None:
            return "" if self.channels else after_thinking(text)
        spoken = self.reader.spoken(ids)
        said = tokenizer.decode(list(ids)) if special else replies.decoded(tokenizer, spoken, self.kept)
        if self.channels:
            return said
        ends = [at + len(mark) for mark in self.reader.marks.values() if (at := said.rfind(mark)) >= 0]
        return said[max(ends, default=0) :]


def layout_of(tokenizer: Any) -> Layout:
    """How a tokenizer's family writes calls, by its template and tokens; every way but channels if it shows none."""
    return _layout(tokenizer, str(getattr(tokenizer, "chat_template", "") or ""))


@functools.lru_cache(maxsize=8)
def _layout(tokenizer: Any, template: str) -> Layout:
    if tokenizer is None:
        return Layout(parser=False, channels=False, bare=True, fences=tuple(FENCES), kept={}, reader=None)
    reader = replies.Reader(tokenizer, "")
    tokens = tokenizer.added_tokens_decoder
    names = {token.content for token in tokens.values()}
    matter = {id_: token.content for id_, token in tokens.items() if token.special and _MATTERS.search(token.content)}
    shown = {mark for mark in FENCES if mark in template} or {mark for mark in FENCES if mark in names}
    return Layout(
        parser=getattr(tokenizer, "response_template", None) is not None,
        channels=reader.channels,
        bare=shown <= {"<|python_tag|>"},
        fences=tuple(shown or FENCES),
        kept={**reader.vanishing, **matter},
        reader=reader,
    )


def _by_tokenizer(tokenizer: Any, said: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[Found]]:
    if len(said) > LONGEST:  # its patterns may take long
        raise CallError(f"the reply is longer than {LONGEST} characters after its thinking")
    try:
        # The thinking is cut off, and with it whatever the prompt had begun.
        message = tokenizer.parse_response(said, prefix="", tools=[dict(tool) for tool in tools])
        called = [call["function"] for call in message.get("tool_calls") or []]
        found = [(one.get("name"), one.get("arguments", {}), None) for one in called]
        return str(message.get("content") or "").strip(), found
    except Exception as error:  # the template is the model's own, and so is what it raises
        raise CallError(f"the call cannot be read: {first_line(error, type(error).__name__)}") from error


def _in_channels(said: str) -> Iterator[Found]:
    """The calls of a reply of gpt-oss: messages to a function."""
    for message in said.split(replies.START):
        head, opened, body = message.partition(replies.MESSAGE)
        recipient = _RECIPIENT.search(head)
        if not recipient or not (opened or replies.CHANNEL in head):
            continue
        if not opened:
            raise CallError("the call is cut off before its arguments")
        if len(body) > LONGEST:
            raise CallError(f"the call is longer than {LONGEST} characters")
        value, end = json_at(body, 0)
        rest = next_sign(body, end)
        if rest < len(body) and not body.startswith(replies.ENDS, rest):
            raise CallError(f"the call is no JSON: more text at character {rest}")
        yield recipient[1], value, None


def _between_marks(said: str, layout: Layout, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[Found]]:
    opening = re.compile("|".join(re.escape(mark) for mark in sorted(layout.fences, key=len, reverse=True)))
    found: list[Found] = []
    words: list[str] = []
    at = 0
    while fence := opening.search(said, at):
        if len(said) - fence.start() > LONGEST:
            raise CallError(f"the calls are longer than {LONGEST} characters")
        words.append(said[at : fence.start()])
        unmarked = fence[0] == "<function="
        calls, at = call_forms.calls_at(said, fence.start() if unmarked else fence.end(), FENCES[fence[0]], tools)
        if fence[0] == "[TOOL_CALLS]":
            calls = [(name, given, id_ if _MISTRAL_ID.fullmatch(str(id_)) else None) for name, given, id_ in calls]
        found += calls
    if not found:
        return "", _bare(said.strip(), {tool["function"]["name"] for tool in tools}) if layout.bare else []
    words.append(said[at:])
    nothing = re.compile("|".join(re.escape(mark) for mark in (*AROUND, *layout.kept.values())))
    shown = (nothing.sub("", piece).strip() for piece in words)
    return "\n".join(piece for piece in shown if piece), found


def _bare(said: str, names: set[str]) -> list[Found]:
    """The calls of a reply that is nothing else: JSON objects or a list in Python's form; none if it names no tool."""
    python = call_forms.PYTHON.match(said) if said.startswith("[") else None
    if python:
        return call_forms.python_calls(said) if python[1] in names else []
    begun = _BARE.match(said)
    sure = begun is not None and begun[1] in names
    if not said.startswith("{") or len(said) > LONGEST:
        return []
    try:
        found, end = call_forms.json_calls(said, 0)
        if next_sign(said, end) < len(said):
            raise CallError(f"the call is no JSON: more text at character {end}")
    except CallError:
        if sure:
            raise
        return []
    return found if any(isinstance(name, str) and name in names for name, _, _ in found) else []
