"""From items to the exact string a model is shown, within a token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from agentopcd.errors import ConfigError, did_you_mean
from agentopcd.knowledge.items import Item, identify, normalise
from agentopcd.types import MARKER, Context, Placement

Order = Literal["chain", "recent", "support"]
ORDERS: tuple[Order, ...] = ("chain", "recent", "support")


def render(texts: Sequence[str]) -> str:
    """One marker line per item, no trailing newline; the frame around it belongs to the prompt template."""
    return "\n".join(f"{MARKER} {normalise(text)}" for text in texts)


def assemble(
    items: Sequence[Item | str],
    *,
    budget: int,
    count_tokens: Callable[[str], int],
    order: Order = "chain",
    placement: Placement = "user",
) -> Context:
    """Render items, leaving out whole ones until the string fits.

    Args:
        items: oldest first (as :class:`Item` or as text); exact repeats are shown once, where they
            first stood.
        budget: most tokens of the final string.
        count_tokens: tokens of one string by the consuming model's tokenizer. It is asked about the
            whole string, because counts do not add up across joins.
        order: ``chain`` keeps the order and drops the oldest; ``recent`` shows the newest first and
            drops the oldest; ``support`` shows what was found most often first and drops the least.
        placement: where the context will be put.

    Returns:
        The context; its items are ``item_ids(context)``. Empty when there are no items.

    Raises:
        ConfigError: the item that must be kept (the newest, or the best supported) is over budget alone.
    """
    if order not in ORDERS:
        raise ConfigError(f"unknown order {order!r}{did_you_mean(order, ORDERS)}")
    shown = _ordered(_distinct(items), order)
    while shown:
        text = render(shown)
        tokens = count_tokens(text)
        if tokens <= budget:
            return Context(text, placement)
        if len(shown) == 1:
            raise ConfigError(
                f"one item alone has {tokens} tokens, the budget is {budget}: raise the budget or retire "
                f"item {identify(shown[0])[:12]} ({shown[0][:60]!r})"
            )
        shown = shown[1:] if order == "chain" else shown[:-1]
    return Context("", placement)


def _distinct(items: Sequence[Item | str]) -> list[Item]:
    """As items, each id once."""
    known: dict[str, Item] = {}
    for item in items:
        if isinstance(item, str):
            item = Item(identify(item), normalise(item))
        known.setdefault(item.id, item)
    return list(known.values())


def _ordered(items: list[Item], order: Order) -> list[str]:
    if order == "chain":
        return [item.text for item in items]
    newest = items[::-1]
    if order == "support":
        newest.sort(key=lambda item: -item.support)  # stable: the newer one first among equals
    return [item.text for item in newest]
