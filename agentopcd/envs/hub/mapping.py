"""Between the JSON of an OpenEnv server and text: an action from a reply, words from an observation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

_NOT_FOR_PLAYERS = ("metadata", "done", "reward")
"""Fields that every action or observation has."""


class NoAction(ValueError):
    """A reply that holds no action; the message is one line that can be shown to the player."""


@dataclasses.dataclass(frozen=True)
class ActionForm:
    """What an action looks like.

    With exactly one text field, and no other that must be given, the whole reply goes into that field. Else the reply
    holds a JSON object with the fields.
    """

    fields: Mapping[str, Mapping[str, Any]]
    """JSON schema by name."""
    required: tuple[str, ...]

    @classmethod
    def of(cls, schema: Any) -> ActionForm:
        """Read the JSON schema of an action model."""
        schema = schema if isinstance(schema, dict) else {}
        fields = {
            name: _resolved(field, schema.get("$defs", {}))
            for name, field in schema.get("properties", {}).items()
            if name not in _NOT_FOR_PLAYERS and isinstance(field, dict) and "const" not in field
        }
        return cls(fields, tuple(name for name in schema.get("required", ()) if name in fields))

    @property
    def text(self) -> str:
        """The field that takes the whole reply; '' if there is none."""
        texts = [name for name, field in self.fields.items() if field.get("type") == "string"]
        alone = len(texts) == 1 and all(name == texts[0] for name in self.required)
        return texts[0] if alone else ""

    @property
    def calls_tools(self) -> bool:
        """Whether the only actions are tool calls."""
        return not self.fields or "tool_name" in self.fields

    @property
    def choices(self) -> list[str]:
        """All replies there are, if the text field lists them."""
        return [str(value) for value in self.fields[self.text].get("enum", ())] if self.text else []

    @property
    def asks(self) -> str:
        """What is asked of the player; '' for free text."""
        if self.choices:
            return f"Answer with one of: {', '.join(self.choices)}."
        if self.text or not self.fields:
            return ""
        shown = ", ".join(f'"{name}": {_kind(field)}' for name, field in self.fields.items())
        optional = [name for name in self.fields if name not in self.required]
        may = f" May be left out: {', '.join(optional)}." if optional else ""
        return f"Answer with a JSON object: {{{shown}}}.{may}"

    def read(self, reply: str) -> dict[str, Any]:
        """The action that a reply stands for.

        Raises:
            NoAction: it stands for none.
        """
        if self.choices:
            if reply.strip() not in self.choices:
                raise NoAction(f"Your reply is none of the choices. {self.asks}")
            return {self.text: reply.strip()}
        return {self.text: reply} if self.text else self._object(reply)

    def _object(self, reply: str) -> dict[str, Any]:
        start = reply.find("{")
        if start < 0:
            raise NoAction(f"No JSON object was found in your reply. {self.asks}")
        try:
            action, _ = json.JSONDecoder().raw_decode(reply, start)
        except (ValueError, RecursionError) as error:
            raise NoAction(f"Your reply holds no whole JSON object: {error}. {self.asks}") from None
        wrong = [name for name in action if name not in self.fields]
        wrong += [name for name in self.required if name not in action]
        if wrong:
            state = "is missing" if wrong[0] in self.fields else "is no field"
            raise NoAction(f'"{wrong[0]}" {state}. {self.asks}')
        return action


def _resolved(field: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any]:
    """A field with what it refers to, and without the null of an optional one."""
    if isinstance(ref := field.get("$ref"), str):
        return {**field, **defs.get(ref.rpartition("/")[2], {})}
    kinds = [kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"]
    return {**field, **_resolved(kinds[0], defs)} if len(kinds) == 1 else field


def _kind(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return " or ".join(json.dumps(value) for value in field["enum"])
    kind = str(field.get("type", "any value"))
    about = str(field.get("description", ""))
    return f"{kind} ({about})" if about else kind


def words_of(observation: Mapping[str, Any]) -> str:
    """The text of an observation: its only field as it stands, several as ``name: value``; empty ones are left out."""
    told = {
        name: value
        for name, value in observation.items()
        if name not in _NOT_FOR_PLAYERS and value not in (None, "", [], {})
    }
    if len(told) == 1 and isinstance(text := next(iter(told.values())), str):
        return text
    return "\n".join(f"{name}: {_value(value)}" for name, value in told.items())


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def result_of(observation: Mapping[str, Any]) -> str:
    """The text of a tool's result, or its error."""
    if error := observation.get("error"):
        return f"Error: {error.get('message') if isinstance(error, dict) else error}"
    result = observation.get("result")
    content = result.get("content") if isinstance(result, dict) else None
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        return "\n".join(str(part["text"]) for part in content)
    return words_of(observation) if result is None else _value(result)
