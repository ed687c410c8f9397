"""Odd values, odd texts, and small damage to bytes and to JSON."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

ODD_TEXTS = (
    "", " ", "\n", "\t", "\0", "\ud800", "²", "١٢", "−5", "\u2028", "\x0c", "\x1b[31mred\x1b[0m", "\u202eabc", "\ufeff",
    "é", "e\u0301", "𝟙", "ﬁ", "🙂", "\r", "a\r\nb", "NaN", "inf", "None", "true", "null", "1e999", "-", "--", "..", ".",
    "/", "~", "%s", "{}", "{0}", "$x", "`", "'", '"', "\\", "<s>", "<|im_end|>", "[", "]", "[/]", "[red]", "a" * 5000,
    "9" * 5000, "[" * 3000, "*" * 3000, "\\boxed{" * 500, "x\n" * 500, ";", ",", "=", "#", "- EXPERIENCE ITEM:",
)  # fmt: skip

ODD_NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 0.0, -0.0, 0.5, -0.5, 1e-320, 1e308, 1e-9,
    float("nan"), float("inf"), float("-inf"), True, False,
)  # fmt: skip

WORDS = (
    "left",
    "right",
    "seven",
    "yes",
    "no",
    "the box",
    "Answer: 7",
    "Ünïcode",
    "a b",
    "x=1",
    "10²",
    "A",
    "7",
    "1,000",
)


def odd_text(rng: random.Random) -> str:
    """A text that programs stumble over, alone or beside an ordinary word."""
    odd = rng.choice(ODD_TEXTS)
    return rng.choice((odd, f"{rng.choice(WORDS)}{odd}", f"{odd}{rng.choice(WORDS)}", f"a{odd}b"))


def some_text(rng: random.Random) -> str:
    """Mostly ordinary words, sometimes something odd among them."""
    words = [rng.choice(WORDS) for _ in range(rng.randint(1, 5))]
    if rng.random() < 0.3:
        words.insert(rng.randrange(len(words) + 1), odd_text(rng))
    return " ".join(words)


def odd_value(rng: random.Random, depth: int = 2) -> Any:
    """Any JSON value, NaN and infinity included."""
    draw = rng.random()
    if draw < 0.4:
        return odd_text(rng)
    if draw < 0.65:
        return rng.choice(ODD_NUMBERS)
    if draw < 0.75 or depth == 0:
        return None
    if draw < 0.88:
        return [odd_value(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return {odd_text(rng)[:20]: odd_value(rng, depth - 1) for _ in range(rng.randint(0, 2))}


# -- JSON ----------------------------------------------------------------------------------------------


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every ``(container, key)`` inside a JSON value."""
    found: list[tuple[Any, Any]] = []
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inside = [(value, key) for key in value]
    elif isinstance(value, list):
        inside = [(value, index) for index in range(len(value))]
    for container, key in inside:
        found += [(container, key), *places(container[key])]
    return found


def damage_json(rng: random.Random, value: Any, known: Sequence[str] = ()) -> tuple[Any, str]:
    """A copy with one change, and the change in words.

    Args:
        known: names that a key may be changed to.
    """
    value = copy.deepcopy(value)
    spots = places(value)
    if not spots:
        return odd_value(rng), "another value"
    container, key = rng.choice(spots)
    how = rng.choice(("replace", "replace", "remove", "rename", "add", "wrap", "text", "swap", "nudge"))
    if how == "remove":
        del container[key]
    elif how == "rename" and isinstance(container, dict):
        other = rng.choice(known) if known and rng.random() < 0.7 else odd_text(rng)[:30]
        container[other] = container.pop(key)
    elif how == "add" and isinstance(container, dict):
        container[rng.choice(known) if known and rng.random() < 0.7 else odd_text(rng)[:30]] = odd_value(rng)
    elif how == "add":
        container.insert(rng.randrange(len(container) + 1), odd_value(rng))
    elif how == "wrap":
        container[key] = rng.choice(([container[key]], {"value": container[key]}, [container[key], container[key]]))
    elif how == "text":
        container[key] = str(container[key])
    elif how == "swap":
        other_container, other = rng.choice(spots)
        container[key] = copy.deepcopy(other_container[other])
    elif how == "nudge" and isinstance(container[key], int | float) and not isinstance(container[key], bool):
        container[key] += rng.choice((-1, 1, 0.5))
    else:
        how, container[key] = "replace", odd_value(rng)
    return value, f"{how} {key!r:.40}"


# -- bytes ---------------------------------------------------------------------------------------------


def damage_bytes(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """The bytes with one change of the kind that disks, editors and transfers make, and the change in words."""
    how = rng.choice(tuple(BYTES))
    return BYTES[how](rng, data), how


def _cut(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 3, 30, 300)))


def _flip(rng: random.Random, data: bytes) -> bytes:
    if not data:
        return b"\x01"
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _without(rng: random.Random, data: bytes) -> bytes:
    start, end = _cut(rng, data)
    return data[:start] + data[end:]


def _zeros(rng: random.Random, data: bytes) -> bytes:
    start, end = _cut(rng, data)
    return data[:start] + bytes(end - start) + data[end:]


def _twice(rng: random.Random, data: bytes) -> bytes:
    start, end = _cut(rng, data)
    return data[:end] + data[start:]


def _noise(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 8, 64))) + data[at:]


def _recoded(rng: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(rng.choice(("utf-16", "utf-16-le", "latin-1", "utf-8-sig", "cp1252", "utf-32")), "replace")


def _line_ends(rng: random.Random, data: bytes) -> bytes:
    return data.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n", "\u2028".encode())))


DEEP = b"\n" + b'{"a":' * 20_000
"""Deeper than Python's readers go."""

BYTES = {
    "flip": _flip,
    "cut short": lambda rng, data: data[: rng.randrange(len(data) + 1)],
    "empty": lambda rng, data: b"",
    "without a piece": _without,
    "zeros": _zeros,
    "a piece twice": _twice,
    "noise": _noise,
    "another encoding": _recoded,
    "other line ends": _line_ends,
    "more behind": lambda rng, data: data + rng.choice((b"\0", b"}", b"garbage\n", rng.randbytes(40), DEEP)),
}
