"""Tool calls as an environment meets them: written into the action, one ``<tool_call>`` each."""

from __future__ import annotations

import json
import re
from typing import Any, TypedDict

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class ToolCall(TypedDict):
    """One call: the tool's name and its arguments by name."""

    name: str
    arguments: dict[str, Any]


def read_calls(action: str) -> tuple[str, list[ToolCall]]:
    """The words beside the calls of an action, and the calls in their order.

    Raises:
        ValueError: a call that cannot be read; the message is one line that can be shown to the player.
    """
    calls = [_call(found) for found in _CALL.findall(action)]
    return _CALL.sub("", action).strip(), calls


def _call(text: str) -> ToolCall:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The call is no JSON: {error}.") from None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ValueError('A call is an object with "name" and "arguments".')
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError(f"The arguments of {call['name']} must be an object.")
    return {"name": call["name"], "arguments": arguments}


def as_tool(name: str, description: str, parameters: Any) -> dict[str, Any]:
    """A tool in the layout that chat templates take."""
    schema = parameters if isinstance(parameters, dict) else {}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}
