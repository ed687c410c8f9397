"""Which model answers a session: the student of the moment, a canary for a share of them, and always the same one.

A session stays with the weights that answered its first request, while they are in memory: those of now, those before
them, and the canary. A new session asks the store which student plays now. So after a rollback, no new session gets the
student that was taken back.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

from agentopcd.core.text import first_line
from agentopcd.core.types import EMPTY
from agentopcd.knowledge.database import Row
from agentopcd.rollouts.chat import Chat
from agentopcd.workspace.gateway.asked import Refused
from agentopcd.workspace.gateway.desk import Desk, Kept
from agentopcd.workspace.gateway.engine import Engine

Arm = Literal["", "control", "canary"]


@dataclasses.dataclass(eq=False, kw_only=True)
class Served:
    """One model that answers."""

    engine: Engine
    chat: Chat
    """Renders its prompts."""
    kept: Kept
    room: int
    """The most tokens of a prompt and its reply together; 0: unknown."""
    turns: int = 0
    """Requests under way."""

    @property
    def key(self) -> tuple[str, str]:
        """Its model and its context."""
        return self.kept.model_id, self.kept.context.id


class Canary(NamedTuple):
    """A model, or a context, that a share of new sessions tries."""

    served: Served
    share: float
    new: Literal["model", "context"]
    """What of it is not as it is served otherwise."""

    @property
    def tried(self) -> tuple[str, str]:
        """The model and the context that looks at it name; of a new model, no context."""
        kept = self.served.kept
        return kept.model_id, kept.context.id if self.new == "context" else EMPTY.id

    def takes(self, session: str) -> bool:
        """Whether a new session is dealt to it; each canary draws anew."""
        drawn = hashlib.sha256(f"{self.served.key}:{session}".encode()).digest()
        return int.from_bytes(drawn[:8], "big") < self.share * 2**64


class Dealer:
    """Deals sessions to models. Belongs to the event loop.

    Args:
        first: who answers at the beginning, and where nothing is followed.
        desk: looks at the store.
        env: the environment whose student is followed; empty: none is.
        base: the id of the model that answers while the environment has no student.
        load: makes the model of an id ready; None of it is kept if that fails.
        canary: tried by a share of new sessions, until ``agentopcd canary`` has decided.
        say: takes lines for the log.
    """

    def __init__(
        self,
        first: Served,
        desk: Desk,
        *,
        env: str = "",
        base: str = "",
        load: Callable[[str], Awaitable[Served]] | None = None,
        canary: Canary | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.current, self.before, self.canary = first, first, canary
        self._desk, self._env, self._base, self._load, self._say = desk, env, base or first.kept.model_id, load, say
        self._loaded = {one.key: one for one in (first, canary.served if canary else first)}
        self._leaving: list[Served] = []
        self._moving = asyncio.Lock()

    async def deal(self, session: str, row: Row | None) -> tuple[Served, str]:
        """Who answers a request, and the arm of its session. Whoever asks must :meth:`release` it.

        Args:
            session: the key of its session, or any name where nothing is recorded.
            row: of the session, if it has one.

        Raises:
            Refused: the student that plays now cannot be loaded.
        """
        served, arm = await self._chosen(session, row)
        served.turns += 1
        return served, arm

    def chat_of(self, model_id: str) -> Chat | None:
        """What renders for a model, and knows its tokens, if it is in memory."""
        loaded = (*self._loaded.values(), *self._leaving)
        return next((one.chat for one in loaded if one.kept.model_id == model_id), None)

    def release(self, served: Served) -> None:
        """A request is over."""
        served.turns -= 1
        self._let_go()

    def close(self) -> None:
        """End all engines, with whatever is under way."""
        for one in {*self._loaded.values(), *self._leaving}:
            one.engine.close()

    async def _chosen(self, session: str, row: Row | None) -> tuple[Served, str]:
        known = self._loaded.get((row["model_id"], row["context_id"])) if row else None
        if row and known:
            return known, row["arm"]
        if not self._env:
            return self.current, ""
        now = await self._desk.do(self._desk.student_now, self._env, *(self.canary.tried if self.canary else ("", "")))
        await self._follow(now.student or self._base)
        if row or self.canary is None or not self._beside(self.canary) or now.verdict == "worse":
            return self.current, row["arm"] if row else ""
        if now.verdict == "pass":  # of a context; a model that passed is the student now, unless it was taken back
            return (self.canary.served if now.best else self.current), ""
        return (self.canary.served, "canary") if self.canary.takes(session) else (self.current, "control")

    def _beside(self, canary: Canary) -> bool:
        """Whether a canary can be compared with what is served now: it is something else, in one thing."""
        same_model = canary.served.kept.model_id == self.current.kept.model_id
        return same_model == (canary.new == "context")

    async def _follow(self, model_id: str) -> None:
        """Let this model answer from now on."""
        async with self._moving:
            if model_id == self.current.kept.model_id:
                return
            served = self._loaded.get((model_id, self.current.kept.context.id))
            if served is None:
                served = await self._loading(model_id)
                self._loaded[served.key] = served
            self.before, self.current = self.current, served
            stay = (self.current, self.before, self.canary.served if self.canary else None)
            self._leaving += [one for one in self._loaded.values() if one not in stay]
            self._loaded = {key: one for key, one in self._loaded.items() if one in stay}
            self._let_go()
            self._say(f"{self._env}/student moved: new sessions go to {model_id[:12]}")

    async def _loading(self, model_id: str) -> Served:
        assert self._load is not None
        try:
            return await self._load(model_id)
        except Exception as error:  # of the store, of files, or of a library: the server goes on with what it has
            self._say(f"error: {self._env}/student moved to {model_id[:12]}, which cannot be served: {error}")
            raise Refused(
                503,
                f"the student that plays now cannot be served: {first_line(error, type(error).__name__)}",
                code="student",
            ) from None

    def _let_go(self) -> None:
        for one in [one for one in self._leaving if not one.turns]:
            self._leaving.remove(one)
            if all(one.engine is not other.engine for other in self._loaded.values()):
                one.engine.close()
