"""Accuracy by accumulation step (Figure 7 of arXiv:2602.12275): a table, a JSON file and a plot.

``python recipes/accumulation.py --work DIR --env ENV``, after ``agentopcd learn --env ENV --rounds 2 --work DIR``.

A chain is one seed of extraction; its step ``k`` is the context after ``k`` episodes, step 0 what it began with:
nothing, or in later rounds what the round before has left. Every context of a round is played by the model of that
round, with its settings and its noise, on the same select tasks. Episodes go through the store: what ``learn`` or an
earlier call has played is not played again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from agentopcd import models
from agentopcd.cli.options import progress
from agentopcd.core.config import PlayConfig
from agentopcd.core.errors import AgentOpcdError, ConfigError, did_you_mean
from agentopcd.core.runs import write_json
from agentopcd.core.stats import wilson
from agentopcd.core.types import Job
from agentopcd.knowledge import Place, Store, places_of
from agentopcd.workspace.experience.chains import chains_of
from agentopcd.workspace.session import Session

Outcomes = Mapping[str, Mapping[Place, float]]


@dataclasses.dataclass(frozen=True)
class Step:
    """What the contexts of one step came to: the mean over chains, and each chain's success."""

    round: int
    step: int
    success: float
    low: float
    high: float
    chains: list[float]
    tasks: int
    episodes: int
    """Different ones: chains that show the same context share theirs."""


def play_runs(store: Store, env: str) -> list[dict[str, Any]]:
    """The finished runs of ``env`` that filled a pool, oldest first: the rounds."""
    runs = [row | {"config": json.loads(row["config"])} for row in store.runs("play")]
    known = {run["config"]["env"] for run in runs}
    runs = [run for run in runs if run["status"] == "done" and run["config"]["extract"] and run["config"]["env"] == env]
    runs = [run for run in runs if "replay" not in run["config"]]  # what was played to be replayed filled no pool
    if not runs:
        raise ConfigError(f"no finished play run of {env!r} in {store.path}{did_you_mean(env, known)}; learn first")
    paths = {row["id"]: row["path"] for row in store.models()}
    return [run | {"path": paths[run["config"]["model_id"]]} for run in runs]


def play_round(work: Path, number: int, run: Mapping[str, Any], n: int) -> list[Step]:
    """Play what a round lacks, with the settings that its run was played with, and count."""
    settings, names = run["config"], {field.name for field in dataclasses.fields(PlayConfig)}
    own = {name: settings[name] for name in names if name in settings}
    own |= {"env": settings["env_ref"], "model": run["path"]}
    with Session(PlayConfig(**own), work, progress=progress) as session:
        store, tasks = session.store, session.tasks("select", n)
        if session.loaded.id != settings["model_id"]:
            raise ConfigError(f"the model at {run['path']} is no longer the one that played round {number}")
        chains = chains_of(store, run)
        contexts = [store.get_context(id_) for id_ in dict.fromkeys(id_ for ids in chains for id_ in ids)]
        facts = {"play_run": run["id"], "tasks": len(tasks)}
        bench = session.bench(session.ledger.stage("accumulation", **facts))
        bench.play_missing(f"round {number}", [Job(task, context) for task in tasks for context in contexts])
        places = set(places_of(tasks))
        outcomes = {c.id: store.outcomes(bench.arm(c), bench.arena(places=places)) for c in contexts}
        common = sorted(places.intersection(*outcomes.values()))  # what the environment broke is left out for all
        if not common:
            raise ConfigError(f"round {number}: no task was played with every context")
        session.ledger.finish(bench.run_id, {"contexts": list(outcomes)})
        return [count(number, step, ids, common, outcomes) for step, ids in enumerate(zip(*chains, strict=True))]


def count(number: int, step: int, ids: Sequence[str], places: Sequence[Place], outcomes: Outcomes) -> Step:
    """One step of a round on ``places``; ``ids`` are the chains' contexts."""
    tasks: defaultdict[str, list[float]] = defaultdict(list)
    for place in places:
        tasks[place[0]].append(fmean(outcomes[id_][place] for id_ in ids))
    rates, n = [fmean(outcomes[id_][place] for place in places) for id_ in ids], len(set(ids)) * len(places)
    return Step(number, step, fmean(rates), *interval(list(tasks.values()), n), rates, len(tasks), n)


