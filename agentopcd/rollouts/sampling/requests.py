"""Requests to OpenAI-compatible servers: many at once, and repeated while a server is away.

This module knows nothing of models and weights; the samplers do.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import openai

from agentopcd.core.config.engine import KEY
from agentopcd.core.errors import EngineError
from agentopcd.core.terminal import without_password
from agentopcd.core.text import first_line

E = TypeVar("E", bound="Endpoint")
T = TypeVar("T")

RETRIES = 60
"""The most attempts at a request while no server answers: about eight minutes in all."""
LONGEST_WAIT_S = 8.0
REPLY_S, TOKEN_S, CONNECT_S = 600.0, 0.5, 30.0
"""How long a reply may take, and for each token that it may have; and how long a server may take to be reached."""
TIMEOUTS = 3
"""So many replies to one request may take longer. A server that only is slow would start it again for hours."""
RETRIED = (openai.APIConnectionError, openai.APITimeoutError, openai.InternalServerError, openai.RateLimitError)


def client_options() -> dict[str, Any]:
    """Options of every client: the user's key, and no retries of the client's own."""
    return {"api_key": os.environ.get(KEY) or "none", "max_retries": 0, "timeout": patience(0)}


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
    timeouts = 0
    for attempt in range(RETRIES):
        now = time.monotonic()
        server = min(servers, key=lambda s: (s.rests_until > now, s.busy))
        try:
            answer = await ask(server)
        except RETRIED as error:
            wait = server.failed()
            timeouts += took_too_long(error)
            if timeouts == TIMEOUTS:
                raise EngineError(
                    f"{server.url} was reached, but {TIMEOUTS} times a reply was not there in time; lower --max-tokens "
                    "or --sample-batch, or see what else it answers"
                ) from error
            if attempt == RETRIES - 1:
                raise EngineError(f"{server.url} does not answer: {_message(error)}") from error
            if all(s.rests_until > time.monotonic() for s in servers):  # else another one is tried at once
                await asyncio.sleep(wait)
        except openai.APIStatusError as error:
            raise refused(server, error) from error
        else:
            server.failures = 0
            return answer
    raise AssertionError  # the loop returns or raises


def took_too_long(error: Exception) -> bool:
    """Whether the server was reached, and the reply took too long."""
    reached = type(error.__cause__).__name__ != "ConnectTimeout"
    return isinstance(error, openai.APITimeoutError) and reached


def patiently(act: Callable[[], T]) -> T:
    """Call ``act``, and call it again while its server is away."""
    timeouts = 0
    for attempt in range(RETRIES):
        try:
            return act()
        except RETRIED as error:
            timeouts += took_too_long(error)
            if timeouts == TIMEOUTS or attempt == RETRIES - 1:
                raise
            time.sleep(min(LONGEST_WAIT_S, 0.5 * 2**attempt))
    raise AssertionError  # the loop returns or raises


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
