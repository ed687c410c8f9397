"""Experience items as text: parse them from a reply, sanitise and identify them.

Pure functions over text; nothing here uses the store.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence

from agentopcd.core.text import after_thinking, keep_lines, split_lines
from agentopcd.core.types import MARKER, Context

_MARKER = re.compile(r"EXPERIENCE ITEM\**[ \t]*:\**", re.IGNORECASE)
_BULLET = "-*•–"
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Characters that are not seen: soft hyphens, fillers, marks of direction, variation selectors, the block of tags."""
_JOINER = re.compile("[\u200c\u200d]")
_JOINED = ("Lo", "Mn", "Mc", "So", "Sk")
"""Kinds of characters between which a joiner is a part of writing: Indic and Arabic letters, and emoji."""
_SPACES = re.compile(r"\s+")


@dataclasses.dataclass(frozen=True, slots=True)
class Parsed:
    """One marked piece of a reply: the text after the marker, the raw text with the marker, and its number."""

    text: str
    raw: str
    line: int
    """Position among the items of one reply, from 0."""


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """An item with its state in the store."""

    id: str
    text: str
    status: str = "pending"
    """``pending``, ``active``, ``pinned`` or ``retired``."""
    support: int = 0
    """Distinct tasks from which the item was extracted without having been shown in the prompt."""
    created_at: str = ""


def parse(reply: str) -> list[Parsed]:
    """Find the items of an extractor's reply, after its last end-of-thinking mark.

    Markers may stand anywhere in a line, and each marker starts an item. Bullets, case and bold may vary.

    Returns:
        The items in order; pieces without a letter or digit are dropped.
    """
    return parse_text(after_thinking(reply))


def parse_text(text: str) -> list[Parsed]:
    """Find the items of a text that a person has written, as :func:`parse` does: a ``</think>`` ends nothing there."""
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate cannot be stored
    found: list[Parsed] = []
    for line in split_lines(text):
        for raw, text in _pieces(line):
            if any(char.isalnum() for char in text):
                found.append(Parsed(text.strip(), raw.strip(), len(found)))
    return found


def besides(text: str) -> list[str]:
    """What a text says besides its items, by line: lines without a marker, and what stands before one."""
    found = []
    for number, line in enumerate(split_lines(text), 1):
        rest = line[: next((start for start, _ in _marks(line)), len(line))].strip()
        found += [f"line {number}: {rest}"] if rest else []
    return found


def _pieces(line: str) -> Iterable[tuple[str, str]]:
    marks = list(_marks(line))
    ends = [start for start, _ in marks[1:]] + [len(line)]
    for (start, stop), end in zip(marks, ends, strict=False):
        yield line[start:end], line[stop:end]


def _marks(text: str) -> Iterable[tuple[int, int]]:
    """Start and end of every marker, with the bullet, number or stars before it.

    These are looked for backwards from the words: a pattern that begins with them would try every start in a long run
    of stars or digits, which takes the square of its length.
    """
    last = 0
    for words in _MARKER.finditer(text):
        start = bullet = _back(text, words.start(), last, "*".__eq__)
        bullet = _back(text, bullet, last, str.isspace)
        before = text[bullet - 1] if bullet > last else ""
        if before and before in _BULLET:
            start = bullet - 1
        elif before and before in ".)":
            digits = _back(text, bullet - 1, last, str.isdecimal)
            start = digits if digits < bullet - 1 else start
        yield start, words.end()
        last = words.end()


def _back(text: str, end: int, first: int, belongs: Callable[[str], bool]) -> int:
    """Where the run of characters before ``end`` begins, at ``first`` or later."""
    while end > first and belongs(text[end - 1]):
        end -= 1
    return end


def sanitise(text: str, special: Sequence[str] = ()) -> str:
    """Make an item safe to show: one line, NFC, no invisible characters, no special strings.

    NFC is used rather than NFKC, which would turn ``10²`` into ``102``.

    Args:
        text: as the extractor wrote it.
        special: the tokenizer's special strings; a chat template would turn them into control tokens.

    Returns:
        The cleaned text. Cleaning it again changes nothing.
    """
    clean = _sanitised(text, special)
    while clean != text:  # what is taken out can bring together what has to be taken out as well
        text, clean = clean, _sanitised(clean, special)
    return clean


def _sanitised(text: str, special: Sequence[str]) -> str:
    text = "".join(_visible(char) for char in _INVISIBLE.sub("", text))
    text = _without_loose_joiners(_SPACES.sub(" ", unicodedata.normalize("NFC", text)))
    marks = list(_marks(text))
    starts, ends = [*(start for start, _ in marks), len(text)], [0, *(end for _, end in marks)]
    text = " ".join(text[end:start] for end, start in zip(ends, starts, strict=True))
    text = _SPACES.sub(" ", text).strip()
    return _neutralise(text, [s.strip() for s in special if len(s.strip()) > 1])


def _visible(char: str) -> str:
    kind = unicodedata.category(char)
    if char.isspace():
        return " "
    return "" if kind in ("Cc", "Cs", "Co", "Cn") else char


def _without_loose_joiners(text: str) -> str:
    """``text`` without the joiners that join nothing; between Latin letters, one would only hide a word."""
    return _JOINER.sub(lambda found: found[0] if _joins(text, found.start()) else "", text)


def _joins(text: str, at: int) -> bool:
    before, after = text[max(at - 1, 0) : at], text[at + 1 : at + 2]
    return all(char and unicodedata.category(char) in _JOINED for char in (before, after))


def _neutralise(text: str, special: Sequence[str]) -> str:
    """Break every special string with a space after its first character, until none is left."""
    for _ in range(len(text) + 1):  # each round breaks at least one; breaking one rarely forms another
        present = next((s for s in special if s in text), None)
        if present is None:
            return text
        text = text.replace(present, f"{present[0]} {present[1:]}")
    return "".join(char for char in text if char.isalnum() or char == " ")


def escaped(text: str) -> str:
    """``text`` for a person who decides about it: characters that are not seen are written as ``\\u200b``."""
    seen = (char if char.isprintable() and not _INVISIBLE.match(char) else char.encode("unicode_escape").decode()
            for char in text)  # fmt: skip
    return "".join(seen)


def normalise(text: str) -> str:
    """The form that is hashed: NFC, spaces collapsed, markers before it removed, case kept."""
    text = text.strip()
    while text.startswith(MARKER):
        text = text[len(MARKER) :].strip()
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text)).strip()


def identify(text: str) -> str:
    """The id of an item: sha256 of its normalised text. Case is kept: in a board game it can carry the meaning."""
    return hashlib.sha256(normalise(text).encode()).hexdigest()


def item_texts(context: Context) -> list[str]:
    """The items that a context shows, in order. Free text has none; empty marker lines are skipped."""
    return [text for line in context.lines if (text := normalise(line))]


def item_ids(context: Context) -> list[str]:
    """The ids of the items that a context shows, in order."""
    return [identify(text) for text in item_texts(context)]


def without(context: Context, ids: Collection[str]) -> Context:
    """The context minus the lines of some items; the other lines stay as they are."""
    text = keep_lines(context.text, lambda line: not (line.startswith(MARKER) and identify(line) in ids))
    return context if text == context.text else Context(text, context.placement)
