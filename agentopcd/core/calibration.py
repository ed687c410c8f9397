"""Is there a gain to distil? The rule of ``agentopcd forecast``, and how often it was right about earlier trainings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from agentopcd.core.stats import Difference, Mean, Rate, finite, ratio

Advice = Literal["train", "collect better notes", "do not"]

NOISE_NATS = 0.002
"""A context that moves the model by less than this, in nats a token, does not move it: rounding in bfloat16 alone moves
it by about a thousandth of a nat."""

ROOM = 0.1
"""A model that may fail so few of its tasks, or fewer, wins them: too little is left for a context to gain."""


def advise(
    gain: Difference | None, beyond: Difference | None, moved: Mean | None, base: Rate | Mean | None = None
) -> tuple[Advice, str]:
    """What to do with a context before training on it, and why. The first line that holds decides:

    1. *do not*, where the context does not move the model: the upper end of ``moved`` is below :data:`NOISE_NATS`.
    2. *do not*, where the upper end of ``gain`` is 0 or less.
    3. *do not*, where the lower end of ``gain`` is 0 or less and that of ``base`` is :data:`ROOM` or less below 1.
    4. *collect better notes*, where the lower end of ``gain`` is 0 or less: it may help or not.
    5. *collect better notes*, where the lower end of ``beyond`` is 0 or less: its form alone may help.
    6. *train*.

    Args:
        gain: success with the context minus success without it; None where nothing is right or wrong.
        beyond: success with the context minus success with its placebo; None if that was not measured.
        moved: how far the context moves the model, in nats a token; None if that was not measured.
        base: success without the context; None, or the mean of another score, if it is not known how much is left.
    """
    if moved is not None and moved.high < NOISE_NATS:
        return "do not", "the context does not move the model, so there is nothing to distil"
    if gain is None:
        if moved is None or moved.low < NOISE_NATS:
            return "collect better notes", "it is not shown that the context moves the model"
        return "train", "the context moves the model; nothing here says whether that is for the better"
    if gain.high <= 0:
        return "do not", "the context does not help, so there is no gain to distil"
    if gain.low <= 0 and isinstance(base, Rate) and 1 - base.low <= ROOM:
        return "do not", f"the model wins without it: {base} leaves {1 - base.low:.3f} to gain at most"
    if gain.low <= 0:
        return "collect better notes", "it is not shown that the context helps, so there may be no gain to distil"
    if beyond is not None and beyond.low <= 0:
        return "collect better notes", "the context helps, but is not shown to help more than its placebo: form only"
    return "train", "the context helps" + (", and more than its placebo" if beyond is not None else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Past:
    """An earlier training: what was known before it, and what came of it."""

    name: str
    gain: Difference
    """In-context minus base."""
    beyond: Difference | None
    """In-context minus the placebo in context; None if that was not measured, so that rule 5 is not applied."""
    student: Difference
    """Student minus base."""
    base: Rate | None = None
    """The base's success; None if it is not known, so that rule 3 is not applied."""

    @property
    def advice(self) -> Advice:
        return advise(self.gain, self.beyond, None, self.base)[0]

    @property
    def gained(self) -> bool:
        """Whether the student is better than its base, by the lower end of the interval."""
        return self.student.low > 0

    def __str__(self) -> str:
        beyond = "placebo not measured" if self.beyond is None else f"{self.beyond} to the placebo"
        came = "better" if self.gained else "worse" if self.student.high < 0 else "no difference"
        return f"{self.name}: {self.gain} in context, {beyond}: {self.advice}; student {self.student}, {came}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the rule did on earlier trainings."""

    trained: Rate
    """Of the trainings for which the rule says *train*, those whose student was better than its base."""
    other: Rate
    """Of the others, those whose student was not."""
    handed: Mean | None
    """The students' gains over the gains in context, where those are above 0 with their whole interval: how much of
    what a context does arrives. ``n`` counts trainings; None without any."""

    @classmethod
    def of(cls, past: Sequence[Past]) -> Calibration:
        """The calibration on some trainings; each is one observation."""
        yes, no = ([one for one in past if (one.advice == "train") is wanted] for wanted in (True, False))
        clear = [one for one in past if one.gain.low > 0]
        students, gains = [one.student.diff for one in clear], [one.gain.diff for one in clear]
        handed = ratio(students, gains) if clear else None
        return cls(
            trained=Rate(sum(one.gained for one in yes), len(yes)),
            other=Rate(sum(not one.gained for one in no), len(no)),
            handed=None if handed is None else Mean(*handed, len(clear)),
        )

    def predicted(self, gain: Difference) -> tuple[float, float | None, float | None] | None:
        """A student's gain over its base, from the gain in context: value, lower and upper end of the interval.

        The interval holds the uncertainty of both factors, at their worst together; its ends are None after a single
        training. None without trainings to learn from.
        """
        if self.handed is None:
            return None
        ends = [a * b for a in (gain.low, gain.high) for b in (self.handed.low, self.handed.high)]
        known = finite(self.handed.low) is not None
        return gain.diff * self.handed.rate, min(ends) if known else None, max(ends) if known else None

    def lines(self) -> list[str]:
        """The calibration as text."""
        n = self.trained.n + self.other.n
        if not n:
            return ["calibration: no earlier training here has a table that the rule can be held against"]
        out = [
            f"calibration on {n} earlier trainings: of {self.trained.n} with the advice train, {self.trained.wins} "
            f"students became better{_interval(self.trained)}; of {self.other.n} others, {self.other.wins} did "
            f"not{_interval(self.other)}"
        ]
        if self.handed is not None:
            ends = "" if finite(self.handed.low) is None else f" [{self.handed.low:.2f}, {self.handed.high:.2f}]"
            out.append(f"a student gained {self.handed.rate:.2f}{ends} times what its context did ({self.handed.n})")
        return out

    def to_dict(self) -> dict[str, Any]:
        """The calibration as JSON."""
        return {
            "train": self.trained.to_dict() | {"gained": self.trained.wins},
            "other": self.other.to_dict() | {"not_gained": self.other.wins},
            "handed_over": None if self.handed is None else self.handed.to_dict(),
        }


def rate_given(row: Mapping[str, Any] | None) -> Rate | None:
    """A success rate as reports write it; None if there is none, or if it is another score."""
    if not row or any(row.get(name) is None for name in ("success", "n", "low", "high")):
        return None
    return Rate(round(row["success"] * row["n"]), row["n"], (row["low"], row["high"]))


def _interval(rate: Rate) -> str:
    return f" ({rate.rate:.0%} [{rate.low:.0%}, {rate.high:.0%}])" if rate.n else ""


def told(past: Iterable[Past]) -> list[dict[str, Any]]:
    """Earlier trainings as JSON."""
    return [dataclasses.asdict(one) | {"advice": one.advice, "gained": one.gained} for one in past]
