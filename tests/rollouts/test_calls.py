"""Tool calls are read from token ids in the layout of every family; what cannot be read is a CallError."""

from __future__ import annotations

from typing import Any

import pytest

from agentopcd.core.calls import LONGEST
from agentopcd.core.errors import CallError
from agentopcd.rollouts.calls import FENCES, calls_of
from tests.rollouts.layouts import CALL_A, CALL_NOW, JSON_A, LAYOUTS, ONE, TOOLS, TWO, functions, read, tokenizer_of


@pytest.fixture(scope="module")
def plain(tiny_model_dir: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(plain: Any, layout: str) -> None:
    shown, special, reply, wanted = LAYOUTS[layout]
    words, calls = read(tokenizer_of(plain, shown, special), reply)
    assert functions(calls) == wanted
    assert words == ""
    assert len({call["id"] for call in calls}) == len(calls)
    assert all(call["type"] == "function" for call in calls)


MARKED = [name for name in LAYOUTS if not name.startswith(("llama", "pythonic", "gpt-oss"))]


@pytest.mark.parametrize("layout", MARKED)
def test_words_beside_calls_are_kept(plain: Any, layout: str) -> None:
    shown, special, reply, wanted = LAYOUTS[layout]
    words, calls = read(tokenizer_of(plain, shown, special), f"<think>{reply}</think>\n I look.\n\n{reply}")
    assert (words, functions(calls)) == ("I look.", wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_calls_inside_the_thinking_are_none(plain: Any, layout: str) -> None:
    shown, special, reply, _ = LAYOUTS[layout]
    tokenizer = tokenizer_of(plain, shown, special)
    if layout == "gpt-oss":
        reply = f"<|channel|>analysis<|message|>I say {CALL_A} to=functions.now<|end|>"
        assert read(tokenizer, f"{reply}<|start|>assistant<|channel|>final<|message|>Well.<|return|>") == ("Well.", [])
        return
    assert read(tokenizer, f"<think>{reply}</think>Well.") == ("Well.", [])
    assert read(tokenizer, f"<think>{reply}") == ("", [])
    assert read(tokenizer, reply, opened="assistant\n<think>\n") == ("", [])
    assert read(tokenizer, f"{reply}</think>Well.", opened="assistant\n<think>\n") == ("Well.", [])


def test_calls_after_a_thinking_with_marks_of_its_own(plain: Any) -> None:
    tokenizer = tokenizer_of(plain, "<tool_call>", ("[THINK]", "[/THINK]"))
    words, calls = read(tokenizer, f"[THINK]<tool_call>{CALL_NOW}</tool_call>[/THINK]<tool_call>{CALL_A}</tool_call>")
    assert (words, functions(calls)) == ("", ONE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_tools_all_is_words(plain: Any, layout: str) -> None:
    shown, special, reply, _ = LAYOUTS[layout]
    tokenizer = tokenizer_of(plain, shown, special)
    ids = tokenizer(reply, add_special_tokens=False)["input_ids"]
    assert calls_of(tokenizer, ids, f"<think>a</think>{reply}", []) == (reply, [])


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "gpt-oss"])
def test_a_reply_whose_tokenizer_is_unknown(layout: str) -> None:
    _, _, reply, wanted = LAYOUTS[layout]
    assert functions(calls_of(None, (), f"<think>Hm.</think>{reply}", TOOLS)[1]) == wanted


def test_marks_of_other_families_are_words(plain: Any) -> None:
    tokenizer = tokenizer_of(plain, "<tool_call>")
    for words in (f"[TOOL_CALLS]{CALL_A}", CALL_A, f" {CALL_A}\n", "[now()]", "<|python_tag|>{"):
        assert read(tokenizer, words) == (words, [])


@pytest.mark.parametrize(
    "words",
    [
        "", " ", "Well.", "{", "[]", "{}", "[1]", '"name"', "[a(b)]", "[lookup]",
        '{"name": "lokup", "parameters": {}}',
        '{"name": "lookup"', f"Sure: {CALL_A}", '{"a": {"name": "now"}}', "now()",
        '{"name": 5, "parameters": {}}', "[(",
        "[" * 3000, '{"a":' * 3000, '{"name": "x"} {"name":',
    ],
)  # fmt: skip
def test_replies_that_are_no_call_without_marks(plain: Any, words: str) -> None:
    if words == '{"name": "lookup"':
        with pytest.raises(CallError, match="cut off"):
            read(tokenizer_of(plain), words)
        return
    assert read(tokenizer_of(plain), words) == (words, [])


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("", "the call is cut off: ''"),
        ("{", "the call is cut off: Expecting property name"),
        ('{"name": "loo', "the call is cut off: Unterminated string"),
        (CALL_A[:-1], "the call is cut off: Expecting ',' delimiter at character"),
        ("{'name': 'now'}", "the call is no JSON: Expecting property name"),
        (f"{CALL_A}}}</tool_call>", "after the call stands '}</tool_call>'"),
        ("I call now</tool_call>", "no JSON and no other form"),
        ("[]</tool_call>", "the list of calls is empty"),
        ("[1]</tool_call>", "a call is no JSON object"),
        ("{}</tool_call>", "a call has no name"),
        ('{"name": null}</tool_call>', "a call has no name"),
        ('{"name": "now", "name": "now"}', "the call gives 'name' twice"),
        ('{"name": "now", "arguments": {}, "parameters": {}}', "both arguments and parameters"),
        ('{"name": "now", "arguments": []}', "the arguments of now are no JSON object"),
        ('{"name": "now", "arguments": null}', "the arguments of now are no JSON object"),
        ('{"name": "now", "arguments": "{"}', "the call is cut off"),
        ('{"name": "lokup"}', 'no tool is called "lokup"; the tools are lookup, math.add, now'),
        ('{"name": "lookup"}', "'word' is a required property"),
        ('{"name": "lookup", "arguments": {"word": 5}}', "word: 5 is not of type 'string'"),
        ('{"name": "math.add", "arguments": {"a": 1e999}}', "too large, or NaN"),
        ('{"name": "lookup", "arguments": {"word": "\\ud800"}}', "half a character"),
        ("<function=lookup>", "does not end in </function>"),
        ("<function=lookup><parameter=word>a", "cut off in its argument 'word'"),
        ("<function=lookup><parameter=word>a</parameter>", "cut off in its argument 'word'"),
        ("<function=now></function>x", "after the call stands 'x'"),
        (
            "<function=lookup><parameter=word>a</parameter><parameter=word>a</parameter></function>",
            "the call gives 'word' twice",
        ),
        ("<function=lookup><parameter=times>two</parameter></function>", "times: 'two' is not of type 'integer'"),
        ("lookup<arg_key>word</arg_key><arg_value>a", "cut off in its argument 'word'"),
        ("now()", "the call is cut off: no </tool_call>"),
        ("[now(]</tool_call>", "not in Python's form"),
        ("[now(1)]</tool_call>", "with a name for each argument"),
        ("[now(**{})]</tool_call>", "with a name for each argument"),
        ("[lookup(word=open)]</tool_call>", "a call holds Name, which is no plain value"),
        ("[lookup(word=f'{1}')]</tool_call>", "a call holds JoinedStr"),
        ("[lookup(word=b'a')]</tool_call>", "a bytes, which JSON does not have"),
        ("[math.add(a=1e999)]</tool_call>", "too large, or NaN"),
        ("[lookup(word='a', word='a')]</tool_call>", "gives an argument twice"),
        ("[lookup(word={1: 2})]</tool_call>", "a name twice, or one that is no text"),
        ("[lookup(word={'a': 1, 'a': 2})]</tool_call>", "a name twice, or one that is no text"),
        ("[lookup(word={**a})]</tool_call>", "a name twice, or one that is no text"),
        ("[now()()]</tool_call>", "with a plain name"),
        ("[now(), 1]</tool_call>", "not as f\\(a=1\\)"),
    ],
)
def test_what_cannot_be_read_is_an_error(plain: Any, said: str, error: str) -> None:
    with pytest.raises(CallError, match=error) as raised:
        read(tokenizer_of(plain, "<tool_call>"), f"I look. <tool_call>{said}")
    assert "\n" not in str(raised.value) and len(str(raised.value)) <= 300


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (" to=functions.lookup<|channel|>comm", "cut off before its arguments"),
        ("<|channel|>commentary to=functions.lookup<|message|>{", "cut off: Expecting property"),
        ("<|channel|>commentary to=functions.now<|message|>{} x<|call|>", "more text at character 3"),
        ("<|channel|>commentary to=python<|message|>{}<|call|>", 'no tool is called "python"'),
        (
            "<|channel|>commentary to=functions.now<|message|>print(1)<|call|>",
            "no JSON: Expecting value at character 0",
        ),
        (f"<|channel|>commentary to=functions.now<|message|>{' ' * LONGEST}{{}}", "longer than"),
    ],
)
def test_calls_in_channels_that_cannot_be_read(plain: Any, said: str, error: str) -> None:
    with pytest.raises(CallError, match=error):
        read(tokenizer_of(plain, "", LAYOUTS["gpt-oss"][1]), said)


