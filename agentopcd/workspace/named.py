"""What people name: a context by file, ref or id, and a model that is then known to the store."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from agentopcd import models
from agentopcd.core.encoding import read_text
from agentopcd.core.errors import ConfigError, ModelError, StoreError
from agentopcd.core.files import is_dir, is_file, path_of
from agentopcd.core.runs import kept, work_flag
from agentopcd.core.types import Context, Placement
from agentopcd.knowledge import Store
from agentopcd.knowledge.exchange import is_export
from agentopcd.knowledge.students import env_of
from agentopcd.models import find
from agentopcd.workspace.paths import recall, student_folder


def context_named(store: Store, name: str, placement: Placement = "user") -> tuple[Context, bool]:
    """A context by file, ref or id, and whether it came from a file; a file's is then in the store, too.

    Raises:
        ConfigError: the file is empty, is not text, or is an export of a store.
        StoreError: ``name`` is neither a file nor a ref or id in the store.
    """
    if is_file(name):
        try:
            text = read_text(path_of(name)).strip()
        except ConfigError as error:
            raise ConfigError(f"context file {error}") from error
        if is_export(text):
            raise ConfigError(
                f"{name!r} is a knowledge export, not a context; import it with `agentopcd knowledge import "
                f"{shlex.quote(name)}{work_flag(Path(store.path).parent)}`, then name one of its refs"
            )
        if not text:
            raise ConfigError(f"context file {name!r} is empty; write the context into it")
        context = Context(text, placement)
        store.add_context(context, {"order": "file", "file": name})
        return context, True
    try:
        return store.get_context(store.resolve(name)), False
    except StoreError as error:
        cut = name if len(name) <= 60 else f"{name[:60]}…"  # somebody may have typed the whole context
        raise StoreError(
            f"{str(error).replace(repr(name), repr(cut))} (and there is no such file; to give the text of a "
            "context, write it into a file and name that)"
        ) from error


def model_named(store: Store, work: Path, name: str, device: torch.device) -> models.LoadedModel:
    """Load a model by its name or as ENV/student, and note in the store that there is one, and where it lies.

    Args:
        name: what :func:`agentopcd.models.load_model` takes, or ENV/student.

    Raises:
        ConfigError: ENV/student is none any more, or its folder is gone.
        ModelError: it cannot be found or loaded.
    """
    found = student_folder(store, work, name)
    if found is None and (env := env_of(name)) and not is_dir(path_of(name)):
        try:
            find.find_model(name)
        except ModelError as error:
            raise ModelError(
                f"this workspace has no student of {env}, and no other model of the name {name} can be found; train "
                f"one with `agentopcd consolidate --env {shlex.quote(env)}{work_flag(work)}`, or name another model"
            ) from error
    loaded = models.load_model(found or name, device=device)
    store.add_model(loaded.id, loaded.name, kept(work, loaded.folder))
    known = store.lookup("model", id=loaded.id)
    if known is not None and recall(work, known) is None:  # it was moved
        store.move_model(loaded.id, kept(work, loaded.folder))
    return loaded
