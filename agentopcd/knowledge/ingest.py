"""Turn an extractor's reply into stored items: parse, sanitise, identify, flag, approve."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from agentopcd.core.types import Context, Episode
from agentopcd.knowledge.items import flags, identify, item_ids, parse, sanitise
from agentopcd.knowledge.store import Found, Store

UNDECIDED = (None, "add")
"""Last events after which an item may still be approved; a person's flag or retirement stands."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where an extractor's reply comes from."""

    run_id: int
    episode: Episode | None = None
    """The episode that the reply is about; the leak guard checks the episode's task."""
    episode_id: int | None = None
    """The episode's row, from :meth:`Store.add_episodes`."""
    shown: Context | None = None
    """The earlier items that the extractor was shown; a line equal to one of them is an echo."""
    first_line: int = 0
    """Number of the first item, for an episode with several replies."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ingested:
    """The items of one reply, as ids in the order of the reply."""

    ids: list[str]
    """Every distinct item that was not an echo, whatever its status."""
    accepted: list[str]
    """Those of ``ids`` that are active or pinned now: append these to a chain."""
    flagged: list[str]
    """Those of ``ids`` that carry a flag; they wait for a person."""
    echoes: list[str]
    """Items that the player or the extractor had been shown; recorded, but without support."""
    parsed: int
    """Marked pieces in the reply; 0 means that nothing could be parsed, which the run's result counts."""


def ingest(
    store: Store, reply: str, origin: Origin, *, special: Sequence[str] = (),
    count_tokens: Callable[[str], int] | None = None,
) -> Ingested:  # fmt: skip
    """Store the items of one reply with their origin. Repeating the call changes nothing.

    A new item without a flag becomes active; one with a flag waits for a person.

    Args:
        reply: what the extractor wrote.
        special: the tokenizer's special strings, broken up wherever they occur.
        count_tokens: item length for the ``over-long`` flag.
    """
    pieces = parse(reply)
    found = []
    for piece in pieces:
        text = sanitise(piece.text, special)
        if any(char.isalnum() for char in text):
            marks = flags(text, count_tokens=count_tokens)
            found.append(Found(text, piece.raw, origin.first_line + piece.line, marks))
    episode, shown = origin.episode, origin.shown
    with store.write():
        echoed = _shown_items(store, origin)
        store.add_items(
            origin.run_id, found, episode_id=origin.episode_id, env=episode.env if episode else None,
            task_key=episode.task.key if episode else None,
            shown_context_id=shown.id if shown and shown.text else None,
        )  # fmt: skip
        distinct = {identify(one.text): one for one in found}
        ids = [item_id for item_id in distinct if item_id not in echoed]
        for item_id in ids:
            if not distinct[item_id].flags:
                _approve(store, item_id)
        usable = {item.id for item in store.items(ids=ids) if item.status in ("active", "pinned")}
    return Ingested(
        ids=ids,
        accepted=[item_id for item_id in ids if item_id in usable],
        flagged=[item_id for item_id in ids if distinct[item_id].flags],
        echoes=[item_id for item_id in distinct if item_id in echoed],
        parsed=len(pieces),
    )


def _shown_items(store: Store, origin: Origin) -> set[str]:
    """Ids of all items that the extractor or the player could have copied."""
    ids: set[str] = set()
    if origin.shown is not None and origin.shown.text:
        store.add_context(origin.shown)
        ids.update(item_ids(origin.shown))
    if origin.episode is not None:
        ids.update(item.id for item in store.items(context_id=origin.episode.context_id))
    return ids


def _approve(store: Store, item_id: str) -> None:
    """Approve an item about which nobody has decided."""
    said = [event["event"] for event in store.events(item_id) if event["event"] not in ("note", "distinct")]
    if (said[-1] if said else None) in UNDECIDED:
        store.event(item_id, "approve", "gate:auto")
