"""Run the recipes of the paper: train every arm of a row, play it on test tasks, and compare arms in pairs.

A recipe is a TOML file; ``plan.py`` reads it. All results are in the store of a workspace and in run folders, so
repeating a killed call resumes it, and an arm that two recipes share is trained once.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from agentopcd.cli.paper.plan import Plan, of_experience
from agentopcd.cli.paper.report import Chosen, Result
from agentopcd.cli.paper.verdicts import finding, success
from agentopcd.core.config import ConsolidateConfig, PlayConfig, PlayerConfig, ScoreConfig, pick
from agentopcd.core.errors import ConfigError, DependencyError, EnvError
from agentopcd.core.files import is_file
from agentopcd.core.runs import CHECKPOINTS, read_records
from agentopcd.core.types import EMPTY, Context, Task
from agentopcd.distil import distil_context
from agentopcd.envs.registry import is_rows
from agentopcd.envs.scan import Progress, no_progress
from agentopcd.knowledge import Place
from agentopcd.workspace.evaluation.distilled import folder_of
from agentopcd.workspace.evaluation.drift import Drift, drift
from agentopcd.workspace.evaluation.table import Contestant, Evaluation, evaluate, test_places
from agentopcd.workspace.experience.chains import chains_of
from agentopcd.workspace.experience.choose import choose, raw_traces
from agentopcd.workspace.experience.find_context import find_context
from agentopcd.workspace.experience.gather import gather
from agentopcd.workspace.session import Session

Played = dict[tuple[int, str, int], bool]
"""Success by training seed, task key and task seed: :data:`agentopcd.core.crossed.Outcomes` that grow."""

CURVES = {
    "select": "select/success",
    "success": "rollout/success",
    "loss_nats": "loss/value_nats",
    "kl_nats": "loss/kl_full_sampled_nats",
    "entropy_nats": "kl/student_entropy_nats",
    "mass_outside_topk": "kl/student_mass_outside_topk",
}
"""Curve -> key in the training log, for every step of an arm's training. ``loss_nats`` is in the form that the arm
trains on; KL and entropy are over the whole vocabulary; all are over the tokens that the arm learns from. ``select``
is success on select tasks, at the steps that measured it."""


SUSTAINED = 3e14
"""Floating-point operations per second, for the hours of a plan: about a third of an H100's peak in bfloat16;
assumed, not measured."""


def run(
    plan: Plan, work: Path, *, report: str = "select", say: Callable[[str], None] = print,
    progress: Progress = no_progress,
) -> Result:  # fmt: skip
    """Train every arm with every seed, play all arms on the same test tasks, and test the claims.

    Args:
        report: ``select``: each student is the checkpoint that did best on select tasks; ``paper``: in addition, every
            checkpoint plays the test tasks, and the best checkpoints are reported.
    """
    plan = with_probe(plan, work, say)
    check_tasks(plan, work)
    experience = gathered(plan, work, say=say, progress=progress) if plan.experience is not None else None
    row = _Row(plan, work, say, progress, keep_checkpoints=report == "paper", experience=experience)
    for seed in plan.seeds:
        students = {arm: row.train(arm, seed) for arm in plan.arms}
        row.play(students, seed)
        if plan.probe:
            row.play_probe(students, seed)
    trained = [claim for claim in plan.claims if set(claim) <= set(plan.arms)]
    return Result(
        plan=plan, tasks=row.tasks, floors=row.floors,
        rates={arm: success(found) for arm, found in row.outcomes.items()},
        findings=[finding(claim, row.outcomes, plan.chains) for claim in plan.claims],
        probe={arm: success(found) for arm, found in row.probed.items()},
        probe_findings=[finding(claim, row.probed, plan.chains) for claim in trained] if plan.probe else [],
        outcomes=row.outcomes, probe_outcomes=row.probed, contexts=row.contexts, compute=row.compute,
        reply_tokens={arm: sum(found) / len(found) for arm, found in row.tokens.items()},
        drift=row.moved, curves={arm: _curves(files) for arm, files in row.logs.items()},
        chosen_on_test={arm: _chosen(of_seeds) for arm, of_seeds in row.rates.items() if of_seeds},
    )  # fmt: skip


@dataclasses.dataclass
class _Row:
    """A running row: its inputs, and the results so far."""

    plan: Plan
    work: Path
    say: Callable[[str], None]
    progress: Progress
    keep_checkpoints: bool
    """Keep every checkpoint and play it on the test tasks."""
    experience: Experience | None
    floors: str = ""
    tasks: int = 0
    compute: str = ""

    def __post_init__(self) -> None:
        plan = self.plan
        self.outcomes: dict[str, Played] = {arm: {} for arm in (*plan.untrained, *plan.arms)}
        self.probed: dict[str, Played] = {arm: {} for arm in ("base", *plan.arms)} if plan.probe else {}
        self.contexts: dict[str, dict[int, str]] = {}
        self.tokens: dict[str, list[float]] = {arm: [] for arm in self.outcomes}
        self.moved: dict[str, Drift] = {}
        self.rates: dict[str, list[list[float]]] = {arm: [] for arm in plan.arms}
        """Success of every checkpoint, by arm and training seed."""
        self.logs: dict[str, list[Path]] = {arm: [] for arm in plan.arms}

    def open(self, config: PlayerConfig) -> Session:
        return Session(config, self.work, say=self.say, progress=self.progress)

    def config(self, arm: str, seed: int) -> ConsolidateConfig:
        """The settings of an arm, with the context that its experience yields."""
        config = dataclasses.replace(self.plan.config(arm, seed), keep_checkpoints=self.keep_checkpoints)
        if self.experience is None or not of_experience(config.context):
            return config
        context = self.experience.context(config.context, seed)
        self.contexts.setdefault(arm, {})[seed] = context
        return dataclasses.replace(config, context=context, force=True)

    def train(self, arm: str, seed: int) -> str:
        """Train an arm and return the folder of its student, or, with ``placebo``, of its placebo student."""
        plan, config = self.plan, self.config(arm, seed)
        self.say(f"{plan.name}: {arm}, seed {seed}")
        if self.experience is not None and config.replays:
            play_train(plan, config, self.work, say=self.say, progress=self.progress)
        mixed = None
        if config.mix:  # its contexts were scored with the seed of the row's experience
            scored = dataclasses.replace(config, seed=plan.gathering().seed, **plan.playing)
            with self.open(scored) as session:
                mixed = find_context(session, scored)
        with self.open(config) as session:
            done = distil_context(session, config, mixed or find_context(session, config), moves=False)
            student = folder_of(session, done.placebo_id) if config.placebo else done.folder
        self.logs[arm].append(Path(student).with_name("metrics.jsonl"))
        return student

    def play(self, students: Mapping[str, str], seed: int) -> None:
        """Play the untrained arms and one training seed's students on test tasks."""
        plan, config = self.plan, self.plan.tested(seed)
        with self.open(config) as session:
            test = session.tasks("test", config.test_tasks)
            self.compute = str(session.compute).removeprefix("torch.")
            base = Contestant(label="base", model=session.load(config.model))
            contexts = {arm: shown_context(session, self.config(arm, seed)) for arm in plan.shown}
            shown = [dataclasses.replace(base, label=arm, context=context) for arm, context in contexts.items()]
            for one in itertools.chain([base, *shown], _loaded(session, students)):
                table, outcomes = _play(session, one, test, plan.name)
                self.outcomes[one.label] |= _of_seed(outcomes, seed)
                self.floors, self.tasks = table.floors.text if table.floors else "none", len(test)
                self.tokens[one.label].append(table.rows[0].reply_tokens)
                if seed == plan.seeds[0]:
                    setup = session.setup(session.player_for(base.model))
                    self.moved[one.label] = drift(session, one, base, test, setup=setup)
            for arm, folder in students.items() if self.keep_checkpoints else ():
                kept = sorted(Path(folder).with_name(CHECKPOINTS).iterdir())
                steps = _loaded(session, {f"{arm}, step {int(step.name)}": str(step) for step in kept})
                played = [_play(session, one, test, plan.name)[1] for one in steps]
                self.rates[arm].append([fmean(map(bool, outcomes.values())) for outcomes in played])

    def play_probe(self, students: Mapping[str, str], seed: int) -> None:
        """Play the base and one training seed's students on the probe task, which no arm was trained on."""
        probe = self.plan.probing(seed)
        with self.open(probe) as session:
            context = session.context(probe.context, probe.placement)[0] if probe.context else EMPTY
            base = {"base": self.plan.config("base", seed).model}
            for one in _loaded(session, base | dict(students), context):
                outcomes = _play(session, one, session.tasks("test", probe.test_tasks), self.plan.name)[1]
                self.probed[one.label] |= _of_seed(outcomes, seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experience:
    """Ids of the contexts that a row's experience yields."""

    best: str
    traces: str
    chains: Sequence[Sequence[str]]
    """By chain and step; the order of the chains is drawn without looking at scores."""

    def context(self, kind: str, seed: int) -> str:
        """The context of one kind for a training seed; each seed takes another chain."""
        if kind in ("best", "traces"):
            return self.best if kind == "best" else self.traces
        chain = self.chains[seed % len(self.chains)]
        return chain[-1] if kind == "random" else chain[int(kind.removeprefix("step "))]


def gathered(plan: Plan, work: Path, *, say: Callable[[str], None], progress: Progress) -> Experience:
    """Gather the experience of a row: play, extract and score.

    Raises:
        ConfigError: nothing could be extracted, or an arm would be trained on an empty context.
    """
    config = plan.gathering()
    play = pick(config, PlayConfig, episodes=config.episodes_per_round, **plan.playing)
    with Session(play, work, say=say, progress=progress) as session:
        run_id = session.ledger.stage("play", recipe=plan.name)
        done = gather(session, play, run_id=run_id)
        session.ledger.finish(run_id, done.to_dict())
        say(f"{plan.name}: played {done.rate}; {len(done.items)} items, {len(done.candidates)} candidate contexts")
        if not done.candidates:
            raise ConfigError("no item could be read from the extractor's replies; gather more episodes or chains")
        scoring = session.ledger.stage("score", recipe=plan.name)
        scorer = pick(config, ScoreConfig, method="uniform", confirm=False, **plan.playing)  # as in the paper
        ranking, _ = choose(session, scorer, done.candidates, run_id=scoring)
        session.ledger.finish(scoring, {"text": str(ranking)})
        row = session.store.run(run_id)
        chains = chains_of(session.store, row | {"config": json.loads(row["config"])})
        found = Experience(
            best=ranking.best.context_id,
            traces=raw_traces(session, config.budget_tokens, config.placement, run_id).id,
            chains=random.Random(config.seed).sample(chains, len(chains)),
        )
    check_taught(plan, found)
    return found


def check_taught(plan: Plan, experience: Experience) -> None:
    """Refuse a row of which an arm would be trained on a chain that has found nothing, before any other is trained.

    Raises:
        ConfigError: the context of an arm is empty.
    """
    for arm, seed in itertools.product(plan.arms, plan.seeds):
        kind = plan.config(arm, seed).context
        if of_experience(kind) and experience.context(kind, seed) == EMPTY.id:
            raise ConfigError(
                f"{plan.name!r}: the context {kind!r} of {arm!r} with seed {seed} is empty: nothing was read from its "
                "chain's episodes; raise chain_steps or episodes_per_round in the row's experience, or its seed"
            )


def play_train(
    plan: Plan, config: ConsolidateConfig, work: Path, *, say: Callable[[str], None], progress: Progress
) -> None:
    """Play train tasks without a context, for prefix replay: as many episodes as the row's experience has."""
    episodes = plan.gathering().episodes_per_round
    play = pick(config, PlayConfig, context="", split="train", extract=False, episodes=episodes)
    with Session(play, work, say=say, progress=progress) as session:
        run_id = session.ledger.stage("play", recipe=plan.name)
        session.ledger.finish(run_id, gather(session, play, run_id=run_id).to_dict())


def _probe_tasks(plan: Plan, work: Path) -> int:
    """The number of tasks that the probe plays; its data and its context are read to count them."""
    config = plan.probing(plan.seeds[0])
    with Session(config, work, say=lambda line: None) as session:
        if config.context:
            session.context(config.context, config.placement)
        return len(session.tasks("test", config.test_tasks))


def check_tasks(plan: Plan, work: Path) -> None:
    """Refuse a row that asks for more tasks than its splits have: fewer would make it another experiment.

    Raises:
        ConfigError: a split is too small.
    """
    wanted = {"test": int(plan.settings.get("test_tasks", 0)), "select": int(plan.settings.get("select_tasks", 0))}
    if plan.experience is not None:
        wanted["select"] = max(wanted["select"], int(plan.experience.get("select_tasks", 0)))
    with Session(plan.config("base", 0), work, say=lambda line: None) as session:
        for split, count in wanted.items():
            if (found := len(session.tasks(split))) < count:
                raise ConfigError(
                    f"{plan.name!r} wants {count:,} {split} tasks and {plan.env} has {found:,}; give it more rows, or "
                    f"cut other splits with `agentopcd envs splits` and name them as splits in the recipe"
                )


def with_probe(plan: Plan, work: Path, say: Callable[[str], None]) -> Plan:
    """The plan as it can be run here: without its probe, and with a note, if the probe's prompts are not here.

    Any other fault of the probe is raised now, and not after hours of training.
    """
    if not plan.probe:
        return plan
    config = plan.probing(plan.seeds[0])
    file = config.env if is_rows(config.env) else config.env_args.get("file", "")
    try:
        _probe_tasks(plan, work)
        return plan
    except DependencyError as error:
        lacks = str(error)
    except EnvError:
        if not file or is_file(file):
            raise
        lacks = f"there is no file {file}"
    left_out = f"the probe on {Path(config.env).name} is left out: {lacks}"
    say(f"note: {plan.name}: {left_out}")
    return dataclasses.replace(plan, probe={}, note="; ".join(filter(None, (plan.note, left_out))))


def shown_context(session: Session, config: ConsolidateConfig) -> Context:
    """The context that an arm is shown. Unlike a distilled context it may be empty, if its chain has found nothing."""
    if config.context and not is_file(config.context):
        return session.store.get_context(session.store.resolve(config.context))
    return find_context(session, config).parts[0]


def _loaded(session: Session, names: Mapping[str, str], context: Context = EMPTY) -> Iterator[Contestant]:
    """Load models by label, one in memory at a time."""
    for label, name in names.items():
        yield Contestant(label=label, model=session.load(name), context=context)


def _play(
    session: Session, one: Contestant, tasks: Sequence[Task], name: str
) -> tuple[Evaluation, Mapping[Place, float]]:
    """Play one contestant of the row ``name``; return its table and its outcomes."""
    run_id = session.ledger.begin("evaluate", recipe=name, models=[one.model.id], context_id=one.context.id)
    table = evaluate(session, [one], tasks, run_id=run_id)
    session.ledger.finish(run_id, table.to_dict())
    arena = session.bench(run_id, one.model).arena("test", test_places(session, tasks))
    return table, session.store.outcomes(one.arm, arena)


def _of_seed(outcomes: Mapping[Place, float], seed: int) -> Played:
    return {(seed, task, task_seed): bool(won) for (task, task_seed, _), won in outcomes.items()}


def _curves(logs: Sequence[Path]) -> dict[str, list[float | None]]:
    """Means over the seeds that reached each step; with ``patience`` some stop early."""
    seeds = [read_records(file)[1:] for file in logs]  # the first is step 0
    found: dict[str, list[float | None]] = {}
    steps_of = [*itertools.zip_longest(*seeds, fillvalue={})]
    for name, key in CURVES.items():
        steps = [[record[key] for record in step if key in record] for step in steps_of]
        if any(steps):
            found[name] = [float(f"{fmean(step):.4g}") if step else None for step in steps]
    return found


def _chosen(rates: Sequence[Sequence[float]]) -> Chosen:
    """The best checkpoints, from the test success of every checkpoint of every seed."""
    tops = [sorted(of_seed, reverse=True)[:3] for of_seed in rates]
    return Chosen(
        best=fmean(top[0] for top in tops), best_three=fmean(fmean(top) for top in tops), checkpoints=len(rates[0])
    )


def say_plan(plan: Plan, work: Path, say: Callable[[str], None]) -> None:
    """Print what :func:`run` would do, without loading a model: steps, tasks, tokens and memory of each arm."""
    from agentopcd.core.errors import ModelError
    from agentopcd.distillation.memory import memory, train_flop

    plan = with_probe(plan, work, say)
    check_tasks(plan, work)
    base = plan.config("base", 0)
    test = f"{base.test_tasks} test tasks at most"
    if plan.experience is not None:
        gathering = plan.gathering()
        say(
            f"{plan.name}, experience: {gathering.episodes_per_round} episodes, {gathering.chains} chains of "
            f"{gathering.chain_steps} extractions, {gathering.candidates} candidates at most on "
            f"{gathering.select_tasks} select tasks"
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
            replayed = config.replays and plan.experience is not None
            games = f" after {plan.gathering().episodes_per_round} games on train tasks" if replayed else ""
            say(
                f"{plan.name}, {arm}: {len(plan.seeds)} seeds of {config.steps} steps of {config.batch_size} episodes"
                f"{games}, at most {replies:,} replies and {tokens:,} tokens a seed; {tests} test tasks; {needs}"
            )
    for one in plan.departures:
        say(f"{plan.name}, not as in the paper's code: {one}")
    if plan.probe:
        say(f"{plan.name}, probe: {plan.probe['env']}, {_probe_tasks(plan, work)} test tasks, base and every student")
    say("hours: on one GPU, for the replies alone, without their prompts")
