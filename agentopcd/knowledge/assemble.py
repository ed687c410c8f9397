"""Assemble items into the exact string that a model is shown, within a token budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
                f"one item alone has {tokens} tokens, the budget is {budget} ({shown[0][:60]!r}): raise the budget, or "
                f"run agentopcd knowledge retire {identify(shown[0])[:12]}"
            )
        shown = shown[1:]
    return Context("", placement)


def assemble_by_value(
    pinned: Sequence[str], bounds: Mapping[str, float], *, budget: int, count_tokens: Callable[[str], int],
    placement: Placement = "user",
) -> Context:  # fmt: skip
    """Render the items that are worth most for their length: what fits of them, and never a part of one.

    Pinned items come first. Then every other item, by the lower bound of its value for each token of its own line; one
    that no longer fits is passed over for the next. A bound below 0 is not divided: it would make a longer item look
    better. Those items come last.

    Args:
        pinned: texts of the items that must be shown.
        bounds: the lower bound of the value of each other item that may be shown, by text.
        budget: maximum number of tokens in the final string.
        count_tokens: as in :func:`assemble`.
        placement: where the context will be put.

    Returns:
        The context, in the order in which its items were taken. Empty if none fits.

    Raises:
        ConfigError: the pinned items alone exceed the budget.
    """

    def worth(text: str) -> float:
        return bounds[text] / count_tokens(render([text])) if bounds[text] > 0 else bounds[text]

    shown = list(pinned)
    if shown and (tokens := count_tokens(render(shown))) > budget:
        raise ConfigError(
            f"the {len(shown)} pinned items alone have {tokens} tokens, the budget is {budget}: raise the budget, or "
            "pin fewer items"
        )
    for text in sorted(bounds, key=worth, reverse=True):
        if text not in shown and count_tokens(render([*shown, text])) <= budget:
            shown.append(text)
    return Context(render(shown), placement)
