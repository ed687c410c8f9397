"""Text that rules replace before it is kept; the model and the client see the original."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentopcd import models
from agentopcd.core.errors import ConfigError
from agentopcd.workspace.gateway.redact import read_rules, redacted, redacted_message, redacted_tool
from tests.workspace.gateway.running import Running, says, text_of

RULES = """[card]
pattern = '\\b\\d{4}-\\d{4}\\b'
replacement = "<card>"
[name]
pattern = '(?i)(mr|ms) (\\w)\\w+'
replacement = '\\1 \\2.'
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "rules.toml").write_text(RULES)
    return tmp_path / "rules.toml"


def test_rules_replace_text_wherever_it_stands_and_leave_roles_and_names(file: Path) -> None:
    rules = read_rules(file)
    assert redacted({"a 1234-5678": ["Mr Smith", 1234, None, ("x",)]}, rules) == {
        "a <card>": ["Mr S.", 1234, None, ["x"]]
    }
    call = {"type": "function", "id": "1234-5678", "function": {"name": "pay", "arguments": {"card": "1234-5678"}}}
    message = redacted_message({"role": "assistant", "content": "Ms Jones", "tool_calls": [call]}, rules)
    assert message["content"] == "Ms J." and message["role"] == "assistant"
    assert message.get("tool_calls") == [{**call, "function": {"name": "pay", "arguments": {"card": "<card>"}}}]
    tool = {
        "type": "function",
        "function": {"name": "pay", "description": "for Mr Smith", "parameters": {"type": "object"}},
    }
    assert redacted_tool(tool, rules)["function"]["description"] == "for Mr S."


def test_what_is_kept_is_redacted_and_what_is_said_is_not(
    loaded: models.LoadedModel, tmp_path: Path, file: Path
) -> None:
    sampler = says(loaded, "Paid with 1111-2222.", "You are welcome.", "plain")
    with Running(loaded, tmp_path / "work", sampler=sampler, redact=read_rules(file)) as server:
        first = server.ask("My card is 9999-8888.", more={"logprobs": True}, idempotency_key="k")
        assert text_of(first) == "Paid with 1111-2222."
        assert "9999-8888" in loaded.tokenizer.decode(sampler.asked[0][0].prompt_ids)
        second = server.ask("My card is 9999-8888.", "Paid with 1111-2222.", "Thanks, ms jones")
        assert second.headers["x-agentopcd-session"] == first.headers["x-agentopcd-session"]
        server.ask("nothing to hide")
        again = server.ask("My card is 9999-8888.", more={"logprobs": True}, idempotency_key="k")
        assert again.json()["id"] == first.json()["id"] and text_of(again) == "Paid with <card>."  # as it was kept
        assert again.json()["choices"][0]["logprobs"] is None
        redacted_ones, whole = server.recorded()
        for request in redacted_ones.requests:
            assert request.redacted and request.prompt_ids == request.response_ids == request.logprobs == ()
            assert request.prompt_tokens > 5 and request.output_tokens > 1
        assert redacted_ones.requests[0].reply == redacted_ones.requests[0].message["content"] == "Paid with <card>."
        assert redacted_ones.requests[1].messages[2]["content"] == "Thanks, ms j."
        assert not whole.requests[0].redacted and whole.requests[0].response_ids
        assert "9999-8888" not in repr(server.recorded())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no rule"), ("x = 1", r"rule \[x\] .* wants a pattern and a replacement"),
        ("[a", "cannot read rules"),
        ("[a]\npattern = 'x'", "wants a pattern and a replacement"),
        ("[a]\npattern = '('\nreplacement = ''", "is no regular expression"),
        ("[a]\npattern = 'x'\nreplacement = '\\2'", "is no regular expression with its replacement"),
        ("[a]\npattern = 'x*'\nreplacement = ''", "matches nothing at all"),
        ("[a]\npattern = 1\nreplacement = ''", "are texts"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_used(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_rules(file)
