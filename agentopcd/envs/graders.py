"""Graders of a user's own: a function that is given the whole row and the reply.

It returns a bool, a number (``score``; 1 or more passes), or numbers by name, of which ``success`` or else ``score``
says whether the reply passes. What else it returns is recorded as a metric, for ``--by NAME``.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from agentopcd.core.errors import EnvError
from agentopcd.core.text import after_thinking
from agentopcd.envs.load import load

Grader = Callable[[Mapping[str, Any], str], tuple[bool, dict[str, float]]]
"""The row and the reply → whether it passes, and metrics."""


def grader_of(ref: str) -> Grader:
    """The grader that ``FILE.py:FUNCTION`` or ``PACKAGE.MODULE:FUNCTION`` names.

    Raises:
        EnvError: there is no such function, or it is none.
    """
    if ":" not in ref:
        raise EnvError(f"grader is {ref!r}; wanted FILE.py:FUNCTION, a function of the row and the reply")
    function = load(ref)
    if not callable(function):
        raise EnvError(f"grader {ref} is a {type(function).__name__}; wanted a function of the row and the reply")

    def grade(row: Mapping[str, Any], reply: str) -> tuple[bool, dict[str, float]]:
        return passes(function(row, after_thinking(reply).strip()), ref)

    return grade


def passes(said: Any, ref: str) -> tuple[bool, dict[str, float]]:
    """Whether a reply passes by what a grader returned, and its metrics.

    Args:
        ref: the grader's name, for messages.

    Raises:
        EnvError: it returned something else.
    """
    if isinstance(said, bool):
        return said, {}
    if isinstance(said, numbers.Real) or hasattr(said, "item"):  # numpy's numbers and bools, too
        score = _number(said, ref)
        return score >= 1, {"score": score}
    if not isinstance(said, Mapping):
        raise EnvError(f"{ref} returned {said!r:.60}; wanted True or False, a number, or numbers by name")
    metrics = {str(name): _number(value, ref) for name, value in said.items()}
    decides = next((name for name in ("success", "score") if name in metrics), None)
    if decides is None:
        raise EnvError(f"{ref} returned {', '.join(metrics) or 'no number'}; one must be called success or score")
    return metrics.pop("success") > 0 if decides == "success" else metrics["score"] >= 1, metrics


def _number(value: Any, ref: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, str):
        raise EnvError(f"{ref} returned {value!r:.60}; wanted a finite number")
    return number
