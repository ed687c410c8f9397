"""What a person decides about items: approve, pin, retire; and which text of a context still waits for that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from agentopcd.core.errors import ConfigError
from agentopcd.core.text import split_lines
from agentopcd.core.types import MARKER, Context
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.items import Item, identify, item_texts
from agentopcd.knowledge.poison import flags_of_free_text
from agentopcd.knowledge.store import Store

Decision = Literal["approve", "pin", "retire"]
BECOMES: dict[Decision, str] = {"approve": "active", "pin": "pinned", "retire": "retired"}
"""The status of an item after each decision."""
PERSON = "person"
"""Actor of what somebody typed."""


class Target(NamedTuple):
    """An item that a decision is about."""

    item: Item
    """As it is before the decision."""
    flags: list[str]


def targets(store: Store, decision: Decision, names: Iterable[str]) -> list[Target]:
    """The items that are meant: each once, in the order of the names.

    Args:
        names: ids of items; to approve or to pin, also ids and refs of contexts, which stand for their pending items.

    Raises:
        StoreError: nothing, or more than one thing, has such a name.
        ConfigError: a context has no item, or is named to be retired.
    """
    found: dict[str, Item] = {}
    for name in names:
        kind, id_ = store.find(name)
        items = [store.item(id_)] if kind == "item" else _waiting(store, decision, name, id_)
        found |= {item.id: item for item in items}
    known = store.flags(found)
    return [Target(item, known.get(item.id, [])) for item in found.values()]


def _waiting(store: Store, decision: Decision, name: str, context_id: str) -> list[Item]:
    items = store.items(context_id=context_id)
    if decision == "retire":
        raise ConfigError(
            f"{name!r} is a context of {len(items)} items; name the items to retire (agentopcd knowledge show {name} "
            f"lists them), or take lines out of the context with agentopcd knowledge edit REF"
        )
    if not items:
        marks = ", ".join(waiting_flags(store, context_id)) or "none"
        raise ConfigError(
            f"context {name!r} is free text without items (its flags: {marks}), so there is nothing to {decision}; to "
            "train on it, write it to a file (agentopcd knowledge export) and name that file with --context"
        )
    return [item for item in items if item.status == "pending"]


NO_ITEM = "a line that is none of its items"
"""The flag of a context with a line that reads like an item and is not among those that a person is asked about."""


def decide(store: Store, decision: Decision, targets: Iterable[Target], reason: str | None = None) -> list[Item]:
    """Record the decision in one transaction, for every item that has another status; return these as they are now."""
    with store.write():
        changed = [item.id for item, _ in targets if store.item(item.id).status != BECOMES[decision]]
        for item_id in changed:
            store.event(item_id, decision, PERSON, reason)
        return [store.item(item_id) for item_id in changed]


def back(before: Item, decision: Decision) -> Decision | None:
    """The decision that takes another one back. None: nothing does, since no decision makes an item wait again.

    An item that waited and was let in is taken out by ``retire``.
    """
    for known, status in BECOMES.items():
        if status == before.status:
            return known
    return None if decision == "retire" else "retire"


def waiting_flags(store: Store, context_id: str) -> tuple[str, ...]:
    """The flags of what an imported context says besides its items, or as free text: nobody has looked at that.

    A text that a person has named as a file, edited or written here has none: that is a person's word.
    """
    row = store.context_row(context_id)
    made = read_object(row["recipe"], f"the recipe of context {context_id[:12]}")
    if not (row["imported"] or made == {"order": "file"}):  # the recipe of what version 0.1 imported from text
        return ()
    rest = [line for line in split_lines(row["rendered"]) if not line.startswith(MARKER)]
    items = {item.id for item in store.items(context_id=context_id)}
    hidden = [text for text in item_texts(Context(row["rendered"])) if identify(text) not in items]
    return (*((NO_ITEM,) if hidden else ()), *flags_of_free_text("\n".join([*rest, *hidden])))
