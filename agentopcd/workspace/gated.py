"""What the gate of a student (:mod:`agentopcd.workspace.ratchet`) asks, and whether it can: known before a training."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentopcd.core.config import PlayerConfig
from agentopcd.core.config.training import TrainConfig
from agentopcd.core.errors import AgentOpcdError, ConfigError
from agentopcd.core.power import least_p, tasks_to_pass
from agentopcd.core.runs import work_flag
from agentopcd.core.text import SHORT
from agentopcd.core.types import EMPTY, Job
from agentopcd.distillation.distance import DISTANCE
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.looks import next_level
from agentopcd.knowledge.refs import home
from agentopcd.knowledge.students import current_student, lineage, student_moves, student_ref
from agentopcd.workspace.ledger import config_of
from agentopcd.workspace.paths import recall
from agentopcd.workspace.session import Session

UNGATED = "or train without the gate, by --gate-tasks 0"


def to_gate(session: Session, config: TrainConfig, parent_id: str, run_id: int) -> None:
    """Refuse, before a training, a gate that no student could pass since a question of it cannot be asked, and warn of
    one with too few tasks.

    Raises:
        ConfigError: the base of the lineage, the model at ENV/student, or what the lineage had elsewhere is gone.
    """
    base, met = lineage(session.store, parent_id)[-1], incumbent(session, run_id)
    if _gone(session, base):
        raise ConfigError(
            f"the base of the lineage, {_called(session, base)}, is gone, and the gate measures how far a student is "
            f"from it; put it back, {UNGATED}"
        )
    if met is not None and met != parent_id and _gone(session, met) and _plays(session, met, config):
        raise ConfigError(
            f"{student_ref(session.env)} is {_called(session, met)}, which is gone, and the gate compares a student "
            f"with it; put it back, take another student (agentopcd rollback {shlex.quote(session.env)}"
            f"{work_flag(session.work)}), {UNGATED}"
        )
    for env, had in abilities(session, parent_id).items():
        try:
            made = made_by(session, had)
            if home(made.get("env", env)) == env:
                with as_made(session, made) as other:
                    if other.game.graded and _gone(session, had["id"]) and _lacks(other, had["id"], config):
                        raise ConfigError(f"its model, {_called(session, had['id'])}, is gone")
        except AgentOpcdError as error:
            raise ConfigError(
                f"{env}, which the parent's lineage has learned, cannot be asked, so no student would pass the gate: "
                f"{error}; put back what is missing, {UNGATED}"
            ) from error
    if few := too_few(session, config, run_id):
        session.say(f"warning: {few}, so this student will not become {student_ref(session.env)}")


def too_few(session: Session, config: TrainConfig, run_id: int) -> str:
    """That so few confirm tasks can show nothing at the level of the gate's look, whatever comes of them, and how many
    could; '' if these can."""
    looks = session.store.looks(session.env)
    own = next((look for look in reversed(looks) if look["run_id"] == run_id), None)
    number, level = (own["number"], own["level"]) if own else (len(looks) + 1, next_level(looks))
    n, success = len(session.tasks("confirm", config.gate_tasks)), session.by == "success"
    if not level:
        return f"imported looks have left none at the confirm tasks of {session.env}"
    if least_p(n, success=success) < level:
        return ""
    needed, held = tasks_to_pass(level, success=success), len(session.tasks("confirm"))
    how = f"--gate-tasks {needed} could"
    if held < needed:
        how = f"{needed} could, and {session.env} has {held}: cut other splits (agentopcd envs splits), {UNGATED}"
    return f"{n} confirm tasks cannot reach level {level:.2g} of look {number}, whatever comes of them; {how}"


def confirm_jobs(session: Session, tasks: int) -> list[Job]:
    """The confirm tasks on which a student meets other models."""
    first = session.manifest.first_rep("confirm")
    return [Job(task, rep=first) for task in session.tasks("confirm", tasks)]


def incumbent(session: Session, run_id: int) -> str | None:
    """The model at ENV/student before this run moved it."""
    own = moved(session, run_id)
    if own is None:
        return current_student(session.store, session.env)
    return student_moves(session.store, session.env)[own - 1]["model_id"] if own else None


def moved(session: Session, run_id: int) -> int | None:
    """The place, among the moves of ENV/student, of the one that a run has made; None if it has made none."""
    moves = student_moves(session.store, session.env)
    return next((place for place, move in enumerate(moves) if move["run_id"] == run_id), None)


def abilities(session: Session, parent_id: str) -> dict[str, Mapping[str, Any]]:
    """What a lineage was promoted in besides this environment: the model of the last such move, by environment."""
    line = lineage(session.store, parent_id)
    last = {move["env"]: move["model_id"] for move in student_moves(session.store) if move["model_id"] in line}
    rows = {env: session.store.lookup("model", id=id_) for env, id_ in last.items() if env != home(session.env)}
    return {env: row for env, row in rows.items() if row is not None and row["run_id"] is not None}


def made_by(session: Session, model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the run that trained a model. Its ``env`` may be another one than a canary has put the model
    in."""
    run_id = model["run_id"]
    return read_object(session.store.run(run_id)["config"], f"the config of run {run_id}")


def as_made(session: Session, made: Mapping[str, Any]) -> Session:
    """The environment of an earlier training, as it was played then, with the engine of this session; of a recording,
    the sessions that were read.

    Raises:
        ConfigError: another version wrote that run, or the environment or its recording is gone.
    """
    engine = {name: getattr(session.config, name) for name in ("engine", "server", "device", "compute")}
    config = dataclasses.replace(config_of(PlayerConfig, made), model="", **engine)
    by, snapshot = made.get("by", ""), Path(made.get("snapshot", "")).name
    return Session(config, session.work, say=session.say_once, by="" if by == DISTANCE else by, snapshot=snapshot)


def _plays(session: Session, met: str, config: TrainConfig) -> bool:
    """Whether the model at ENV/student has to be loaded for the gate."""
    return session.by == DISTANCE or _lacks(session, met, config, session.setup())


def _lacks(session: Session, model_id: str, config: TrainConfig, setup: str | None = None) -> bool:
    """Whether a model has confirm tasks to play.

    Args:
        setup: None: however they were played.
    """
    rows = session.store.episodes(
        model_id=model_id, context_id=EMPTY.id, env=session.env, setup=setup, split="confirm"
    )  # fmt: skip
    played = {(row["task_key"], row["seed"], row["rep"]) for row in rows}
    return any((job.task.key, job.task.seed, job.rep) not in played for job in confirm_jobs(session, config.gate_tasks))


def _gone(session: Session, model_id: str) -> bool:
    row = session.store.lookup("model", id=model_id)
    return row is None or recall(session.work, row) is None


def _called(session: Session, model_id: str) -> str:
    row = session.store.lookup("model", id=model_id)
    return f"{row['path'] or row['name']} ({model_id[:SHORT]})" if row else model_id[:SHORT]
