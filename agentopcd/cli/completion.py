"""What the shell offers for the value of an option. Nothing heavy is imported, and what goes wrong offers nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

BUILT_IN = ("pocket", "pocket-s", "smollm2-135m")
"""Names of built-in models; :data:`agentopcd.models.find.BUILT_IN` is in a module that imports torch."""

Offer = Callable[..., list[Any]]


def environments() -> list[tuple[str, str]]:
    """Registered environments and those of installed packages, then the schemes of others."""
    from agentopcd.envs.registry import SCHEMES, list_envs

    named = [(spec.id, spec.summary.partition(": ")[0] or "of an installed package") for spec in list_envs()]
    return [*named, *((f"{scheme}:", f"{scheme}:ID, from elsewhere") for scheme in SCHEMES)]


def models() -> list[str]:
    """Built-in models. A folder or a file is the shell's to complete."""
    return list(BUILT_IN)


def refs(ctx: typer.Context) -> list[str]:
    """Names of the contexts in the store of ``--work``, if there is one."""
    from agentopcd.core.runs import default_workspace
    from agentopcd.knowledge import Store

    file = Path(ctx.params.get("work") or default_workspace()).expanduser() / "store.db"
    try:
        with Store.watch(file) as store:  # nothing is written, not even a schema brought up to date
            return list(store.refs())
    except Exception:  # no store, a locked one, a damaged one, one of another version
        return []


def offer_for(name: str, known: Sequence[str]) -> Offer | None:
    """What is offered for a setting: its legal values, or names of its kind; None: files, as the shell does."""
    if known:
        return lambda: [choice for choice in known if choice]
    return {"env": environments, "model": models, "teacher": models, "extractor": models, "context": refs}.get(name)
