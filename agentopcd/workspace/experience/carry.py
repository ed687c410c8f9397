"""What goes on from round to round: the items that the last round's chains reached, without those that are stale."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

from agentopcd.core.types import EMPTY, Context
from agentopcd.knowledge import Place, Ranking, Store, render
from agentopcd.knowledge.database import Row
from agentopcd.workspace.experience.chains import chains_of


def carried(store: Store, played: Row, ranking: Ranking | None, model_id: str) -> list[Context]:
    """What each chain of a finished play goes on with, in the order of the chains; the empty context for nothing.

    An item is left behind if a person has retired it, if ``model_id`` has it in its weights, or if contexts with it did
    worse than others on the same select tasks.

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
    r"""The items that the ranked contexts do without better: at the same places, games with the item went worse.

    After halving the contexts have played different tasks, which may be easier or harder. So each place p is looked at
    alone, with the weight that Mantel and Haenszel give it (J. Natl. Cancer Inst. 1959, 22, 719), and an item is worse
    if the sum is below 0:

    .. math:: \sum_p \frac{n_p m_p}{n_p + m_p} (\bar x_p - \bar y_p)

    with the mean scores of the n contexts that hold the item and of the m others. An item that every context at a place
    holds, or none, is compared with nothing there.
    """
    held = {id_: {item.id for item in store.items(context_id=id_)} for id_ in ranking.outcomes}
    places: defaultdict[Place, list[tuple[set[str], float]]] = defaultdict(list)
    for id_, scores in ranking.outcomes.items():
        for place, score in scores.items():
            places[place].append((held[id_], float(score)))

    def lead(item: str) -> float:
        total = 0.0
        for played in places.values():
            having = [score for items, score in played if item in items]
            without = [score for items, score in played if item not in items]
            if having and without:
                total += (fmean(having) - fmean(without)) * len(having) * len(without) / len(played)
        return total

    # Rounding must not decide about an item that makes no difference.
    return {item for item in set().union(*held.values()) if lead(item) < -1e-9}
