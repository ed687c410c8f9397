"""What a reply says: its text as it grows, cut at a stop string, with its thinking and its calls apart.

What is sent is never taken back. So text is held back while it may still be the beginning of a stop string, of a mark
around thinking, or of a character of several tokens. With tools, it is held back from the first sign of a call on; the
call is sent whole. What a stream has sent adds up to what the same reply is without a stream.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

from agentopcd.core.calls import Call
from agentopcd.core.errors import CallError
from agentopcd.core.text import END_OF_THINKING, THINKING
from agentopcd.core.types import Completion, Message, Tool
from agentopcd.rollouts.calls import AROUND, Layout, layout_of
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.replies import channels, decoded, plain

HALF = "\ufffd"
"""What bytes that are no whole character decode to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Said:
    """A reply that is complete."""

    message: Message
    """As the client gets it, without the thinking."""
    thinking: str
    text: str
    """All of it, as :meth:`agentopcd.rollouts.chat.Chat.reply_text` gives it."""
    finish_reason: str
    """``stop``, ``length`` or ``tool_calls``."""
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class Words:
    """The words of one reply while it is sampled.

    Args:
        chat: reads the replies of the model.
        tools: what may be called.
        stop: texts at which the reply ends; the first one is left out, with all that follows.
    """

    def __init__(self, chat: Chat, tools: Sequence[Tool] = (), stop: Sequence[str] = ()) -> None:
        self.chat, self.tools, self.stop = chat, tools, stop
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.stopped = False
        """Whether a stop string was said; the last token completed it."""
        self._reader, self._layout = chat.reader, layout_of(chat.tokenizer)
        self._kept = self._layout.kept if tools else self._reader.vanishing
        self._raw, self._window, self._read = "", 0, 0
        """What was decoded, and where the tokens begin that are decoded again, and those that are new."""
        self._whole = bool(getattr(chat.tokenizer, "clean_up_tokenization_spaces", False))
        """Whether the tokenizer changes words when later ones come, so that no part of a reply is sure."""
        self._sent = {"reasoning_content": "", "content": ""}

    def hear(self, ids: Iterable[int], logprobs: Iterable[float]) -> bool:
        """Take the next tokens; return whether the reply ends here, at a stop string."""
        for token, logprob in zip(ids, logprobs, strict=True):
            if self.stopped:
                break
            self.ids.append(token)
            self.logprobs.append(logprob)
            self._decode()
            self.stopped = bool(self.stop) and self._stops_at(self._apart(_without(self._raw, self._marks))[1]) >= 0
        return self.stopped

    def news(self) -> dict[str, str]:
        """The text that is sure by now and was not sent before, by field; empty if there is none."""
        if self._whole:
            return {}
        thinking, content = self._apart(_without(self._raw, self._marks))
        return self._unsent(thinking, self._sure(content))

    def finish(self, reply: Completion | None) -> tuple[Said, dict[str, str]]:
        """The reply, and the text that was not sent before.

        Args:
            reply: as it was sampled; None: it was ended at a stop string.
        """
        ids, logprobs = (reply.token_ids, reply.logprobs) if reply else (tuple(self.ids), tuple(self.logprobs))
        text = self.chat.reply_text(ids)
        thinking, content = self._apart(decoded(self.chat.tokenizer, self._reader.spoken(ids), self._reader.vanishing))
        cut = self._stops_at(content)
        reason = "stop" if cut >= 0 or reply is None else reply.finish_reason
        calls: list[Call] = []
        if self.tools:
            try:
                words, calls = self.chat.calls(ids, text, self.tools)
            except CallError:  # it stays the text that it is
                words, calls = content, []
            if calls:
                content, cut = words, self._stops_at(words)
        message = Message(role="assistant", content=content[:cut] if cut >= 0 else content)
        if calls:
            message["tool_calls"] = [dict(call) for call in calls]
            reason = "tool_calls" if reason == "stop" else reason
        said = Said(
            message=message, thinking=thinking, text=text, finish_reason=reason, token_ids=ids, logprobs=logprobs
        )
        return said, self._unsent(thinking, message["content"])

    # -- parts --------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        """Decode the last token behind those before it, since some characters and spaces need their neighbours."""
        before = decoded(self.chat.tokenizer, self.ids[self._window : self._read], self._kept)
        now = decoded(self.chat.tokenizer, self._reader.spoken(self.ids[self._window :]), self._kept)
        if len(now) > len(before) and not now.endswith(HALF):
            self._raw += now[len(before) :]
            self._window, self._read = self._read, len(self.ids)

    def _apart(self, raw: str) -> tuple[str, str]:
        """The thinking and the content of a text as it was decoded."""
        reader = self._reader
        text = channels(raw, reader.begins) if reader.channels else plain(raw, reader.marks)
        thinking = THINKING if reader.thinks else ""
        return split(thinking + text)

    def _stops_at(self, content: str) -> int:
        """Where the first stop string begins; -1 if there is none."""
        return min((at for stop in self.stop if (at := content.find(stop)) >= 0), default=-1)

    def _sure(self, content: str) -> str:
        """The beginning of the content that stays as it is, whatever comes."""
        if (cut := self._stops_at(content)) >= 0:
            return content[:cut]
        if self.tools:
            layout = self._layout
            begun = content.lstrip()[:1]
            if layout.parser or (layout.bare and begun in ("", "{", "[")):
                return ""
            content = content[: min((at for sign in self._signs if (at := content.find(sign)) >= 0), default=None)]
            content = _without(content, self._signs).rstrip()
        return _without(content, self.stop)

    @functools.cached_property
    def _marks(self) -> tuple[str, ...]:
        return (*self._reader.marks, *self._reader.marks.values(), THINKING, END_OF_THINKING)

    @functools.cached_property
    def _signs(self) -> tuple[str, ...]:
        return signs(self._layout)

    def _unsent(self, thinking: str, content: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for field, whole in (("reasoning_content", thinking), ("content", content)):
            sent = self._sent[field]
            if not whole.startswith(sent):  # the words beside calls are without the spaces around them
                whole, sent = whole.lstrip(), sent.lstrip()
            if more := whole[len(sent) :] if whole.startswith(sent) else "":
                found[field] = more
                self._sent[field] += more
        return found


def split(text: str) -> tuple[str, str]:
    """The thinking of a text, what stands between ``<think>`` and ``</think>``, and the rest."""
    parts = {True: "", False: ""}
    inside = False
    while text:
        mark = END_OF_THINKING if inside else THINKING
        before, found, text = text.partition(mark)
        # An end without a beginning says nothing.
        parts[inside] += before if inside else before.replace(END_OF_THINKING, "")
        inside = not inside if found else inside
    return parts[True], parts[False]


def signs(layout: Layout) -> tuple[str, ...]:
    """Texts with which calls may begin."""
    return tuple(mark for mark in (*layout.fences, *AROUND, *layout.kept.values()) if mark)


def _without(text: str, marks: Sequence[str]) -> str:
    """``text`` without an end that may be the beginning of one of these marks."""
    longest = max(map(len, marks), default=0)
    for start in range(max(0, len(text) - longest + 1), len(text)):
        if any(mark.startswith(text[start:]) for mark in marks):
            return text[:start]
    return text