def interval(tasks: Sequence[Sequence[float]], episodes: int) -> tuple[float, float]:
    """95 % Wilson interval at the effective number of episodes, for new tasks and these very chains.

    Chains share tasks, so their episodes are not independent. The effective number is p(1-p) over the cluster-robust
    variance of the rate, with tasks as clusters: at least the tasks, at most ``episodes``. ``tasks`` holds, per task,
    the share of chains that won each of its starts. Where all chains show one context this is the plain interval.
    """
    n, groups = sum(map(len, tasks)), len(tasks)
    rate = sum(map(sum, tasks)) / n
    variance = sum((sum(one) - rate * len(one)) ** 2 for one in tasks) * groups / max(1, groups - 1) / n**2
    size = min(max(rate * (1 - rate) / variance, groups), episodes) if variance else groups
    return wilson(rate * size, size)  # type: ignore[arg-type]  # its formula holds for fractions, too


def references(work: Path, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """For each play run: success of base and student on test tasks, where ``learn`` has evaluated them."""
    found: dict[int, dict[str, float]] = {}
    for file in sorted(work.glob("runs/learn-*/result.json")):
        for one in json.loads(file.read_text())["rounds"]:
            rows = ((one["distilled"] or {}).get("evaluation") or {}).get("rows", [])
            found[one["played"]["run"]] = {r["label"]: r["success"] for r in rows if r["label"] in ("base", "student")}
    return [found.get(run["id"], {}) for run in runs]


def table_of(steps: Sequence[Step], env: str) -> Table:
    table = Table(title=f"{env}: success in context by accumulation step, {steps[0].tasks} select tasks")
    for column in ("round", "step", "success", "95 % interval", "chains, lowest to highest", "episodes"):
        table.add_column(column, justify="right")
    for one in steps:
        spread = f"{min(one.chains):.3f} to {max(one.chains):.3f} ({len(one.chains)})"
        rate, between = f"{one.success:.3f}", f"[{one.low:.3f}, {one.high:.3f}]"
        table.add_row(str(one.round), str(one.step), rate, between, spread, str(one.episodes))
    return table


def plot(steps: Sequence[Step], tested: Sequence[Mapping[str, float]], env: str, file: Path) -> str:
    """Draw ``file``; returns a line for people."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no plot: matplotlib is missing; pip install 'agentopcd[plot]' (or matplotlib) and call this again"
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for number, rates in enumerate(tested, start=1):
        own, colour = [one for one in steps if one.round == number], f"C{number - 1}"
        x = [one.step for one in own]
        axes.plot(x, [one.success for one in own], "o-", color=colour, label=f"round {number}, in context")
        axes.fill_between(x, [one.low for one in own], [one.high for one in own], color=colour, alpha=0.15, lw=0)
        for chain in zip(*(one.chains for one in own), strict=True):
            axes.plot(x, chain, color=colour, alpha=0.3, lw=0.8)
        for label, rate in rates.items():
            style, name = {"base": ":", "student": "--"}[label], f"round {number}, {label} (no context, test tasks)"
            axes.axhline(rate, color=colour, ls=style, label=name)
    axes.set(title=env, xlabel="accumulation step (episodes read)", ylabel="success", ylim=(-0.02, 1.02))
    axes.set_xticks(sorted({one.step for one in steps}))
    figure.legend(loc="outside lower center", fontsize="small", ncols=2)
    figure.savefig(file, dpi=150)
    return f"plot: {file} (line: mean of the chains; band: 95 % interval; thin lines: single chains)"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("agentopcd-work"), help="workspace that learn has filled")
    parser.add_argument("--env", required=True, help="environment, with its arguments: math,level=1")
    parser.add_argument("--tasks", type=int, default=32, help="select tasks that every context plays")
    parser.add_argument("--out", type=Path, help="folder of the JSON file and the plot (default: WORK/accumulation)")
    args = parser.parse_args(arguments)
    models.prepare_process()
    try:
        with Store.open(args.work / "store.db", create=False) as store:
            runs = play_runs(store, args.env)
        steps = [one for i, run in enumerate(runs, start=1) for one in play_round(args.work, i, run, args.tasks)]
    except AgentOpcdError as error:
        parser.exit(2, f"error: {error}\n")
    tested = references(args.work, runs)
    file = (args.out or args.work / "accumulation") / f"{re.sub('[^a-z0-9]+', '-', args.env.lower()).strip('-')}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    facts = [{"run": run["id"], "settings": run["config"], "test": t} for run, t in zip(runs, tested, strict=True)]
    write_json(file, {"env": args.env, "rounds": facts, "steps": [dataclasses.asdict(step) for step in steps]})
    Console(width=118).print(table_of(steps, args.env))
    print("interval: Wilson at the effective number of episodes, tasks as clusters, for these chains")
    print(f"figures: {file}\n{plot(steps, tested, args.env, file.with_suffix('.png'))}")


if __name__ == "__main__":
    main()
