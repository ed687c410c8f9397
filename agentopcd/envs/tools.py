"""Environments with tools: typed Python functions that the model may call."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from agentopcd.core.calls import Call, as_written, check_calls, read_written, tools_of, written
from agentopcd.core.errors import CallError, EnvError
from agentopcd.core.types import Message
from agentopcd.envs.base import TextEnv
from agentopcd.envs.graders import passes
from agentopcd.envs.views import hash_text

_MARK = "_agentopcd_tool"

F = TypeVar("F", bound=Callable[..., Any])


def tool(function: F) -> F:
    """Mark a method of a :class:`ToolEnv` as a tool. Its name, types and docstring become the tool's JSON schema."""
    setattr(function, _MARK, True)
    return function


def call(name: str, **arguments: Any) -> str:
    """The action that calls a tool, for tests and solutions."""
    return written("", [Call(type="function", id="", function={"name": name, "arguments": arguments})])


class ToolEnv(TextEnv):
    """An environment of one request, tools, and a final answer.

    Subclasses implement :meth:`begin` and :meth:`grade`, and mark methods with :func:`tool`. The model answers with
    calls, whose results come back as messages of role ``tool``, or with words, which are its final answer.

    A tool is given checked arguments: of the types, and all there. It returns text, or what JSON can hold. Where it
    cannot do what it is asked, it raises ``ValueError``, whose message the model is shown; any other exception is the
    environment's fault. A tool that sets ``self.success`` ends the episode; calls after it in the same reply are not
    made.

    Observation: ``rules`` (the system message), ``state`` (request), ``actions`` (tools), ``feedback`` (results, why
    a call could not be read, or what :meth:`grade` says of the answer in ``self.feedback``); the prompt itself is
    ``info["messages"]`` and ``info["tools"]``.
    Action: words, and calls as :func:`agentopcd.core.calls.written` writes them.
    Reward: 1.0 if the answer passes, else 0.0, or the score that :meth:`grade` returns.
    Episode end: after an answer without a call.
    Info: ``messages``, ``tools``, ``success`` at the end, ``metrics`` (``calls``, ``calls_failed`` and those of
    :meth:`grade`), ``invalid`` for a call that cannot be read.
    """

    history = "chat"
    rules: str = ""
    """The system message; a view may hide or replace it."""

    def begin(self) -> str:
        """Draw a task with ``self.np_random`` and return the request to the model."""
        raise NotImplementedError

    def grade(self, answer: str) -> Any:
        """Whether the final answer passes: a bool, a number (1 or more passes), or numbers by name; see
        :mod:`agentopcd.envs.graders`. What is to be said of the answer, for lessons, it writes to ``self.feedback``."""
        raise NotImplementedError

    def key(self) -> object:
        """What, beside the request, tells tasks apart that begin with the same one; None if none do."""
        return None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.success: bool | None = None
        self.feedback = ""
        self._metrics = {"calls": 0.0, "calls_failed": 0.0}
        request = self.begin()
        self._functions = {name: getattr(self, name) for name in _marked(type(self))}
        if not self._functions:
            raise EnvError(f"{type(self).__name__} has no tools; mark its methods with @tool")
        self._tools = _described(type(self), self._functions)
        rules: list[Any] = [{"role": "system", "content": self.rules, "part": "rules"}] if self.rules else []
        self._messages: list[Any] = [*rules, Message(role="user", content=request)]
        told = self.key()
        key = None if told is None else hash_text(f"{request}\n{told}")
        obs, info = self.first(key=key, rules=self.rules, state=request, actions=_listed(self._tools))
        return obs, info | {"messages": list(self._messages), "tools": self._tools}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        try:
            content, calls = read_written(action)
            check_calls(calls, self._tools)
        except CallError as error:
            return self._refused(action, str(error))
        return self._called(content, calls) if calls else self._answered(content)

    def _refused(self, action: str, why: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._metrics["calls_failed"] += 1
        said = f"The call was not made: {why}."
        wrote = as_written(action).strip() or "(nothing)"
        self._messages += [Message(role="assistant", content=wrote), Message(role="user", content=said)]
        return self._turn(invalid=True, feedback=said)

    def _called(self, content: str, calls: Sequence[Call]) -> tuple[str, float, bool, bool, dict[str, Any]]:
        numbered = [{**one, "id": f"call{self._metrics['calls'] + number:05.0f}"} for number, one in enumerate(calls)]
        self._messages.append(Message(role="assistant", content=content, tool_calls=numbered))
        results: list[str] = []
        for one in numbered:
            if self.success is not None:  # the call before it ended the episode
                break
            name = one["function"]["name"]
            results.append(self._result(name, one["function"]["arguments"]))
            self._messages.append(Message(role="tool", content=results[-1], tool_call_id=one["id"], name=name))
        self._metrics["calls"] += len(results)
        return self._turn(feedback="\n".join(results))

    def _result(self, name: str, arguments: Mapping[str, Any]) -> str:
        wanted = next(one["function"]["parameters"] for one in self._tools if one["function"]["name"] == name)
        given = {which: _whole(value, [wanted["properties"][which]]) for which, value in arguments.items()}
        try:
            said = self._functions[name](**given)
        except ValueError as error:
            self._metrics["calls_failed"] += 1
            return f"error: {error}"
        return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)

    def _answered(self, content: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        passed, metrics = passes(self.grade(content), f"{type(self).__name__}.grade")
        self.success = passed
        self._messages.append(Message(role="assistant", content=content))
        return self._turn(reward=metrics.get("score"), metrics=metrics, feedback=self.feedback)

    def _turn(
        self, *, metrics: Mapping[str, float] | None = None, **given: Any
    ) -> tuple[str, float, bool, bool, dict[str, Any]]:
        obs, reward, over, cut, info = self.turn(
            success=self.success, metrics={**self._metrics, **(metrics or {})}, **given
        )
        return obs, reward, over, cut, info if over else info | {"messages": list(self._messages)}


def _marked(cls: type) -> list[str]:
    """The names of the tools of a class, in the order in which they are written, those of its bases first."""
    names = {name: None for base in reversed(cls.__mro__) for name in vars(base)}
    return [name for name in names if getattr(getattr(cls, name), _MARK, False)]


_KNOWN: dict[type, list[dict[str, Any]]] = {}


def _described(cls: type, functions: Mapping[str, Callable[..., Any]]) -> list[dict[str, Any]]:
    """The tools of a class as JSON schemas, made once."""
    if cls not in _KNOWN:
        _KNOWN[cls] = tools_of([_schema(name, function) for name, function in functions.items()])
    return _KNOWN[cls]


def _schema(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    # Only the docstring is read by transformers: its schemas need torch, and take any class for an object.
    from transformers.utils.chat_template_utils import parse_google_format_docstring

    about, described, _ = parse_google_format_docstring(inspect.getdoc(function) or "")
    meanings = described or {}
    if not about:
        raise EnvError(f"tool {name} has no docstring; say there what it does, and under Args: what it takes")
    hints, given, required = get_type_hints(function), {}, []
    for one in inspect.signature(function).parameters.values():
        if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
            raise EnvError(f"tool {name} takes {one}; a call names each argument, so list them")
        if one.name not in hints:
            raise EnvError(f"tool {name}: argument {one.name} has no type; write {one.name}: str, for example")
        if one.name not in meanings:
            raise EnvError(f"tool {name}: its docstring does not say under Args: what {one.name} is")
        given[one.name] = {
            **_type(hints[one.name], f"tool {name}: argument {one.name}"),
            "description": meanings[one.name],
        }
        required += [one.name] if one.default is one.empty else []
    parameters = {"type": "object", "properties": given, "required": required}
    return {"name": name, "description": about, "parameters": parameters}


_TYPES = {
    str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object", type(None): "null",
}  # fmt: skip


def _type(hint: Any, which: str) -> dict[str, Any]:
    """The JSON schema of a type."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _TYPES:
        return {"type": _TYPES[hint]}
    if origin is Literal and all(type(one) in _TYPES for one in inner):
        kinds = {_TYPES[type(one)]: None for one in inner}
        return {"type": next(iter(kinds)) if len(kinds) == 1 else list(kinds), "enum": list(inner)}
    if origin is list:
        return {"type": "array", "items": _type(inner[0], which)}
    if origin is dict and inner[0] is str:
        return {"type": "object", "additionalProperties": _type(inner[1], which)}
    if origin in (Union, UnionType):
        return {"anyOf": [_type(one, which) for one in inner]}
    said = ", ".join(one.__name__ for one in _TYPES if one is not type(None))
    raise EnvError(
        f"{which} is of type {hint}, which JSON does not have; take {said}, Literal, None or a union of them"
    )


def _whole(value: Any, schemas: Sequence[Mapping[str, Any]]) -> Any:
    """A value of one of these schemas, with 5.0 as 5 where an int is wanted: to JSON both are integers."""
    forms = [form for schema in schemas for form in schema.get("anyOf", [schema])]
    match value:
        case float() if value.is_integer():
            types = [form.get("type", "number") for form in forms]  # without a type, as it was written
            kinds = {kind for one in types for kind in ([one] if isinstance(one, str) else one)}
            return int(value) if "integer" in kinds and "number" not in kinds else value
        case list():
            return [_whole(one, [form["items"] for form in forms if "items" in form]) for one in value]
        case dict():
            inner = [form["additionalProperties"] for form in forms if "additionalProperties" in form]
            return {name: _whole(one, inner) for name, one in value.items()}
    return value


def _listed(tools: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for one in (entry["function"] for entry in tools):
        given = ", ".join(one["parameters"].get("properties", {}))
        lines.append(f"{one['name']}({given}): {inspect.cleandoc(one['description'])}")
    return "Tools:\n" + "\n".join(lines)
