"""Small readings of text that every storey shares."""

from __future__ import annotations

END_OF_THINKING = "</think>"


def after_thinking(reply: str) -> str:
    """What follows the last ``</think>``, as it stands; the whole reply where there is none."""
    return reply.rpartition(END_OF_THINKING)[2]


def first_line(error: object, otherwise: str = "") -> str:
    """The first line of an error's message, cut to 300 characters; ``otherwise`` where it has none."""
    return (str(error).strip().splitlines() or [otherwise])[0][:300]
