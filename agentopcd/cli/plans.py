"""What a command would do, for ``--dry-run``: its steps in words, and how many episodes and training steps they are."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from agentopcd.cli import closing
from agentopcd.core.config import ConfirmConfig, ConsolidateConfig, LearnConfig, ScoreConfig, ScoringConfig, pick
from agentopcd.core.errors import ConfigError
from agentopcd.core.text import counted, first_line

if TYPE_CHECKING:
    from agentopcd.workspace.session import Session


@dataclasses.dataclass(frozen=True)
class Plan:
    """What would be done."""

    lines: list[str]
    episodes: int
    """To play, at most."""
    steps: int = 0
    """Of training, at most."""


def scoring(session: Session, config: ScoreConfig, pool: int) -> Plan:
    """What ``score`` would play.

    Args:
        pool: the number of candidates.
    """
    from agentopcd.knowledge import PER_CONTEXT

    n, tasks = min(pool, config.candidates), len(session.tasks("select", config.select_tasks))
    lines, episodes = [f"up to {counted(n, 'context')} and none on {tasks} select tasks"], (n + 1) * tasks
    if config.method == "halving":
        lines = [
            f"up to {counted(n, 'context')} on select tasks, {PER_CONTEXT} episodes for each on average, most for the "
            "best"
        ]
        episodes = n * PER_CONTEXT
    if config.confirm:
        lines.append(confirming(session, config))
        episodes += confirm_episodes(session, config)
    return Plan(lines, episodes)


def confirm_episodes(session: Session, config: ScoringConfig | ConfirmConfig) -> int:
    """Episodes of a confirmation: the context, none, the placebo and the context before it, on each task."""
    from agentopcd.knowledge import own_best

    rivals = 3 + (own_best(session.store, session.env) is not None)
    return rivals * len(session.tasks("confirm", config.confirm_tasks))


def confirming(session: Session, config: ScoringConfig | ConfirmConfig, which: str = "the winner") -> str:
    """The plan's line about a confirmation."""
    n = len(session.tasks("confirm", config.confirm_tasks))
    return f"{which}, none, its placebo and any context confirmed before on {n} confirm tasks"


def training(session: Session, config: ConsolidateConfig) -> Plan:
    """What ``consolidate`` would do."""
    tests, trainings = len(session.tasks("test", config.test_tasks)), 1 + config.placebo
    lines = [
        f"{counted(config.steps, 'step')} of {counted(config.batch_size, 'episode')}"
        + ", and the same for the placebo student" * config.placebo,
        f"select: {len(session.tasks('select', config.select_tasks))} tasks every {config.select_every} steps",
        f"test: {tests} tasks, {'four' if config.placebo else 'three'} arms",
        _gate(session, config),
        f"memory: {_memory(session, config)}",
    ]
    played = (2 + trainings) * tests + 2 * _gate_tasks(session, config)
    return Plan(lines, played, trainings * config.steps)


def rounds(session: Session, config: LearnConfig) -> Plan:
    """What ``learn`` would do where contexts are ranked, all rounds together."""
    from agentopcd.knowledge import PER_CONTEXT

    tests, gate = len(session.tasks("test", config.test_tasks)), _gate_tasks(session, config)
    episodes = config.episodes_per_round + PER_CONTEXT * config.candidates + confirm_episodes(session, config)
    episodes, steps = episodes + 3 * tests + 2 * gate, config.steps
    lines = [
        f"{counted(config.rounds, 'round')}, each:",
        f"{counted(config.episodes_per_round, 'episode')}, {counted(config.chains, 'chain')} of "
        f"{counted(config.chain_steps, 'extraction')}" + closing.extractor(config),
        f"up to {config.candidates} candidates on select tasks, {PER_CONTEXT} episodes for each on average",
        confirming(session, config),
        f"if confirmed: {counted(config.steps, 'step')} of {counted(config.batch_size, 'episode')}, then the test "
        "tasks",
        _gate(session, config),
    ]
    if pilots := _pilots(session, config):
        short = max(1, config.steps // 4)
        lines.append(
            f"if it does not pass: {pilots} pilots of {short} steps, and the best way trains another student, with its "
            "test tasks and its gate (--one-method: none of this)"
        )
        episodes, steps = episodes + _replayed(session) + tests + gate, steps + pilots * short + config.steps
    return Plan(lines, config.rounds * episodes, config.rounds * steps)


def recorded(session: Session, config: LearnConfig) -> list[str]:
    """What ``learn`` does with a recording that nothing grades."""
    read, train = len(session.tasks("extract")), len(session.tasks("train"))
    return [
        f"{counted(config.rounds, 'round')}, each:",
        f"at most {config.episodes_per_round} of {read} recorded conversations are read for lessons",
        "no context is ranked: --context, ENV/best or what is served is distilled",
        f"{config.steps} steps of {config.batch_size} of {train} recorded conversations, then the gate",
    ]


def _pilots(session: Session, config: LearnConfig) -> int:
    """How many other ways to train a round would try, see :func:`agentopcd.learn.another_way`."""
    from agentopcd.learn import WAYS
    from agentopcd.workspace.checks import with_method

    if config.one_method or not config.gate_tasks:  # without a gate, each student becomes ENV/student
        return 0
    known = list[ConsolidateConfig]()
    for changes in ({}, *WAYS.values()):
        with contextlib.suppress(ConfigError):  # settings that are of no use to this way
            way = with_method(session, dataclasses.replace(pick(config, ConsolidateConfig), **changes))
            if way not in known:
                known.append(way)
    return len(known) - 1


def _replayed(session: Session) -> int:
    """Train episodes that are played for the pilot of prefix replay."""
    from agentopcd.learn import REPLAYED

    return 0 if session.game.spec.logged else len(session.tasks("train", REPLAYED))


def _gate_tasks(session: Session, config: ConsolidateConfig | LearnConfig) -> int:
    return len(session.tasks("confirm", config.gate_tasks))


def _gate(session: Session, config: ConsolidateConfig | LearnConfig) -> str:
    """The plan's line about the gate of students."""
    from agentopcd.knowledge.students import student_ref
    from agentopcd.workspace.gated import too_few

    if not config.gate_tasks:
        return "no gate: the student becomes ENV/student at once"
    n = _gate_tasks(session, config)
    line = f"gate: {n} confirm tasks, by the student and its parent, and 32 neutral prompts (--gate-tasks)"
    few = too_few(session, config, 0)
    return f"{line}; {few}, so the student will not become {student_ref(session.env)}" if few else line


def _memory(session: Session, config: ConsolidateConfig) -> str:
    from agentopcd.core.errors import ModelError
    from agentopcd.distillation.memory import memory

    try:
        return f"about {memory(session.model_name()[0], config, session.compute)}"
    except ModelError as error:  # a dry run must work without a model
        return f"not estimated: {first_line(error)}"
