"""From items to the exact string a model is shown, within a token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentopcd.core.errors import ConfigError
from agentopcd.core.types import MARKER, Context, Placement
from agentopcd.knowledge.items import identify, normalise


def render(texts: Sequence[str]) -> str:
    """One marker line per item, no trailing newline; the frame around it belongs to the prompt template."""
    return "\n".join(f"{MARKER} {normalise(text)}" for text in texts)


def assemble(
    texts: Sequence[str], *, budget: int, count_tokens: Callable[[str], int], placement: Placement = "user"
) -> Context:
    """Render items in their order, leaving out whole ones, the oldest first, until the string fits.

    Args:
        texts: of the items, oldest first; exact repeats are shown once, where they first stood.
        budget: most tokens of the final string.
        count_tokens: tokens of one string by the consuming model's tokenizer. It is asked about the
            whole string, because counts do not add up across joins.
        placement: where the context will be put.

    Returns:
        The context; its items are ``item_ids(context)``. Empty when there are no items.

    Raises:
        ConfigError: the newest item, which must be kept, is over budget alone.
    """
    distinct: dict[str, str] = {}
    for text in texts:
        distinct.setdefault(identify(text), normalise(text))
    shown = list(distinct.values())
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
        shown = shown[1:]
    return Context("", placement)
