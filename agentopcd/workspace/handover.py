"""The gate between the store and a model's weights."""

from __future__ import annotations

from pathlib import Path

from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import work_flag
from agentopcd.core.text import counted
from agentopcd.core.types import Context
from agentopcd.knowledge import PLACEBO, Store, check_leaks
from agentopcd.knowledge.decide import waiting_flags
from agentopcd.knowledge.faults import read_object


def check_handover(store: Store, work: Path, context: Context, *, force: bool = False) -> None:
    """Refuse, before training, what nobody has approved, and what must not be learned from.

    Args:
        work: the workspace folder, for the commands that the messages name.
        force: let flagged text pass that was imported and is no item; nothing else.

    Raises:
        TaskLeak: an item came from a held-out task.
        ConfigError: an item is pending or retired, the context is a placebo, or imported text that is no item has
            flags.
    """
    check_leaks(store, context.id)
    name, where = context.id[:12], work_flag(work)
    recipe = read_object(store.context_row(context.id)["recipe"], f"the recipe of context {name}")
    if recipe.get("order") == PLACEBO:
        raise ConfigError(f"context {name} is a placebo, which holds no knowledge; name another one")
    blocked = store.blocked(context.id)
    for status, remedy in (
        ("pending", f"read and approve them: agentopcd knowledge approve {name}{where}"),
        ("retired", f"leave them out: agentopcd knowledge edit REF{where}; or take that back"),
    ):
        if ids := [item.id[:12] for item in blocked if item.status == status]:
            remedy += f": agentopcd knowledge approve {' '.join(ids[:5])}{where}" * (status == "retired")
            raise ConfigError(
                f"context {name} has {counted(len(ids), f'{status} item')}, the first is {ids[0]}; {remedy}"
            )
    if not force and (marks := waiting_flags(store, context.id)):
        raise ConfigError(
            f"context {name} was imported and its text has flags ({', '.join(marks)}); read it (agentopcd "
            f"knowledge show {name}{where}), and write it to a file and name that with --context, or insist with "
            "--force"
        )
