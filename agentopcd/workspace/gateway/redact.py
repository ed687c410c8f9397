"""Rules by which text is replaced before it is kept. What the model reads and the client gets stays as it is.

A file of rules is TOML, one table for each rule, used in their order::

    [email]
    pattern = '[\\w.+-]+@[\\w-]+\\.[\\w.]+'
    replacement = "<email>"
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agentopcd.core.config import read_toml
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Message, Tool


class Rule(NamedTuple):
    """One kind of text, and what is kept in its place."""

    name: str
    pattern: re.Pattern[str]
    replacement: str


def read_rules(file: Path) -> list[Rule]:
    """The rules of a file.

    Raises:
        ConfigError: the file cannot be read, holds no rule, or a rule is not as it should be.
    """
    rules = [_rule(name, table, file) for name, table in read_toml(file, "rules").items()]
    if not rules:
        raise ConfigError(
            f"{str(file)!r} holds no rule; write one as [name] with pattern = '...' and replacement = '...'"
        )
    return rules


def _rule(name: str, table: Any, file: Path) -> Rule:
    where = f"rule [{name}] of {str(file)!r}"
    if not isinstance(table, dict) or set(table) != {"pattern", "replacement"}:
        raise ConfigError(f"{where} wants a pattern and a replacement and nothing else")
    pattern, replacement = table["pattern"], table["replacement"]
    if not isinstance(pattern, str) or not isinstance(replacement, str):
        raise ConfigError(f"{where}: pattern and replacement are texts, got {pattern!r:.40} and {replacement!r:.40}")
    try:
        compiled = re.compile(pattern)
        compiled.sub(replacement, "")  # a group that the pattern does not have
    except (re.error, IndexError) as error:
        raise ConfigError(f"{where} is no regular expression with its replacement: {error}") from error
    if compiled.search(""):
        raise ConfigError(f"{where} matches nothing at all, so it would write between all letters; match some text")
    return Rule(name, compiled, replacement)


def redacted(value: Any, rules: Sequence[Rule]) -> Any:
    """A copy of a JSON value, names of objects included, with the text that rules replace replaced."""
    if isinstance(value, str):
        for rule in rules:
            value = rule.pattern.sub(rule.replacement, value)
        return value
    if isinstance(value, Mapping):
        return {redacted(name, rules): redacted(one, rules) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(one, rules) for one in value]
    return value


def redacted_message(message: Message, rules: Sequence[Rule]) -> Message:
    """A message whose text and arguments of calls are redacted; roles and names of tools stay."""
    copy: Message = {**message, "content": redacted(message["content"], rules)}
    if "tool_calls" in message:
        copy["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": redacted(call["function"]["arguments"], rules)}}
            for call in message["tool_calls"]
        ]
    return copy


def redacted_tool(tool: Tool, rules: Sequence[Rule]) -> Tool:
    """A tool whose description and parameters are redacted; its name stays."""
    function = tool["function"]
    changed = {name: redacted(function[name], rules) for name in ("description", "parameters")}
    return {**tool, "function": {**function, **changed}}
