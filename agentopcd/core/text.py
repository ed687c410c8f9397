"""Text helpers shared by the whole package: a reply without its reasoning, the first line of an error."""

from __future__ import annotations

END_OF_THINKING = "</think>"


def after_thinking(reply: str) -> str:
    """The text after the last ``</think>``, unchanged; the whole reply if there is no such mark."""
    return reply.rpartition(END_OF_THINKING)[2]


def first_line(error: object, otherwise: str = "") -> str:
    """The first line of an error's message, cut to 300 characters; ``otherwise`` if the message is empty."""
    return (str(error).strip().splitlines() or [otherwise])[0][:300]
