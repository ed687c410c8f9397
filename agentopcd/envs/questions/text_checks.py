"""Checks of free text that need no right answer: length, casing, beginning, ending, content."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from agentopcd.core.errors import EnvError, did_you_mean
from agentopcd.core.text import after_thinking
from agentopcd.envs.questions.grading import Grade

_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")


def sentences(text: str) -> int:
    """Number of sentences: one per end mark, and one more for an unfinished last sentence."""
    text = text.strip()
    ends = list(_SENTENCE_END.finditer(text))
    return len(ends) + bool(text and (not ends or text[ends[-1].end() :].strip()))


def _found(text: str, words: Any) -> list[bool]:
    """For each of the words, or for the single word: whether the text contains it, ignoring case."""
    return [word.lower() in text.lower() for word in ([words] if isinstance(words, str) else words)]


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "max_words": lambda text, n: len(text.split()) <= n,
    "min_words": lambda text, n: len(text.split()) >= n,
    "max_sentences": lambda text, n: sentences(text) <= n,
    "case": lambda text, how: text == (text.lower() if how == "lower" else text.upper()),
    "starts_with": lambda text, start: text.startswith(start),
    "ends_with": lambda text, end: text.endswith(end),
    "contains": lambda text, words: all(_found(text, words)),
    "excludes": lambda text, words: not any(_found(text, words)),
}
"""Name of a check -> (reply without surrounding space, wanted value) -> whether it holds."""


def known_checks(checks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checks if all of them are known and their values make sense.

    Raises:
        EnvError: an unknown check, or a value that does not fit it.
    """
    if not isinstance(checks, Mapping) or not checks:
        raise EnvError(f'checks must be an object such as {{"max_words": 10}}, got {checks!r}')
    for name, value in checks.items():
        if name not in CHECKS:
            raise EnvError(f"no check is called {name!r}{did_you_mean(name, CHECKS)}")
        if name.startswith(("max", "min")):
            fits = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        elif name == "case":
            fits = value in ("lower", "upper")
        elif name in ("contains", "excludes"):
            words = [value] if isinstance(value, str) else value
            fits = (
                isinstance(words, list | tuple)
                and all(isinstance(word, str) and word for word in words)
                and bool(words)
            )
        else:
            fits = isinstance(value, str) and bool(value)
        if not fits:
            raise EnvError(f"check {name!r} cannot have the value {value!r}")
    return dict(checks)


def grade_checks(reply: str, checks: Mapping[str, Any]) -> Grade:
    """Grade whether the reply, after its reasoning, passes every check; an empty reply fails."""
    text = after_thinking(reply).strip()
    failed = [name for name, wanted in checks.items() if not CHECKS[name](text, wanted)]
    return Grade(bool(text) and not failed, text or None, {f"failed_{name}": 1.0 for name in failed})
