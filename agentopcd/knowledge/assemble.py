"""Assemble items into the exact string that a model is shown, within a token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentopcd.core.errors import ConfigError
from agentopcd.core.types import MARKER, Context, Placement
from agentopcd.knowledge.items import identify, normalise


def render(texts: Sequence[str]) -> str:
    """One marker line per item, without a trailing newline. The prompt template adds the text around it."""
    return "\n".join(f"{MARKER} {normalise(text)}" for text in texts)


def assemble(
    texts: Sequence[str], *, budget: int, count_tokens: Callable[[str], int], placement: Placement = "user"
) -> Context:
    """Render items in their order; drop whole items, the oldest first, until the string fits the budget.

    Args:
        texts: texts of the items, oldest first; an exact repeat is shown once, at its first position.
        budget: maximum number of tokens in the final string.
        count_tokens: number of tokens in a string, by the tokenizer of the model that will read it. It is
            called on the whole string, because token counts of the pieces do not add up.
        placement: where the context will be put.

    Returns:
        The context; its items are ``item_ids(context)``. Empty when there are no items.

    Raises:
        ConfigError: the newest item, which must be kept, exceeds the budget by itself.
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
