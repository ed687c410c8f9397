"""The forms in which models write tool calls: JSON, tags, lists in Python's form, a name before JSON.

Each text says itself in which form it is. Marks around calls are read in :mod:`agentopcd.rollouts.calls`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from agentopcd.core.calls import LONGEST, json_at, next_sign
from agentopcd.core.errors import CallError
from agentopcd.core.text import first_line

PYTHON = re.compile(r"\[?\s*([A-Za-z_][\w.]*)\s*\(")
_FUNCTION = re.compile(r"<function=([^>\n]{1,200})>")
_NAMED = re.compile(
    r"(?:functions?(?:<｜tool▁sep｜>|\.))?(?P<name>[\w.-]{1,200}?)(?P<number>:\d{1,9})?\s*"
    r"(?:\[CALL_ID\](?P<id>\w{1,64}))?(?:\[ARGS\]|<｜tool▁sep｜>|<\|tool_call_argument_begin\|>)?\s*(?:```json)?\s*(?=\{)"
)
"""A name before its JSON arguments: ``f[ARGS]{``, ``f[CALL_ID]id[ARGS]{``, and the forms of DeepSeek and of Kimi."""
_GLM = re.compile(r"([\w.-]{1,200})\s*(?=<arg_key>|</tool_call>)")
_BLOCK = re.compile(r"```\w*\s*")
_BETWEEN = re.compile(r"[\s;,]*")

Found = tuple[Any, Any, Any]
"""Name, arguments and id of a call, as they were written."""


class _Tags(NamedTuple):
    """How a family writes one argument as tags."""

    opening: re.Pattern[str]
    closing: re.Pattern[str]
    """After the value, which may hold the same words where neither an argument nor the call's end follows."""


_PARAMETER = _Tags(
    re.compile(r"\s*<parameter=([^>\n]{1,200})>\n?"), re.compile(r"\n?</parameter>(?=\s*(?:<parameter=|</function>))")
)
_ARGUMENT = _Tags(
    re.compile(r"\s*<arg_key>([^<\n]{1,200})</arg_key>\s*<arg_value>"),
    re.compile(r"</arg_value>(?=\s*(?:<arg_key>|</tool_call>))"),
)


def calls_at(said: str, at: int, closing: str, tools: Sequence[Mapping[str, Any]]) -> tuple[list[Found], int]:
    """The calls after an opening mark, at least one, and where they end, closing mark included."""
    if block := _BLOCK.match(said, at := next_sign(said, at)):
        at = block.end()
    if _FUNCTION.match(said, at):
        found, at = _functions(said, at, tools)
    elif PYTHON.match(said, at):
        end = said.find(closing, at) if closing else len(said)
        if end < 0:
            raise CallError(f"the call is cut off: no {closing}")
        found, at = python_calls(said[at:end]), end
    elif said.startswith(("{", "["), at):
        found, at = json_calls(said, at)
    elif named := _NAMED.match(said, at):
        arguments, at = json_at(said, named.end())
        id_ = named["id"] or (f"functions.{named['name']}{named['number']}" if named["number"] else None)
        found = [(named["name"], arguments, id_)]
    elif named := _GLM.match(said, at):
        arguments, at = _tagged(said, named.end(), _ARGUMENT, _properties(tools, named[1]))
        found = [(named[1], arguments, None)]
    else:
        said_so = "is cut off" if at >= len(said) else "is no JSON and no other form that is known"
        raise CallError(f"the call {said_so}: {said[at : at + 60]!r}")
    if not found:
        raise CallError("the list of calls is empty")
    rest = next_sign(said, at)
    if said.startswith("```", rest):  # of a block of code
        rest = next_sign(said, rest + 3)
    if not closing:
        return found, at
    if said.startswith(closing, rest):
        return found, rest + len(closing)
    if rest < len(said):
        raise CallError(f"after the call stands {said[rest : rest + 60]!r} in place of {closing}")
    return found, rest


def json_calls(said: str, at: int) -> tuple[list[Found], int]:
    """Calls as JSON objects or lists of them, one after the other."""
    found: list[Found] = []
    while True:
        value, at = json_at(said, at)
        found += [_named(one) for one in (value if isinstance(value, list) else [value])]
        after = _BETWEEN.match(said, at)
        if not after or not said.startswith("{", after.end()):
            return found, at
        at = after.end()


def _named(one: Any) -> Found:
    """A call that is a JSON object, with the words that families use for its parts."""
    if isinstance(one, dict) and isinstance(one.get("function"), dict):
        one = {**one["function"], "id": one.get("id")}
    if not isinstance(one, dict):
        raise CallError("a call is no JSON object")
    names = [key for key in ("name", "tool_name", "function") if key in one]
    given = [key for key in ("arguments", "parameters") if key in one]
    if not names:
        raise CallError("a call has no name")
    if len(given) > 1:
        raise CallError("a call has both arguments and parameters")
    return one[names[0]], one[given[0]] if given else {}, one.get("id", one.get("tool_call_id"))


def _functions(said: str, at: int, tools: Sequence[Mapping[str, Any]]) -> tuple[list[Found], int]:
    """Calls as ``<function=f>``, with tags for the arguments or with a JSON object."""
    found: list[Found] = []
    while opened := _FUNCTION.match(said, at):
        begins = next_sign(said, opened.end())
        if said.startswith("{", begins):
            arguments, at = json_at(said, begins)
        else:
            arguments, at = _tagged(said, begins, _PARAMETER, _properties(tools, opened[1]))
        at = next_sign(said, at)
        if not said.startswith("</function>", at):
            raise CallError(f"the call of {opened[1]} does not end in </function>")
        found.append((opened[1], arguments, None))
        ends = at + len("</function>")
        at = next_sign(said, ends)
    return found, ends


def _tagged(said: str, at: int, tags: _Tags, properties: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Arguments as tags, and where they end."""
    arguments: dict[str, Any] = {}
    while opened := tags.opening.match(said, at):
        name, closed = opened[1].strip(), tags.closing.search(said, opened.end())
        if not closed:
            raise CallError(f"the call is cut off in its argument {name!r}")
        if name in arguments:
            raise CallError(f"the call gives {name!r} twice")
        arguments[name] = _typed(said[opened.end() : closed.start()], properties.get(name))
        at = closed.end()
    return arguments, at


def _properties(tools: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    known = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in tools}
    return known.get(name, {}).get("properties", {})


def _typed(text: str, schema: Any) -> Any:
    """The value of a tag, whose text does not say whether it is a text: it is one where the schema lets it be one."""
    types = set(_types(schema))
    if "string" in types and not (text.strip() in ("null", "None") and "null" in types):
        return text
    try:
        value, end = json_at(text, 0)
        return value if next_sign(text, end) == len(text) else text
    except CallError:  # some templates write lists as Python does
        try:
            return _literal(_expression(text))
        except CallError:
            return text


def _types(schema: Any) -> Iterator[str]:
    if not isinstance(schema, dict):
        return
    types = schema.get("type", [])
    yield from [types] if isinstance(types, str) else types
    for word in ("anyOf", "oneOf"):
        for choice in schema.get(word, []):
            yield from _types(choice)
    for value in (*schema.get("enum", ()), *([schema["const"]] if "const" in schema else [])):
        if isinstance(value, str):
            yield "string"


def python_calls(source: str) -> list[Found]:
    """Calls such as ``[f(a=1), g()]``. They are read, never run; values are literals."""
    body = _expression(source)
    return [_python_call(call) for call in (body.elts if isinstance(body, (ast.List, ast.Tuple)) else [body])]


def _expression(source: str) -> ast.expr:
    source = source.strip()
    if len(source) > LONGEST:
        raise CallError(f"the calls are longer than {LONGEST} characters")
    try:
        try:
            return ast.parse(source, mode="eval").body
        except SyntaxError:  # a model writes line breaks into its strings
            return ast.parse(source.replace("\n", "\\n"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CallError(f"the call is not in Python's form: {first_line(error, type(error).__name__)}") from error


def _python_call(call: ast.expr) -> Found:
    if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
        raise CallError("a call is not as f(a=1), with a name for each argument")
    names = [str(word.arg) for word in call.keywords]
    if len(set(names)) < len(names):
        raise CallError("a call gives an argument twice")
    # Llama writes f.call(a=1) for some.
    return (
        _dotted(call.func).removesuffix(".call"),
        {str(word.arg): _literal(word.value) for word in call.keywords},
        None,
    )


def _dotted(node: ast.expr) -> str:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise CallError("a call is not as f(a=1), with a plain name")
    return ".".join([node.id, *reversed(names)])


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=("true" | "false" | "null") as word):
            return json.loads(word)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_literal(part) for part in parts]
        case ast.Dict(keys=keys, values=values):
            names = [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
            if len(set(names)) < len(keys):
                raise CallError("an object in a call has a name twice, or one that is no text")
            return {name: _literal(value) for name, value in zip(names, values, strict=True)}
        case _:
            raise CallError(f"a call holds {type(node).__name__}, which is no plain value")
