"""Turn an extractor's reply into stored items: parse, sanitise, identify, flag, and let through a gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from agentopcd.core.errors import ConfigError, did_you_mean
from agentopcd.core.types import Context, Episode
from agentopcd.knowledge.items import identify, item_ids, parse, sanitise
from agentopcd.knowledge.poison import flags
from agentopcd.knowledge.store import Found, Store

Gate = Literal["auto", "review", "support>=2"]
"""Which new items become active without a person's word: ``auto``, those without a flag; ``review``, none;
``support>=2``, those without a flag that were found unprompted on two tasks."""
WANTED_SUPPORT = 2

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
    count_tokens: Callable[[str], int] | None = None, gate: Gate = "auto",
) -> Ingested:  # fmt: skip
    """Store the items of one reply with their origin. Repeating the call changes nothing.

    An item with a flag waits for a person, and so does one that the gate does not let through.

    Args:
        reply: what the extractor wrote.
        special: the tokenizer's special strings, broken up wherever they occur.
        count_tokens: item length for the ``over-long`` flag.

    Raises:
        ConfigError: there is no such gate.
    """
    if gate not in get_args(Gate):
        raise ConfigError(f"unknown gate {gate!r}{did_you_mean(gate, get_args(Gate))}")
    pieces = parse(reply)
    found = []
    for piece in pieces:
        text = sanitise(piece.text, special)
        if any(char.isalnum() for char in text):
            marks = flags(text, given=piece.text, count_tokens=count_tokens)
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
        found_now = {}
        for item_id in ids:
            if gate != "auto":
                found_now[item_id] = store.support_until(item_id, origin.run_id, origin.episode_id)
            if not distinct[item_id].flags and (gate == "auto" or _enough(gate, found_now[item_id])):
                _approve(store, item_id, gate)
        usable = {item.id for item in store.items(ids=ids) if item.status in ("active", "pinned")}
        # A run that goes on after a kill reads its replies again. An item that a later one let through waits as before.
        usable -= {
            item_id for item_id in found_now if not _enough(gate, found_now[item_id]) and _by_gate(store, item_id)
        }
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


def _enough(gate: Gate, support: int) -> bool:
    return gate == "support>=2" and support >= WANTED_SUPPORT


def _decisions(store: Store, item_id: str) -> list[tuple[str, str]]:
    events = store.events(item_id)
    return [(event["event"], event["actor"]) for event in events if event["event"] not in ("note", "distinct")]


def _approve(store: Store, item_id: str, gate: Gate) -> None:
    """Approve an item about which nobody has decided."""
    said = [event for event, _ in _decisions(store, item_id)]
    if (said[-1] if said else None) in UNDECIDED:
        store.event(item_id, "approve", f"gate:{gate}")


def _by_gate(store: Store, item_id: str) -> bool:
    """Whether the gate of support let an item through, and no person."""
    return _decisions(store, item_id)[-1:] == [("approve", "gate:support>=2")]
