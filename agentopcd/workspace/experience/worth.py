"""What the items of a pool are worth, and the context that is made of the best of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from agentopcd.core.config import ScoringConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Context
from agentopcd.knowledge import subsets
from agentopcd.workspace.session import Session


def value_items(
    session: Session, config: ScoringConfig, candidates: Sequence[Context], *, run_id: int
) -> list[dict[str, Any]]:
    """The value of each active item of the candidates, with an interval, from complementary random halves of the items.

    Raises:
        ConfigError: the candidates have no active item.
    """
    store = session.store
    ids = dict.fromkeys(item.id for context in candidates for item in store.items(context_id=context.id))
    items = [item for item in store.items(ids=list(ids)) if item.status in ("active", "pinned")]
    if not items:
        raise ConfigError(f"no active item of {session.env} in the pool; play and extract first")
    tasks, placement = session.tasks("select", config.select_tasks), candidates[0].placement
    values = subsets(session.bench(run_id), items, tasks, seed=config.seed, placement=placement)
    texts = {item.id: item.text for item in items}
    return [dataclasses.asdict(value) | {"text": texts[value.item_id]} for value in values]
