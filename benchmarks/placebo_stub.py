"""Stands in for ``agentopcd.knowledge.placebo`` until that lands; delete it then, and import from there."""

from __future__ import annotations

import random
import re

from agentopcd.core.types import MARKER, Context

_FUNCTION = """a an and are as at be but by can do does for from has have how if in into is it its no not of on or so
    than that the their them then there these they this to was were what when where which who will with you your"""
_FUNCTION_WORDS = frozenset(_FUNCTION.split())
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def placebo(context: Context, seed: int = 0) -> Context:
    """The same text with its content words permuted."""
    body = "\n".join(context.lines)
    words = [word for word in _WORD.findall(body) if word.casefold() not in _FUNCTION_WORDS]
    random.Random(seed).shuffle(words)

    def swap(found: re.Match[str]) -> str:
        if found[0].casefold() in _FUNCTION_WORDS:
            return found[0]
        word = words.pop()
        return word[0].upper() + word[1:] if found[0][0].isupper() else word[0].lower() + word[1:]

    return Context("\n".join(f"{MARKER} {_WORD.sub(swap, line)}" for line in context.lines), context.placement)
