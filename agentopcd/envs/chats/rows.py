"""Files of conversations: find the messages of every row, the tools, and the places where a reply is wanted.

=====================  ==================================================================
layout                 messages
=====================  ==================================================================
OpenAI, most logs      ``messages``: objects with ``role``, ``content``, ``tool_calls``
ShareGPT               ``conversations``: objects with ``from`` and ``value``
TRL, prompt-completion ``prompt`` and ``completion``, both lists of messages; text is one
                       message where another row of the file, or the other cell, is a list
TRL, prompts only      ``prompt``, a list of messages, and no answer column
=====================  ==================================================================

A row may have ``system`` (the text of a message that stands first), ``tools`` (a list of JSON schemas), a ``split`` and
``checks`` (:mod:`agentopcd.envs.questions.text_checks`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentopcd.core.calls import tools_of
from agentopcd.core.errors import AgentOpcdError, EnvError, TaskLeak
from agentopcd.core.messages import read_messages
from agentopcd.core.types import SPLITS, Message, Tool
from agentopcd.envs.questions.files import Raw, read_rows, row_files
from agentopcd.envs.questions.rows import ANSWER_KEYS, PROMPT_KEYS
from agentopcd.envs.questions.text_checks import known_checks
from agentopcd.envs.questions.values import blank, cell_at, missing, plain
from agentopcd.envs.views import hash_text

KEYS = ("messages", "conversations", "conversation")


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation: one task."""

    name: str
    """Where it stands, for messages."""
    messages: list[Message]
    places: tuple[int, ...]
    """Where a reply is wanted: the prompt is what stands before this index."""
    tools: list[Tool]
    split: str
    checks: Mapping[str, Any]
    source: Raw = dataclasses.field(compare=False, repr=False)
    """The row as it was read, for graders."""
    task: str = ""
    """The key of its task; empty: its content is its task."""

    @property
    def key(self) -> str:
        """The key of its task: as it was given, else a hash of all its messages and tools."""
        return self.task or hash_text(json.dumps([self.messages, self.tools], sort_keys=True))


def is_conversation(row: Raw) -> bool:
    """Whether a row holds a conversation, and not a question with a right answer."""
    if any(not blank(row.get(key)) for key in KEYS):
        return True
    if not _messages_in(row.get("prompt")):
        return False
    return _messages_in(row.get("completion")) or not _answered(row)


def _messages_in(cell: Any) -> bool:
    return isinstance(cell, list) and bool(cell) and all(isinstance(one, Mapping) and "role" in one for one in cell)


def _answered(row: Raw) -> bool:
    return any(not blank(cell_at(row, key)) for key in ANSWER_KEYS)


def stamps(path: str) -> tuple[tuple[str, int, int], ...]:
    """The files that a path names, each with when it was changed and its size; what was read from them holds so long.

    Raises:
        EnvError: a file is missing.
    """
    found = []
    for name in row_files(path):
        try:
            state = Path(name).stat()
        except (OSError, ValueError):
            raise EnvError(f"no file {name!r} with conversations") from None
        found.append((name, state.st_mtime_ns, state.st_size))
    return tuple(found)


@functools.lru_cache(maxsize=4)
def raw_rows(files: tuple[tuple[str, int, int], ...]) -> list[tuple[str, Raw]]:
    """The rows of files, each with its name for messages.

    Raises:
        EnvError: a file cannot be read, or has no rows.
    """
    found: list[tuple[str, Raw]] = []
    for file, *_ in files:
        try:
            rows = read_rows(Path(file))
        except EnvError as error:
            raise EnvError(f"{file}: {error}") from None
        if not rows:
            raise EnvError(f"{file}: there are no rows")
        found += [(f"{file}: row {number}", row) for number, row in enumerate(rows, 1)]
    return found


@functools.lru_cache(maxsize=4)
def load(files: tuple[tuple[str, int, int], ...], *, turns: str = "all", system: str = "keep") -> list[Conversation]:
    """The conversations of files; see :func:`conversations`."""
    return conversations(raw_rows(files), turns=turns, system=system)


def conversations(rows: Sequence[tuple[str, Raw]], *, turns: str = "all", system: str = "keep") -> list[Conversation]:
    """The conversations of rows, without those that another one begins with.

    Logs often hold a row for every turn. The longest row of a conversation has the places of all the others, and its
    turns must not sit in two splits.

    Args:
        rows: each with its name for messages.
        turns: ``all`` places or the ``last`` one of each conversation.
        system: ``drop`` leaves the system messages of the rows out.

    Raises:
        EnvError: a row that cannot be read, or without a place to answer.
        TaskLeak: the ``split`` column puts one conversation into two splits.
    """
    found: list[Conversation] = []
    for name, row in rows:
        try:
            found.append(_conversation(name, row, turns, system))
        except AgentOpcdError as error:
            raise EnvError(f"{name}: {error}") from None
    kept = _longest(found)
    if gone := len(found) - len(kept):
        warnings.warn(
            f"{gone} of {len(found)} rows repeat another conversation or its beginning and were left out", stacklevel=2
        )
    return kept


def _longest(found: Sequence[Conversation]) -> list[Conversation]:
    """Those that are neither equal to another one nor its beginning, in their order; the first of equal ones stays.

    Equal is what is shown: the answers that the log gave last are not.
    """
    words = [[json.dumps(one.tools), *(json.dumps(m, sort_keys=True) for m in one.messages)] for one in found]
    order = sorted(range(len(found)), key=lambda place: (words[place], -place))
    longer: dict[int, set[int]] = {
        one: {after}
        for one, after in itertools.pairwise(order)
        if words[after][: len(words[one])] == words[one] and found[one].places[-1] <= found[after].places[-1]
    }
    prompts = [_prompts(said, one.places) for said, one in zip(words, found, strict=True)]
    asked_by: dict[bytes, list[int]] = {}
    for number, some in enumerate(prompts):
        for prompt in some:
            asked_by.setdefault(prompt, []).append(number)
    size = [(one.places[-1], len(one.messages), -number) for number, one in enumerate(found)]
    for number, some in enumerate(prompts):
        if others := {other for other in asked_by[some[-1]] if size[other] > size[number]}:
            longer.setdefault(number, set()).update(others)
    return _merged(found, {number: longer[number] for number in sorted(longer, key=size.__getitem__)})


