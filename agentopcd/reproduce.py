"""The experiments of the paper as recipes: every arm of a row is trained, played on test tasks, and compared in pairs.

A recipe is a TOML file of ``recipes/paper``. All it does goes through the store of a workspace and through run
folders, so a killed call goes on when it is given again, and arms that two recipes share are trained once.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentopcd.config import ConsolidateConfig, EvaluateConfig, LearnConfig, PlayConfig, ScoreConfig, pick
from agentopcd.drift import Drift, drift_dict, drift_lines, drifts
from agentopcd.errors import ConfigError, did_you_mean
from agentopcd.evaluate import Contestant, evaluate, floor_text
from agentopcd.experience import chains_of, choose, gather, raw_traces
from agentopcd.learn import distil, find_context, stage
from agentopcd.session import Progress, Session, no_progress
from agentopcd.stats import Comparison, Rate, compare
from agentopcd.types import EMPTY, Context, Task

SIZES = ("mini", "full")
KINDS = ("best", "random", "traces")
"""Contexts that a row's experience leaves: the one that did best on select (the paper's "filtered"), one drawn without
looking at scores ("test-time"), the episodes as they are. ``step N`` is what a chain had after N episodes."""
Outcomes = dict[tuple[int, str, int, int], bool]
"""Success by training seed, task key, task seed and repetition."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One row of a table, at one size."""

    name: str
    settings: Mapping[str, Any]
    """Of :class:`agentopcd.config.ConsolidateConfig`; the same for all arms."""
    arms: Mapping[str, Mapping[str, Any]]
    """What each trained arm changes in them."""
    seeds: Sequence[int]
    claims: Sequence[tuple[str, str]]
    """Pairs of arms; the paper has the first one ahead."""
    paper: Mapping[str, Any]
    """Published success in percent by arm, and ``what``: model and task."""
    probe: Mapping[str, Any]
    """Settings of a task that nothing was distilled for, with a context that all are shown or without; none: it is not
    measured."""
    shown: Mapping[str, str]
    """What the base is shown in the arms that nothing is trained for: a file, or one of :data:`KINDS`."""
    experience: Mapping[str, Any] | None
    """Settings of `agentopcd learn` by which the row's contexts are gathered; none: a context is a file, or is in the
    workspace already."""
    note: str = ""

    @property
    def untrained(self) -> list[str]:
        return ["base", *self.shown]

    @property
    def slug(self) -> str:
        """The name, fit for a file's."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def config(self, arm: str, seed: int) -> ConsolidateConfig:
        """The settings of one arm; those without training have what all arms share, and the context they show."""
        own = dict(self.arms[arm]) if arm in self.arms else {}
        if arm in self.shown:
            own = {"context": self.shown[arm]}
        return ConsolidateConfig.load(None, **dict(self.settings) | own | {"seed": seed})

    def gathering(self) -> LearnConfig:
        """How the row's experience is gathered and scored."""
        names = {field.name for field in dataclasses.fields(LearnConfig)}
        shared = {name: value for name, value in self.settings.items() if name in names}
        return LearnConfig.load(None, **shared | dict(self.experience or {}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One claim of the paper, and what was seen of it."""

    better: str
    worse: str
    comparison: Comparison

    @property
    def verdict(self) -> str:
        """By the paired interval over tasks."""
        seen = self.comparison.difference
        return "reproduced" if seen.low > 0 else "refuted" if seen.high < 0 else "undecided at this size"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A row with what was measured."""

    plan: Plan
    rates: Mapping[str, Rate]
    tasks: int
    findings: Sequence[Finding]
    probe: Mapping[str, Rate]
    probe_findings: Sequence[Finding]
    floors: str
    reply_tokens: Mapping[str, float]
    drift: Mapping[str, Drift]
    """Of the first training seed."""

    def to_dict(self) -> dict[str, Any]:
        def rate(found: Rate) -> dict[str, Any]:
            return {"success": found.rate, "low": found.low, "high": found.high, "n": found.n}

        def finding(found: Finding) -> dict[str, Any]:
            seen = found.comparison
            return {"claim": f"{found.better} > {found.worse}", "verdict": found.verdict,
                    "difference": seen.difference.diff, "low": seen.difference.low, "high": seen.difference.high,
                    "n": seen.n, "tasks": seen.tasks, "p": seen.p}  # fmt: skip

        return {
            "row": self.plan.name, "env": Path(self.plan.settings["env"]).name,
            "model": self.plan.settings.get("model", ""), "paper": dict(self.plan.paper),
            "seeds": list(self.plan.seeds), "tasks": self.tasks,
            "rates": {arm: rate(found) for arm, found in self.rates.items()}, "reply_tokens": dict(self.reply_tokens),
            "findings": [finding(one) for one in self.findings], "floors": self.floors, "note": self.plan.note,
            **drift_dict(self.drift),
            "probe": {arm: rate(found) for arm, found in self.probe.items()},
            "probe_env": self.plan.probe.get("env", ""),
            "probe_findings": [finding(one) for one in self.probe_findings],
        }  # fmt: skip


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of one in ``recipes/paper``, here or beside the package.

    Raises:
        ConfigError: there is none.
    """
    if Path(name).suffix == ".toml" and Path(name).is_file():
        return Path(name)
    folders = [Path("recipes/paper"), Path(__file__).resolve().parent.parent / "recipes" / "paper"]
    for folder in folders:
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    known = sorted({file.stem for folder in folders for file in folder.glob("*.toml")})
    raise ConfigError(
        f"no recipe {name!r}{did_you_mean(name, known)}; recipes lie in recipes/paper of the source, or name a .toml"
    )


def read(file: Path, size: str) -> tuple[str, list[Plan]]:
    """Title and rows of a recipe.

    Raises:
        ConfigError: it cannot be read, or says what no setting is called.
    """
    if size not in SIZES:
        raise ConfigError(f"size is {size!r}{did_you_mean(size, SIZES)}")
    try:
        data = tomllib.loads(file.read_text())
        return data["title"], [_plan(row, size, file.parent) for row in data["row"] if size in row]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"cannot read the recipe {str(file)!r}: {error!r}") from error


def _plan(row: Mapping[str, Any], size: str, folder: Path) -> Plan:
    own = row[size]
    settings = dict(own["settings"])


    def located(values: Mapping[str, Any]) -> dict[str, Any]:
        """Files lie beside the recipe, wherever one stands."""
        files = {name: folder / values[name] for name in ("context", "env") if values.get(name)}
        return dict(values) | {name: str(file) for name, file in files.items() if file.is_file()}

    settings = located(own["settings"])
    shown = own.get("shown", {"in-context": settings.get("context", "")})
    plan = Plan(
        name=row["name"], settings=settings, arms={arm: located(values) for arm, values in own["arms"].items()},
        seeds=own.get("seeds", [0]), claims=[(better, worse) for better, worse in row.get("claims", [])],
        paper=row.get("paper", {}), probe=located(own.get("probe", {})),
        shown={arm: located({"context": name})["context"] for arm, name in shown.items()},
        experience=own.get("experience"), note=own.get("note", ""),
    )  # fmt: skip
    for arm in (*plan.shown, *plan.arms):
        config = plan.config(arm, 0)  # a wrong setting says so here
        if of_experience(config.context) and plan.experience is None:
            raise ConfigError(f"{plan.name!r} wants the context {config.context!r}, but gathers no experience")
    if plan.experience is not None:
        plan.gathering()
    known = (*plan.untrained, *plan.arms)
    for arm in (arm for claim in plan.claims for arm in claim):
        if arm not in known:
            raise ConfigError(f"a claim of {plan.name!r} is about {arm!r}{did_you_mean(arm, known)}")
    return plan


def run(plan: Plan, work: Path, *, say: Callable[[str], None] = print, progress: Progress = no_progress) -> Result:
    """Train every arm with every seed, play all on the same test tasks, and look at the claims."""
    outcomes: dict[str, Outcomes] = {arm: {} for arm in (*plan.untrained, *plan.arms)}
    probed: dict[str, Outcomes] = {arm: {} for arm in ("base", *plan.arms)} if plan.probe else {}
    tokens: dict[str, list[float]] = {arm: [] for arm in outcomes}
    floors, tasks, moved = "", 0, {}
    found = gathered(plan, work, say=say, progress=progress) if plan.experience is not None else None

    def config_of(arm: str, seed: int) -> ConsolidateConfig:
        config = plan.config(arm, seed)
        if found is None or not of_experience(config.context):
            return config
        return dataclasses.replace(config, context=found.context(config.context, seed), force=True)

    for seed in plan.seeds:
        students = {}
        for arm in plan.arms:
            config = config_of(arm, seed)
            say(f"{plan.name}: {arm}, seed {seed}")
            with Session(config, work, say=say, progress=progress) as session:
                students[arm] = distil(session, config, find_context(session, config)).folder
        config = plan.config("base", seed)
        with Session(config, work, say=say, progress=progress) as session:
            test, base = session.tasks("test", config.test_tasks), session.load(config.model)
            everyone = [Contestant(label="base", model=base)]
            for arm in plan.shown:
                context = shown_context(session, config_of(arm, seed))
                everyone.append(Contestant(label=arm, model=base, context=context))
            everyone += [Contestant(label=arm, model=session.load(folder)) for arm, folder in students.items()]
            table = _play(session, everyone, test, seed, outcomes, name=plan.name)
            floors, tasks = floor_text(table.floors) if table.floors else "none", len(test)
            for row in table.rows:
                tokens[row.label].append(row.reply_tokens)
            moved = moved or drifts(session, everyone, test, setup=session.setup(session.player_for(base)))
        if plan.probe:
            probe = pick(config, EvaluateConfig, **{"context": "", "placement": "user"} | dict(plan.probe))
            with Session(probe, work, say=say, progress=progress) as session:
                context = session.context(probe.context, probe.placement)[0] if probe.context else EMPTY
                everyone = [Contestant(label="base", model=session.load(config.model), context=context)]
                everyone += [
                    Contestant(label=arm, model=session.load(folder), context=context)
                    for arm, folder in students.items()
                ]
                _play(session, everyone, session.tasks("test", probe.test_tasks), seed, probed, name=plan.name)
    trained = [claim for claim in plan.claims if set(claim) <= set(plan.arms)]
    return Result(
        plan=plan, tasks=tasks, floors=floors,
        rates={arm: _rate(found) for arm, found in outcomes.items()},
        findings=[_finding(claim, outcomes) for claim in plan.claims],
        probe={arm: _rate(found) for arm, found in probed.items()},
        probe_findings=[_finding(claim, probed) for claim in trained] if plan.probe else [],
        reply_tokens={arm: sum(found) / len(found) for arm, found in tokens.items()},
        drift=moved,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experience:
    """Ids of the contexts that a row's experience leaves."""

    best: str
    traces: str
    chains: Sequence[Sequence[str]]
    """By chain and step; in an order drawn without looking at scores."""

    def context(self, kind: str, seed: int) -> str:
        """One of :data:`KINDS` for a training seed: another seed takes another chain."""
        if kind in ("best", "traces"):
            return self.best if kind == "best" else self.traces
        chain = self.chains[seed % len(self.chains)]
        return chain[-1] if kind == "random" else chain[min(int(kind.removeprefix("step ")), len(chain) - 1)]


def of_experience(context: str) -> bool:
    """Whether a context is named by its kind."""
    return context in KINDS or re.fullmatch(r"step \d+", context) is not None


def gathered(plan: Plan, work: Path, *, say: Callable[[str], None], progress: Progress) -> Experience:
    """Play, extract and score as the row says.

    Raises:
        ConfigError: nothing could be extracted.
    """
    config = plan.gathering()
    play = pick(config, PlayConfig, episodes=config.episodes_per_round)
    with Session(play, work, say=say, progress=progress) as session:
        run_id = stage(session, "play", recipe=plan.name)
        done = gather(session, play, run_id=run_id)
        session.finish(run_id, done.to_dict())
        say(f"{plan.name}: played {done.rate}; {len(done.items)} items, {len(done.candidates)} candidate contexts")
        if not done.candidates:
            raise ConfigError("no item could be read from the extractor's replies; gather more episodes or chains")
        scoring = stage(session, "score", recipe=plan.name)
        ranking, _ = choose(session, pick(config, ScoreConfig), done.candidates, run_id=scoring, gate=False)
        session.finish(scoring, {"text": str(ranking)})
        row = session.store.run(run_id)
        chains = chains_of(session.store, row | {"config": json.loads(row["config"])})
        return Experience(
            best=ranking.best.context_id,
            traces=raw_traces(session, config.budget_tokens, config.placement).id,
            chains=random.Random(config.seed).sample(chains, len(chains)),
        )


def shown_context(session: Session, config: ConsolidateConfig) -> Context:
    """What an arm shows; unlike what is distilled it may be empty, as a chain is that has found nothing."""
    if config.context and not Path(config.context).is_file():
        return session.store.get_context(session.store.resolve(config.context))
    return find_context(session, config)


def _play(
    session: Session, everyone: Sequence[Contestant], tasks: Sequence[Task], seed: int, into: dict[str, Outcomes], *,
    name: str,
) -> Any:  # fmt: skip
    run_id = session.begin("evaluate", recipe=name, models=[one.model.id for one in everyone])
    table = evaluate(session, everyone, tasks, run_id=run_id)
    session.finish(run_id, table.to_dict())
    setup, places = session.setup(session.player_for(everyone[0].model)), [(t.key, t.seed, 0) for t in tasks]
    for one in everyone:
        found = session.store.outcomes(one.arm, env=session.env, setup=setup, split="test", places=places)
        into[one.label] |= {(seed, *place): won for place, won in found.items()}
    return table


def _rate(outcomes: Outcomes) -> Rate:
    return Rate(sum(outcomes.values()), len(outcomes))


def _finding(claim: tuple[str, str], outcomes: Mapping[str, Outcomes]) -> Finding:
    better, worse = claim
    a, b = outcomes[better], outcomes[worse]
    return Finding(better=better, worse=worse, comparison=compare(a, b, {place: place[1] for place in (*a, *b)}))


def lines(result: Result) -> list[str]:
    """The row as text: what was measured beside what was published."""
    plan, published = result.plan, result.plan.paper
    seeds = f"{len(plan.seeds)} training seed{'s' * (len(plan.seeds) > 1)}"
    out = [f"{plan.name}: {Path(plan.settings['env']).name}, {plan.settings.get('model', 'default model')}, {seeds}"]
    if published:
        out.append(f"paper: {published.get('what', '')}")
    probe = f"  {plan.probe['env']}" if plan.probe else ""
    out.append(f"{'':22s} {'success':>7s}  {'95 % interval':>16s} {'n':>5s} {'paper':>6s} {'tokens':>7s}{probe}")
    for arm, rate in result.rates.items():
        paper = f"{published[arm] / 100:6.3f}" if arm in published else f"{'-':>6s}"
        beside = f"  {result.probe[arm].rate:.3f}" if arm in result.probe else ""
        interval = f"[{rate.low:.3f}, {rate.high:.3f}]"
        out.append(
            f"{arm:22s} {rate.rate:7.3f}  {interval:>16s} {rate.n:5d} {paper} {result.reply_tokens[arm]:7.1f}{beside}"
        )
    for found in result.findings:
        out.append(f"{found.better} > {found.worse}: {_seen(found)}")
    for found in result.probe_findings:
        out.append(f"on {plan.probe['env']}, {found.better} > {found.worse}: {_seen(found)}")
    out += drift_lines(result.drift)
    return [*out, f"floors: {result.floors}", *([f"note: {plan.note}"] if plan.note else [])]


def _seen(found: Finding) -> str:
    seen = found.comparison
    return f"{found.verdict}; {seen.difference}, {seen.wins} won / {seen.losses} lost on {seen.tasks} tasks"


def say_plan(plan: Plan, work: Path, say: Callable[[str], None]) -> None:
    """What :func:`run` would do, without a model: steps, tasks, tokens and memory of each arm."""
    from agentopcd.errors import ModelError
    from agentopcd.estimate import memory

    test = f"{plan.config('base', 0).test_tasks} test tasks at most"
    if plan.experience is not None:
        own = plan.gathering()
        say(
            f"{plan.name}, experience: {own.episodes_per_round} episodes, {own.chains} chains of {own.chain_steps} "
            f"extractions, {own.candidates} candidates at most on {own.select_tasks} select tasks"
        )
    say(f"{plan.name}, without training: {', '.join(plan.untrained)}; {len(plan.seeds)} seeds of {test}")
    unknown: dict[str, str] = {}  # models whose config cannot be had, asked for once
    for arm in plan.arms:
        config = plan.config(arm, plan.seeds[0])
        with Session(config, work, say=lambda line: None) as session:
            replies = config.steps * config.batch_size * session.game.step_limit
            test = len(session.tasks("test", config.test_tasks))
            name = session.model_name()[0]
            try:
                needs = unknown.get(name) or f"about {memory(name, config, session.compute)}"
            except ModelError as error:
                needs = unknown[name] = f"memory not estimated: {str(error).splitlines()[0]}"
        say(
            f"{plan.name}, {arm}: {len(plan.seeds)} seeds of {config.steps} steps of {config.batch_size} episodes, at "
            f"most {replies:,} replies and {replies * config.max_tokens:,} tokens a seed; {test} test tasks; {needs}"
        )
