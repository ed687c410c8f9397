"""Chat messages in the layouts that people have, read into the one that chat templates take.

Read are OpenAI's (``role``, ``content``, ``tool_calls``) and ShareGPT's (``from``, ``value``). Calls get new ids, of
nine letters and digits, because some templates refuse others, and arguments become objects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from agentopcd.core.errors import EnvError
from agentopcd.core.types import Message

ROLES: Mapping[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "function_call": "assistant", "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
TEXT_PARTS = ("text", "input_text", "output_text")


def read_messages(cell: Any) -> list[Message]:
    """The messages of a cell, which is a list of objects or its JSON.

    Raises:
        EnvError: it is no conversation, a message holds what is no text, or a call cannot be read.
    """
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            raise EnvError(f"messages must be a list of objects, got the text {cell!r:.60}") from None
    if not isinstance(cell, Sequence) or isinstance(cell, str) or not cell:
        raise EnvError(f"messages must be a list of objects with role and content, got {cell!r:.60}")
    calls = _Calls()
    return [_message(number, one, calls) for number, one in enumerate(cell, 1)]


class _Calls:
    """The calls of a conversation: their new ids, and which of them wait for a result, the user's last words aside."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.waiting: list[str] = []
        self.old: list[str] = []
        """Calls that waited when the user spoke again."""

    def heard_user(self) -> None:
        self.old, self.waiting = [*self.waiting, *self.old], []

    def add(self, given: Any, name: str) -> str:
        new = f"call{len(self.names):05d}"
        if given not in (None, ""):
            self.ids[str(given)] = new
        self.names[new] = name
        self.waiting.append(new)
        return new

    def answered(self, given: Any, name: Any) -> str:
        """The new id of the call that a result answers: by its id, else by the name of its tool, else the first that
        waits."""
        known, waiting = given not in (None, ""), [*self.waiting, *self.old]
        of_name = [id_ for id_ in waiting if self.names[id_] == name]
        new = self.ids.get(str(given)) if known else next(iter([*of_name, *waiting]), None)
        if new is None:
            raise EnvError(f"answers the call {given!r:.40}, which no message before it makes" if known else
                           "answers a call that no message before it makes")  # fmt: skip
        for some in (self.waiting, self.old):
            if new in some:
                some.remove(new)
        return new


def _message(number: int, given: Any, calls: _Calls) -> Message:
    try:
        if not isinstance(given, Mapping):
            raise EnvError(f"must be an object with role and content, got {given!r:.60}")
        return _read(given, calls)
    except EnvError as error:
        raise EnvError(f"message {number} {error}") from None


def _read(given: Mapping[str, Any], calls: _Calls) -> Message:
    named = given.get("role") if given.get("role") is not None else given.get("from")
    role = ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        raise EnvError(f"is by {named!r:.40}; wanted {', '.join(ROLES)}")
    content = given["content"] if given.get("content") is not None else given.get("value")
    if named == "function_call":  # ShareGPT: the call is the message
        return Message(role=role, content="", tool_calls=[_call({"function": _json(content, "call")}, calls)])
    made = given.get("tool_calls") or ([{"function": given["function_call"]}] if given.get("function_call") else [])
    if made and role != "assistant":
        raise EnvError(f"is by the {role} and calls a tool; only the assistant can")
    if not isinstance(made, Sequence) or isinstance(made, str):
        raise EnvError(f"has tool_calls that are no list: {made!r:.60}")
    message = Message(role=role, content=_text(content, role))
    if role == "user":
        calls.heard_user()
    if made:
        message["tool_calls"] = [_call(one, calls) for one in made]
    if role == "tool":
        id_ = calls.answered(given.get("tool_call_id"), given.get("name"))
        message["tool_call_id"], message["name"] = id_, calls.names[id_]
    return message


def _text(content: Any, role: str) -> str:
    if content is None and role == "assistant":
        return ""
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_part(part) for part in content)
    if not isinstance(content, str):
        raise EnvError(f"must have text as content, got {content!r:.60}")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise EnvError(f"holds half a surrogate pair, {content[error.start]!a}, which is no character") from None
    return content


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
        raise EnvError(f"has a part of type {kind!r:.40}; only text can be shown")
    return part["text"]


def _call(given: Any, calls: _Calls) -> dict[str, Any]:
    function = given.get("function") if isinstance(given, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise EnvError(f"has a call without the name of a function: {given!r:.60}")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, Mapping):  # parquet fills what another row's object has and this one has not with nulls
        arguments = {key: value for key, value in arguments.items() if value is not None}
    elif isinstance(arguments, str):
        arguments = _json(arguments, f"call of {name!r}") if arguments.strip() else {}
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise EnvError(f"calls {name!r} with arguments that are no object: {arguments!r:.60}")
    try:
        said = json.dumps(dict(arguments), ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise EnvError(f"calls {name!r} with arguments that are no JSON: {arguments!r:.60}") from None
    _text(name + said, "tool")  # half a character would end a run where it is rendered
    return {"type": "function", "id": calls.add(given.get("id"), name),
            "function": {"name": name, "arguments": dict(arguments)}}  # fmt: skip


def _json(text: Any, what: str) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        raise EnvError(f"has a {what} that is no JSON: {text!r:.60}") from None