def _prompts(words: Sequence[str], places: Sequence[int]) -> list[bytes]:
    """A hash of the tools and messages of each place to answer."""
    read, found = hashlib.blake2b(digest_size=16), []
    for number, word in enumerate(words):
        read.update(f"{word}\n".encode())
        found += [read.digest()] if number in places else []
    return found


def _merged(found: Sequence[Conversation], longer: Mapping[int, Iterable[int]]) -> list[Conversation]:
    """The conversations without those that longer ones stand for, which take over their split; the shortest first."""
    splits = [one.split for one in found]
    for number, others in longer.items():
        for other in sorted(others):
            if splits[number] and splits[other] and splits[number] != splits[other]:
                raise TaskLeak(
                    f"{found[number].name} puts a conversation of {splits[other]!r} ({found[other].name}) in"
                    f" {splits[number]!r}: it is in both"
                )
            splits[other] = splits[other] or splits[number]
    return [dataclasses.replace(one, split=splits[n]) for n, one in enumerate(found) if n not in longer]


def _messages(row: Raw) -> list[Message]:
    if not is_conversation(row):
        pair = all(isinstance(row.get(key), str | list) and not blank(row[key]) for key in ("prompt", "completion"))
        if not pair or _answered(row):
            raise EnvError(f"has no messages; its keys are {', '.join(map(str, row))}")
    cell = next((row[key] for key in KEYS if not blank(row.get(key))), None)
    if cell is None:
        cell = [*_said(row, "prompt", "user"), *_said(row, "completion", "assistant")]
    messages, told = read_messages(cell), row.get("system")
    if blank(told) or not isinstance(told, str | list) or not told:
        return messages
    first = read_messages([{"role": "system", "content": told}])
    there = [message for message in messages if message["role"] == "system"]
    if there not in ([], first):
        raise EnvError("has a column 'system' and a message by the system that says something else; leave one out")
    return messages if there else first + messages


def _said(row: Raw, key: str, role: str) -> list[Any]:
    """The messages of a cell; text is one message."""
    cell = row.get(key)
    if blank(cell):
        return []
    if isinstance(cell, str):
        return [{"role": role, "content": cell}]
    if not isinstance(cell, list):
        raise EnvError(f"{key} must be text or a list of messages, got {cell!r:.60}")
    return cell


def _conversation(name: str, row: Raw, turns: str, system: str) -> Conversation:
    given = plain(row)
    messages = _messages(given)
    if system == "drop":
        messages = [message for message in messages if message["role"] != "system"]
    places = [
        place for place in range(1, len(messages) + 1)
        if messages[place - 1]["role"] in ("user", "tool")
        and (place == len(messages) or messages[place]["role"] == "assistant")
        and any(message["role"] == "user" for message in messages[:place])
    ]  # fmt: skip
    if not places:
        raise EnvError("there is no place to answer: no message of the user stands before one of the assistant")
    last = places[-1]
    named = given.get("split")
    split = "" if blank(named) else str(named).strip()
    if split and split not in SPLITS:
        raise EnvError(f"is in split {split!r}; splits are {', '.join(SPLITS)}")
    checks = given.get("checks")
    wanted = {k: v for k, v in checks.items() if not missing(v)} if isinstance(checks, Mapping) else checks
    try:
        listed = next((given[key] for key in ("tools", "functions") if not blank(given.get(key))), None)
        tools = tools_of(listed)  # under functions in older files of OpenAI's
    except ValueError as error:
        raise EnvError(str(error)) from None
    return Conversation(
        name=name, messages=messages, places=tuple(places if turns == "all" else (last,)), tools=list(tools),
        split=split, checks={} if blank(wanted) or not wanted else known_checks(wanted), source=row,
    )  # fmt: skip


def chat_fields(ref: str) -> dict[str, Any]:
    """The fields of the spec of files of conversations; empty for other files, and where a file cannot be read."""
    try:
        files = stamps(ref)
        rows = raw_rows(files)
    except AgentOpcdError:
        return {}
    return dict(_chat_fields(files)) if is_conversation(rows[0][1]) else {}


@functools.lru_cache(maxsize=16)
def _chat_fields(files: tuple[tuple[str, int, int], ...]) -> Mapping[str, Any]:
    rows = [row for _, row in raw_rows(files)]
    cells = [[row.get(key) for key in (*KEYS, "prompt", "completion")] for row in rows]
    longest = max(sum(len(cell) for cell in some if isinstance(cell, str | list)) for some in cells)
    graded = any(not blank(row.get("checks")) for row in rows)
    beside = any(not blank(rows[0].get(key)) for key in PROMPT_KEYS) and _answered(rows[0])  # a label alone is none
    if not graded and beside and any(not blank(rows[0].get(key)) for key in KEYS):
        key = next(key for key in ANSWER_KEYS if not blank(cell_at(rows[0], key)))
        warnings.warn(
            f"{files[0][0]} holds conversations, and questions with right answers ({key}) beside them; it "
            "is played as conversations, which nothing grades: leave out the column of messages to play its "
            "questions, or give --grader",
            stacklevel=2,
        )
    return {
        "max_steps": max(2, longest), "history": "chat", "logged": True, "graded": graded,
    }  # fmt: skip
