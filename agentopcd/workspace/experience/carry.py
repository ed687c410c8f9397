"""What goes on from round to round: the items that the last round's chains reached, without those that are stale."""

from __future__ import annotations

from collections.abc import Sequence

from agentopcd.core.types import EMPTY, Context
from agentopcd.knowledge import Ranking, Store, render
from agentopcd.knowledge.database import Row
from agentopcd.workspace.experience.chains import chains_of


def carried(store: Store, played: Row, ranking: Ranking | None, model_id: str) -> list[Context]:
    """What each chain of a finished play goes on with, in the order of the chains; the empty context for nothing.

    An item is left behind if a person has retired it, if ``model_id`` has it in its weights, or if the contexts that
    held it did worse on select tasks than those that did not.

    Args:
        played: the row of the play's run, with ``config`` parsed.
        ranking: of that play's contexts; None if they were not ranked.
    """
    stale = {item.id for id_ in store.learned(model_id) for item in store.items(context_id=id_)}
    stale |= worse(store, ranking) if ranking else set()
    kept = []
    for steps in chains_of(store, played):
        items = [
            item for item in store.items(context_id=steps[-1]) if item.id not in stale and item.status != "retired"
        ]
        placement = store.get_context(steps[-1]).placement
        kept.append(Context(render([item.text for item in items]), placement) if items else EMPTY)
    return kept


def worse(store: Store, ranking: Ranking) -> set[str]:
    """The items that the ranked contexts do without better: mean success with the item is below that without it.

    An item that every context holds, or none, is compared with nothing and stays. A context without a finished game
    says nothing.
    """
    rates = {row.context_id: row.count.rate.rate for row in ranking.rows if row.count.rate.n}
    held = {id_: {item.id for item in store.items(context_id=id_)} for id_ in rates}

    def mean(ids: Sequence[str]) -> float:
        return sum(rates[id_] for id_ in ids) / len(ids)

    found = set()
    for item in set().union(*held.values()) if held else ():
        having = [id_ for id_ in held if item in held[id_]]
        without = [id_ for id_ in held if item not in held[id_]]
        if having and without and mean(having) < mean(without):
            found.add(item)
    return found
