"""The placebo of a context: a twin of the same length and form whose content is destroyed.

A context can help by its form alone: short lines in the prompt make short answers. Only what a context does beyond its
placebo is knowledge. The rule: content words and symbols change places within the context, each goes where another one
stood, and takes the capital letter of that place. Function words, punctuation, markers, lines and the number of every
word stay. The order is drawn with a seed and the context's id, so a context always has the same placebo.
"""

from __future__ import annotations

import dataclasses
import random
import re

from agentopcd.core.errors import ConfigError
from agentopcd.core.text import MARKS
from agentopcd.core.types import MARKER, Context, Mixture

_WORDS = """
a about above after again all also am an and any are as at be because been before being below between both but by can
could did do does doing during each either else for from further had has have having he her here his how i if in into
is it its itself just may me might more most must my neither no nor not of off on once one only or other our out over
own same shall she should so some such than that the their them then there these they this those through to too under
until upon us was we were what when where whether which while who whom whose why will with within without would yes
you your
"""
FUNCTION_WORDS = frozenset(_WORDS.split())
"""Words that carry grammar, without those that are moves in games. Of a text in another language, all words move."""

_LETTER = rf"[^\W_][{MARKS}]*"
_SIGN = r"[^\s\w.,;:!?()\"'“”‘’*\[\]-]"
_PIECE = re.compile(
    r"\[[^\[\]\s]+\]"  # a move or a key: [up]
    rf"|(?:{_LETTER})+(?:['’-](?:{_LETTER})+)*"  # a word or a number
    rf"|(?![{MARKS}]){_SIGN}+|_+"  # a symbol of a board
)
_BEFORE = re.compile(rf"\s*(?:{re.escape(MARKER)}|[-*•]|\d+[.)])?\s*")
_MARK = re.compile(f"[{MARKS}]")
_WHOLE = re.compile(f".[{MARKS}]*", re.DOTALL)
_TRIES = 200


def placebo(context: Context, seed: int = 0) -> Context:
    """The twin of a context: the same placement, lines, words and punctuation, with the content in other places.

    Args:
        context: not the empty one.
        seed: of the order; another seed gives another twin.

    Returns:
        A context that differs from the given one, unless that has not even two letters to exchange.
    """
    text, rng = context.text, random.Random(f"placebo/{seed}/{context.id}")
    found = list(_pieces(text))
    slots = [piece for piece in found if _is_content(piece[0])]
    if len({piece[0].casefold() for piece in slots}) < 2:
        slots = found  # too little content: function words change places, too
    words = [piece[0] for piece in slots]
    if len({word.casefold() for word in words}) < 2:
        moved = [_letters(word, rng) for word in words]
    else:
        moved = [_cased(word, place) for word, place in zip(_deranged(words, rng), words, strict=True)]
    out, end = [], 0
    for (_, start, stop), word in zip(slots, moved, strict=True):
        out += [text[end:start], word]
        end = stop
    return Context("".join([*out, text[end:]]), context.placement)


def twin_of(context: Context | Mixture) -> Context | Mixture:
    """The placebo of a context; of a mixture one of each part, drawn in the very episodes in which that part is.

    Raises:
        ConfigError: a context is too short for one.
    """
    twins = tuple(placebo(part) for part in context.parts)
    for part, twin in zip(context.parts, twins, strict=True):
        if twin.id == part.id:
            raise ConfigError(f"context {part.id[:12]} is too short for a placebo: it has no two letters to exchange")
    return twins[0] if isinstance(context, Context) else dataclasses.replace(context, parts=twins, drawn_as=context.id)


def _pieces(text: str) -> list[tuple[str, int, int]]:
    """Every word and symbol with its start and end; what begins a line stays where it is."""
    found, start = [], 0
    for line in text.splitlines(keepends=True):
        before = _BEFORE.match(line)
        first = before.end() if before else 0
        found += [(m[0], start + m.start(), start + m.end()) for m in _PIECE.finditer(line, first)]
        start += len(line)
    return found


def _is_content(word: str) -> bool:
    return word.casefold() not in FUNCTION_WORDS


def _deranged(words: list[str], rng: random.Random) -> list[str]:
    """The words in an order in which as few as possible stand where the same word stood."""
    best, fewest = words, len(words) + 1
    for _ in range(_TRIES):
        order = words[:]
        rng.shuffle(order)
        stayed = sum(a.casefold() == b.casefold() for a, b in zip(order, words, strict=True))
        if stayed < fewest:
            best, fewest = order, stayed
        if not stayed:
            break
    return best


def _cased(word: str, place: str) -> str:
    """A word with the capital letter, or without, of the word in whose place it now stands."""
    if len(word) < 2 or not _MARK.sub("", word).isalpha() or word.isupper():
        return word  # a symbol: its case may be what it means
    return word[0].upper() + word[1:] if place[:1].isupper() else word[0].lower() + word[1:]


def _letters(word: str, rng: random.Random) -> str:
    """A word with its characters in another order."""
    characters = _WHOLE.findall(word)
    for _ in range(_TRIES):
        rng.shuffle(characters)
        if "".join(characters) != word:
            break
    return "".join(characters)