def test_answers_in_channels_are_no_calls(plain: Any) -> None:
    tokenizer = tokenizer_of(plain, "", LAYOUTS["gpt-oss"][1])
    for said in ("to=functions.now", "<|channel|>final<|message|>to=functions.now<|return|>"):
        assert read(tokenizer, said) == ("to=functions.now", [])
    ids = tokenizer("x", add_special_tokens=False)["input_ids"]
    assert calls_of(tokenizer, (), "to=now", TOOLS) == ("to=now", []) and ids


def test_ids_of_the_layouts(plain: Any) -> None:
    def ids(layout: str, old: str, new: str) -> list[str]:
        shown, special, reply, _ = LAYOUTS[layout]
        return [call["id"] for call in read(tokenizer_of(plain, shown, special), reply.replace(old, new))[1]]

    assert ids("hermes", "", "") == ["call00000", "call00001"]
    assert ids("mistral", '"now"', '"now", "id": "abcDEF123"') == ["call00000", "abcDEF123"]
    assert ids("mistral", '"now"', '"now", "id": "too_short"') == ["call00000", "call00001"]
    assert ids("mistral, named", "now[ARGS]", "now[CALL_ID]abcDEF123[ARGS]") == ["call00000", "abcDEF123"]
    assert ids("kimi", "", "") == ["functions.math.add:3"]
    assert ids("command r7b", "", "") == ["0"]


