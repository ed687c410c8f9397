r"""When two answers are the same: their decorations come off, then strings, numbers, words and letters are compared.

A decoration is what a writer puts around an answer without changing it: ``$34$``, ``\(34\)``, ``**34**``, ``1{,}000``,
``50\%``, a final dot, a dash for a minus. What stands *between* two digits is no decoration: ``2*3`` and ``2 3`` are
not 23.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"))
"""Hyphens, the figure dash, the en dash and minus signs; an em dash is punctuation."""

_WRAPPED = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|it|sf|tt)|boldsymbol|bm|mbox|emph|underline|f?box|boxed)\s*\{([^{}]*)\}"
)
_SPACING = re.compile(r"\\(?:[,;:! ]|q?quad(?![A-Za-z]))")
_REMOVED = re.compile(
    r"\\left|\\right|\\displaystyle(?![A-Za-z])|\\[()\[\]]|\\\$|`|\^\{?\\circ(?![A-Za-z])\}?|\\degree|°"
)
_GROUPS = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:[\s~][0-9]{3})+(?![0-9])")
"""Digits in groups of three with spaces between them."""
_BETWEEN = re.compile(r"(?<=[0-9])[\s$*~]+(?=[0-9])")
_AROUND = re.compile(r"[\s$*~]")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_BRACKETS = re.compile(r"[(\[\])]|\\?[{}]")
"""What lists and coordinates stand in, where a comma parts numbers, and the braces of LaTeX's commands."""
_BEFORE_A_SET = ("", *"([{,;:=")
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""Letters, digits and signs as wide as Chinese ones, and the plain ones that they stand for."""
_QUOTED = re.compile(r"\"(.*)\"|'(.*)'|“(.*)”|‘(.*)’", re.DOTALL)

_DIGITS = r"[0-9]{1,30}"
_DECIMAL = re.compile(rf"[+-]?(?:{_DIGITS}(?:\.[0-9]{{0,30}})?|\.{_DIGITS})")
_RATIO = re.compile(rf"([+-]?{_DIGITS})/({_DIGITS})")
_FRAC = re.compile(rf"([+-]?)\\frac(?:\{{([+-]?{_DIGITS})\}}|([0-9]))(?:\{{({_DIGITS})\}}|([0-9]))")

_WORDS = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_LETTER = re.compile(
    r"(?:(?:option|choice|answer)\s+)?[(\[]?([A-Za-z])(?:[)\]]?\s*[.):\]]|\s+[-–—](?=\s)|\s*$)(.*)", re.I | re.S
)
"""A choice by its letter, with its text or without: ``A``, ``(A)``, ``A. Aspirin``, ``B) Ibuprofen``, ``Option C``."""
_SECOND = re.compile(r"(?:and|or|&|,|/)\s*[(\[]?[A-Z]\b|[(\[]?[A-Z][)\].]?$", re.I)
"""What follows the letter in a reply that names two of them."""


def normalise(text: str) -> str:
    r"""Return the answer without decoration, such as ``$``, ``*``, ``\(\)``, spaces, ``\text{}`` and the final dot."""
    text = unicodedata.normalize("NFC", text.translate(DASHES).translate(_WIDE))
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\cfrac", "\\frac")
    text = text.replace("\\%", "%").replace("{,}", ",")
    text = _REMOVED.sub("", _SPACING.sub(" ", _WRAPPED.sub(r"\1", text)))
    text = _GROUPS.sub(lambda found: re.sub(r"[\s~]", "", found[0]), text)
    text = _BETWEEN.sub(lambda found: "×" if "*" in found[0] else "␣", text)
    text = _AROUND.sub("", text)
    text = _without_stop(text)
    if quoted := _QUOTED.fullmatch(text):
        text = _without_stop(next(inside for inside in quoted.groups() if inside is not None))
    return _without_thousands(text)


def _without_thousands(text: str) -> str:
    """Return the text without the commas of thousands; between brackets, they part the numbers of a list."""
    parts: list[str] = []
    opened: list[bool] = []
    lists, begun = 0, 0
    for bracket in _BRACKETS.finditer(text):
        part = text[begun : bracket.start()]
        parts += [part if lists else _THOUSANDS.sub("", part), bracket[0]]
        if bracket[0][-1] in "([{":
            of_command = bracket[0] == "{" and text[max(bracket.start() - 1, 0) : bracket.start()] not in _BEFORE_A_SET
            opened.append(not of_command)
            lists += opened[-1]
        elif opened:
            lists -= opened.pop()
        begun = bracket.end()
    return "".join((*parts, text[begun:] if lists else _THOUSANDS.sub("", text[begun:])))


def bare(text: str) -> str:
    r"""Return the answer without what stands around all of it, such as ``$``, ``**`` or ``\(\)``; its inside stays."""
    before, text = None, _without_stop(text.strip())
    while before != text:
        before, text = text, text.strip().strip("*`$").strip()
        for opening, closing in (("\\(", "\\)"), ("\\[", "\\]")):
            if text.startswith(opening) and text.endswith(closing):
                text = text[2:-2]
        if wrapped := _WRAPPED.fullmatch(text):
            text = wrapped[1]
    return _without_stop(text)


def _without_stop(text: str) -> str:
    return text[:-1] if text.endswith((".", ",", ";", "。")) else text


def as_number(text: str) -> Fraction | None:
    """Return the number a normalised answer stands for, ``None`` if it is not one in plain digits."""
    if _DECIMAL.fullmatch(text):
        return Fraction(text)
    if ratio := _RATIO.fullmatch(text):
        return _fraction(ratio.group(1), ratio.group(2))
    if frac := _FRAC.fullmatch(text):
        sign, top, top_digit, bottom, bottom_digit = frac.groups()
        value = _fraction(top or top_digit, bottom or bottom_digit)
        return -value if value is not None and sign == "-" else value
    return None


def _fraction(top: str, bottom: str) -> Fraction | None:
    return Fraction(int(top), int(bottom)) if int(bottom) else None


def same(answer: str, gold: str) -> bool:
    """Return whether two answers are the same string, number, word such as yes, or letter of a choice."""
    given, wanted = normalise(answer), normalise(gold)
    if given == wanted:
        return bool(wanted)
    if given.endswith("%") and wanted.endswith("%"):
        given, wanted = given[:-1], wanted[:-1]
    left, right = as_number(given), as_number(wanted)
    if left is not None and right is not None:
        return left == right
    return _same_word(given, wanted) or _same_letter(answer, gold)


def same_choice(answer: str, gold: str) -> bool:
    """Return whether an answer is the letter or the word of a choice, whatever the case."""
    given, wanted = normalise(answer).strip("()[]").casefold(), normalise(gold).strip("()[]").casefold()
    return bool(wanted) and (
        given == wanted or _same_word(given, wanted) or _same_letter(_capital(answer), _capital(gold))
    )


def _same_word(given: str, wanted: str) -> bool:
    word = _WORDS.get(wanted.casefold())
    return word is not None and _WORDS.get(given.casefold().rstrip("!")) == word


def _same_letter(answer: str, gold: str) -> bool:
    """Return whether both name one choice by its capital letter; where both give its text, too, that must agree."""
    wanted = _letter(gold)
    if wanted is None:
        return False
    given = _letter(answer)
    if given is None:  # the text of the choice alone
        return bool(wanted[1]) and normalise(answer).casefold() == wanted[1]
    return given[0] == wanted[0] and (not given[1] or not wanted[1] or given[1] == wanted[1])


def _letter(text: str) -> tuple[str, str] | None:
    """Return the capital letter of a choice and its text, normalised; ``None`` if the text names none or two."""
    plain = _REMOVED.sub("", _WRAPPED.sub(r"\1", text)).replace("*", "").replace("$", "").strip()
    found = _LETTER.fullmatch(plain)
    if found is None or not found[1].isupper() or _SECOND.match(rest := found[2].strip()):
        return None
    return found[1], normalise(rest).casefold()


def _capital(text: str) -> str:
    """Return a choice with a capital letter, where it begins with a letter that stands alone."""
    return re.sub(r"(?<![A-Za-z])[a-z](?![A-Za-z'’])", lambda found: found[0].upper(), text, count=1)
