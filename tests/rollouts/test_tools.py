"""Tools in prompts: what a template does with them is tried, and what it cannot show is refused before it is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.calls import read_written
from agentopcd.core.errors import CallError
from agentopcd.core.types import Completion, Context, Message
from agentopcd.rollouts.chat import Chat
from tests import tiny

TOOL: Any = {"type": "function", "function": {"name": "price", "description": "Looks up a price.", "parameters": {
    "type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]}}}  # fmt: skip
SHOWS = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}LIMIT"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ONE = "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call only') }}{% endif %}"


def chat(tmp_path: Path, template: str) -> Chat:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.build(tmp_path / "model"))
    tokenizer.chat_template = template
    return Chat(tokenizer)


def answered(player: Chat, *items: str) -> tuple[str, int]:
    made = [json.dumps({"name": "price", "arguments": {"item": item}}) for item in items]
    text = "".join(f"<tool_call>{one}</tool_call>" for one in made)
    ids = tuple(player.tokenizer(text, add_special_tokens=False)["input_ids"])
    reply = Completion(token_ids=ids, logprobs=(0.0,) * len(ids), finish_reason="stop")
    return player.with_calls(reply, player.reply(reply), [TOOL])


def test_a_template_that_takes_one_call_a_turn_is_given_no_more(tmp_path: Path) -> None:
    """Else the next prompt could not be written, and the whole run would end."""
    player = chat(tmp_path, SHOWS.replace("LIMIT", ONE))
    assert player.shows_tools and answered(player, "lamp")[1] == 1
    action, calls = answered(player, "lamp", "rug")
    assert calls == 0
    with pytest.raises(CallError, match="2 tools were called at once; call one at a time"):
        read_written(action)


def test_a_template_that_takes_several_gets_them(tmp_path: Path) -> None:
    assert answered(chat(tmp_path, SHOWS.replace("LIMIT", "")), "lamp", "rug")[1] == 2


def test_where_a_template_has_no_place_tools_are_told_in_words(tmp_path: Path) -> None:
    player = chat(tmp_path, tiny.TEMPLATE)
    with pytest.warns(UserWarning, match="no place for tools"):
        said = player.text([Message(role="user", content="How much?")], tools=[TOOL])
    assert '"name": "price"' in said and said.startswith("<|im_start|>system\n")
    assert answered(player, "lamp", "rug")[1] == 2


@pytest.mark.parametrize("how", ["refuses", "drops"])
def test_tools_in_words_reach_a_model_without_a_system_role(tmp_path: Path, how: str) -> None:
    raises = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    drops = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"
    player = chat(tmp_path, (raises if how == "refuses" else drops) + tiny.TEMPLATE)
    asked, rules = Message(role="user", content="How much?"), Message(role="system", content="You sell.")
    with pytest.warns(UserWarning):
        for messages in ([asked], [rules, asked]):
            said = player.text(messages, Context("Be kind."), tools=[TOOL])
            assert said.count('"name": "price"') == 1 and said.index("price") < said.index("Be kind.\n\nHow much?")
            assert said.count("<|im_start|>user\n") == 1 and "<|im_start|>system" not in said
        assert said.startswith("<|im_start|>user\nYou sell.\n\nYou can call these tools:")
