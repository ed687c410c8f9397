"""What a cell of a row says: a question or a right answer, as text. What is no text is read where its form is common.

Nothing is turned into text by ``str()``: a cell that is not understood is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from agentopcd.core.errors import EnvError
from agentopcd.envs.questions.grading import find_answer
from agentopcd.envs.views import hash_prompt

_SPEAKERS = {"system": "System", "developer": "System", "user": "User", "human": "User", "assistant": "Assistant"}
_TEXT_PARTS = ("text", "input_text")
_NOTHING = ("NAType", "NaTType")
"""Types of what pandas has for nothing."""
_DUMPED = re.compile(r"\s*\[\s*\{\s*['\"](?:role|content|from|value)['\"]\s*:")
_QUOTED = r"""(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")"""
_STR_LIST = re.compile(rf"\[{_QUOTED}(?:, {_QUOTED})*+\]", re.DOTALL)
"""A list of texts as Python writes it, or JSON."""
_IN_OBJECTS = ("target", "value", "text", "answer", "ground_truth")
"""Keys under which an object holds the right answer: those of verl's search rows, TriviaQA and SQuAD."""

_TALKS = ("messages", "conversations", "conversation")
_AS_MESSAGES = '{"messages": [{"role": "user", "content": "..."}]}'


def missing(value: Any) -> bool:
    """Whether a cell holds nothing: null, or the NaN that data frames write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in _NOTHING


def plain(value: Any) -> Any:
    """A cell with the arrays and numbers of numpy, which data frames hold, as Python's own."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def blank(value: Any) -> bool:
    """Whether a cell holds nothing, or only space."""
    return missing(value) or (isinstance(value, str) and not value.strip())


def cell_at(row: Mapping[str, Any], key: str) -> Any:
    """The cell of a column; ``a.b`` is ``b`` of the object in ``a``, unless a column has that name."""
    if key in row:
        return row[key]
    value: Any = row
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def absent(row: Mapping[str, Any], keys: Sequence[str], what: str, argument: str) -> EnvError:
    """The error for a row without a question or a right answer: where it may stand, or what to do without.

    Args:
        argument: the setting that names its column.
    """
    found = f"no {what} in a row with the keys {', '.join(map(str, row))}"
    if what == "question":
        for name, cell in row.items():
            if isinstance(cell, Mapping) and any(cell.get(key) for key in _TALKS):
                inner = next(f"{name}.{key}" for key in _TALKS if cell.get(key))
                return EnvError(f"{found}; a conversation is in {inner}: write that list as the messages of the row")
            first = cell[0] if isinstance(cell, list) and cell else None
            if isinstance(first, Mapping) and any(key in first for key in (*keys, *_TALKS)):
                return EnvError(f"{found}; the rows are in {name}: write that list alone into the file")
    found += f"; looked for {', '.join(keys)}; name it with --env-arg {argument}=KEY"
    if what == "answer":
        pair = ", or give prompt and completion as messages, not as text, if it is a conversation"
        found += ", or give checks or --grader FILE.py:FUNCTION" + (pair if not blank(row.get("completion")) else "")
        found += f"; where nothing is right or wrong, write the prompt as messages: {_AS_MESSAGES}"
    return EnvError(found)


def unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first column, beside the split, in which two rows differ by more than space and letter case; '' if none."""
    for name in dict.fromkeys((*one, *other)):
        first, second = (None if blank(row.get(name)) else row[name] for row in (one, other))
        if name != "split" and hash_prompt(str(first)) != hash_prompt(str(second)):
            return name
    return ""


def question_of(value: Any) -> str:
    """The text of a question, which may be a list of chat messages.

    A conversation of several speakers keeps their names; messages of the user alone stand one after the other.

    Raises:
        EnvError: the cell is neither, or a message of it is no text.
    """
    if isinstance(value, str):
        if not _DUMPED.match(value):
            return value
        try:
            value = json.loads(value)
        except ValueError:
            raise EnvError(
                f"the question is a list that was written by str(): {value[:60]!r}; write it as JSON"
            ) from None
    if not isinstance(value, Sequence) or not value or not all(isinstance(one, Mapping) for one in value):
        raise EnvError(f"a question must be text or chat messages, got {value!r:.80}")
    said = [(str(_either(one, "role", "from") or "user"), _either(one, "content", "value")) for one in value]
    if len(said) > 1 and said[-1][0] == "assistant" and not said[-1][1]:
        said.pop()  # the place of the reply
    told = [(role, _content(role, content)) for role, content in said]
    if told[-1][0] == "assistant":
        raise EnvError("the last message is the assistant's, so the question would show a reply; leave it out")
    if any(one.get("tool_calls") for one in value):
        raise EnvError("a message calls a tool, which cannot be shown here")
    if len(told) == 1 or {role for role, _ in told} <= {"user", "human"}:
        return "\n\n".join(text for _, text in told)
    return "\n\n".join(f"{_SPEAKERS[role]}: {text}" for role, text in told)


def _either(message: Mapping[str, Any], one: str, other: str) -> Any:
    return message.get(one) if one in message else message.get(other)


def _content(role: str, content: Any) -> str:
    if role not in _SPEAKERS:
        raise EnvError(f"a message is by {role!r}; only {', '.join(_SPEAKERS)} can be shown")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_part(part) for part in content)
    if not isinstance(content, str):
        raise EnvError(f"a message of the {role} must be text, got {content!r:.60}")
    return content


def _part(part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type", "text") in _TEXT_PARTS and isinstance(part.get("text"), str):
        return part["text"]
    if isinstance(part, str):
        return part
    what = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise EnvError(f"a message has a part of type {what!r}; only text can be shown")


def answers_of(value: Any) -> tuple[str, ...]:
    """The right answers of a cell, the first one first: text, a number, yes or no, or a list or an object of texts.

    Raises:
        EnvError: the cell is none of these.
    """
    if isinstance(value, Mapping):
        key = next((key for key in _IN_OBJECTS if not missing(value.get(key))), None)
        if key is None:
            raise EnvError(
                f"the answer is an object with the keys {', '.join(map(str, value))}; name one: answer_key=KEY.KEY"
            )
        more = value.get("aliases")
        listed = [*answers_of(value[key]), *(answers_of(more) if more else ())]
        return tuple(dict.fromkeys(listed))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if len(value) > 1 and not all(isinstance(one, str) for one in value):
            raise EnvError(
                f"the answer is a list, {value!r:.60}, and whether it is one answer or several cannot be told; write "
                "one as text, several as a list of texts"
            )
        return tuple(dict.fromkeys(_answer(one) for one in value))
    listed = _listed(value)
    worked = "####" in str(value) or "\\boxed" in str(value)
    return tuple(dict.fromkeys(listed if listed and worked else (*listed, _answer(value))))


def _listed(value: Any) -> list[str]:
    """The answers of a JSON list of texts in a cell of text; none if it is anything else. The list as it stands is
    right as well: the answer may be a list."""
    if not isinstance(value, str) or not value.strip().startswith("["):
        return []
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        if not _STR_LIST.fullmatch(value.strip()):
            return []
        raise EnvError(
            f"the answer is a list that was written by str(): {value[:60]!r}; write several as JSON, "
            'like ["4", "four"], and one that is a list as the only text of a JSON list'
        ) from None
    return [_answer(one) for one in found] if all(isinstance(one, str) for one in found) else []


def _answer(value: Any) -> str:
    """The right answer as text, extracted from a worked solution if it is one."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float | Decimal):
        if not math.isfinite(value):
            raise EnvError(f"the answer is {value}, which is no number that a reply can give")
        return format(Decimal(repr(value)) if isinstance(value, float) else value, "f")
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise EnvError(f"an answer must be text or a number, got {value!r:.60}")
    if "####" in value:
        return value.rpartition("####")[2].strip()
    if "\\boxed" in value:
        return find_answer(value) or ""
    return value.strip()


def whole(value: Any, name: str) -> int:
    """The whole number of a cell.

    Raises:
        EnvError: there is none.
    """
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not number.is_integer():
        raise EnvError(f"{name} must be a whole number, got {value!r:.40}")
    return int(number)
