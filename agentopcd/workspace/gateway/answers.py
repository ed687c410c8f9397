"""Replies in the layout of OpenAI's API: whole, and in the chunks of a stream."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from agentopcd.core.text import END_OF_THINKING, THINKING
from agentopcd.core.types import Message
from agentopcd.knowledge.recordings import Answered
from agentopcd.workspace.gateway.said import Said, split

END = b"data: [DONE]\n\n"
"""The last line of a stream."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """A reply on its way to the client."""

    name: str
    """The id that the client gets, such as ``chatcmpl-...``."""
    model: str
    message: Message
    thinking: str
    finish_reason: str
    prompt_tokens: int
    output_tokens: int
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    created: int
    """Seconds since 1970."""

    @classmethod
    def of(cls, name: str, model: str, prompt_tokens: int, said: Said, begun_at: str) -> Answer:
        """The answer that a new reply is."""
        return cls(
            name=name, model=model, message=said.message, thinking=said.thinking, finish_reason=said.finish_reason,
            prompt_tokens=prompt_tokens, output_tokens=len(said.token_ids), token_ids=said.token_ids,
            logprobs=said.logprobs, created=seconds(begun_at),
        )  # fmt: skip

    @classmethod
    def again(cls, model: str, known: Answered) -> Answer:
        """The answer that was stored. Where the prompt had opened the thinking, the reply lacks the first mark."""
        opened = END_OF_THINKING in known.reply and THINKING not in known.reply
        return cls(
            name=known.name, model=model, message=known.message,
            thinking=split((THINKING if opened else "") + known.reply)[0].removeprefix(THINKING),
            finish_reason=known.finish_reason, prompt_tokens=known.prompt_tokens, output_tokens=known.output_tokens,
            token_ids=known.response_ids, logprobs=known.logprobs,
            created=seconds(known.begun_at),
        )  # fmt: skip

    def whole(self, logprobs: Any) -> dict[str, Any]:
        """The body of an answer that is not streamed.

        Args:
            logprobs: what it tells of its tokens, see :func:`told_tokens`; None: nothing.
        """
        message: dict[str, Any] = {"role": "assistant", "content": self.message["content"], "refusal": None}
        if self.thinking:
            message["reasoning_content"] = self.thinking
        if calls := self._calls():
            message |= {"content": self.message["content"] or None, "tool_calls": calls}
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": self.finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage()}

    def last_chunks(self, *, usage: bool) -> list[bytes]:
        """What a stream ends in behind its text: calls, the reason why it ended, the numbers."""
        calls = [{"index": number, **call} for number, call in enumerate(self._calls())]
        head = {"id": self.name, "created": self.created, "model": self.model}
        chunks = [chunk(head, {"tool_calls": calls})] if calls else []
        chunks.append(chunk(head, {}, reason=self.finish_reason))
        if usage:
            chunks.append(event({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}))
        return [*chunks, END]

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.name, "object": kind, "created": self.created, "model": self.model}

    def _usage(self) -> dict[str, int]:
        total = self.prompt_tokens + self.output_tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.output_tokens, "total_tokens": total}

    def _calls(self) -> list[dict[str, Any]]:
        return [
            {"id": call["id"], "type": "function", "function": {
                "name": call["function"]["name"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            }}
            for call in self.message.get("tool_calls", ())
        ]  # fmt: skip


def seconds(at: str) -> int:
    """A time of the store as seconds since 1970."""
    return int(datetime.fromisoformat(at).timestamp())


def chunk(head: dict[str, Any], delta: dict[str, Any], logprobs: Any = None, *, reason: str | None = None) -> bytes:
    """One event of a stream.

    Args:
        head: ``id``, ``created`` and ``model`` of the answer.
    """
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    return event({**head, "object": "chat.completion.chunk", "choices": [choice]})


def event(data: Any) -> bytes:
    """Data as a server-sent event."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def told_tokens(tokenizer: Any, ids: Sequence[int], logprobs: Sequence[float]) -> dict[str, Any]:
    """What a client is told of sampled tokens: their text, and their log-probability as they were sampled."""
    told = []
    for id_, logprob in zip(ids, logprobs, strict=True):
        text = tokenizer.decode([id_])
        told.append({"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []})
    return {"content": told, "refusal": None}
