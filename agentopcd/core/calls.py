"""Tool calls: their form, the text in which environments get them, and what of a call its tool's JSON schema allows.

How each family of models writes its calls is read in :mod:`agentopcd.rollouts.calls`.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from agentopcd.core.errors import CallError, ConfigError
from agentopcd.core.text import first_line

LONGEST = 50_000
"""Characters that the calls of one reply may have."""
DEEPEST = 50
"""Levels of lists and objects that the arguments of a call may have."""

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_BROKEN = f"{_OPEN[0]} {_OPEN[1:]}"
_WHY = _OPEN + '{"unread": '
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SIGN = re.compile(r"\S")
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Function(TypedDict):
    """What is called."""

    name: str
    arguments: dict[str, Any]


class Call(TypedDict):
    """One tool call, in the form that chat templates take."""

    type: Literal["function"]
    id: str
    function: Function


def calls_from(found: Iterable[tuple[Any, Any, Any]]) -> list[Call]:
    """The calls of one reply from ``(name, arguments, id)`` of each; an id that is missing, odd or repeated is made.

    Args:
        found: arguments may be a JSON string.

    Raises:
        CallError: a name is no text, arguments are no object, or a value is none that JSON has.
    """
    calls: list[Call] = []
    ids: set[str] = set()
    for number, (name, arguments, id_) in enumerate(found):
        if isinstance(arguments, str):
            arguments = json_of(arguments)
        if not isinstance(name, str):
            raise CallError("a call has no name")
        if not isinstance(arguments, dict):
            raise CallError(f"the arguments of {name} are no JSON object")
        _check_plain(arguments)
        # Mistral's templates refuse ids that are not nine letters and digits.
        if not (isinstance(id_, str) and _ID.fullmatch(id_)) or id_ in ids:
            id_ = next(made for k in range(number, 10**5) if (made := f"call{k:05}") not in ids)
        ids.add(id_)
        calls.append(Call(type="function", id=id_, function=Function(name=name, arguments=arguments)))
    return calls


def next_sign(text: str, at: int) -> int:
    """Where the first sign at or after ``at`` stands that is no white space; the text's length if there is none."""
    found = _SIGN.search(text, at)
    return found.start() if found else len(text)


