"""What makes an item suspect: signs that its text gives orders, hides something, or is no general rule.

A context is put into a prompt, and then into weights, so an item that a game or a web page has planted would stay. No
list of signs is complete. A flag does not say that an item is bad, and no flag does not say that it is good: a flagged
item waits for a person.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
import tomllib
import unicodedata
from collections.abc import Callable, Iterator
from importlib.resources import files

from agentopcd.core.text import split_lines
from agentopcd.knowledge.items import normalise, sanitise

MAX_ITEM_TOKENS = 120
"""Longer items are flagged; the paper's are about 50 to 60 tokens."""
MAX_ITEM_LENGTH = 5000
"""Characters after which an item is too long, whatever its tokens are."""
PIECE, OVERLAP = 1500, 300
"""Characters of the pieces in which signs are looked for, and of those that two pieces share; a sign is shorter."""

Family = tuple[str, re.Pattern[str]]


@functools.cache
def families() -> tuple[Family, ...]:
    """The families of ``poison.toml``: the name of each flag, and what shows it in any view of a text."""
    content = tomllib.loads((files("agentopcd.knowledge") / "poison.toml").read_text(encoding="utf-8"))
    words = {name: f"(?:{'|'.join(known)})" for name, known in content["words"].items()}

    def pattern(sign: str) -> str:
        one_line = _BREAK.sub("", sign)
        return f"(?:{_NAME.sub(lambda name: words[name[1]], one_line)})"

    return tuple((name, re.compile("|".join(map(pattern, signs)), re.I)) for name, signs in content["families"].items())


_BREAK = re.compile(r"\n {5}")
"""A sign may go on in the next line, indented by five blanks: they are not part of it."""
_NAME = re.compile(r"\{([a-z_]+)\}")

_MOVE = r"\[?\b(?:up|down|left|right|north|south|east|west)\b\]?"
_ROUTE = re.compile(
    rf"{_MOVE}(?:[\s,;>.→-]+(?:(?:and|then|go|move)\s+)*{_MOVE}){{2,}}"  # three moves in a row
    r"|(?-i:\b[UDLR](?:[\s,;>→-]+[UDLR]){2,}\b|\b[UDLR]{4,}\b)"
    r"|[(\[]\s*\d+\s*,\s*\d+\s*[)\]]|\brow\s+\d+\b.{0,12}\bcol(?:umn)?\s+\d+\b",
    re.I,
)

_LOOKS_LATIN = dict(
    zip("АВЕКМНОРСТХУІЈЅԌԛԝаеорсухіјѕһԁӏвкмнтгЗΑΒΕΖΗΙΚΜΝΟΡΤΥΧαεικνορτυχγωηѡ",
        "ABEKMHOPCTXYIJSGqwaeopcyxijshdlbkmhtr3ABEZHIKMNOPTYXaeikvoptuxywnw", strict=True),
    **dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢı", "abcdefghijklmnoprstuvwyzi", strict=True)),
)  # fmt: skip
"""Letters of other scripts, and small capitals, that look like a Latin one."""
_CYRILLIC_OR_INNER_GREEK = re.compile(
    r"[A-Za-z][\u0400-\u052f]|[\u0400-\u052f][A-Za-z]|[A-Za-z][ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαεικνορτυχ]+[A-Za-z]"
)
"""Scripts mixed inside a word. A Greek letter at the end of a word is mathematics: ``sinα``, ``2πr``."""
_PRESENTATION = re.compile("([\u0023-\u0039\u00a9\u00ae\u203c-\u3299\U0001f000-\U0001faff])[\ufe0e\ufe0f]")
"""A sign and the selector that makes an emoji of it: sanitising takes it out, and nothing was hidden in it."""
_SPELLED = re.compile(r"(?<![^\W_])(?:[^\W\d_][\s.\-_*]){3,}[^\W\d_](?![^\W_])")
"""A word letter by letter: ``i g n o r e``, ``i.g.n.o.r.e``."""
_DIGITS = str.maketrans("013457@$", "oieastas")
_RUN = re.compile(r"[A-Za-z0-9+/_-]{12,}={0,2}|(?:[0-9a-fA-F]{2}[ :]){12,}[0-9a-fA-F]{2}")


