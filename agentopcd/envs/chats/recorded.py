"""Recorded sessions as an environment: the prompts that a served model was asked, the replies the model's."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentopcd.core.errors import EnvError
from agentopcd.envs.chats.env import ConversationEnv
from agentopcd.envs.chats.rows import Conversation, raw_rows, stamps
from agentopcd.envs.questions.files import Raw
from agentopcd.envs.spec import EnvSpec

ENTRY_POINT = "agentopcd.envs.chats.recorded:RecordedEnv"


class RecordedEnv(ConversationEnv):
    """Conversations of a snapshot of a recording: each has its own ``seed``, and the key of its ``task``.

    A turn is a request that was recorded, so assistant messages that a client sends with its first request, such as
    examples, are no turns. Otherwise as :class:`agentopcd.envs.chats.env.ConversationEnv`.

    Args:
        rows: the file of a snapshot: JSON lines with ``seed``, ``task``, ``messages``, ``tools`` and ``places``.
    """

    def __init__(
        self,
        rows: str,
        *,
        turns: str = "all",
        system: str = "keep",
        checks: Mapping[str, Any] | None = None,
        grader: str = "",
        judge: str = "",
    ) -> None:
        super().__init__(rows, turns=turns, system=system, checks=checks, grader=grader, judge=judge)
        self._by_seed = {row.source["seed"]: row for row in self.rows}

    def _read(self, rows: str | Iterable[Mapping[str, Any]], turns: str, system: str) -> Sequence[Conversation]:
        assert isinstance(rows, str)
        return _conversations(stamps(rows), turns, system)

    def _row_of(self, seed: int) -> Conversation:
        if seed not in self._by_seed:
            raise EnvError(f"no recorded conversation {seed} in this snapshot; its seeds are those of its splits")
        return self._by_seed[seed]


@functools.lru_cache(maxsize=4)
def _conversations(files: tuple[tuple[str, int, int], ...], turns: str, system: str) -> list[Conversation]:
    return [_conversation(name, row, turns, system) for name, row in raw_rows(files)]


def _conversation(name: str, row: Raw, turns: str, system: str) -> Conversation:
    dropped = [system == "drop" and message["role"] == "system" for message in row["messages"]]
    places = [place - sum(dropped[:place]) for place in row["places"]]
    return Conversation(
        name=name, messages=[message for message, drop in zip(row["messages"], dropped, strict=True) if not drop],
        places=tuple(places if turns == "all" else places[-1:]), tools=row["tools"], split="", checks={}, source=row,
        task=row["task"],
    )  # fmt: skip


def recorded_spec(ref: str, file: str) -> EnvSpec:
    """The spec of a snapshot, under its reference ``recorded:NAME``."""
    rows = [row for _, row in raw_rows(stamps(file))]
    return EnvSpec(
        id=ref, entry_point=ENTRY_POINT, kwargs={"rows": file}, history="chat", logged=True, graded=False,
        max_steps=max(2, *(len(row["places"]) for row in rows)),
    )  # fmt: skip
