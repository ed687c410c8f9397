"""Tool calls are read from token ids in the layout of every family, and whatever cannot be read is a CallError."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from tokenizers import AddedToken

from agentopcd.core.calls import LONGEST, Call, tools_of
from agentopcd.core.errors import CallError
from agentopcd.rollouts import replies
from agentopcd.rollouts.calls import FENCES, calls_of
from agentopcd.rollouts.replies import Reader
from tests import tiny

TOOLS = tools_of(
    [
        {
            "name": "lookup",
            "parameters": {
                "type": "object",
                "properties": {
                    "word": {"type": "string"},
                    "times": {"type": "integer"},
                    "safe": {"type": ["boolean", "null"]},
                    "tags": {"type": "array"},
                    "mode": {"enum": ["1", "2"]},
                    "level": {"enum": [1, 2]},
                    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                },
                "required": ["word"],
            },
        },
        {"name": "math.add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}},
        {"name": "now"},
    ]
)
A = {"word": "a", "times": 2}
JSON_A = '{"word": "a", "times": 2}'
CALL_A = f'{{"name": "lookup", "arguments": {JSON_A}}}'
CALL_NOW = '{"name": "now", "arguments": {}}'
TWO: list[Any] = [("lookup", A), ("now", {})]
ONE = TWO[:1]
DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>",
            "<｜tool▁calls▁end｜>")  # fmt: skip

LAYOUTS: dict[str, tuple[str, tuple[str, ...], str, list[Any]]] = {
    "hermes": ("<tool_call>", (), f"<tool_call>\n{CALL_A}\n</tool_call>\n<tool_call>\n{CALL_NOW}\n</tool_call>", TWO),
    "hermes, special": ("", ("<tool_call>", "</tool_call>"), f"<tool_call>{CALL_A}</tool_call>", ONE),
    "hermes, not closed": ("<tool_call>", (), f"<tool_call>{CALL_A}\n", ONE),
    "hermes, in a code block": ("<tool_call>", (), f"<tool_call>\n```json\n{CALL_A}\n```\n</tool_call>", ONE),
    "parameters": ("<tool_call>", (), f'<tool_call>{{"name": "lookup", "parameters": {JSON_A}}}</tool_call>', ONE),
    "no arguments": ("<tool_call>", (), '<tool_call>{"name": "now"}</tool_call>', TWO[1:]),
    "arguments as text": (
        "<tool_call>", (), f'<tool_call>{{"name": "lookup", "arguments": {json.dumps(JSON_A)}}}</tool_call>', ONE,
    ),
    "openai": ("<tool_call>", (), f'<tool_call>{{"type": "function", "function": {CALL_A}}}</tool_call>', ONE),
    "mark inside of a string": (
        "<tool_call>", (), '<tool_call>{"name": "lookup", "arguments": {"word": "</tool_call>"}}</tool_call>',
        [("lookup", {"word": "</tool_call>"})],
    ),
    "line break in a string": (
        "<tool_call>", (), '<tool_call>{"name": "lookup", "arguments": {"word": "a\nb"}}</tool_call>',
        [("lookup", {"word": "a\nb"})],
    ),
    "qwen3-coder": (
        "<tool_call>", (),
        "<tool_call>\n<function=lookup>\n<parameter=word>\n5 </parameter> 6\n\n</parameter>\n"
        "<parameter=times>\n2\n</parameter>\n<parameter=safe>\nFalse\n</parameter>\n"
        "<parameter=tags>\n['x', 1]\n</parameter>\n<parameter=mode>\n1\n</parameter>\n"
        "<parameter=level>\n1\n</parameter>\n"
        "<parameter=note>\nNone\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        [("lookup", {"word": "5 </parameter> 6\n", "times": 2, "safe": False, "tags": ["x", 1], "mode": "1", "level": 1,
                     "note": None}), ("now", {})],
    ),
    "qwen3-coder, two in one, no mark": (
        "<tool_call> <function=", (),
        "<function=now>\n</function>\n<function=math.add><parameter=a>1.5</parameter></function>",
        [("now", {}), ("math.add", {"a": 1.5})],
    ),
    "functionary": ("<function=", (), f"<function=lookup>{JSON_A}</function><function=now>{{}}</function>", TWO),
    "seed": (
        "<seed:tool_call>", (), "<seed:tool_call><function=lookup><parameter=word>null</parameter></function>"
        "</seed:tool_call>", [("lookup", {"word": "null"})],
    ),
    "glm": (
        "<tool_call>", (),
        "<tool_call>lookup\n<arg_key>word</arg_key>\n<arg_value>a</arg_value>\n<arg_key>times</arg_key>\n"
        "<arg_value>2</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>", TWO,
    ),
    "llama": ("", ("<|python_tag|>",), f'{{"name": "lookup", "parameters": {JSON_A}}}', ONE),
    "llama, several": (
        "", (), f'{{"type": "function", "name": "lookup", "parameters": {JSON_A}}}; {CALL_NOW}', TWO,
    ),
    "llama, name last": ("", (), f'{{"parameters": {JSON_A}, "name": "lookup"}}', ONE),
    "llama, function": ("", (), f'{{"type": "function", "function": "lookup", "parameters": {JSON_A}}}', ONE),
    "llama, tag": ("", ("<|python_tag|>",), f"<|python_tag|>{CALL_A};{CALL_NOW}", TWO),
    "llama, call": ("", ("<|python_tag|>",), '<|python_tag|>lookup.call(word="a", times=2)', ONE),
    "pythonic": (
        "", (), '[lookup(word="a", tags=[-1, (2.5,), {"x": true}, null], safe=None), math.add(a=-1)]',
        [("lookup", {"word": "a", "tags": [-1, [2.5], {"x": True}, None], "safe": None}), ("math.add", {"a": -1})],
    ),
    "lfm2": (
        "", ("<|tool_call_start|>", "<|tool_call_end|>"),
        "<|tool_call_start|>[lookup(word='a\nb'), now()]<|tool_call_end|>", [("lookup", {"word": "a\nb"}), ("now", {})],
    ),
    "mistral": ("[TOOL_CALLS]", ("[TOOL_CALLS]",), f"[TOOL_CALLS] [{CALL_A}, {CALL_NOW}]", TWO),
    "mistral, named": (
        "[TOOL_CALLS]", ("[TOOL_CALLS]", "[ARGS]"), f"[TOOL_CALLS]lookup[ARGS]{JSON_A}[TOOL_CALLS]now[ARGS]{{}}", TWO,
    ),
    "gpt-oss": (
        "", ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>"),
        "<|channel|>analysis<|message|>to=now I look.<|end|><|start|>assistant<|channel|>commentary "
        f"to=functions.lookup <|constrain|>json<|message|>{JSON_A}<|call|>"
        "<|start|>assistant to=functions.now<|channel|>commentary json"
        "<|message|>{}<|call|>", TWO,
    ),
    "deepseek v3": (
        "", DEEPSEEK,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>lookup\n"
        f"```json\n{JSON_A}\n```<｜tool▁call▁end｜>\n"
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>", TWO,
    ),
    "deepseek v3.1": (
        "<｜tool▁call▁begin｜>", (),
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>lookup<｜tool▁sep｜>{JSON_A}<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>", ONE,
    ),
    "kimi": (
        "", ("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
             "<|tool_calls_section_end|>"),
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.math.add:3<|tool_call_argument_begin|>{\"a\": 1}"
        "<|tool_call_end|><|tool_calls_section_end|>", [("math.add", {"a": 1})],
    ),
    "granite": ("", ("<|tool_call|>",), f"<|tool_call|>[{CALL_A}, {CALL_NOW}]", TWO),
    "phi-4-mini": ("", ("<|tool_call|>", "<|/tool_call|>"), f"<|tool_call|>[{CALL_A}]<|/tool_call|>", ONE),
    "command r7b": (
        "", ("<|START_ACTION|>", "<|END_ACTION|>"),
        f'<|START_ACTION|>[\n{{"tool_call_id": "0", "tool_name": "lookup", "parameters": {JSON_A}}}\n]<|END_ACTION|>',
        ONE,
    ),
    "nemotron": ("<TOOLCALL>", (), f"<TOOLCALL>[{CALL_A}, {CALL_NOW}]</TOOLCALL>", TWO),
    "apriel": ("<tool_calls>", (), f"<tool_calls>[{CALL_A}]</tool_calls>", ONE),
    "minimax m1": ("<tool_calls>", (), f"<tool_calls>\n{CALL_A}\n{CALL_NOW}\n</tool_calls>", TWO),
    "internlm": (
        "", ("<|action_start|>", "<|plugin|>", "<|action_end|>"),
        f"<|action_start|><|plugin|>\n{CALL_A}<|action_end|>", ONE,
    ),
    "gigachat": ("<|function_call|>", ("<|function_call|>",), f"<|function_call|>{CALL_A}", ONE),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tiny_model_dir: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


def tokenizer_of(plain: Any, shown: str = "", special: tuple[str, ...] = ()) -> Any:
    """The tiny tokenizer with these special tokens, and a template in which the words of ``shown`` stand."""
    own = copy.deepcopy(plain)
    own.add_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    own.chat_template = f"{tiny.TEMPLATE}{{# {shown} #}}"
    return own


def read(tokenizer: Any, reply: str, opened: str = "assistant\n") -> tuple[str, list[Call]]:
    ids = [*tokenizer(reply, add_special_tokens=False)["input_ids"], tiny.END]
    return calls_of(tokenizer, ids, Reader(tokenizer, opened).text(ids), TOOLS)


def functions(calls: list[Call]) -> list[tuple[str, dict[str, Any]]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


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


class Letters:
    """A tokenizer that decodes at once: the marks of all layouts, and letters."""

    def __init__(self, shown: str, special: tuple[str, ...]) -> None:
        self.chat_template = shown
        self.words = special
        self.added_tokens_decoder = {
            0x200000 + at: AddedToken(word, special=True) for at, word in enumerate(special)
        }  # fmt: skip

    def ids(self, text: str) -> list[int]:
        for at, word in enumerate(self.words):
            text = text.replace(word, chr(0x10F000 + at))
        return [0x200000 + ord(c) - 0x10F000 if ord(c) >= 0x10F000 else ord(c) for c in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(
            chr(id_) if id_ < 0x200000 else "" if skip_special_tokens else self.words[id_ - 0x200000] for id_ in ids
        )


PIECES = [
    "<tool_call>", "</tool_call>", "{", "}", "[", "]", '"', "'", ",", ":", ";", "(", ")", "=", "\\", "\n", "\\ud800",
    "\ud800", "\x00", "1e999", "NaN", "9" * 5000, "null",
    "[" * 2000, '{"a":' * 2000, "-" * 5000, "<think>", "</think>",
    "<parameter=word>", "</parameter>", "<function=now>", "</function>", "<arg_key>", "</arg_value>", "[TOOL_CALLS]",
    "[ARGS]", "```", "lookup", "now", "word", '"name"', '"arguments"', "<|message|>", "<|start|>",
    "to=functions.now",
]  # fmt: skip


def mutated(reply: str, draw: random.Random) -> str:
    for _ in range(draw.randint(1, 2)):
        a, b = sorted(draw.randint(0, len(reply)) for _ in range(2))
        match draw.randrange(4):
            case 0:
                reply = reply[:a]
            case 1:
                reply = reply[:a] + reply[min(b, a + 8) :]
            case 2:
                reply = reply[:a] + draw.choice(PIECES) + reply[a:]
            case _:
                reply = reply[:a] + draw.choice(PIECES) + reply[min(b, a + 8) :]
    return reply


def test_no_reply_raises_anything_else() -> None:
    draw = random.Random(0)
    readers = [(Letters(shown, special), reply) for shown, special, reply, _ in LAYOUTS.values()]
    seen = {"calls": 0, "words": 0, "error": 0}
    for number in range(5000):
        tokenizer, reply = readers[number % len(readers)]
        ids = tokenizer.ids(mutated(reply, draw))
        text = Reader(tokenizer, "").text(ids)
        try:
            words, calls = calls_of(tokenizer, ids, text, TOOLS)
        except CallError as error:
            assert "\n" not in str(error) and len(str(error)) <= 300
            str(error).encode()
            seen["error"] += 1
            continue
        assert isinstance(words, str)
        json.dumps(calls, allow_nan=False, ensure_ascii=False).encode()
        seen["calls" if calls else "words"] += 1
    assert min(seen.values()) > 300, seen


MEGABYTE = 10**6
LONG = [
    "x", " ", "<", "[", "{", '{"a":', "<tool_call>", "<tool_call>{", f"<tool_call>{CALL_NOW}</tool_call>",
    "</tool_call>", "<tool_call><function=now></function></tool_call>",
    "<function=now>", "<parameter=a>", "</parameter> ", CALL_NOW,
    "[now(), ", "[now(", "-", "1+", "[TOOL_CALLS]", "[TOOL_CALLS]now[ARGS]{}", "<|python_tag|>", "a.", "<think>", ";",
    "<|start|>assistant to=functions.now<|message|>{}<|call|>", "\ud800", "9", "<arg_key>a</arg_key><arg_value>",
]  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "before", ["", "<tool_call>", '<tool_call>{"name": "now", "arguments": {"a": ', "{", "[now(a="]
)
def test_a_megabyte_is_read_or_refused(before: str) -> None:
    for piece in LONG:
        reply = (before + piece * (MEGABYTE // len(piece) + 1))[:MEGABYTE]
        for text in (reply, reply[:LONGEST]):
            try:
                words, calls = calls_of(None, (), text, TOOLS)
            except CallError:
                continue
            assert calls or not words or words == replies.read_text(text)


def test_every_mark_is_in_a_layout_here() -> None:
    assert all(any(mark in reply for _, _, reply, _ in LAYOUTS.values()) for mark in FENCES)
