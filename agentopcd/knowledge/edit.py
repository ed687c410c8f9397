"""A context as a text to edit: one item a line, its id behind it. What is saved is what the context becomes."""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

from agentopcd.core.errors import ConfigError, StoreError, did_you_mean
from agentopcd.core.text import split_lines
from agentopcd.core.types import Context
from agentopcd.knowledge.assemble import render
from agentopcd.knowledge.decide import PERSON
from agentopcd.knowledge.items import Item, identify, item_ids, normalise, sanitise
from agentopcd.knowledge.poison import flags
from agentopcd.knowledge.store import Found, Store

NOTE = "#| "
"""Begins the lines that explain the file. An item may begin with ``#``: in a maze that is a wall."""
DIGITS = 12
USED = ("active", "pinned")
"""Status of items that are in use."""
_ID = re.compile(r"\s+#\s?([0-9a-f]{12,64})\s*$")

_HEAD = """\
#| {ref}, context {id}: one item a line, its id behind it.
#| A changed line becomes a new item that takes the place of the old one. A line that is taken out leaves the context.
#| A new line, without an id, is a new item. Lines that begin with "#| " are left out.
"""


class Line(NamedTuple):
    """One line of the saved file."""

    text: str
    """The item, sanitised."""
    flags: tuple[str, ...]
    old: str | None
    """Id of the item that stood there before; None: the line is new."""


class Edited(NamedTuple):
    """What an edit has done."""

    context_id: str
    added: list[Item]
    superseded: list[tuple[Item, Item]]
    """Old item, as it was before, and new item."""
    removed: list[Item]
    """Items that have left the context and keep their status."""
    approved: list[Item]
    """Items that the store had, as they were before: pending or retired. They are active now."""


def to_edit(store: Store, ref: str) -> tuple[str, str]:
    """The id of the context behind a ref, and its text to edit: items line by line, or free text as it is.

    Raises:
        StoreError: there is no such ref. A context without a ref has nothing that could be moved.
    """
    context_id = store.ref(ref)
    if context_id is None:
        raise StoreError(
            f"no ref {ref!r}, and an edit moves one{did_you_mean(ref, store.refs())}; "
            "agentopcd knowledge move REF CONTEXT gives a context a name"
        )
    context, items = _parts(store, context_id)
    if not items:
        return context_id, context.text
    lines = [f"{item.text}  # {item.id[:DIGITS]}\n" for item in items]
    return context_id, _HEAD.format(ref=ref, id=context_id[:DIGITS]) + "".join(lines)


def _parts(store: Store, context_id: str) -> tuple[Context, list[Item]]:
    """A context and the items that are edited line by line: none if it says anything else, which would get lost."""
    context, items = store.get_context(context_id), store.items(context_id=context_id)
    if render([item.text for item in items]) != context.text.rstrip("\n"):
        return context, []
    return context, list({item.id: item for item in items}.values())  # an imported list may say a thing twice


def read_edit(text: str, items: list[Item]) -> list[Line]:
    """The lines of a saved file.

    Args:
        items: the items of the context before.

    Raises:
        ConfigError: a line ends in an id that the context does not have, or that another line has, or holds no word.
    """
    known = {item.id[:DIGITS]: item.id for item in items}
    lines: list[Line] = []
    for number, line in enumerate(split_lines(text), 1):
        mark = _ID.search(line)
        if not line.strip() or (mark is None and f"{line.rstrip()} ".startswith(NOTE)):
            continue
        old = known.get(mark[1][:DIGITS]) if mark else None
        if mark and (old is None or old in [one.old for one in lines]):
            why = "is not an item of this context" if old is None else "stands at another line as well"
            raise ConfigError(f"line {number} ends in # {mark[1]}, which {why}; a new line has no id")
        given = line[: mark.start()] if mark else line
        if old is not None and normalise(given) == next(item.text for item in items if item.id == old):
            lines.append(Line(normalise(given), (), old))  # as it was, even if it would not pass as a new one
            continue
        clean = sanitise(given)
        if not any(char.isalnum() for char in clean):
            raise ConfigError(f"line {number} holds no word: {line!r:.60}; take it out, or write a rule")
        lines.append(Line(clean, flags(clean, given=given), old))
    return lines


def apply_edit(store: Store, ref: str, before: str, text: str, reason: str | None = None) -> Edited | None:
    """Make the saved text the context behind ``ref``, in one transaction; None if that is what it was.

    Args:
        before: id of the context that was edited; the ref must still be there.

    Raises:
        ConfigError: the text is empty, or :func:`read_edit` refuses it.
        StoreError: the ref was moved in the meantime.
    """
    if not text.strip():
        raise ConfigError(
            f"the file is empty, so nothing was changed; agentopcd knowledge move {shlex.quote(ref)} empty "
            "empties the ref"
        )
    old, items = _parts(store, before)
    if not (items or old.text.endswith("\n")):
        text = text.removesuffix("\n")  # many editors end the last line
    lines = read_edit(text, items) if items else []
    if items and not lines:
        raise ConfigError(
            f"no item is left, so nothing was changed; agentopcd knowledge move {shlex.quote(ref)} empty "
            "empties the ref"
        )
    shown = list(dict.fromkeys(line.text for line in lines))
    context = Context(render(shown) if items else text, old.placement)
    if context.id == old.id or (items and shown == [item.text for item in items]):
        return None
    with store.write():
        run_id = store.start("edit", {"ref": ref, "from": before}, 0)
        before_it = store.items(ids=item_ids(context))
        added, superseded = _store(store, run_id, lines, reason)
        store.add_context(context, {"order": "edit", "from": before})
        for item in store.items(context_id=context.id):  # free text may have got marker lines
            if item.status == "pending" and item.id not in item_ids(old):
                store.event(item.id, "approve", PERSON, reason)
        store.move(ref, context.id, PERSON, reason or "edited", run_id, expect=before)
        store.finish(run_id, {"context": context.id})
        unused = [item for item in before_it if item.status not in USED]
        approved = [item for item in unused if store.item(item.id).status in USED]
    kept = {line.old for line in lines} | {identify(line.text) for line in lines}
    return Edited(context.id, added, superseded, [item for item in items if item.id not in kept], approved)


def _store(
    store: Store, run_id: int, lines: list[Line], reason: str | None
) -> tuple[list[Item], list[tuple[Item, Item]]]:
    """Store new and changed lines as items by a person; return the new ones, and what took whose place.

    An item whose text stands in another line now, as when two are exchanged, stays as it is.
    """
    added, superseded = [], []
    standing, known = {identify(line.text) for line in lines}, {line.old for line in lines}
    for number, line in enumerate(lines):
        item_id = identify(line.text)
        if item_id == line.old:
            continue
        store.add_items(run_id, [Found(line.text, line=number, flags=line.flags)], actor=PERSON)
        pinned = line.old is not None and line.old not in standing and store.item(line.old).status == "pinned"
        if pinned and store.item(item_id).status != "pinned":
            store.event(item_id, "pin", PERSON, reason)  # what is corrected keeps its place
        elif store.item(item_id).status not in USED:
            store.event(item_id, "approve", PERSON, reason)
        if line.old is None or line.old in standing:
            added += [store.item(item_id)] if item_id not in known else []
        else:
            before = store.item(line.old)
            store.event(line.old, "supersede", PERSON, reason, other=item_id)
            superseded.append((before, store.item(item_id)))
    return added, superseded
