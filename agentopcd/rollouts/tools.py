"""Tools in prompts: where a chat template has no place for them, they are told in words.

The words and marks are those that most open models were trained with (Hermes, Qwen): a list of JSON schemas in the
system message, calls between ``<tool_call>`` and ``</tool_call>``, results between ``<tool_response>`` marks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from agentopcd.core.types import Message, Tool
from agentopcd.models import tokens

_PROBE: Tool = {
    "type": "function",
    "function": {
        "name": "agentopcd_probe",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}, "required": []},
    },
}
_WORDS = ("agentopcd-first", "agentopcd-second")
_HOW = (
    "You can call these tools:\n{tools}\n"
    'To call one, write <tool_call>{{"name": NAME, "arguments": {{...}}}}</tool_call> and wait for its result.'
)


def shows_tools(tokenizer: Any, **template_args: Any) -> bool:
    """Whether the tokenizer's chat template writes tools into the prompt."""
    said = tokens.conversation(tokenizer, "user", header=True, **{**template_args, "tools": [_PROBE]})
    return _PROBE["function"]["name"] in said


def takes_several(tokenizer: Any, **template_args: Any) -> bool:
    """Whether the template writes two calls of one turn. Llama 3's refuses them, that of gpt-oss drops the second."""
    said = tool_talk(tokenizer, 2, **template_args)
    return all(word in said for word in _WORDS)


def tool_talk(tokenizer: Any, calls: int = 1, **template_args: Any) -> str:
    """A conversation with calls in one turn and their results, as the template writes it; '' if it refuses it."""
    name = "agentopcd_probe"
    made = [
        {"type": "function", "id": f"call{number:05}", "function": {"name": name, "arguments": {"x": _WORDS[number]}}}
        for number in range(calls)
    ]
    messages = [
        {"role": "user", "content": tokens.PROBE},
        {"role": "assistant", "content": "", "tool_calls": made},
        *({"role": "tool", "content": tokens.PROBE, "tool_call_id": one["id"], "name": name} for one in made),
    ]
    try:
        return tokenizer.apply_chat_template(messages, tools=[_PROBE], tokenize=False, **template_args)
    except Exception:  # a template can raise errors of its own
        return ""


def in_words(messages: Sequence[Message], tools: Sequence[Tool], *, system: bool) -> list[Message]:
    """The same prompt as plain messages of system, user and assistant, for a template without tools.

    Args:
        system: whether the template takes a system message; else the tools stand before the first user message.
    """
    told: list[Message] = []
    for message in messages:
        plain = _plain(message)
        if message["role"] == "tool" and told and told[-1]["role"] == "user":  # some templates want roles to alternate
            plain["content"] = f"{told.pop()['content']}\n{plain['content']}"
        told.append(plain)
    if not tools:
        return told
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    how = _HOW.format(tools=listed)
    if told[0]["role"] == "system":
        return [Message(role="system", content=f"{told[0]['content']}\n\n{how}"), *told[1:]]
    if system:
        return [Message(role="system", content=how), *told]
    first = next((i for i, message in enumerate(told) if message["role"] == "user"), 0)
    opened = Message(role="user", content=f"{how}\n\n{told[first]['content']}")
    return [*told[:first], opened, *told[first + 1 :]]


def _plain(message: Message) -> Message:
    if message["role"] == "tool":
        return Message(role="user", content=f"<tool_response>\n{message['content']}\n</tool_response>")
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    marked = [f"<tool_call>{call}</tool_call>" for call in calls]
    return Message(role=message["role"], content="\n".join([*filter(None, [message["content"]]), *marked]))
