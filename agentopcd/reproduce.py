"""The experiments of the paper as recipes: every arm of a row is trained, played on test tasks, and compared in pairs.

A recipe is a TOML file of ``recipes/paper``. All it does goes through the store of a workspace and through run
folders, so a killed call goes on when it is given again, and arms that two recipes share are trained once.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from agentopcd.config import ConsolidateConfig, EvaluateConfig, PlayConfig, ScoreConfig, pick
from agentopcd.distil import distil
from agentopcd.drift import Drift, drift, drift_dict, drift_lines
from agentopcd.errors import ConfigError
from agentopcd.evaluate import Contestant, Evaluation, evaluate, floor_text
from agentopcd.experience import chains_of, choose, gather, raw_traces
from agentopcd.handover import find_context
from agentopcd.knowledge import places_of
from agentopcd.recipes import Plan, of_experience
from agentopcd.runs import CHECKPOINTS
from agentopcd.session import Progress, Session, no_progress
from agentopcd.stats import Comparison, Rate, compare
from agentopcd.types import EMPTY, Context, Task

Outcomes = dict[tuple[int, str, int, int], bool]
"""Success by training seed, task key, task seed and repetition."""


CURVES = {
    "select": "select/success",
    "success": "rollout/success",
    "loss_nats": "loss/value_nats",
    "kl_nats": "loss/kl_full_sampled_nats",
    "entropy_nats": "kl/student_entropy_nats",
    "mass_outside_topk": "kl/student_mass_outside_topk",
}
"""What is told of every step of an arm's training, and what its log calls it: of the tokens that were learned from,
the loss in its own form, with KL and entropy over the whole vocabulary; ``select`` is success on select tasks, at the
steps that measured it."""


SUSTAINED = 3e14
"""Operations a second in the plans' hours: about a third of an H100's peak in bfloat16; assumed, not measured."""


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
class Chosen:
    """Success of an arm whose checkpoints are chosen on the very test tasks, as the paper does: biased upward."""

    best: float
    best_three: float
    """Mean of the best three, or of all where there are fewer."""
    checkpoints: int
    """Of one training seed; the figures are means over seeds."""


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
    curves: Mapping[str, Mapping[str, list[float | None]]]
    """By arm and name: the mean over training seeds at each step; see :data:`CURVES`."""
    chosen_on_test: Mapping[str, Chosen]
    """Beside the rates, on request: the paper's report."""

    def to_dict(self) -> dict[str, Any]:
        def finding(found: Finding) -> dict[str, Any]:
            seen = found.comparison
            return {"claim": f"{found.better} > {found.worse}", "verdict": found.verdict,
                    "difference": seen.difference.diff, "low": seen.difference.low, "high": seen.difference.high,
                    "n": seen.n, "tasks": seen.tasks, "p": seen.p}  # fmt: skip

        return {
            "row": self.plan.name, "env": Path(self.plan.settings["env"]).name,
            "model": self.plan.settings.get("model", ""), "paper": dict(self.plan.paper),
            "seeds": list(self.plan.seeds), "tasks": self.tasks,
            "rates": {arm: rate.to_dict() for arm, rate in self.rates.items()}, "reply_tokens": dict(self.reply_tokens),
            "findings": [finding(one) for one in self.findings], "floors": self.floors, "note": self.plan.note,
            **drift_dict(self.drift),
            "curves": {arm: dict(found) for arm, found in self.curves.items()},
            "chosen_on_test": {arm: dataclasses.asdict(one) for arm, one in self.chosen_on_test.items()},
            "probe": {arm: rate.to_dict() for arm, rate in self.probe.items()},
            "probe_env": Path(self.plan.probe.get("env", "")).name,
            "probe_findings": [finding(one) for one in self.probe_findings],
        }  # fmt: skip


