"""Requests to OpenAI-compatible servers: many at once, and repeated while a server is away.

This module knows nothing of models and weights; the samplers do.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import openai

from agentopcd.core.api import api_key
from agentopcd.core.config.engine import KEY
from agentopcd.core.errors import EngineError
from agentopcd.core.terminal import without_password
from agentopcd.core.text import first_line

E = TypeVar("E", bound="Endpoint")
T = TypeVar("T")

AWAY_S = 480.0
"""How long a request waits for servers that are away: eight minutes."""
LONGEST_WAIT_S = 8.0
REPLY_S, TOKEN_S, CONNECT_S = 600.0, 0.5, 30.0
"""How long a reply may take, and for each token that it may have; and how long a server may take to be reached."""
TIMEOUTS = 3
"""So many replies to one request may take longer. A server that only is slow would start it again for hours."""
RETRIED = (openai.APIConnectionError, openai.APITimeoutError, openai.InternalServerError, openai.RateLimitError)


def client_options() -> dict[str, Any]:
    """Options of every client: the user's key, and no retries of the client's own."""
    return {"api_key": api_key(), "max_retries": 0, "timeout": patience(0)}


def patience(tokens: int) -> openai.Timeout:
    """How long to wait for a reply of so many tokens at most."""
    return openai.Timeout(REPLY_S + TOKEN_S * tokens, connect=CONNECT_S)


class Endpoint:
    """One server: its client, how busy it is, and its recent failures.

    Args:
        url: the server's name in messages, where its password is left out.
        api: the base address of the server's API.
    """

    def __init__(self, url: str, api: str) -> None:
        self.url = without_password(url)
        self.replies = openai.AsyncOpenAI(base_url=api, **client_options())
        self.busy = 0
        """The number of requests in flight."""
        self.failures = 0
        """The number of failures in a row."""
        self.rests_until = 0.0
        """Until when other servers are preferred, on the clock of :func:`time.monotonic`."""

    def failed(self) -> float:
        """Record a failure and return how many seconds to leave the server alone."""
        self.failures += 1
        wait = min(LONGEST_WAIT_S, 0.5 * 2 ** min(self.failures, 8))
        self.rests_until = time.monotonic() + wait
        return wait


async def at_one_of(servers: Sequence[E], ask: Callable[[E], Awaitable[T]]) -> T:
    """The answer of the least busy server or, after a failure, of another one.

    Args:
        servers: the servers to choose from.
        ask: sends the request to a server.

    Raises:
        EngineError: no server answers in spite of retries, or a server refuses the request.
    """
    left = _Patience()
    while True:
        now = time.monotonic()
        server = min(servers, key=lambda s: (s.rests_until > now, s.busy))
        try:
            answer = await ask(server)
        except RETRIED as error:
            wait = server.failed()
            if left.ends_with(error, now):
                raise _given_up(server, error, left) from error
            if all(s.rests_until > time.monotonic() for s in servers):  # else another one is tried at once
                left.away_s += wait
                await asyncio.sleep(wait)
        except openai.APIStatusError as error:
            raise refused(server, error) from error
        else:
            server.failures = 0
            return answer


class _Patience:
    """How long one request has waited."""

    def __init__(self) -> None:
        self.timeouts = 0
        self.away_s = 0.0

    def ends_with(self, error: Exception, asked: float) -> bool:
        """Whether the failure of what was asked then, on the clock of :func:`time.monotonic`, is the last one."""
        self.timeouts += took_too_long(error)
        # A server that dies in the middle of a long reply was not away for so long.
        self.away_s += min(time.monotonic() - asked, CONNECT_S)
        return self.timeouts == TIMEOUTS or self.away_s >= AWAY_S


def _given_up(server: Endpoint, error: openai.APIError, left: _Patience) -> EngineError:
    """The error to raise when there is no patience left."""
    if left.timeouts < TIMEOUTS:
        return EngineError(f"{server.url} does not answer: {_message(error)}")
    return EngineError(
        f"{server.url} was reached, but {TIMEOUTS} times a reply was not there in time; lower --max-tokens "
        "or --sample-batch, or see what else it answers"
    )


def took_too_long(error: Exception) -> bool:
    """Whether the server was reached, and the reply took too long."""
    reached = type(error.__cause__).__name__ != "ConnectTimeout"
    return isinstance(error, openai.APITimeoutError) and reached


def patiently(act: Callable[[], T]) -> T:
    """Call ``act``, and call it again while its server is away."""
    left = _Patience()
    wait = 0.5
    while True:
        asked = time.monotonic()
        try:
            return act()
        except RETRIED as error:
            if left.ends_with(error, asked):
                raise
            wait = min(LONGEST_WAIT_S, wait)
            left.away_s += wait
            time.sleep(wait)
            wait *= 2


def arrived(running: dict[concurrent.futures.Future[T], int], wait_s: float | None = None) -> list[tuple[int, T]]:
    """Take out what has arrived, with its ticket. A failure waits until what has arrived beside it was taken.

    Args:
        running: the requests under way, with their tickets.
        wait_s: the most seconds to wait for an answer; None: until there is one.

    Raises:
        EngineError: the error of a request, with its ticket.
    """
    done, _ = concurrent.futures.wait(running, wait_s, return_when=concurrent.futures.FIRST_COMPLETED)
    sound = [future for future in done if future.exception() is None]
    for future in done if not sound else ():
        ticket, error = running.pop(future), future.exception()
        if isinstance(error, EngineError):
            error.ticket = ticket
        future.result()
    return [(running.pop(future), future.result()) for future in sound]


def in_background(work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Start ``work`` on the event loop of all requests."""
    return asyncio.run_coroutine_threadsafe(work, _loop())


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all requests, in a thread that ends with the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="agentopcd-requests", daemon=True).start()
    return loop


def refused(server: Endpoint, error: openai.APIStatusError) -> EngineError:
    """The error to raise when ``server`` has refused a request."""
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return EngineError(f"{server.url} asks for a key or refuses this one; set the environment variable {KEY}")
    return EngineError(f"{server.url} refused a request ({error.status_code}): {_message(error)}")


def _message(error: openai.APIError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return first_line(body.get("message") or error, otherwise=type(error).__name__)
