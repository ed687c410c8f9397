"""The endpoints: who is answered, with what, and that nothing a client does costs more than its own request."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import traceback
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from agentopcd.core.errors import ConfigError
from agentopcd.core.hosts import names_here
from agentopcd.core.text import first_line
from agentopcd.core.types import Request as Prompt
from agentopcd.core.types import Sampling
from agentopcd.knowledge.database import now
from agentopcd.knowledge.recordings import Place
from agentopcd.workspace.gateway import schema
from agentopcd.workspace.gateway.answers import Answer, chunk, event, seconds, told_tokens
from agentopcd.workspace.gateway.asked import Asked, Refused, asked_of, check, read_json
from agentopcd.workspace.gateway.dealer import Dealer, Served
from agentopcd.workspace.gateway.desk import Desk
from agentopcd.workspace.gateway.incoming import body_of, header, until_gone
from agentopcd.workspace.gateway.said import Said, Words

RETRY_S = 2
"""What a client that was refused for the moment is told to wait."""
SESSION, TASK = "X-Agentopcd-Session", "X-Agentopcd-Task"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """Who is answered."""

    model: str
    """The name by which clients ask for the model."""
    max_tokens: int
    max_waiting: int
    key: str = ""
    """What clients must send; empty: nothing."""
    here: bool = True
    """Whether only this machine can reach the server; then a Host header must name it."""


@dataclasses.dataclass
class Counts:
    """What the server has done."""

    answered: int = 0
    """Replies whose last byte was handed to the connection."""
    under_way: int = 0


class Gateway:
    """The application.

    Args:
        dealer: says which model answers.
        say: takes lines for the log; none quotes a request or a key.
    """

    def __init__(self, dealer: Dealer, desk: Desk, rules: Rules, say: Callable[[str], None]) -> None:
        self.dealer, self.desk, self.rules, self.say = dealer, desk, rules, say
        self.counts = Counts()
        self.taken: set[str] = set()
        """Sessions that a request continues which is not finished."""
        self.named: dict[str, asyncio.Future[None]] = {}
        """Requests under way, by the client's own name of them."""
        routes = [
            Route("/v1/chat/completions", self._guarded(self.chat), methods=["POST"]),
            Route("/v1/feedback", self._guarded(self.feedback), methods=["POST"]),
            Route("/v1/models", self._guarded(self.models), methods=["GET"]),
            Route("/openapi.json", self._guarded(self.openapi), methods=["GET"]),
            Route("/health", self._guarded(self.health, with_key=False), methods=["GET"]),
        ]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: self._no_route})
        self.app.router.redirect_slashes = False

    # -- who is answered ----------------------------------------------------------------------------------

    def _guarded(self, answer: Callable[[Request], Awaitable[Response]], *, with_key: bool = True) -> Any:
        async def endpoint(request: Request) -> Response:
            try:
                self._check_host(request)
                if with_key:
                    self._check_key(request)
                return await answer(request)
            except Refused as error:
                return refusal(error)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it
            except Exception as error:
                return refusal(self.fault(error))

        return endpoint

    def fault(self, error: Exception) -> Refused:
        """The answer to a request that met a fault. The log gets its kind and place, never its words."""
        if isinstance(error, Refused):
            return error
        frame = traceback.extract_tb(error.__traceback__)[-1]
        self.say(f"error: {type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}")
        if isinstance(error, ConfigError):  # what an engine says: servers are away, or refuse these settings
            return Refused(503, first_line(error, "the engine does not answer"), code="engine")
        return Refused(500, "the server met a fault of its own; its log names the place", code="internal")

    def _check_host(self, request: Request) -> None:
        hosts = request.headers.getlist("host")
        if self.rules.here and (len(hosts) != 1 or not names_here(hosts[0])):
            raise Refused(403, "this server answers to the names of this machine alone", code="host")

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")
        wanted = f"Bearer {self.rules.key}".encode()
        if self.rules.key and not hmac.compare_digest(given, wanted):
            raise Refused(
                401, "a key is wanted: Authorization: Bearer KEY", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    async def _no_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        try:
            self._check_host(request)
            self._check_key(request)
        except Refused as first:
            return refusal(first)
        words = "no such address; see /openapi.json" if error.status_code == 404 else f"{error.detail}"
        return refusal(Refused(error.status_code, words, headers=error.headers))

    # -- small endpoints ----------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        one = {"id": self.rules.model, "object": "model", "created": 0, "owned_by": "agentopcd"}
        return JSONResponse({"object": "list", "data": [one]})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(schema.openapi())

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def feedback(self, request: Request) -> Response:
        given = read_json(await body_of(request))
        check(given, "Feedback")
        session = given["session"]
        await self.desk.do(self.desk.rate, given)
        return JSONResponse({"object": "feedback", "session": session})

    # -- replies ------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        body = read_json(await body_of(request))
        asked = asked_of(body, self.rules.model, self.rules.max_tokens)
        key = header(request, "Idempotency-Key") or header(request, "X-Request-ID")
        if self.counts.under_way >= self.rules.max_waiting:
            raise Refused(
                429, f"{self.rules.max_waiting} requests are under way; ask again later", code="too_many_requests",
                headers={"Retry-After": str(RETRY_S)},
            )  # fmt: skip
        turn = _Turn(self, asked, body, key)
        turn.begin()
        try:
            await turn.prepare(header(request, SESSION), header(request, TASK))
        except BaseException:
            turn.end()
            raise
        if asked.stream:
            return _Stream(turn)
        try:
            answer = await until_gone(request, turn.answer())
            told = turn.told(answer.token_ids, answer.logprobs)
            self.counts.answered += 1
            return JSONResponse(answer.whole(told), headers=turn.headers)
        finally:
            turn.end()


class _Turn:
    """One request for a reply, from its place in the queue to its last byte."""

    def __init__(self, gateway: Gateway, asked: Asked, body: Any, key: str) -> None:
        self.gateway, self.asked, self.body, self.key = gateway, asked, body, key
        self.name = f"chatcmpl-{uuid.uuid4().hex}"
        self.begun_at = now()
        self.recorded = bool(gateway.desk.kept.recording)
        self.known: Answer | None = None
        """What was answered before, if the client repeats a request."""
        self.headers: dict[str, str] = {}
        self._by = ""
        """The id of the model that gave that answer."""
        self._place: Place | None = None
        self._dealt: Served | None = None
        self._prompt: Prompt | None = None
        self._sampling: Sampling = asked.sampling
        self._mine = False
        self._joined = ""

    def begin(self) -> None:
        self.gateway.counts.under_way += 1

    def end(self) -> None:
        """Make room for others, whatever came of it."""
        self.gateway.counts.under_way -= 1
        self.gateway.taken.discard(self._joined)
        if self._dealt is not None:
            self.gateway.dealer.release(self._dealt)
        if self._mine:
            self.gateway.named.pop(self.key).set_result(None)
            self._mine = False

    async def prepare(self, session: str, task: str) -> None:
        """Render the prompt and find the session, or the answer to an earlier request of this name.

        Raises:
            Refused: the request cannot be answered as asked.
        """
        desk = self.gateway.desk
        if self.key and self.recorded:
            while self.key in self.gateway.named:  # the same request, a second time at once
                await asyncio.wait([self.gateway.named[self.key]])  # which this task's end does not cancel
            self.gateway.named[self.key] = asyncio.get_running_loop().create_future()
            self._mine = True
            if (found := await desk.do(desk.known, self.key, self.body)) is not None:
                self.known, self._by = Answer.again(self.gateway.rules.model, found[1]), found[1].model_id
                self.headers = {SESSION: found[0]}
                return
        row = None
        if self.recorded:
            self._place, row = await desk.do(desk.place, self.asked, session, task, self.gateway.taken)
            self.headers = {SESSION: self._place.session}
            self._joined = "" if session else self._place.session
        self._dealt, arm = await self.gateway.dealer.deal(self._place.session if self._place else self.name, row)
        self._place = self._place and self._place._replace(arm=arm)
        self._prompt = await desk.do(desk.render, self.asked, self._dealt.chat, self._dealt.kept.context)
        self._fit(len(self._prompt.prompt_ids), self._dealt.room)

    def _fit(self, prompt: int, whole: int) -> None:
        room = whole - prompt if whole else self.asked.sampling.max_tokens
        if room < 1 or (self.asked.bounded and room < self.asked.sampling.max_tokens):
            raise Refused(
                400, f"the prompt has {prompt} tokens and the reply may have {self.asked.sampling.max_tokens}, but the "
                f"model has {whole} positions; shorten the messages or ask for a shorter reply",
                param="messages", code="context_length_exceeded",
            )  # fmt: skip
        self._sampling = dataclasses.replace(self.asked.sampling, max_tokens=min(room, self.asked.sampling.max_tokens))

    def told(self, ids: Any, logprobs: Any) -> Any:
        """What the client is told of these tokens, if it asked.

        Of an answer that was stored it is nothing if the answer was redacted, or its model is not in memory any more.
        """
        chat = self._dealt.chat if self._dealt else self.gateway.dealer.chat_of(self._by)
        if not self.asked.logprobs or chat is None or (self.known is not None and not self.known.token_ids):
            return None
        return told_tokens(chat.tokenizer, ids, logprobs)

    async def answer(self) -> Answer:
        """The whole reply, stored."""
        async for _ in self.deltas():
            pass
        assert self.known is not None
        return self.known

    async def deltas(self) -> AsyncGenerator[tuple[dict[str, str], Any]]:
        """The text of the reply as it comes, by field, with what is told of its tokens. At the end the reply is stored,
        and stands in :attr:`known`."""
        if self.known is not None:
            yield _whole(self.known), self.told(self.known.token_ids, self.known.logprobs)
            return
        assert self._prompt is not None and self._dealt is not None
        words, sent = Words(self._dealt.chat, self.asked.tools, self.asked.stop), 0
        heard = self.asked.stream or bool(self.asked.stop)
        async with self._dealt.engine.asked(self._prompt, self._sampling, heard=heard) as handle:
            if heard:
                async for piece in handle.pieces():
                    if words.hear(*piece):
                        break
                    if self.asked.stream and (news := words.news()):
                        yield news, self.told(words.ids[sent:], words.logprobs[sent:])
                        sent = len(words.ids)
            said, more = words.finish(None if words.stopped else await handle.reply)
        await self._keep(said)
        self.known = Answer.of(self.name, self.gateway.rules.model, len(self._prompt.prompt_ids), said, self.begun_at)
        yield more, self.told(said.token_ids[sent:], said.logprobs[sent:])

    async def _keep(self, said: Said) -> None:
        if self._place is not None and self._dealt is not None:
            asked = dataclasses.replace(self.asked, sampling=self._sampling)
            facts = {"name": self.name, "begun_at": self.begun_at}
            desk = self.gateway.desk
            kept = self._dealt.kept
            await desk.do(desk.keep, self._place, self.key, self.body, asked, self._prompt, said, facts, kept)


class _Stream(StreamingResponse):
    """A reply as server-sent events. Whatever happens to the connection, the turn ends."""

    def __init__(self, turn: _Turn) -> None:
        headers = turn.headers | {"Cache-Control": "no-store"}
        super().__init__(self._events(), headers=headers, media_type="text/event-stream")
        self.turn = turn

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.body_iterator.aclose()  # type: ignore[union-attr]
            self.turn.end()

    async def _events(self) -> AsyncIterator[bytes]:
        turn = self.turn
        name, created = (turn.known.name, turn.known.created) if turn.known else (turn.name, seconds(turn.begun_at))
        head = {"id": name, "created": created, "model": turn.gateway.rules.model}
        try:
            yield chunk(head, {"role": "assistant", "content": ""})
            async with contextlib.aclosing(turn.deltas()) as deltas:
                async for delta, told in deltas:
                    if delta or told:
                        yield chunk(head, delta, told)
        except Exception as error:
            yield event(turn.gateway.fault(error).body())
            return
        assert turn.known is not None
        turn.gateway.counts.answered += 1
        for part in turn.known.last_chunks(usage=turn.asked.usage):
            yield part


def _whole(answer: Answer) -> dict[str, str]:
    parts = {"reasoning_content": answer.thinking, "content": answer.message["content"]}
    return {field: text for field, text in parts.items() if text}


def refusal(error: Refused) -> Response:
    """An error as an answer."""
    return JSONResponse(error.body(), error.status, headers=error.headers)
