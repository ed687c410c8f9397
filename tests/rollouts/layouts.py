"""Replies with tool calls in the layout of every family, and how the tests read them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken

from agentopcd.core.calls import Call, tools_of
from agentopcd.rollouts.calls import calls_of
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
"""By name: words of the template, special tokens, a reply, and its calls."""


def tokenizer_of(plain: Any, shown: str = "", special: tuple[str, ...] = ()) -> Any:
    """The tiny tokenizer with these special tokens, and a template in which the words of ``shown`` stand."""
    own = copy.deepcopy(plain)
    own.add_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    own.chat_template = f"{tiny.TEMPLATE}{{# {shown} #}}"
    return own


def read(tokenizer: Any, reply: str, opened: str = "assistant\n") -> tuple[str, list[Call]]:
    ids = [*tokenizer(reply, add_special_tokens=False)["input_ids"], tiny.END]
    return calls_of(tokenizer, ids, Reader(tokenizer, opened).text(ids), TOOLS)


def functions(calls: Sequence[Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
