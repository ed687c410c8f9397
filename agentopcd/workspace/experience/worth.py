"""What the items of a pool are worth, and the context that is made of the best of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from agentopcd.core.config import GatherConfig, ScoreConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.stats import finite
from agentopcd.core.text import counted
from agentopcd.core.types import Context
from agentopcd.knowledge import Item, ItemValue, assemble_by_value, subsets, valued_ref
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.values import FALSE_DISCOVERIES, plan
from agentopcd.workspace.experience.choose import ranked_by
from agentopcd.workspace.session import Session


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worth:
    """The values of items, and the context assembled from them."""

    values: Sequence[ItemValue]
    """Most valuable first."""
    items: Mapping[str, Item]
    """The items by id."""
    context: Context
    """The pinned items and the best of those with a value above 0 in the last round; empty if there are none, or none
    fits."""
    tokens: int
    budget: int
    """The most tokens that the context may have."""
    ref: str
    """The name of the context, if it is not empty."""

    @property
    def rounds(self) -> int:
        """How many rounds there were."""
        return max(one.round for one in self.values)

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON."""
        assembled = {"id": self.context.id, "ref": self.ref, "items": len(self.context.lines), "tokens": self.tokens}
        return {
            "values": [
                dataclasses.asdict(one)
                | {
                    "low": finite(one.low),
                    "high": finite(one.high),
                    "verdict": one.verdict,
                    "text": self.items[one.item_id].text,
                }
                for one in self.values
            ],
            "false_discoveries": FALSE_DISCOVERIES,
            "budget_tokens": self.budget,
            "assembled": assembled if self.context.text else None,
        }

    def lines(self) -> list[str]:
        """A line for each item, and two for all of them."""
        found = [
            f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}] (n={one.n}, p={one.p:.2g})  {one.verdict}"
            f"{f', left after round {one.round}' if one.round < self.rounds else ''}: {self.items[one.item_id].text}"
            for one in self.values
        ]
        verdicts = Counter(one.verdict for one in self.values)
        found.append(
            f"{verdicts['helpful']} helpful, {verdicts['harmful']} harmful, {verdicts['not shown']} not shown; of the "
            f"items named, {FALSE_DISCOVERIES:.0%} may be named falsely"
        )
        if self.context.text:
            found.append(
                f"{self.ref} is {self.context.id[:12]}: {counted(len(self.context.lines), 'item')}, {self.tokens} of "
                f"{self.budget} tokens, pinned ones and those with a value above 0; whether it helps, confirm says"
            )
        else:
            found.append(f"no item is pinned or has a value above 0 and fits {self.budget} tokens: nothing to assemble")
        return found


def items_of(session: Session, candidates: Sequence[Context]) -> dict[str, Item]:
    """The active and pinned items of the candidates, by id.

    Raises:
        ConfigError: there is none.
    """
    store = session.store
    ids = dict.fromkeys(item.id for context in candidates for item in store.items(context_id=context.id))
    items = {item.id: item for item in store.items(ids=ids) if item.status in ("active", "pinned")}
    if not items:
        raise ConfigError(f"no active item of {session.env} in the pool; play and extract first")
    return items


def plan_of(session: Session, config: ScoreConfig, candidates: Sequence[Context]) -> list[str]:
    """What :func:`value_items` would play, as lines."""
    tasks, pairs = len(session.tasks("select", config.select_tasks)), config.select_tasks
    lines = [plan(len(items_of(session, candidates)), pairs)]
    if pairs > tasks:
        lines.append(f"the split has {tasks} select tasks, so they come again with other halves")
    return lines


def value_items(session: Session, config: ScoreConfig, candidates: Sequence[Context], *, run_id: int) -> Worth:
    """The value of each active item of the candidates, and a context of the best, to which ``ENV/valued`` moves.

    The context fits the largest budget that a candidate was assembled for.

    Raises:
        ConfigError: the candidates have no active item, or the pinned ones exceed the budget.
    """
    store, placement = session.store, candidates[0].placement
    items = items_of(session, candidates)
    for line in plan_of(session, config, candidates):
        session.say(line)
    count, budget, ref = session.player.chat.count_tokens, _budget(session, candidates), valued_ref(session.env)
    pinned = [item.text for item in items.values() if item.status == "pinned"]
    # Pinned items that do not fit are told of before anything is played.
    assemble_by_value(pinned, {}, budget=budget, count_tokens=count, placement=placement)
    values = subsets(
        session.bench(run_id), list(items.values()), session.tasks("select", config.select_tasks),
        pairs=config.select_tasks, seed=config.seed, placement=placement, by=ranked_by(session),
    )  # fmt: skip
    last = max(one.round for one in values)
    context = assemble_by_value(
        pinned,
        {items[one.item_id].text: one.low for one in values if one.value > 0 and one.round == last},
        budget=budget, count_tokens=count, placement=placement,
    )  # fmt: skip
    if context.text:
        with store.write():
            store.add_context(context, {"order": "value", "budget": budget, "run": run_id})
            current = store.ref(ref)
            if current != context.id:  # a repeated call must not add a second move
                reason = f"{len(context.lines)} items by value, {config.select_tasks} pairs of halves"
                store.move(ref, context.id, "score", reason, run_id, expect=current)
    return Worth(values=values, items=items, context=context, tokens=count(context.text), budget=budget, ref=ref)


def _budget(session: Session, candidates: Sequence[Context]) -> int:
    """The most tokens that a candidate was allowed; what ``play`` allows if none of them says (imported ones)."""
    budgets = []
    for context in candidates:
        recipe = read_object(
            session.store.context_row(context.id)["recipe"], f"the recipe of context {context.id[:12]}"
        )
        if isinstance(budget := recipe.get("budget"), int) and budget > 0:  # an imported recipe may say anything
            budgets.append(budget)
    return max(budgets, default=GatherConfig.budget_tokens)
