"""Convert episodes to JSON and back, bit for bit, so that a stored episode can be shown and read in full."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from agentopcd.core.types import Episode, Task, Turn

UNREADABLE = (zlib.error, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a damaged transcript may raise."""


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


def differs(row: Mapping[str, Any], data: Any) -> str:
    """What in an episode's row is not as in its transcript, or what of the transcript cannot be read; empty if nothing.

    Args:
        row: the columns of the store.
        data: the transcript as plain data.
    """
    try:
        episode = from_json(data)
        said = facts(episode)
        read = all(_readable(turn) for turn in episode.turns) and _pairs(episode.outcome)
    except UNREADABLE as error:
        return f"{type(error).__name__}: {error}"[:200]
    if not read:
        return "a turn is not as it was written"
    return next((f"{name} is {row[name]!r}, not {value!r}" for name, value in said.items() if row[name] != value), "")


def facts(episode: Episode) -> dict[str, Any]:
    """What the row of an episode says, from the episode itself, by the columns of the store."""
    return {
        "env": episode.env, "task_key": episode.task.key, "seed": episode.task.seed, "rep": episode.rep,
        "context_id": episode.context_id, "success": int(episode.success), "reward": float(episode.reward),
        "stop": episode.stop_reason, "turns": len(episode.turns), "prompt_tokens": episode.prompt_tokens,
        "output_tokens": episode.output_tokens,
    }  # fmt: skip


def _readable(turn: Turn) -> bool:
    words = [turn.reply, turn.finish_reason, *(m[name] for m in turn.messages for name in ("role", "content"))]
    ids = [*turn.prompt_ids, *turn.response_ids, *(token for choice in turn.choices for token in choice), *turn.usage]
    figures = [turn.reward, *turn.logprobs]
    return (
        _pairs(turn.parts)
        and all(isinstance(word, str) for word in words)
        and all(type(token) is int for token in ids)
        and all(isinstance(figure, (int, float)) for figure in figures)
        and isinstance(turn.invalid, bool)
        and len(turn.usage) == 2
    )


def _pairs(parts: Sequence[Any]) -> bool:
    return all(len(part) == 2 and all(isinstance(text, str) for text in part) for part in parts)
