"""Results where nothing can be right or wrong: how far replies are from those of the model that sees the context."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from agentopcd.core.stats import Mean, Rate

SHARES = {
    "closed": "distance closed by the student",
    "placebo": "distance closed by the placebo student",
    "beyond": "closed by the student of the distance that the placebo student leaves",
}
"""Shares of :class:`Distances` by field, in words."""
FLOORS = {"random": "uniform random", "blind": "best blind sequence", "solvable": "solvable within the limit"}
"""What is reached without a model, by its name in a table, in words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spoken:
    """The figures of one contestant's own replies."""

    distance: Mean
    """Nats a token from the model that sees the context; 0 for that model itself."""
    entropy: Mean
    """Nats a token: how undecided the contestant is."""
    reply_tokens: float
    cut: Rate
    """Replies that reached the limit of tokens."""
    calls: Rate | None
    """Replies that call a tool, where there are tools."""

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """The figures that :meth:`to_dict` wrote."""
        return cls(
            distance=Mean.from_dict(row["distance_nats"]), entropy=Mean.from_dict(row["entropy_nats"]),
            reply_tokens=row["reply_tokens"], cut=_rate(row["cut"]),
            calls=None if row["calls"] is None else _rate(row["calls"]),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON."""
        return {
            "distance_nats": self.distance.to_dict(), "entropy_nats": self.entropy.to_dict(),
            "reply_tokens": self.reply_tokens, "cut": _share(self.cut),
            "calls": None if self.calls is None else _share(self.calls),
        }  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distances:
    """Distances on test tasks, by contestant, and what of the base's distance the student has closed."""

    rows: Mapping[str, Spoken]
    closed: Mean | None
    """``1 - student / base``, paired over tasks; 1: the student answers like the model that sees the context. ``n``
    counts tasks."""
    placebo: Mean | None = None
    """The same of the placebo student, which was trained on the context's form alone."""
    beyond: Mean | None = None
    """``1 - student / placebo student``: what the student closes of the distance that the form alone leaves."""

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """The distances that :meth:`to_dict` wrote."""
        rows = {row["label"]: Spoken.from_dict(row) for row in given["rows"]}
        shares = {name: Mean.from_dict(one) for name in SHARES if (one := given.get(name)) is not None}
        return cls(rows=rows, **{"closed": None} | shares)

    def to_dict(self) -> dict[str, Any]:
        """The distances as JSON."""
        rows = [{"label": label, **row.to_dict()} for label, row in self.rows.items()]
        shares = {name: share.to_dict() for name in SHARES if (share := getattr(self, name)) is not None}
        return {"rows": rows, "closed": None, **shares}

    def lines(self) -> list[str]:
        """The distances as text, a line for each contestant."""
        called = any(row.calls for row in self.rows.values())
        wide = max((12, *map(len, self.rows)))
        out = [
            f"{'':{wide}s} {'distance':>8s}  {'95 % interval':>16s} {'n':>5s}  tokens  entropy    cut"
            + "  calls" * called
        ]
        for label, row in self.rows.items():
            far = row.distance
            interval = f"[{far.low:.3f}, {far.high:.3f}]"
            calls = f"  {row.calls.rate:5.3f}" if row.calls else ""
            out.append(
                f"{label:{wide}s} {far.rate:8.3f}  {interval:>16s} {far.n:5d}  {row.reply_tokens:6.1f}  "
                f"{row.entropy.rate:7.3f}  {row.cut.rate:5.3f}{calls}"
            )
        out.append("distance: reverse KL to the model that sees the context, in nats a token of a model's own replies")
        for name, words in SHARES.items():
            if (found := getattr(self, name)) is not None:
                out.append(f"{words}: {found.rate:.3f} [{found.low:.3f}, {found.high:.3f}] ({found.n} tasks)")
        return out


def _share(rate: Rate) -> dict[str, Any]:
    return {"share": rate.rate, "low": rate.low, "high": rate.high, "n": rate.n}


def _rate(given: Mapping[str, Any]) -> Rate:
    return Rate(round(given["share"] * given["n"]), given["n"])
