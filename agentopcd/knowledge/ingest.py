"""From an extractor's reply to stored items: parse, sanitise, identify, flag, gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

from agentopcd.errors import ConfigError, did_you_mean
from agentopcd.knowledge.items import flags, identify, item_ids, parse, sanitise
from agentopcd.knowledge.store import Found, Store
from agentopcd.types import Context, Episode

Gate = Literal["auto", "review", "support>=2"]
GATES: tuple[Gate, ...] = ("auto", "review", "support>=2")

UNDECIDED = (None, "add")
"""Last events after which a gate may still approve; a person's flag or retirement stands."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ingested:
    """What one reply brought, as item ids in the order of the reply."""

    ids: list[str]
    """Every distinct item that was not an echo, whatever its status."""
    accepted: list[str]
    """Those of ``ids`` that are active or pinned now: append these to a chain."""
    flagged: list[str]
    """Those of ``ids`` that carry a flag; they wait for a person."""
    echoes: list[str]
    """Items that the player or the extractor had been shown; recorded, without support."""
    new: list[str]
    """Those of ``ids`` that the store had never seen."""
    parsed: int
    """Marked pieces in the reply; 0 is an empty parse, to be counted in the run's result."""

    @property
    def counts(self) -> dict[str, int]:
        """The numbers for ``run.result``."""
        return {
            "parsed": self.parsed, "empty": int(self.parsed == 0), "new": len(self.new),
            "accepted": len(self.accepted), "flagged": len(self.flagged), "echoes": len(self.echoes),
        }  # fmt: skip


def ingest(
    store: Store,
    reply: str,
    *,
    run_id: int,
    env: str,
    episode: Episode | None = None,
    episode_id: int | None = None,
    shown: Context | None = None,
    gate: Gate = "auto",
    special: Sequence[str] = (),
    count_tokens: Callable[[str], int] | None = None,
    first_line: int = 0,
    actor: str = "extract",
) -> Ingested:
    """Take in the items of one reply with their origin. Repeating the call changes nothing.

    Args:
        reply: what the extractor wrote.
        episode: the episode it was written about; its task is the origin that the leak guard checks.
        episode_id: the episode's row, from :meth:`Store.add_episodes`.
        shown: the earlier items the extractor could see; a line equal to one of them is an echo.
        gate: ``auto`` makes unflagged new items active, ``review`` leaves all pending, ``support>=2``
            waits until an unflagged item was found on two distinct tasks without being shown.
        special: the tokenizer's special strings, broken up wherever they occur.
        count_tokens: item length for the ``over-long`` flag.
        first_line: number of the first item, when one episode gives several replies.

    Raises:
        ConfigError: an unknown gate.
    """
    if gate not in GATES:
        raise ConfigError(f"unknown gate {gate!r}{did_you_mean(gate, GATES)}")
    pieces = parse(reply)
    found = []
    for piece in pieces:
        text = sanitise(piece.text, special)
        if any(char.isalnum() for char in text):
            marks = flags(text, count_tokens=count_tokens)
            found.append(Found(text, piece.raw, first_line + piece.line, marks))
    with store.write():
        echoed = _shown_items(store, episode, shown)
        known = {item.id for item in store.items(ids=[identify(one.text) for one in found])}
        store.add_items(
            run_id, found, episode_id=episode_id, env=env if episode else None,
            task_key=episode.task.key if episode else None,
            shown_context_id=shown.id if shown and shown.text else None, actor=actor,
        )  # fmt: skip
        distinct = {identify(one.text): one for one in found}
        ids = [item_id for item_id in distinct if item_id not in echoed]
        for item_id in ids:
            _gate(store, item_id, gate, distinct[item_id].flags)
        usable = {item.id for item in store.items(ids=ids) if item.status in ("active", "pinned")}
    return Ingested(
        ids=ids,
        accepted=[item_id for item_id in ids if item_id in usable],
        flagged=[item_id for item_id in ids if distinct[item_id].flags],
        echoes=[item_id for item_id in distinct if item_id in echoed],
        new=[item_id for item_id in ids if item_id not in known],
        parsed=len(pieces),
    )


def _shown_items(store: Store, episode: Episode | None, shown: Context | None) -> set[str]:
    """Ids of all items that the extractor or the player could have copied."""
    ids: set[str] = set()
    if shown is not None and shown.text:
        store.add_context(shown)
        ids.update(item_ids(shown))
    if episode is not None:
        ids.update(item.id for item in store.items(context_id=episode.context_id))
    return ids


def _gate(store: Store, item_id: str, gate: Gate, marks: Sequence[str]) -> None:
    """Approve an item nobody has decided about, if the gate lets it through."""
    said = [event["event"] for event in store.events(item_id) if event["event"] not in ("note", "distinct")]
    if marks or gate == "review" or (said[-1] if said else None) not in UNDECIDED:
        return
    if gate == "support>=2" and store.item(item_id).support < 2:
        return
    store.event(item_id, "approve", f"gate:{gate}")
