"""The parts of an observation, the views that hide or replace parts, and the keys of tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from agentopcd.core.errors import EnvError, did_you_mean
from agentopcd.core.types import PART_KINDS, Part

View = Mapping[str, str | None]
"""Part kind → the text shown in its place, or ``None`` to leave it out. ``{}`` shows everything."""


def parts_of(obs: str, info: Mapping[str, Any]) -> list[Part]:
    """Return the observation's parts: ``info["parts"]``, or the whole text as one ``state`` part.

    Raises:
        EnvError: ``info["parts"]`` is not a list of ``(kind, text)`` with known kinds.
    """
    if info.get("parts") is None:
        return [("state", str(obs))] if obs else []
    return [_part(entry) for entry in info["parts"]]


def _part(entry: Any) -> Part:
    try:
        kind, text = entry
    except (TypeError, ValueError):
        raise EnvError(f"info['parts'] must hold (kind, text) pairs, got {entry!r}") from None
    if kind not in PART_KINDS:
        raise EnvError(f"unknown part kind {kind!r}{did_you_mean(str(kind), PART_KINDS)}")
    return (kind, str(text))


def join_parts(parts: Iterable[Part]) -> str:
    """Return the text of an observation: its parts, joined by blank lines."""
    return "\n\n".join(text for _, text in parts if text)


def apply_view(parts: Iterable[Part], view: View) -> list[Part]:
    """Return the parts as seen through a view.

    A replaced kind appears once, at its first position. An absent kind is never added.
    """
    seen: list[Part] = []
    replaced: set[str] = set()
    for kind, text in parts:
        if kind not in view:
            seen.append((kind, text))
            continue
        replacement = view[kind]
        if replacement and kind not in replaced:
            seen.append((kind, replacement))
        replaced.add(kind)
    return seen


def task_key(obs: str, info: Mapping[str, Any]) -> str:
    """Return the key of a start state, from what ``reset`` returned.

    The key is ``info["task_key"]`` if given, else a hash of the ``state`` parts, so that neither views nor
    the wording of the rules change it. Without a ``state`` part, the whole text is hashed.
    """
    if info.get("task_key") is not None:
        return str(info["task_key"])
    state = join_parts(part for part in parts_of(obs, info) if part[0] == "state")
    return hash_text(state or str(obs))


def hash_text(text: str) -> str:
    """Return 16 hexadecimal digits (blake2b, 64 bits) of the text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def hash_prompt(text: str) -> str:
    """Return :func:`hash_text` of the text with white space and letter case normalised."""
    return hash_text(" ".join(text.split()).casefold())
