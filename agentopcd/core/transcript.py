"""Convert episodes to JSON and back, bit for bit, so that a stored episode can be shown and read in full."""

from __future__ import annotations

import dataclasses
import json
import zlib
from typing import Any

from agentopcd.core.types import Episode, Task, Turn


def to_json(episode: Episode) -> dict[str, Any]:
    """The episode as plain data."""
    return dataclasses.asdict(episode)


def from_json(data: dict[str, Any]) -> Episode:
    """Rebuild an episode; JSON lists become tuples again."""
    turns = [_turn(turn) for turn in data["turns"]]
    outcome = [tuple(part) for part in data["outcome"]]
    return Episode(**{**data, "task": Task(*data["task"]), "turns": turns, "outcome": outcome})


def _turn(data: dict[str, Any]) -> Turn:
    return Turn(
        **{
            **data,
            "parts": [tuple(part) for part in data["parts"]],
            "prompt_ids": tuple(data["prompt_ids"]),
            "response_ids": tuple(data["response_ids"]),
            "logprobs": tuple(data["logprobs"]),
            "choices": tuple(tuple(choice) for choice in data.get("choices", ())),
            "usage": tuple(data.get("usage", (0, 0))),
        }
    )


def pack(data: dict[str, Any]) -> bytes:
    """Compressed JSON, the form in which the store keeps a transcript."""
    return zlib.compress(json.dumps(data, separators=(",", ":")).encode())  # ASCII: a reply may hold lone surrogates


def unpack(body: bytes) -> dict[str, Any]:
    """The plain data of a stored transcript."""
    return json.loads(zlib.decompress(body))