def run(
    plan: Plan, work: Path, *, report: str = "select", say: Callable[[str], None] = print,
    progress: Progress = no_progress,
) -> Result:  # fmt: skip
    """Train every arm with every seed, play all on the same test tasks, and look at the claims.

    Args:
        report: ``select``: each student is the checkpoint that did best on select tasks; ``paper``: beside that, every
            checkpoint plays the test tasks, and the best of them are reported, too.
    """
    if plan.probe:
        _probe_tasks(plan, work)  # what the probe lacks is said before hours of training, not after them
    outcomes: dict[str, Outcomes] = {arm: {} for arm in (*plan.untrained, *plan.arms)}
    probed: dict[str, Outcomes] = {arm: {} for arm in ("base", *plan.arms)} if plan.probe else {}
    tokens: dict[str, list[float]] = {arm: [] for arm in outcomes}
    moved: dict[str, Drift] = {}
    floors, tasks = "", 0
    rates: dict[str, list[list[float]]] = {arm: [] for arm in plan.arms}
    logs: dict[str, list[Path]] = {arm: [] for arm in plan.arms}
    found = gathered(plan, work, say=say, progress=progress) if plan.experience is not None else None

    def config_of(arm: str, seed: int) -> ConsolidateConfig:
        config = dataclasses.replace(plan.config(arm, seed), keep_checkpoints=report == "paper")
        if found is None or not of_experience(config.context):
            return config
        return dataclasses.replace(config, context=found.context(config.context, seed), force=True)

    for seed in plan.seeds:
        students = {}
        for arm in plan.arms:
            config = config_of(arm, seed)
            say(f"{plan.name}: {arm}, seed {seed}")
            if found is not None and config.method == "prefix-replay":
                play_train(plan, config, work, say=say, progress=progress)
            mixed = None
            if config.mix:  # its contexts were scored with the seed of the row's experience
                scored = dataclasses.replace(config, seed=plan.gathering().seed)
                with Session(scored, work, say=say, progress=progress) as session:
                    mixed = find_context(session, scored)
            with Session(config, work, say=say, progress=progress) as session:
                students[arm] = distil(session, config, mixed or find_context(session, config)).folder
            logs[arm].append(Path(students[arm]).with_name("metrics.jsonl"))
        config = plan.config("base", seed)
        with Session(config, work, say=say, progress=progress) as session:
            test = session.tasks("test", config.test_tasks)
            base = Contestant(label="base", model=session.load(config.model))
            contexts = {arm: shown_context(session, config_of(arm, seed)) for arm in plan.shown}
            shown = [dataclasses.replace(base, label=arm, context=context) for arm, context in contexts.items()]
            for one in itertools.chain([base, *shown], _loaded(session, students)):
                table = _play(session, one, test, seed, outcomes[one.label], name=plan.name)
                floors, tasks = floor_text(table.floors) if table.floors else "none", len(test)
                tokens[one.label].append(table.rows[0].reply_tokens)
                if seed == plan.seeds[0]:
                    setup = session.setup(session.player_for(base.model))
                    moved[one.label] = drift(session, one, base, test, setup=setup)
            for arm, folder in students.items() if report == "paper" else ():
                kept = sorted(Path(folder).with_name(CHECKPOINTS).iterdir())
                played: list[Outcomes] = []
                for one in _loaded(session, {f"{arm}, step {int(step.name)}": str(step) for step in kept}):
                    played.append({})
                    _play(session, one, test, seed, played[-1], name=plan.name)
                rates[arm].append([_rate(one).rate for one in played])
        if plan.probe:
            probe = _probe_config(plan, seed)
            with Session(probe, work, say=say, progress=progress) as session:
                context = session.context(probe.context, probe.placement)[0] if probe.context else EMPTY
                for one in _loaded(session, {"base": config.model} | students, context):
                    tasks_of_probe = session.tasks("test", probe.test_tasks)
                    _play(session, one, tasks_of_probe, seed, probed[one.label], name=plan.name)
    trained = [claim for claim in plan.claims if set(claim) <= set(plan.arms)]
    return Result(
        plan=plan, tasks=tasks, floors=floors,
        rates={arm: _rate(found) for arm, found in outcomes.items()},
        findings=[_finding(claim, outcomes) for claim in plan.claims],
        probe={arm: _rate(found) for arm, found in probed.items()},
        probe_findings=[_finding(claim, probed) for claim in trained] if plan.probe else [],
        reply_tokens={arm: sum(found) / len(found) for arm, found in tokens.items()},
        drift=moved, curves={arm: _curves(files) for arm, files in logs.items()},
        chosen_on_test={arm: _chosen(of_seeds) for arm, of_seeds in rates.items() if of_seeds},
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
        return chain[-1] if kind == "random" else chain[int(kind.removeprefix("step "))]


def gathered(plan: Plan, work: Path, *, say: Callable[[str], None], progress: Progress) -> Experience:
    """Play, extract and score as the row says.

    Raises:
        ConfigError: nothing could be extracted.
    """
    config = plan.gathering()
    play = pick(config, PlayConfig, episodes=config.episodes_per_round)
    with Session(play, work, say=say, progress=progress) as session:
        run_id = session.ledger.stage("play", recipe=plan.name)
        done = gather(session, play, run_id=run_id)
        session.ledger.finish(run_id, done.to_dict())
        say(f"{plan.name}: played {done.rate}; {len(done.items)} items, {len(done.candidates)} candidate contexts")
        if not done.candidates:
            raise ConfigError("no item could be read from the extractor's replies; gather more episodes or chains")
        scoring = session.ledger.stage("score", recipe=plan.name)
        ranking, _ = choose(session, pick(config, ScoreConfig), done.candidates, run_id=scoring, gate=False)
        session.ledger.finish(scoring, {"text": str(ranking)})
        row = session.store.run(run_id)
        chains = chains_of(session.store, row | {"config": json.loads(row["config"])})
        return Experience(
            best=ranking.best.context_id,
            traces=raw_traces(session, config.budget_tokens, config.placement).id,
            chains=random.Random(config.seed).sample(chains, len(chains)),
        )


def play_train(
    plan: Plan, config: ConsolidateConfig, work: Path, *, say: Callable[[str], None], progress: Progress
) -> None:
    """Games on train tasks, without a context, for prefix replay: as many as the row's experience has."""
    episodes = plan.gathering().episodes_per_round
    play = pick(config, PlayConfig, context="", split="train", extract=False, episodes=episodes)
    with Session(play, work, say=say, progress=progress) as session:
        run_id = session.ledger.stage("play", recipe=plan.name)
        session.ledger.finish(run_id, gather(session, play, run_id=run_id).to_dict())


def _probe_config(plan: Plan, seed: int) -> EvaluateConfig:
    own = {"env_args": {}, "splits": "", "context": "", "placement": "user"}  # not of the row's environment
    return pick(plan.config("base", seed), EvaluateConfig, **own | dict(plan.probe))


def _probe_tasks(plan: Plan, work: Path) -> int:
    """How many tasks the probe plays; its data and its context are read."""
    config = _probe_config(plan, plan.seeds[0])
    with Session(config, work, say=lambda line: None) as session:
        if config.context:
            session.context(config.context, config.placement)
        return len(session.tasks("test", config.test_tasks))


def shown_context(session: Session, config: ConsolidateConfig) -> Context:
    """What an arm shows; unlike what is distilled it may be empty, as a chain is that has found nothing."""
    if config.context and not Path(config.context).is_file():
        return session.store.get_context(session.store.resolve(config.context))
    return find_context(session, config).parts[0]


def _loaded(session: Session, names: Mapping[str, str], context: Context = EMPTY) -> Iterator[Contestant]:
    """Models by label, one in memory at a time."""
    for label, name in names.items():
        yield Contestant(label=label, model=session.load(name), context=context)


def _play(
    session: Session, one: Contestant, tasks: Sequence[Task], seed: int, into: Outcomes, *, name: str
) -> Evaluation:  # fmt: skip
    run_id = session.ledger.begin("evaluate", recipe=name, models=[one.model.id], context_id=one.context.id)
    table = evaluate(session, [one], tasks, run_id=run_id)
    session.ledger.finish(run_id, table.to_dict())
    arena = session.bench(run_id, one.model).arena("test", places_of(tasks))
    into |= {(seed, *place): won for place, won in session.store.outcomes(one.arm, arena).items()}
    return table


def _curves(logs: Sequence[Path]) -> dict[str, list[float | None]]:
    seeds = [[json.loads(line) for line in file.read_text().splitlines()][1:] for file in logs]  # the first is step 0
    found: dict[str, list[float | None]] = {}
    for name, key in CURVES.items():
        steps = [[record[key] for record in step if key in record] for step in zip(*seeds, strict=True)]
        if any(steps):
            found[name] = [float(f"{fmean(step):.4g}") if step else None for step in steps]
    return found


def _chosen(rates: Sequence[Sequence[float]]) -> Chosen:
    """From the test success of every checkpoint of every seed."""
    tops = [sorted(of_seed, reverse=True)[:3] for of_seed in rates]
    return Chosen(
        best=fmean(top[0] for top in tops), best_three=fmean(fmean(top) for top in tops), checkpoints=len(rates[0])
    )


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
    return [*out, f"floors: {result.floors}", *([f"note: {plan.note}"] if plan.note else [])]


def _seen(found: Finding) -> str:
    seen = found.comparison
    return f"{found.verdict}; {seen.difference}, {seen.wins} won / {seen.losses} lost on {seen.tasks} tasks"


def say_plan(plan: Plan, work: Path, say: Callable[[str], None]) -> None:
    """What :func:`run` would do, without a model: steps, tasks, tokens and memory of each arm."""
    from agentopcd.errors import ModelError
    from agentopcd.estimate import memory, train_flop

    base = plan.config("base", 0)
    test = f"{base.test_tasks} test tasks at most"
    if plan.experience is not None:
        own = plan.gathering()
        say(
            f"{plan.name}, experience: {own.episodes_per_round} episodes, {own.chains} chains of {own.chain_steps} "
            f"extractions, {own.candidates} candidates at most on {own.select_tasks} select tasks"
        )
    say(f"{plan.name}, without training: {', '.join(plan.untrained)}; {len(plan.seeds)} seeds of {test}")
    with Session(base, work, say=lambda line: None) as session:
        tests = len(session.tasks("test", base.test_tasks))
        for arm in plan.arms:
            config = plan.config(arm, plan.seeds[0])
            name = config.model or session.model_name()[0]
            replies = config.steps * config.batch_size * session.game.step_limit
            tokens = replies * config.max_tokens
            try:
                hours = train_flop(name, tokens) / SUSTAINED / 3600
                needs = f"{memory(name, config, session.compute)}; at least {hours:.2g} h a seed"
            except ModelError as error:
                needs = f"memory and time not estimated: {str(error).splitlines()[0]}"
            replayed = config.method == "prefix-replay" and plan.experience is not None
            games = f" after {plan.gathering().episodes_per_round} games on train tasks" if replayed else ""
            say(
                f"{plan.name}, {arm}: {len(plan.seeds)} seeds of {config.steps} steps of {config.batch_size} episodes"
                f"{games}, at most {replies:,} replies and {tokens:,} tokens a seed; {tests} test tasks; {needs}"
            )
    if plan.probe:
        say(f"{plan.name}, probe: {plan.probe['env']}, {_probe_tasks(plan, work)} test tasks, base and every student")
    say("hours: on one GPU, the replies alone, without their prompts")
