"""What audits ask for and what they have found, as it is stored and said; loads no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

from agentopcd.core.errors import ConfigError
from agentopcd.core.stats import Mean
from agentopcd.core.text import SHORT
from agentopcd.core.types import MARKER
from agentopcd.knowledge import Store
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.items import escaped
from agentopcd.knowledge.lineage import Carried, carried, generations, taught_beside

AUDIT = "audit"
"""The verb of the runs that audits are stored as."""
TURNS = 128
"""Stored turns that an audit reads for each context if no number is given."""
CUT = 80
"""Characters of an item that are shown."""
HALF = 0.5
"""An item is not shown if, with confidence, less than this share of it is."""
INERT = 0.01
"""An item is inert if, with confidence, it moves the teacher by less than this share of what its context does."""
NO_LINES = (
    "what was trained on is plain text, which has no lines to ask for; a prompt becomes items where its lines begin "
    f"with {MARKER!r}, agentopcd knowledge import FILE reads it, and a student is trained on that context"
)
"""Why there is nothing to ask a student for, and what to do."""


def to_audit(store: Store, student: Row, others: Collection[str] = ()) -> list[Carried]:
    """The items to ask a student for, each with the training that it went in by.

    Raises:
        ConfigError: there are none, or one of ``others`` has never met a model that the student comes from.
    """
    entries = carried(store, student["id"])
    known = {entry.item.id for entry in entries}
    for item_id in others:
        if item_id not in known:
            if (beside := taught_beside(store, student["id"], item_id)) is None:
                raise ConfigError(
                    f"item {item_id[:SHORT]} never went into a model that comes from an ancestor of student "
                    f"{student['id'][:SHORT]}, so there is no teacher to compare with; leave it out"
                )
            entries.append(beside)
    if not entries:
        raise ConfigError(f"student {student['id'][:SHORT]} carries no items: {NO_LINES}")
    return entries


class Shown(NamedTuple):
    """A sentence's effect on the teacher, and how much of it a student shows; intervals take tasks for independent."""

    effect: Mean
    """Mean KL divergence a token, in nats, from the teacher with the sentence to the teacher without it."""
    of_context: Mean
    """The same over that of the whole context against none."""
    share: Mean
    """Of the effect, what the student shows."""

    def to_dict(self) -> dict[str, Any]:
        return {name: mean.to_dict() for name, mean in self._asdict().items()}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` wrote."""
        return cls(*(Mean.from_dict(row[name]) for name in cls._fields))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What an audit found about one item."""

    item: str
    text: str
    context: str
    """Id of the context that it went in with."""
    carrier: str
    """Id of the model that was trained on that context."""
    carried: bool
    """Whether the student is that model or comes from it. If not, it should show nothing."""
    own: Shown
    placebo: Shown
    """The same for the item's placebo, which nobody was trained on; its share is of the item's effect, so that it says
    how much of nothing would be taken for the item."""

    @property
    def verdict(self) -> str:
        """Whether the student shows the item: ``inert`` (there is nothing to show), ``shown``, ``not shown``, or
        ``undecided``."""
        mine, nothing = self.own.share, self.placebo.share
        if self.own.of_context.high < INERT:
            return "inert"
        if mine.low > max(0.0, nothing.high):
            return "shown"
        return "not shown" if mine.high < HALF and mine.rate <= nothing.high else "undecided"

    def line(self) -> str:
        """The figures as text."""
        text = escaped(self.text if len(self.text) <= CUT else f"{self.text[: CUT - 1]}…")
        head, effect = f"  {self.item[:SHORT]}  {self.verdict}", f"{self.own.effect.rate:.2g} nats a token"
        if self.verdict == "inert":
            return f"{head}, nothing to carry ({effect}): {text}"
        left_out = "" if self.carried else ", never went in"
        shares = f"{spoken(self.own.share)} of {effect}, placebo {spoken(self.placebo.share)}"
        return f"{head} {shares}{left_out}: {text}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "item": self.item, "text": self.text, "context": self.context, "carrier": self.carrier,
            "carried": self.carried, "verdict": self.verdict, "own": self.own.to_dict(),
            "placebo": self.placebo.to_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` wrote."""
        known = {name: row[name] for name in ("item", "text", "context", "carrier", "carried")}
        return cls(**known, own=Shown.from_dict(row["own"]), placebo=Shown.from_dict(row["placebo"]))


def spoken(share: Mean) -> str:
    """A share with its interval, for people."""
    return f"{share.rate:.2f} [{share.low:.2f}, {share.high:.2f}]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """What one student shows of the items in its weights."""

    student: str
    """Its id."""
    items: Sequence[Found]
    """The oldest generation's first."""
    turns: int
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "student": self.student, "turns": self.turns, "tokens": self.tokens,
            "items": [one.to_dict() for one in self.items],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` wrote."""
        items = [Found.from_dict(one) for one in row["items"]]
        return cls(student=row["student"], turns=row["turns"], tokens=row["tokens"], items=items)

    def lines(self) -> Iterator[str]:
        """A line for each item, under one on what was read."""
        yield (
            f"student {self.student[:SHORT]}, {self.tokens} tokens of {self.turns} stored turns; of each item's effect "
            "on the teacher, what the student shows without a context:"
        )
        yield from (one.line() for one in self.items)


def audits(store: Store, model_id: str) -> list[Audit]:
    """The last audit of each model of a lineage that was audited here, the oldest model first."""
    line, found = [one.model["id"] for one in generations(store, model_id)], {}
    for row in store.runs(AUDIT, "done"):
        if not row["imported"]:
            result = read_object(row["result"], f"the result of run {row['id']}")
            found[result["student"]] = Audit.from_dict(result)
    return [found[id_] for id_ in line if id_ in found]


def curves(found: Sequence[Audit]) -> Iterator[str]:
    """How the share of each item has changed over the audited students of a lineage: a line for each item that two of
    them were asked about."""
    rows: dict[str, list[tuple[str, Found]]] = {}
    for audit in found:
        for one in audit.items:
            if one.verdict != "inert":
                rows.setdefault(one.item, []).append((audit.student, one))
    told = {item: points for item, points in rows.items() if len(points) > 1}
    if told:
        yield "from student to student:"
    for item, points in told.items():
        steps = " -> ".join(f"{student[:SHORT]} {spoken(one.own.share)}" for student, one in points)
        yield f"  {item[:SHORT]}  {steps}: {escaped(points[-1][1].text)[:CUT]}"
