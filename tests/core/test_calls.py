"""The form of tool calls, the text that environments get, and what a tool's JSON schema allows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentopcd.core.calls import (
    DEEPEST,
    LONGEST,
    as_written,
    calls_from,
    check_calls,
    read_written,
    tools_of,
    unread,
    written,
)
from agentopcd.core.errors import CallError, ConfigError

LOOKUP: dict[str, Any] = {
    "name": "lookup",
    "description": "Looks a word up.",
    "parameters": {
        "type": "object",
        "properties": {
            "word": {"type": "string"},
            "times": {"type": "integer", "minimum": 1},
            "how": {"$ref": "#/$defs/how"},
        },
        "required": ["word"],
        "$defs": {"how": {"enum": ["fast", "well"]}},
    },
}
OPEN: dict[str, Any] = {
    "name": "open", "description": "",
    "parameters": {"type": "object", "properties": {}, "additionalProperties": {"type": "number"}},
}  # fmt: skip
NOW: dict[str, Any] = {"name": "now"}
TOOLS = tools_of([LOOKUP, OPEN, NOW])


def check(name: str, arguments: dict[str, Any]) -> None:
    check_calls(calls_from([(name, arguments, None)]), TOOLS)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lookup", {"word": "a"}),
        ("lookup", {"word": "", "times": 1, "how": "fast"}),
        ("lookup", {"word": "a", "times": 2.0}),
        ("open", {"anything": 1.5}),
        ("now", {}),
    ],
)
def test_calls_that_a_schema_allows(name: str, arguments: dict[str, Any]) -> None:
    check(name, arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("lokup", {}, 'no tool is called "lokup"; the tools are lookup, open, now'),
        ("lookup", {}, "lookup was called wrongly: 'word' is a required property"),
        ("lookup", {"word": 1}, "lookup was called wrongly: word: 1 is not of type 'string'"),
        ("lookup", {"word": "a", "times": True}, "times: True is not of type 'integer'"),
        ("lookup", {"word": "a", "times": 0}, "times: 0 is less than the minimum of 1"),
        ("lookup", {"word": "a", "how": "slow"}, "how: 'slow' is not one of"),
        ("lookup", {"word": "a", "b": 1}, 'there is no argument "b"; it takes word, times, how'),
        ("open", {"anything": "x"}, "anything: 'x' is not of type 'number'"),
        ("now", {"zone": 1}, 'there is no argument "zone"; it takes none'),
    ],
)
def test_calls_that_a_schema_refuses(name: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(CallError) as error:
        check(name, arguments)
    assert said in str(error.value)


def test_a_schema_that_never_ends_is_an_error_of_the_call() -> None:
    loop = tools_of([{"name": "f", "parameters": {"type": "object", "$ref": "#"}}])
    with pytest.raises(CallError, match="cannot be compared"):
        check_calls(calls_from([("f", {}, None)]), loop)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"a": float("nan")}, "too large, or NaN"),
        ({"a": [float("inf")]}, "too large, or NaN"),
        ({"a": "\ud800"}, "half a character"),
        ({"\udfff": 1}, "half a character"),
        ({"a": b"x"}, "a bytes"),
        ({"a": {1: 2}}, "a name that is no text"),
        ([1], "no JSON object"),
        ("[1]", "no JSON object"),
        ("{", "cut off"),
        ('{"a": 1} x', "more text at character 9"),
        ('{"a": 1, "a": 2}', "gives 'a' twice"),
        ('{"a": ' + "9" * 5000 + "}", "no JSON"),
        ('{"a": 1e999}', "too large, or NaN"),
        ('{"a": NaN}', "too large, or NaN"),
        ('{"a": "\\ud800"}', "half a character"),
        ('{"a": ' + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1) + "}", "nested deeper"),
        ('{"a": ' + "[" * 20_000, "nested deeper"),
        (None, "no JSON object"),
    ],
)
def test_arguments_that_json_does_not_have(arguments: Any, said: str) -> None:
    with pytest.raises(CallError) as error:
        calls_from([("f", arguments, None)])
    assert said in str(error.value)


def test_arguments_may_be_nested_as_deep_as_they_may() -> None:
    deep = "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1)
    assert calls_from([("f", f'{{"a": {deep}}}', None)])


def test_ids_are_kept_or_made_and_never_repeated() -> None:
    given_ids = ["call00001", None, "", "a b", 7, "call00001", "functions.f:0", "x" * 65]
    ids = [call["id"] for call in calls_from([("f", {}, id_) for id_ in given_ids])]
    assert ids[0] == "call00001" and ids[6] == "functions.f:0"
    made = [id_ for at, id_ in enumerate(ids) if at not in (0, 6)]
    assert all(len(id_) == 9 and id_.isalnum() for id_ in made)
    assert len(set(ids)) == len(ids)


def test_an_error_is_one_short_line_that_can_be_printed() -> None:
    said = str(CallError("a\nb \ud800 " + "x" * 5000))
    assert said.startswith("a b ? x") and len(said) <= 300
    said.encode()


PLAIN = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(content=PLAIN, found=st.lists(st.tuples(PLAIN, st.dictionaries(PLAIN, JSON, max_size=3), st.none()), max_size=3))
def test_what_is_written_is_read(content: str, found: list[Any]) -> None:
    calls = calls_from(found)
    assert read_written(written(content, calls)) == (content.replace("<tool_call>", "< tool_call>"), calls)


def test_the_text_that_an_environment_gets() -> None:
    calls = calls_from([("lookup", {"word": "日本\n"}, None), ("now", {}, None)])
    assert written("Well.", calls) == (
        'Well.\n<tool_call>{"name": "lookup", "arguments": {"word": "日本\\n"}}</tool_call>\n'
        '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    )
    assert written("", calls[1:]) == '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    assert written("Well.", []) == "Well."


def test_words_that_look_like_a_call_are_none() -> None:
    words = 'I could say\n<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    assert read_written(written(words, [])) == (words.replace("<tool_call>", "< tool_call>"), [])


@pytest.mark.parametrize(
    "words", ["Well.\n<tool_call>{", "", '<tool_call>{"unread": "mine"}</tool_call>', "two\nlines"]
)
def test_a_call_that_cannot_be_read_comes_back_as_it_was_written(words: str) -> None:
    action = unread(words, CallError('it says "{" and ends'))
    with pytest.raises(CallError) as refused:
        read_written(action)
    assert str(refused.value) == 'it says "{" and ends' and as_written(action) == words
    assert as_written(written(words, [])) == words.replace("<tool_call>", "< tool_call>"), "that is no such action"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("<tool_call>", "does not end in"),
        ('<tool_call>{"name": "now"', "does not end in"),
        ("<tool_call></tool_call>", "cut off"),
        ("<tool_call>[]</tool_call>", "no JSON object with a name"),
        ('<tool_call>{"arguments": {}}</tool_call>', "no JSON object with a name"),
        ('<tool_call>{"name": "now", "x": {}}</tool_call>', "no JSON object with a name"),
        ('<tool_call>{"name": 1}</tool_call>', "a call has no name"),
        (f'<tool_call>{{"name": "{"x" * LONGEST}"}}</tool_call>', "longer than"),
    ],
)
def test_lines_that_are_no_call(line: str, said: str) -> None:
    with pytest.raises(CallError, match=said):
        read_written(f"words\n{line}")


def test_a_call_that_a_person_types() -> None:
    words, (call,) = read_written('<tool_call> {"name": "now"} </tool_call> ')
    assert words == "" and call["function"] == {"name": "now", "arguments": {}}


def test_tools_in_every_form_are_made_alike() -> None:
    whole = [{"type": "function", "function": LOOKUP}]
    assert (
        tools_of([LOOKUP]) == tools_of(whole) == tools_of(json.dumps(whole)) == tools_of(json.dumps([LOOKUP])) == whole
    )
    assert tools_of([NOW]) == [
        {"type": "function",
         "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}}
    ]  # fmt: skip
    assert tools_of([{"name": "now", "parameters": {}}]) == tools_of([{**NOW, "parameters": None}]) == tools_of([NOW])
    assert tools_of(None) == tools_of("") == tools_of([]) == tools_of("[]") == []


def test_parameters_under_the_names_of_other_vendors() -> None:
    rest = {"name": "lookup", "description": "Looks a word up."}
    for key in ("input_schema", "inputSchema"):
        assert tools_of([{**rest, key: LOOKUP["parameters"]}]) == tools_of([LOOKUP])
        assert tools_of([{**LOOKUP, key: None}]) == tools_of([LOOKUP]), "parquet fills in nulls"
    assert tools_of([{**NOW, "parameters": {}, "response": {}}])[0]["function"]["response"] == {}
    written_by_transformers = tools_of([{**LOOKUP, "return": {"type": "string"}, "strict": True}])
    assert written_by_transformers[0]["function"]["return"] == {"type": "string"}


def test_nulls_that_parquet_and_dumps_of_objects_fill_in_are_left_out() -> None:
    kept = {"type": "string", "enum": ["a", None], "default": None}
    odd = {"default": {**kept, "pattern": None}, "enum": None}  # parameters of these names
    given = {"type": "object", "required": None, "properties": {"x": {**kept, "pattern": None}, "y": None, **odd}}
    (tool,) = tools_of([{"name": "f", "description": None, "parameters": given}])
    assert tool["function"] == {
        "name": "f", "description": "", "parameters": {"type": "object", "properties": {"x": kept, "default": kept}},
    }  # fmt: skip


def test_tools_are_a_copy() -> None:
    mine = [{"name": "f", "parameters": {"type": "object", "properties": {}}}]
    tools_of(mine)[0]["function"]["parameters"]["properties"]["x"] = {}
    assert mine[0]["parameters"]["properties"] == {}  # type: ignore[index]


def schema(**words: Any) -> list[Any]:
    return [{"name": "f", "parameters": {"type": "object", **words}}]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("[", "the tools are no JSON"),
        ("[" * 20_000, "the tools are no JSON"),
        ([{"name": "f", "description": {1, 2}}], "the tools are no JSON"),
        ([float("nan")], "the tools are no JSON"),
        ({"name": "f"}, "the tools are a JSON dict; wanted a list"),
        (3, "the tools are a JSON int; wanted a list"),
        ([NOW, 5], "tool 2 has no name"),
        ([{"type": "function", "function": 1}], "tool 1 has no name"),
        ([{"type": "function"}], "tool 1 has no name"),
        ([{"name": "look up"}], "tool 1 is called 'look up'; wanted 1 to 64"),
        ([{"name": 5}], "tool 1 is called 5"),
        ([{"name": ""}], "tool 1 is called ''"),
        ([{"name": "f", "description": 5}], "the description of tool 'f' is 5; wanted a text"),
        ([{"name": "f", "parameters": [1]}], 'no JSON schema with "type": "object"'),
        ([{"name": "f", "parameters": {"properties": {}}}], 'no JSON schema with "type": "object"'),
        ([{"name": "f", "parameters": {"type": "dict"}}], 'no JSON schema with "type": "object"'),
        (schema(properties={"a": {"type": "float"}}), "no JSON schema at properties.a.type: 'float' is not valid"),
        (schema(properties=[]), "no JSON schema at properties"),
        (schema(properties=json.loads('{"not":' * 400 + "{}" + "}" * 400)), "nested too deeply"),
        (schema(required="a"), "no JSON schema at required"),
        (schema(properties={"a": {"pattern": "("}}), "no JSON schema at properties.a.pattern"),
        (schema(properties={"a": {"$ref": "#/$defs/b"}}), "refer to '#/\\$defs/b', which is not in them"),
        (schema(properties={"a": {"$ref": "http://127.0.0.1:9/x"}}), "refer to 'http://127.0.0.1:9/x'"),
        ([{"name": "f", "arguments": {"x": {}}}], "tool 'f' has no parameters, and 'arguments' is not read"),
        ([{"name": "f", "input_schema": {"type": "dict"}}], 'no JSON schema with "type": "object"'),
        ([NOW, LOOKUP, NOW], "two tools are called 'now'"),
    ],
)
def test_tools_that_are_none(cell: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        tools_of(cell)
    assert "\n" not in str(error.value)