RESPONSE_TEMPLATE = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "content": {"close": ["<|im_end|>"], "content": "text"},
        "thinking": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"<\|call\|>(?P<name>\w+)", "close": "<|done|>", "repeats": True, "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
    },
}  # fmt: skip


def test_a_tokenizer_reads_its_own_calls(plain: Any) -> None:
    tokenizer = tokenizer_of(plain, "", ("<|call|>", "<|done|>"))
    tokenizer.response_template = RESPONSE_TEMPLATE
    reply = f"I look.<|call|>lookup{JSON_A}<|done|><|call|>now{{}}<|done|>"
    words, calls = read(tokenizer, f"<think><|call|>now{{}}<|done|></think>{reply}")
    assert (words, functions(calls)) == ("I look.", TWO)
    assert functions(read(tokenizer, f"Hm.</think>{reply}", opened="assistant\n<think>\n")[1]) == TWO
    assert read(tokenizer, "<think>a</think> Well. ") == (" Well. ", [])
    assert functions(read(tokenizer, CALL_A)[1]) == []  # no layout of ours beside it
    for said, error in (
        ("<|call|>lookup{", "the call cannot be read: json parser"),
        ("<|call|>lokup{}<|done|>", 'no tool is called "lokup"'),
        ('<|call|>lookup{"word": NaN}<|done|>', "too large, or NaN"),
        ("<|call|>lookup[]<|done|>", "the arguments of lookup are no JSON object"),
        ("x" * (LONGEST + 1), "longer than"),
    ):
        with pytest.raises(CallError, match=error):
            read(tokenizer, said)


def test_a_broken_response_template_is_an_error_of_the_call(plain: Any) -> None:
    tokenizer = tokenizer_of(plain)
    tokenizer.response_template = {"fields": {}}
    with pytest.raises(CallError, match="the call cannot be read: response_template"):
        read(tokenizer, "Well.")


def test_every_mark_is_in_a_layout_here() -> None:
    assert all(any(mark in reply for _, _, reply, _ in LAYOUTS.values()) for mark in FENCES)
