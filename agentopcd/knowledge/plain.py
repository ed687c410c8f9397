"""Contexts as plain text files, for people: one marker line for each item, or free text."""

from __future__ import annotations

from typing import NamedTuple

from agentopcd.core.errors import ConfigError
from agentopcd.core.types import MARKER, Context, Placement
from agentopcd.knowledge.assemble import render
from agentopcd.knowledge.exchange import IMPORTED
from agentopcd.knowledge.items import flags, parse, sanitise
from agentopcd.knowledge.store import Found, Store


class TextImport(NamedTuple):
    """Result of a text import."""

    context_id: str
    items: int
    """Marked items; 0 for free text."""
    changed: bool
    """True if sanitising changed the text, so that an export will not be byte-equal to the file."""


def export_text(store: Store, context_id: str) -> str:
    """The context exactly as a model sees it: one marker line per item."""
    return store.get_context(context_id).text


def import_text(
    store: Store, text: str, *, run_id: int, placement: Placement = "user", ref: str | None = None
) -> TextImport:
    """Import a text file as a context. Its items are pending and of unknown origin.

    A text with a marker is a list of items, one per marker line. A text without a marker is free text: a
    context without items, kept byte for byte.

    Args:
        ref: a new ref that will point at the context; it must not exist yet.

    Raises:
        ConfigError: the text is empty, or its marker lines hold no item.
        StoreError: the ref exists.
    """
    if not text.strip():
        raise ConfigError("the file is empty; the empty context is named 'empty'")
    found = [Found(sanitise(piece.text), piece.raw, piece.line) for piece in parse(text)]
    marked = MARKER in text
    if marked and not found:
        raise ConfigError(f"no item in the file: its {MARKER!r} lines are empty")
    context = Context(render([item.text for item in found]) if marked else text, placement)
    with store.write():
        if marked:
            found = [item._replace(flags=("imported", *flags(item.text))) for item in found]
            store.add_items(run_id, found, actor=IMPORTED)
        store.add_context(context, {"order": "file"})
        if ref is not None:
            store.move(ref, context.id, IMPORTED, "imported from text", run_id, expect=None)
    as_given = text.rstrip("\n") if marked else text  # a trailing newline is not an item
    return TextImport(context.id, len(found) if marked else 0, context.text != as_given)
