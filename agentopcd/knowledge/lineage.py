"""What a model has in its weights: its ancestors, the contexts that each of them was trained on, and their items."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agentopcd.core.text import MARKS, split_lines
from agentopcd.core.types import MARKER
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.items import Item, normalise
from agentopcd.knowledge.similar import ALIKE, kind_of
from agentopcd.knowledge.store import Store
from agentopcd.knowledge.students import lineage

_ENDS = re.compile(r"(?<=[.!?;])\s+")


class Generation(NamedTuple):
    """One model of a lineage, and what its training put into its weights."""

    model: Row
    contexts: Mapping[str, float]
    """Context id to its share of the training; empty for a base."""


class Carried(NamedTuple):
    """An item in the weights of a model, and how it came there first."""

    item: Item
    context_id: str
    model_id: str
    """The model that was trained on the context: the one that is looked at, or an ancestor."""
    parent_id: str
    """What it was trained from."""


def generations(store: Store, model_id: str) -> list[Generation]:
    """A model with its ancestors, the oldest first and the model itself last."""
    rows = [store.lookup("model", id=id_) for id_ in lineage(store, model_id)[::-1]]
    return [Generation(row, store.model_contexts(row["id"])) for row in rows if row is not None]


def taught(store: Store, one: Generation) -> list[Carried]:
    """The items that the training of one model put into its weights, each once, the largest context's first."""
    found: dict[str, Carried] = {}
    for context_id in sorted(one.contexts, key=lambda id_: (-one.contexts[id_], id_)):
        for item in store.items(context_id=context_id):
            found.setdefault(item.id, Carried(item, context_id, one.model["id"], one.model["parent_id"]))
    return list(found.values())


def carried(store: Store, model_id: str) -> list[Carried]:
    """The items in the weights of a model, each once, as it came in first; the oldest generation's first."""
    found: dict[str, Carried] = {}
    for one in generations(store, model_id):
        for entry in taught(store, one):
            found.setdefault(entry.item.id, entry)
    return list(found.values())


def taught_beside(store: Store, model_id: str, item_id: str) -> Carried | None:
    """How an item that a model does not carry came into a relative of it, the newest one: a model that was trained from
    the model's ancestor, or from the model itself. None if there is no such relative."""
    line = [one.model["id"] for one in generations(store, model_id)]
    for row in store.models():
        if row["parent_id"] in line:
            for entry in taught(store, Generation(row, store.model_contexts(row["id"]))):
                if entry.item.id == item_id:
                    return entry
    return None


def passages(store: Store, context_id: str, items: Sequence[Item]) -> list[str]:
    """What a context says of ``items`` outside of lines that are items: passages that hold their words or nearly say
    them. No line can be left out for these."""
    lines = [line for line in split_lines(store.get_context(context_id).text) if not line.startswith(MARKER)]
    pieces = [piece for line in lines for piece in dict.fromkeys([line, *_ENDS.split(line)]) if piece.strip()]
    found = [piece for piece in pieces if any(_repeats(piece, item.text) for item in items)]
    return [piece for piece in found if not any(other != piece and other in piece for other in found)]


def repeats(store: Store, items: Sequence[Item], among: Sequence[Item]) -> list[tuple[Item, Item]]:
    """Pairs of one of ``items`` and another of ``among`` that seems to say the same, unless somebody has called the two
    distinct. One that has taken the other's place says the same."""
    everything = [*items, *among]
    replaced = {frozenset(pair) for pair in store.successors([item.id for item in everything]).items()}
    distinct, own = store.decided_pairs() - replaced, {item.id for item in items}
    return [
        (item, other) for item in items for other in {other.id: other for other in among}.values()
        if other.id not in own and frozenset((item.id, other.id)) not in distinct and _repeats(other.text, item.text)
    ]  # fmt: skip


def _repeats(text: str, wanted: str) -> bool:
    """Whether a text holds all words of another in a row, or says nearly the same, and does not turn it around."""
    from rapidfuzz import fuzz

    words, other = (" ".join(re.findall(rf"\w[\w{MARKS}]*", normalise(one).casefold())) for one in (wanted, text))
    if words and f" {words} " in f" {other} ":
        return True
    return fuzz.token_sort_ratio(other, words) >= ALIKE and kind_of(text, wanted) == "dup?"
