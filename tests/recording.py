"""Recorded sessions without a server, and a tiny model that hears what it is told."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentopcd.core.types import EMPTY, Message
from agentopcd.knowledge import Store
from agentopcd.knowledge.database import now
from agentopcd.knowledge.recordings import Answered, Place, rate, record
from tests import tiny

MODEL = "m" * 64
_numbers = itertools.count()


def model(folder: Path) -> str:
    """A folder with a tiny model that can be taught in a few steps."""
    if not folder.is_dir():
        tiny.build(folder, tie=False, hearing=4.0)
    return str(folder)


def said(*texts: str) -> list[Message]:
    """Messages of the user and the assistant in turn."""
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]


def answer(
    messages: Sequence[Message], reply: str, *, model_id: str = MODEL, context_id: str = EMPTY.id, **more: Any
) -> Answered:
    """A finished request."""
    given: dict[str, Any] = {
        "name": f"chatcmpl-{next(_numbers)}", "asked": "0" * 64, "model_id": model_id, "context_id": context_id,
        "messages": [*messages], "prompt_ids": (1, 2, 3), "response_ids": (4, 5), "logprobs": (-0.5, -0.25),
        "reply": reply, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop",
        "sampling": {"temperature": 1.0, "seed": 7}, "prompt_tokens": 3, "output_tokens": 2, "begun_at": now(),
    }  # fmt: skip
    return Answered(**{**given, **more})


def keep(
    work: Path, session: str, *talk: str, task: str | None = None, arm: str = "",
    rating: Mapping[str, Any] | None = None, recording: str = "shop", model_id: str = MODEL, **more: Any,
) -> None:  # fmt: skip
    """Record a session: the user and the assistant in turn, every reply a request of its own."""
    with Store.open(work / "store.db") as store:
        store.add_model(model_id, "tiny")
        for turn in range(1, len(talk), 2):
            place = Place(recording, session, task, arm)
            record(store, place, answer(said(*talk[:turn]), talk[turn], model_id=model_id, **more))
        if rating:
            assert rate(store, recording, session, **rating)


def keep_many(work: Path, n: int, start: int = 0, **more: Any) -> None:
    """Record ``n`` sessions of two turns, each about another box."""
    for i in range(start, start + n):
        keep(work, f"s{i}", f"Box {i}?", "Up.", f"And {i + 1}?", "Down.", **more)
