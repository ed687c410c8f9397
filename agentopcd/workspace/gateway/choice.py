"""Which models a server answers with: the one that is named, the student that it follows, and a canary."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from agentopcd.core.config import RECORDED, ServeConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.files import is_file
from agentopcd.core.runs import work_flag
from agentopcd.core.types import EMPTY, Context
from agentopcd.knowledge import Store, home
from agentopcd.knowledge.students import canary_looks, current_student, env_of, lineage, student_ref
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


def context_served(store: Store, config: ServeConfig, name: str) -> Context:
    """The context of this name.

    Raises:
        AgentOpcdError: there is none, it cannot be read, or a placement is given and would have no effect.
    """
    context = context_named(store, name, config.placement)[0]
    file = is_file(config.context) or is_file(config.canary_context)  # one of the two may be of the store
    if not file and config.placement not in (ServeConfig.placement, context.placement):
        raise ConfigError(
            f"--placement {config.placement} is for a context from a file, and {name!r} of the store is placed in the "
            f"{context.placement} message; leave it out, or name a file"
        )
    return context


def canary_context(store: Store, config: ServeConfig, model_id: str, served: Context) -> Context:
    """The context that a canary tries.

    Args:
        model_id: of the model that it is tried with.
        served: what that model is shown otherwise.

    Raises:
        ConfigError: there is none of this name, it is the one that is served, or a canary has decided about it.
    """
    context = context_served(store, config, config.canary_context)
    if context.id in (served.id, EMPTY.id):
        raise ConfigError("--canary-context is what is served otherwise; name another one")
    if verdict := decided(store, RECORDED + config.record, model_id, context.id):
        what = "serve it with --context" if verdict == "pass" else "name another one with --canary-context"
        raise ConfigError(
            f"context {context.id[:12]} is no canary: its verdict with this model is {verdict!r}, so no session would "
            f"be compared; {what}"
        )
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
        over = refused(store, env, row["id"]) or decided(store, env, row["id"], EMPTY.id)
        if row["id"] != served and not over and (name := recall(work, row)) is not None:
            return name
    raise ConfigError(
        f"no student of {env} is left to try beside the one that plays; train one with `agentopcd consolidate --env "
        f"{shlex.quote(env)}{work_flag(work)}`, or name one with --canary-model"
    )


def check_canary(store: Store, config: ServeConfig, model_id: str, served: str) -> None:
    """Refuse a canary that is what is served otherwise, that was refused before, or that has passed.

    Raises:
        ConfigError: it is.
    """
    if model_id == served:
        raise ConfigError("--canary-model is the model that is served otherwise; name another one")
    env = RECORDED + config.record
    why = refused(store, env, model_id)
    if not why and (verdict := decided(store, env, model_id, EMPTY.id)):
        again = f"agentopcd rollback {shlex.quote(env)} --to {model_id[:12]}{work_flag(Path(store.path).parent)}"
        why = f"its verdict as a canary is {verdict!r}, so no session would be dealt to it; let it play with `{again}`"
    if why:
        raise ConfigError(f"model {model_id[:12]} is no canary: {why}; name another one with --canary-model")


def refused(store: Store, env: str, model_id: str) -> str:
    """Why a student is not tried any more; '' if it may be."""
    looks = [look for look in store.looks(context_id=EMPTY.id) if look["model_id"] == model_id]  # of gates and canaries
    said = [look["verdict"] for look in looks if home(look["env"]) == env and look["verdict"] in REFUSED]
    return REFUSED[said[-1]] if said else ""


def decided(store: Store, env: str, model_id: str, context_id: str) -> str:
    """The last verdict on a canary, pass or worse, if it ended the comparison; '' if sessions are still dealt to it."""
    said = [verdict for look in canary_looks(store, env, model_id, context_id) if (verdict := look["verdict"])]
    return said[-1] if said and said[-1] in ("pass", "worse") else ""
