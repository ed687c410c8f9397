"""Verdicts on the claims of a row, from who won what: by arm, training seed and task.

A result file of ``agentopcd reproduce`` holds these outcomes, so that every interval in it can be computed again
(``python -m recipes.paper.recompute FILE``)::

    "outcomes": {
        "tasks": ["3f9c...", ...],              # one key for each game; a task that is played twice stands here twice
        "arms": {"opcd": {"0": "0110..."}}      # by training seed: a sign for each game, 1 won, 0 lost, - not played
    }
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from agentopcd.core.crossed import Contrast, Outcomes, contrast, rate_of
from agentopcd.core.stats import Rate

FEWEST_SEEDS = 4
"""Training seeds that a verdict takes."""
FEWEST_CHAINS = 8
"""Chains that a verdict takes where each seed draws another one: chains differ more than trainings do."""
FEWEST_TASKS = 5
"""Tasks that a verdict takes: of fewer, one of two equal arms may win every one by chance (a sign test's mid-p is 0.06
for four, 0.03 for five)."""
UNDECIDED = "undecided at this size"
SIGNS = {True: "1", False: "0", None: "-"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One claim, and the comparison that tests it."""

    better: str
    worse: str
    seen: Contrast
    chains: int | None
    """Chains that the seeds have drawn; None: all seeds have the same context."""

    @property
    def verdict(self) -> str:
        few = too_few(self.seen.seeds, self.chains)
        few = few or ("undecided: too few tasks" if self.seen.tasks < FEWEST_TASKS else "")
        return few or ("reproduced" if self.seen.low > 0 else "refuted" if self.seen.high < 0 else UNDECIDED)

    def to_dict(self) -> dict[str, Any]:
        """The fields of a result file."""
        seen = self.seen
        return {
            "claim": f"{self.better} > {self.worse}", "verdict": self.verdict, "difference": seen.diff,
            "low": seen.low, "high": seen.high, "p": seen.p, "n": seen.n, "seeds": seen.seeds, "chains": self.chains,
            "tasks": seen.tasks, "wins": seen.wins, "losses": seen.losses,
        }  # fmt: skip


def too_few(seeds: int, chains: int | None) -> str:
    """The verdict where there are too few seeds or chains for another; empty: enough."""
    if seeds < FEWEST_SEEDS:
        return "undecided: too few seeds"
    return "undecided: too few chains" if chains is not None and chains < FEWEST_CHAINS else ""


def finding(claim: Sequence[str], outcomes: Mapping[str, Outcomes], chains: int | None) -> Finding:
    better, worse = claim
    return Finding(better=better, worse=worse, seen=contrast(outcomes[better], outcomes[worse]), chains=chains)


def success(outcomes: Outcomes) -> Rate:
    """Success over all seeds and tasks."""
    return rate_of((seed, task, won) for (seed, task, _), won in outcomes.items())


def pack(outcomes: Mapping[str, Outcomes]) -> dict[str, Any]:
    """Outcomes by arm as a result file holds them; nothing where nothing was played."""
    games = sorted({(task, number) for found in outcomes.values() for _, task, number in found})
    if not games:
        return {}
    arms = {
        arm: {
            str(seed): "".join(SIGNS[found.get((seed, *game))] for game in games)
            for seed in sorted({seed for seed, _, _ in found})
        }
        for arm, found in outcomes.items()
    }
    return {"tasks": [task for task, _ in games], "arms": arms}


def unpack(given: Mapping[str, Any]) -> dict[str, Outcomes]:
    """What :func:`pack` has written, with the place in the list as the number of a game."""
    return {
        arm: {
            (int(seed), task, number): sign == "1"
            for seed, signs in by_seed.items()
            for number, (task, sign) in enumerate(zip(given["tasks"], signs, strict=True))
            if sign != "-"
        }
        for arm, by_seed in given["arms"].items()
    }


def recomputed(row: Mapping[str, Any]) -> dict[str, Any]:
    """The rates and findings of a result file once more, from its outcomes."""
    found: dict[str, Any] = {}
    for outcomes, rates, findings in (("outcomes", "rates", "findings"), ("probe_outcomes", "probe", "probe_findings")):
        arms = unpack(row[outcomes]) if row[outcomes] else {}
        found[rates] = {arm: success(one).to_dict() for arm, one in arms.items()}
        claims = [one["claim"].split(" > ") for one in row[findings]]
        found[findings] = [finding(claim, arms, row["chains"]).to_dict() for claim in claims]
    return found


def without_outcomes(seeds: int, chains: int | None) -> str:
    """The verdict of a result file from before outcomes were kept."""
    return too_few(seeds, chains) or "undecided: outcomes by seed were not kept"


def judged(row: Mapping[str, Any]) -> dict[str, Any]:
    """A result file with the verdicts of today's rule.

    A file from before outcomes were kept has an interval over tasks alone, which decides nothing.
    """
    if "outcomes" in row:
        return dict(row)
    seeds, chains = len(row["seeds"]), row.get("chains")
    beside = {"seeds": seeds, "chains": chains, "verdict": without_outcomes(seeds, chains)}
    return {**row, **{name: [one | beside for one in row[name]] for name in ("findings", "probe_findings")}}
