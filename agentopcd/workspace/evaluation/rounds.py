"""Every student of several rounds beside the first base, on the same test tasks with the same seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from agentopcd.core.stats import Comparison, Mean, Rate
from agentopcd.core.types import Task
from agentopcd.knowledge import Arena, Arm
from agentopcd.workspace.evaluation.table import test_places
from agentopcd.workspace.session import Session


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """The first base, or a student."""

    label: str
    model_id: str
    promoted: bool
    rate: Rate | Mean
    """Of success, or of the score that the rounds chose by."""
    to_first: Comparison | None
    """Against the first base; None for the base itself."""

    def __str__(self) -> str:
        beside = f"  {self.to_first.difference} to the first base" if self.to_first else ""
        stays = "" if self.promoted else "; not promoted"
        interval = f"[{self.rate.low:.3f}, {self.rate.high:.3f}]"
        return f"{self.label:24s} {self.rate.rate:.3f} {interval} n={self.rate.n}{beside}{stays}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "label": self.label, "model": self.model_id, "promoted": self.promoted, **self.rate.to_dict(),
            "to_first": self.to_first and self.to_first.to_dict(),
        }  # fmt: skip


def stages(session: Session, models: Sequence[tuple[str, str, bool]], tasks: Sequence[Task]) -> list[Stage]:
    """The stages of a chain of students from their stored episodes; nothing is played.

    Args:
        models: label, model id, and whether it was promoted; the first base comes first.
    """
    arena = Arena(session.env, session.setup(), "test", set(test_places(session, tasks)), session.score)
    base = Arm(models[0][1])
    found = []
    for label, model_id, promoted in models:
        arm = Arm(model_id)
        pair = session.store.compare(arm, base, arena) if arm != base else None
        rate = session.store.counts([arm], arena)[arm].rate
        found.append(Stage(label=label, model_id=model_id, promoted=promoted, rate=rate, to_first=pair))
    return found
