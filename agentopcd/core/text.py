"""Text helpers shared by the whole package: a reply without its reasoning, the first line of an error."""

from __future__ import annotations

THINKING, END_OF_THINKING = "<think>", "</think>"
"""The marks around a reply's reasoning. Those of other model families are read as these: ``rollouts/replies.py``."""


def after_thinking(reply: str) -> str:
    """The text after the last ``</think>``, unchanged; the whole reply if it has no such marks.

    A reply that has begun to think and has not ended has said nothing yet: it is empty.
    """
    said = reply.rpartition(END_OF_THINKING)[2]
    return "" if THINKING in said else said


def still_thinking(reply: str) -> bool:
    """Whether a reply ends inside its reasoning: it was cut there, or the model never came out of it."""
    return THINKING in reply.rpartition(END_OF_THINKING)[2]


def first_line(error: object, otherwise: str = "") -> str:
    """The first line with a word in an error's message, cut to 300 characters; ``otherwise`` if there is none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if any(sign.isalnum() for sign in line)), otherwise)[:300]
