"""The report of a row of the paper: measured figures beside published ones, as text and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentopcd.cli.paper.plan import Plan
from agentopcd.cli.paper.verdicts import Finding, pack
from agentopcd.core.crossed import Outcomes
from agentopcd.core.stats import Rate
from agentopcd.core.text import counted
from agentopcd.workspace.evaluation.drift import Drift, drift_dict, drift_lines


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """Success of an arm whose checkpoints are chosen on the test tasks themselves, as in the paper: biased upward."""

    best: float
    best_three: float
    """Mean of the best three checkpoints, or of all if there are fewer."""
    checkpoints: int
    """Number of checkpoints of one training seed; the figures are means over seeds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A row and its measurements."""

    plan: Plan
    rates: Mapping[str, Rate]
    tasks: int
    outcomes: Mapping[str, Outcomes]
    """By arm: who won what."""
    probe_outcomes: Mapping[str, Outcomes]
    contexts: Mapping[str, Mapping[int, str]]
    """By arm and training seed: the id of the context that its experience yielded."""
    compute: str
    """Precision of matrix products: float32 or bfloat16."""
    findings: Sequence[Finding]
    probe: Mapping[str, Rate]
    probe_findings: Sequence[Finding]
    floors: str
    reply_tokens: Mapping[str, float]
    drift: Mapping[str, Drift]
    """Drift by arm, for the first training seed."""
    curves: Mapping[str, Mapping[str, list[float | None]]]
    """By arm and curve: the mean over training seeds at each step; see :data:`agentopcd.cli.paper.run.CURVES`."""
    chosen_on_test: Mapping[str, Chosen]
    """By arm, only with ``--report paper``: the figures as the paper reports them."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "row": self.plan.name, "env": self.plan.env,
            "model": self.plan.settings.get("model", ""), "paper": dict(self.plan.paper),
            "seeds": list(self.plan.seeds), "tasks": self.tasks,
            "rates": {arm: rate.to_dict() for arm, rate in self.rates.items()}, "reply_tokens": dict(self.reply_tokens),
            "findings": [one.to_dict() for one in self.findings], "floors": self.floors, "note": self.plan.note,
            "departures": list(self.plan.departures),
            **drift_dict(self.drift),
            "curves": {arm: dict(found) for arm, found in self.curves.items()},
            "chosen_on_test": {arm: dataclasses.asdict(one) for arm, one in self.chosen_on_test.items()},
            "probe": {arm: rate.to_dict() for arm, rate in self.probe.items()},
            "probe_env": Path(self.plan.probe.get("env", "")).name,
            "probe_findings": [one.to_dict() for one in self.probe_findings],
            "outcomes": pack(self.outcomes), "probe_outcomes": pack(self.probe_outcomes),
            "chains": self.plan.chains, "contexts": {arm: dict(found) for arm, found in self.contexts.items()},
            "compute": self.compute,
        }  # fmt: skip


def lines(result: Result) -> list[str]:
    """The row as text: measured figures beside published ones."""
    plan, published = result.plan, result.plan.paper
    seeds = counted(len(plan.seeds), "training seed")
    out = [f"{plan.name}: {plan.env}, {plan.settings.get('model', 'default model')}, {seeds}"]
    if published:
        out.append(f"paper: {published.get('what', '')}")
    probe = f"  {Path(plan.probe['env']).name}" if plan.probe else ""
    out.append(f"{'':22s} {'success':>7s}  {'95 % interval':>16s} {'n':>5s} {'paper':>6s} {'tokens':>7s}{probe}")
    for arm, rate in result.rates.items():
        paper = f"{published[arm] / 100:6.3f}" if arm in published else f"{'-':>6s}"
        probed = f"  {result.probe[arm].rate:.3f}" if arm in result.probe else ""
        interval = f"[{rate.low:.3f}, {rate.high:.3f}]"
        out.append(
            f"{arm:22s} {rate.rate:7.3f}  {interval:>16s} {rate.n:5d} {paper} {result.reply_tokens[arm]:7.1f}{probed}"
        )
    for found in result.findings:
        out.append(f"{found.better} > {found.worse}: {_seen(found)}")
    for found in result.probe_findings:
        out.append(f"on {probe.strip()}, {found.better} > {found.worse}: {_seen(found)}")
    out += drift_lines(result.drift)
    for arm, one in result.chosen_on_test.items():
        honest = f"chosen on select {result.rates[arm].rate:.3f}"
        out.append(
            f"the paper's report, checkpoints chosen on these test tasks (biased upward): {arm}: best {one.best:.3f}, "
            f"mean of the best three {one.best_three:.3f}, of {one.checkpoints}; {honest}"
        )
    out += [f"floors: {result.floors}", *([f"note: {plan.note}"] if plan.note else [])]
    return [*out, *(f"not as in the paper's code: {one}" for one in plan.departures)]


def _seen(found: Finding) -> str:
    seen, each = found.seen, "seeds" if found.chains is None else "chains"
    return f"{found.verdict}; {seen}, {seen.wins} won / {seen.losses} lost by {seen.seeds} {each} on {seen.tasks} tasks"
