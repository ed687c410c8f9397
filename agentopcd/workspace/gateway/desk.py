"""The thread that keeps the store and renders prompts: what it does, it does one after the other.

A request is stored in one transaction before its last byte is sent, so what a client has got whole is never lost.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from agentopcd.core.errors import ConfigError, StoreError
from agentopcd.core.types import EMPTY, Context, Message, Request
from agentopcd.knowledge import Store, best_ref
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.recordings import Answered, Place, continued, known_answer, rate, record, session_row
from agentopcd.knowledge.students import canary_looks, current_student
from agentopcd.rollouts.chat import Chat
from agentopcd.workspace.gateway.asked import Asked, Refused
from agentopcd.workspace.gateway.redact import Rule, redacted, redacted_message, redacted_tool
from agentopcd.workspace.gateway.said import Said

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """What a recording needs to know about the server."""

    recording: str
    """Its name; empty: nothing is kept."""
    model_id: str
    engine: str
    context: Context = EMPTY
    rules: Sequence[Rule] = ()


class Now(NamedTuple):
    """What the store says about who is to answer."""

    student: str | None
    """The model at ENV/student."""
    verdict: str
    """The last verdict on the canary; empty: there is none yet."""
    best: bool
    """Whether the canary's context is ENV/best."""


class Desk:
    """Everything that touches the store, in a thread of its own.

    Args:
        store: the file; opened by that thread, and only if something is kept or followed.
        kept: what the stored requests of the first model say about the server.
        follows: whether the student that plays may change.
    """

    def __init__(self, store: Path, kept: Kept, *, follows: bool = False) -> None:
        self.kept = kept
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="agentopcd-desk")
        self._store = self._thread.submit(Store.open, store).result() if kept.recording or follows else None

    async def do(self, act: Callable[..., T], *args: Any) -> T:
        """Run ``act`` in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, act, *args)

    def close(self) -> None:
        """Finish what is under way, and close the store."""
        if self._store is not None:
            self._thread.submit(self._store.close).result()
        self._thread.shutdown()

    # -- in the thread ------------------------------------------------------------------------------------

    def student_now(self, env: str, model_id: str, context_id: str) -> Now:
        """Who plays an environment now, and what was decided about a canary, which has this model and this context."""
        store = self._open()
        looks = canary_looks(store, env, model_id, context_id)
        said = [verdict for look in looks if (verdict := look["verdict"])]  # one that is under way has none yet
        best = context_id != EMPTY.id and store.ref(best_ref(env)) == context_id
        return Now(current_student(store, env), said[-1] if said else "", best)

    def render(self, asked: Asked, chat: Chat, context: Context) -> Request:
        """The prompt as token ids, with the context in it.

        Raises:
            Refused: the template cannot show these messages, or the context has no place in them.
        """
        if context.text and context.placement == "user" and not any(m["role"] == "user" for m in asked.messages):
            raise Refused(400, "messages: this server wants at least one message of the user", param="messages")
        try:
            return chat.request(asked.messages, context, seed=asked.seed, tools=asked.tools)
        except ConfigError as error:
            raise Refused(400, f"messages: {error}", param="messages", code="invalid_value") from None

    def place(self, asked: Asked, session: str, task: str, taken: set[str]) -> tuple[Place, Row | None]:
        """The session that a request belongs to, see :mod:`agentopcd.knowledge.recordings`, and its row if it has one.

        Args:
            session: the client's name of it; empty: it is found by its messages, or new.
            task: the client's name of the task, or empty.
            taken: sessions that unnamed requests continue right now; this one is added.

        Raises:
            Refused: the session is about another task.
        """
        store, recording = self._open(), self.kept.recording
        key = session or continued(store, recording, self._messages(asked.messages), taken) or uuid.uuid4().hex
        row = session_row(store, recording, key)
        if task and row is not None and row["task"] != task:
            raise Refused(
                409,
                f"session {key} is about task {row['task'] or '(none)'} and not about {task}; begin another session",
                param="X-Agentopcd-Task", code="other_task",
            )  # fmt: skip
        if not session:
            taken.add(key)
        return Place(recording, key, task or None), row

    def known(self, key: str, body: Any) -> tuple[str, Answered] | None:
        """The stored reply to the request that the client named so, and its session's key.

        Raises:
            Refused: it was another request.
        """
        found = known_answer(self._open(), self.kept.recording, key)
        if found is not None and found[1].asked != self.hashed(body):
            raise Refused(
                409, f"the request named {key} was another one; name each request anew", param="Idempotency-Key",
                code="name_used_before",
            )  # fmt: skip
        return found

    def keep(
        self, place: Place, key: str, body: Any, asked: Asked, request: Request, said: Said, facts: Any, kept: Kept
    ) -> None:
        """Store a finished request.

        Args:
            kept: of the model that answered.
            facts: its ``name`` and ``begun_at``.

        Raises:
            Refused: the store takes nothing more.
        """
        messages, tools = self._messages(asked.messages), [self._tool(tool) for tool in asked.tools]
        message, text = self._messages([said.message])[0], redacted(said.text, self.kept.rules)
        changed = (messages, tools, message, text) != (asked.messages, asked.tools, said.message, said.text)
        answered = Answered(
            **facts, key=key, asked=self.hashed(body), model_id=kept.model_id, context_id=kept.context.id,
            messages=messages, tools=tools, reply=text, message=message, finish_reason=said.finish_reason,
            prompt_ids=() if changed else request.prompt_ids, response_ids=() if changed else said.token_ids,
            logprobs=() if changed else said.logprobs, redacted=changed,
            sampling={
                **dataclasses.asdict(asked.sampling), "seed": asked.seed,
                "stop": [redacted(text, self.kept.rules) for text in asked.stop], "engine": kept.engine,
            },
            prompt_tokens=len(request.prompt_ids), output_tokens=len(said.token_ids),
        )  # fmt: skip
        try:
            record(self._open(), place, answered)
        except StoreError as error:
            raise Refused(503, f"the reply could not be kept, so it is not given: {error}", code="not_kept") from None

    def rate(self, given: dict[str, Any]) -> None:
        """Store a rating.

        Raises:
            Refused: nothing is recorded, there is no such session, or the store takes nothing more.
        """
        if not self.kept.recording:
            raise Refused(409, "nothing is recorded here, so nothing can be rated; start the server with --record NAME")
        session = given.pop("session")
        try:
            found = rate(self._open(), self.kept.recording, session, **given)
        except StoreError as error:
            raise Refused(503, f"the rating could not be kept: {error}", code="not_kept") from None
        if not found:
            raise Refused(404, f"no session or reply {session!r} in this recording", param="session", code="no_session")

    def hashed(self, body: Any) -> str:
        """A hash of what was asked, streamed or not; of its redacted form, which tells no more than what is kept."""
        asked = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
        text = json.dumps(redacted(asked, self.kept.rules), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _messages(self, messages: Sequence[Message]) -> list[Message]:
        return [redacted_message(message, self.kept.rules) for message in messages]

    def _tool(self, tool: Any) -> Any:
        return redacted_tool(tool, self.kept.rules)

    def _open(self) -> Store:
        assert self._store is not None
        return self._store
