"""When is an episode solved? What the environment says, else a rule, else its rewards, where they can say it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agentopcd.core.errors import EnvError

WAYS = "'reward >= 1' (the last reward), 'return >= 475' (the sum of all), or 'terminated' (it came to its own end)"

_COMPARISON = re.compile(r"(reward|return)\s*(>=?)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)")


@dataclasses.dataclass(frozen=True, slots=True)
class SuccessRule:
    """A rule such as ``return >= 475``."""

    what: str
    """``reward``: the last one, of an episode that came to its own end; ``return``: the sum over the episode, however
    it ended; ``terminated``: any end of its own, so a cut is the only failure."""
    at: float = 0.0
    above: bool = False
    """Whether exactly ``at`` is too little."""

    def holds(self, rewards: Sequence[float], terminated: bool) -> bool:
        """Whether an episode with these rewards is solved; ``terminated``: it came to an end of its own."""
        if self.what == "terminated":
            return terminated
        earned = math.fsum(rewards) if self.what == "return" else rewards[-1]
        enough = earned > self.at if self.above else earned >= self.at
        return enough and (terminated or self.what == "return")


def rule_of(text: str) -> SuccessRule:
    """Read a rule.

    Raises:
        EnvError: the text is no rule.
    """
    words = text.strip().lower()
    if words == "terminated":
        return SuccessRule("terminated")
    found = _COMPARISON.fullmatch(words)
    if found is None:
        raise EnvError(f"success_when is {text!r}; wanted {WAYS}")
    what, sign, at = found.groups()
    return SuccessRule(what, float(at), sign == ">")


def solved(
    rewards: Sequence[float],
    terminated: bool,
    info: Mapping[str, Any],
    *,
    chosen: str = "",
    success_when: str = "",
    success_at: float | None = None,
) -> bool | None:
    """Whether an episode that just ended was solved; ``None`` if nothing says so.

    The first of these decides: the rule that the user chose, ``info["success"]``, the rule of the spec, the smallest
    last reward that counts (of the spec), and the rewards, if they are of the kind that pays 1 for success and nothing
    like it before. A last reward between 0 and 1 or above 1, and a 1 that was paid for going on, too, do not say. Nor
    do rewards of which some are below 0 and none is above, unless the end is the worst of them: where each step costs,
    a goal may cost as much or nothing.

    Args:
        rewards: of all steps.
        terminated: the episode came to an end of its own; else it was cut off.
        info: of the last step.
    """
    if chosen:
        return rule_of(chosen).holds(rewards, terminated)
    if info.get("success") is not None:
        return bool(info["success"])
    if success_when:
        return rule_of(success_when).holds(rewards, terminated)
    if success_at is not None:
        return terminated and rewards[-1] >= success_at
    if not terminated:
        return False
    *earlier, last = rewards
    pays_for_going_on = last == 1 and any(reward >= 1 for reward in earlier)
    a_share = last > 0 and last != 1  # or points, of which nobody knows how many there are
    only_costs = max(rewards) <= 0 and min(rewards) < 0 and last >= min(earlier, default=0)
    return None if pays_for_going_on or a_share or only_costs else last == 1


def ask(ref: str, rewards: Sequence[float]) -> EnvError:
    """The error that asks for a rule."""
    paid = ", ".join(f"{reward:g}" for reward in rewards[-3:])
    return EnvError(
        f"{ref} does not say when an episode is solved: no info['success'] at the end, and the last rewards were"
        f" {paid}; add --success-when with one of {WAYS}"
    )