def flags(text: str, *, given: str | None = None, count_tokens: Callable[[str], int] | None = None) -> tuple[str, ...]:
    """Reasons for a person to review an item before it is used.

    Args:
        text: a sanitised item.
        given: the item before it was sanitised.
        count_tokens: length in tokens; by default four thirds of the word count.

    Returns:
        Names of :func:`families`; ``mixed-script`` (letters of two scripts that look alike in one word), ``unclean``
        (sanitising has changed more than spaces), ``route`` (moves or coordinates of one board) and ``over-long`` (more
        than :data:`MAX_ITEM_TOKENS` or :data:`MAX_ITEM_LENGTH`; items are never cut, but read for signs up to there).
    """
    found = _signs(text[:MAX_ITEM_LENGTH])
    if given is not None and normalise(_PRESENTATION.sub(r"\1", given)) != text:
        found.append("unclean")
    tokens = count_tokens(text) if count_tokens else len(text.split()) * 4 / 3
    if tokens > MAX_ITEM_TOKENS or len(text) > MAX_ITEM_LENGTH:
        found.append("over-long")
    return tuple(found)


def _signs(text: str) -> list[str]:
    views = [view for piece in _pieces(text) for view in dict.fromkeys(_views(piece))]
    found = [name for name, pattern in families() if any(pattern.search(view) for view in views)]
    if "encoded" not in found and _encoded(text):
        found.append("encoded")
    if _CYRILLIC_OR_INNER_GREEK.search(text):
        found.append("mixed-script")
    if _ROUTE.search(text):
        found.append("route")
    return found


def flags_of_free_text(text: str) -> tuple[str, ...]:
    """The flags of a text that is no list of items, as :func:`flags`. It may be as long as it likes."""
    clean = sanitise(text)
    found = dict.fromkeys(_signs(clean))
    if normalise(_PRESENTATION.sub(r"\1", text)) != clean:
        found["unclean"] = None
    for line in split_lines(text):  # a sign may stand at the beginning of a line
        found |= dict.fromkeys(_signs(sanitise(line)))
    return tuple(found)


def _pieces(text: str) -> Iterator[str]:
    """Overlapping pieces of a long text: some signs take the square of the length that they are looked for in."""
    for start in range(0, max(len(text) - OVERLAP, 1), PIECE - OVERLAP):
        yield text[start : start + PIECE]


def _views(text: str) -> Iterator[str]:
    """The text as written, and as somebody reads it who overlooks how its letters are dressed up."""
    yield text
    plain = unicodedata.normalize("NFKC", text)
    yield plain
    bare = "".join(char for char in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(char))
    latin = "".join(_LOOKS_LATIN.get(char, char) for char in bare)
    yield latin
    yield _SPELLED.sub(lambda word: re.sub(r"[\s.\-_*]", "", word[0]), latin)
    yield re.sub(r"\b\w*[a-zA-Z]\w*\b|[@$]\w+", lambda word: word[0].translate(_DIGITS), latin)
    yield latin[::-1]


def _encoded(text: str) -> bool:
    """Whether the text holds a run of base64 or of hexadecimal digits."""
    for run in _RUN.findall(text):
        kinds = [any(test(char) for char in run) for test in (str.islower, str.isupper, str.isdigit)]
        packed = re.sub(r"[ :]", "", run)
        if len(packed) >= 24 and re.fullmatch("[0-9a-fA-F]+", packed) and kinds[2] and (kinds[0] or kinds[1]):
            return True
        if len(run) >= 24 and (all(kinds) or (run.endswith("=") and kinds[0] and kinds[1])):
            return True
        if kinds[0] and not run[1:].islower() and _is_base64_of_text(run):
            return True
    return False


def _is_base64_of_text(run: str) -> bool:
    body = run.rstrip("=")[:400]
    body = body[: len(body) - len(body) % 4] or body
    try:
        data = base64.b64decode(body.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        return False
    return bool(data) and all(32 <= byte < 127 for byte in data)