def json_of(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        CallError: it is none, it is cut off, or something follows it.
    """
    value, end = json_at(text, 0)
    if (more := next_sign(text, end)) < len(text):
        raise CallError(f"the call is no JSON: more text at character {more}")
    return value


def json_at(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at ``at`` or after white space, and where it ends. Strings may hold line breaks.

    Raises:
        CallError: there is none, it is cut off, or an object gives one name twice.
    """
    begins = next_sign(text, at)
    try:
        return _JSON.raw_decode(text, begins)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        fault = "the call is cut off" if cut else "the call is no JSON"
        raise CallError(f"{fault}: {error.msg} at character {error.pos - begins}") from error
    except CallError:
        raise
    except ValueError as error:  # a whole number of thousands of digits
        raise CallError(f"the call is no JSON: {error}") from error
    except RecursionError as error:
        raise CallError(f"the call is nested deeper than {DEEPEST} levels") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise CallError(f"the call gives {name!r} twice")
    return made


_JSON = json.JSONDecoder(object_pairs_hook=_once, strict=False)


def _check_plain(value: Any) -> None:
    """Refuse what no JSON file, template or tokenizer takes: NaN, half a character, a level too deep."""
    todo = [(value, 1)]
    while todo:
        one, level = todo.pop()
        if level > DEEPEST:
            raise CallError(f"the call is nested deeper than {DEEPEST} levels")
        match one:
            case dict():
                if not all(isinstance(name, str) for name in one):
                    raise CallError("the call holds an object with a name that is no text")
                todo += [(part, level + 1) for pair in one.items() for part in pair]
            case list():
                todo += [(part, level + 1) for part in one]
            case str():
                if any("\ud800" <= sign <= "\udfff" for sign in one):
                    raise CallError("the call holds half a character (a lone surrogate such as \\ud800)")
            case float():
                if not math.isfinite(one):
                    raise CallError("the call holds a number that is too large, or NaN")
            case None | bool() | int():
                pass
            case _:
                raise CallError(f"the call holds a {type(one).__name__}, which JSON does not have")


def check_calls(calls: Iterable[Call], tools: Sequence[Mapping[str, Any]]) -> None:
    """Hold calls to the JSON schemas of the tools, as :func:`tools_of` gives them.

    Arguments that the schema does not list are refused, unless it says otherwise.

    Raises:
        CallError: no tool has that name, or the arguments are not as its schema says.
    """
    known = {tool["function"]["name"]: tool["function"] for tool in tools}
    for call in calls:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        if name not in known:
            raise CallError(f"no tool is called {json.dumps(name[:64])}; the tools are {', '.join(known)}")
        if fault := _fault(arguments, known[name].get("parameters", {})):
            raise CallError(f"{name} was called wrongly: {fault}")


def _fault(arguments: dict[str, Any], schema: Mapping[str, Any]) -> str:
    listed = list(schema.get("properties", {}))
    if "properties" in schema and schema.keys().isdisjoint(_OPENERS):
        for name in arguments:
            if name not in listed:
                takes = f"takes {', '.join(listed)}" if listed else "takes none"
                return f"there is no argument {json.dumps(name[:64])}; it {takes}"
    try:
        error = next(_validator(schema).iter_errors(arguments), None)
    except (RecursionError, ArithmeticError) as raised:
        return f"its arguments cannot be compared with the schema ({type(raised).__name__})"
    if error is None:
        return ""
    where = ".".join(map(str, error.absolute_path))
    return f"{where}: {error.message}" if where else error.message


_OPENERS = {
    "additionalProperties", "unevaluatedProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref", "if",
}  # fmt: skip
"""Words of a schema that allow, or themselves forbid, arguments which ``properties`` does not list."""


def _validator(schema: Mapping[str, Any]) -> Any:
    """A validator that fetches nothing from anywhere."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for
    from referencing import Registry

    return validator_for(schema, default=Draft202012Validator)(schema, registry=Registry())


def written(content: str, calls: Iterable[Call]) -> str:
    """The text in which an environment gets a reply: its words, then a line for each call.

    Words that look like the mark of a call get a space inside: ``< tool_call>``. :func:`read_written` reads it.
    """
    lines = [content.replace(_OPEN, _BROKEN)] if content else []
    return "\n".join([*lines, *(f"{_OPEN}{_line(call['function'])}{_CLOSE}" for call in calls)])


def _line(function: Function) -> str:
    said = {"name": function["name"], "arguments": function["arguments"]}
    return json.dumps(said, ensure_ascii=False, allow_nan=False)


def unread(content: str, error: CallError) -> str:
    """The text in which an environment gets a reply whose call cannot be read: its words, and why.

    :func:`as_written` gives the words back.
    """
    words = [content.replace(_OPEN, _BROKEN)] if content else []
    return "\n".join([*words, f"{_WHY}{json.dumps(str(error), ensure_ascii=False)}}}{_CLOSE}"])


def as_written(action: str) -> str:
    """What the model wrote itself, of an action that :func:`unread` made; any other action as it is."""
    words, _, last = action.rpartition("\n")
    return words.replace(_BROKEN, _OPEN) if last.startswith(_WHY) else action


def typed(line: str) -> str:
    """What a person typed, as an action: ``price(item="lamp")`` calls a tool; all else stays as it is."""
    try:
        tree = ast.parse(line.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return line
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.args:
        return line
    try:
        given = {one.arg: ast.literal_eval(one.value) for one in tree.keywords if one.arg}
        return written("", calls_from([(tree.func.id, given, None)]))
    except (ValueError, TypeError, CallError):
        return line


def read_written(action: str) -> tuple[str, list[Call]]:
    """The words and the calls of what :func:`written` wrote, or of what a person typed in that form.

    Calls are the lines at the end that begin with ``<tool_call>``. Their ids are new.

    Raises:
        CallError: such a line is no call.
    """
    lines = action.split("\n")
    first = len(lines)
    while first and lines[first - 1].startswith(_OPEN):
        first -= 1
    return "\n".join(lines[:first]), calls_from(map(_read_line, lines[first:]))


def _read_line(line: str) -> tuple[Any, Any, None]:
    said = line.strip()
    if not said.endswith(_CLOSE) or len(said) > LONGEST:
        raise CallError(f"the call {line[:40]!r} does not end in {_CLOSE}, or is longer than {LONGEST} characters")
    value = json_of(said[len(_OPEN) : -len(_CLOSE)])
    if isinstance(value, dict) and value.keys() == {"unread"}:  # see unread()
        raise CallError(str(value["unread"]))
    if not isinstance(value, dict) or not {"name"} <= value.keys() <= {"name", "arguments"}:
        raise CallError(f"the call {line[:40]!r} is no JSON object with a name and arguments")
    return value["name"], value.get("arguments", {}), None


def tools_of(cell: Any) -> list[dict[str, Any]]:
    """A list of tools in OpenAI's layout, from a cell of a data set; empty if the cell is None, empty or ``[]``.

    Args:
        cell: a list of ``{"type": "function", "function": {"name", "description", "parameters"}}``, or of what stands
            under ``function`` there, or such a list as a JSON string. ``input_schema``, as Anthropic and MCP call
            it, is read as parameters.

    Raises:
        ConfigError: it is no such list, two tools have one name, or parameters are no JSON schema of an object.
    """
    if cell is None or cell == "":
        return []
    try:
        cell = json.loads(cell) if isinstance(cell, str) else json.loads(json.dumps(cell, allow_nan=False))
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"the tools are no JSON: {first_line(error)}; give a list in OpenAI's layout") from error
    if not isinstance(cell, list):
        raise ConfigError(f"the tools are a JSON {type(cell).__name__}; wanted a list, one object for each tool")
    tools = [_tool(one, f"tool {number}") for number, one in enumerate(cell, 1)]
    names = [tool["function"]["name"] for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two tools are called {twice!r}; give each a name of its own")
    return tools


def _tool(one: Any, which: str) -> dict[str, Any]:
    function = one.get("function") if isinstance(one, dict) and one.get("type") == "function" else one
    if not isinstance(function, dict) or "name" not in function:
        raise ConfigError(f'{which} has no name; wanted {{"name": ..., "description": ..., "parameters": {{...}}}}')
    name, about = function["name"], "" if function.get("description") is None else function["description"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{which} is called {name!r}; wanted 1 to 64 letters, digits, '_', '-' and '.'")
    if not isinstance(about, str):
        raise ConfigError(f"the description of tool {name!r} is {about!r}; wanted a text")
    function, parameters = _parameters(function, name)
    if not isinstance(parameters, dict) or parameters.get("type") != "object":
        raise ConfigError(f'the parameters of tool {name!r} are no JSON schema with "type": "object"')
    _check_schema(parameters, name)
    return {"type": "function", "function": {**function, "description": about, "parameters": parameters}}


_SCHEMAS = ("input_schema", "inputSchema")
"""Other vendors' names for the parameters of a tool."""
_BESIDE = {"name", "description", "strict", "type", "return"}


def _parameters(function: dict[str, Any], name: str) -> tuple[dict[str, Any], Any]:
    """A tool without what other vendors call its parameters, and these."""
    function = {key: value for key, value in function.items() if value is not None}
    given = [function.pop(key) for key in ("parameters", *_SCHEMAS) if key in function]
    if not given and (odd := function.keys() - _BESIDE):
        raise ConfigError(f"tool {name!r} has no parameters, and {min(odd)!r} is not read; give a JSON schema instead")
    return function, _filled(next(filter(None, given), {"type": "object", "properties": {}}))


def _filled(schema: Any, *, names: bool = False) -> Any:
    """A schema without its nulls: parquet fills what another row's schema has with them, and so do dumps of objects.
    They stay where JSON Schema takes any value.

    Args:
        names: the keys are names of parameters, and no words of JSON Schema.
    """
    if isinstance(schema, list):
        return [_filled(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    free = () if names else ("const", "default")
    kept = {key: value for key, value in schema.items() if value is not None or key in free}
    return {key: value if not names and key in ("const", "default", "enum", "examples") else
            _filled(value, names=not names and key in ("properties", "$defs", "definitions"))
            for key, value in kept.items()}  # fmt: skip


def _check_schema(schema: dict[str, Any], name: str) -> None:
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    validator, resolver = _validator(schema), Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    ref = ""
    try:
        validator.check_schema(schema, format_checker=validator.FORMAT_CHECKER)
        for ref in _refs(schema):
            resolver.lookup(ref)
    except SchemaError as error:
        where = ".".join(map(str, error.absolute_path)) or "its top"
        raise ConfigError(f"the parameters of tool {name!r} are no JSON schema at {where}: {error.message}") from error
    except Unresolvable as error:
        raise ConfigError(f"the parameters of tool {name!r} refer to {ref!r}, which is not in them") from error
    except RecursionError as error:
        raise ConfigError(f"the parameters of tool {name!r} are nested too deeply") from error


def _refs(schema: Any) -> Iterable[str]:
    todo = [schema]
    while todo:
        match todo.pop():
            case dict() as one:
                yield from (ref for key in ("$ref", "$dynamicRef") if isinstance(ref := one.get(key), str))
                todo += one.values()
            case list() as many:
                todo += many
