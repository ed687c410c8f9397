"""Which models a server answers with: the one that is named, the student that it follows, and a canary."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from agentopcd.core.config import RECORDED, ServeConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import work_flag
from agentopcd.core.types import EMPTY, Context
from agentopcd.knowledge import Store
from agentopcd.knowledge.students import current_student, env_of, lineage, student_ref
from agentopcd.workspace.named import context_named
from agentopcd.workspace.paths import recall, student_folder

REFUSED = {
    "worse": "a canary was worse than what is served otherwise",
    "lost": "the gate found that it may have lost what it had elsewhere",
    "drifted": "the gate found it too far from its base",
}
"""Verdicts after which a student is no canary any more."""


class Followed(NamedTuple):
    """Whose student a server follows."""

    env: str
    """The environment; empty: none is followed."""
    base: str
    """The id of the model that answers while it has no student."""


def followed(store: Store, work: Path, config: ServeConfig, model_id: str) -> Followed:
    """The student that is served under its name or, with a canary, that of the recording.

    Args:
        model_id: of the model that was named.

    Raises:
        ConfigError: with a canary, another model is named than the one that plays the recording.
    """
    named = env_of(config.model) if student_folder(store, work, config.model) else ""
    base = lineage(store, model_id)[-1] if named else model_id
    if not config.canary:
        return Followed(named, base)
    env = RECORDED + config.record
    if named not in ("", env) or (not named and current_student(store, env) not in (None, model_id)):
        raise ConfigError(
            f"a canary of recording {config.record!r} is compared with {student_ref(env)}, and --model is "
            f"{config.model}; add --model {student_ref(env)}, or leave out --canary"
        )
    return Followed(env, base)


def student_named(store: Store, work: Path, name: str) -> str:
    """The id of the model at ENV/student; '' if the name is no such ref of this workspace.

    Raises:
        ConfigError: the environment has no student any more, or its folder is gone.
    """
    return (current_student(store, env_of(name)) or "") if student_folder(store, work, name) else ""


def folder_of(store: Store, work: Path, model_id: str) -> str:
    """Where a model of the store lies.

    Raises:
        ConfigError: it is gone.
    """
    row = store.lookup("model", id=model_id)
    if row is None or (name := recall(work, row)) is None:
        raise ConfigError(f"model {model_id[:12]} is gone; put it back, or roll back")
    return name


def canary_context(store: Store, config: ServeConfig, served: Context) -> Context:
    """The context that a canary tries.

    Raises:
        ConfigError: there is none of this name, or it is the one that is served.
    """
    context = context_named(store, config.canary_context, config.placement)[0]
    if context.id in (served.id, EMPTY.id):
        raise ConfigError("--canary-context is what is served otherwise; name another one")
    return context


def canary_model(store: Store, work: Path, config: ServeConfig, served: str) -> str:
    """The name of the model that a canary tries.

    Args:
        served: the id of the model that is served otherwise.

    Raises:
        ConfigError: it was refused before, or there is no student to try.
    """
    if config.canary_model:
        return config.canary_model
    env = RECORDED + config.record
    for row in store.models(env, trained=True):
        if row["id"] != served and not refused(store, env, row["id"]) and (name := recall(work, row)) is not None:
            return name
    raise ConfigError(
        f"no student of {env} is left to try beside the one that plays; train one with `agentopcd consolidate --env "
        f"{shlex.quote(env)}{work_flag(work)}`, or name one with --canary-model"
    )


def check_canary(store: Store, config: ServeConfig, model_id: str, served: str) -> None:
    """Refuse a canary that is what is served otherwise, or that was refused before.

    Raises:
        ConfigError: it is.
    """
    if model_id == served:
        raise ConfigError("--canary-model is the model that is served otherwise; name another one")
    if why := refused(store, RECORDED + config.record, model_id):
        raise ConfigError(f"model {model_id[:12]} is no canary: {why}; name another one with --canary-model")


def refused(store: Store, env: str, model_id: str) -> str:
    """Why a student is not tried any more; '' if it may be."""
    looks = [look for look in store.looks(env, EMPTY.id) if look["model_id"] == model_id]  # others are at contexts
    said = [look["verdict"] for look in looks if look["verdict"] in REFUSED]
    return REFUSED[said[-1]] if said else ""
