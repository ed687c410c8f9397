"""Connections: how long they may take, and how they end when the server does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from agentopcd.core.errors import ConfigError

HEADERS_S = 15.0
"""How long the head of a request may take."""
IDLE_S = 30
"""How long a connection may stay open without a request."""
READER_S = 60.0
"""How long a client may take to read what was sent, while more waits to be sent."""


class Connection(H11Protocol):
    """A connection that ends when its client keeps it waiting."""

    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._late, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self.flow.pause_writing()
        self._unread = self.loop.call_later(READER_S, self.transport.abort)

    def resume_writing(self) -> None:
        self.flow.resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _watch(self) -> None:
        """Wait for the head of a request while one is due; between requests, uvicorn's own timer runs."""
        due = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
        if due and self._late is None:
            self._late = self.loop.call_later(HEADERS_S, self._too_late)
        elif not due and self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        self.transport.close()


class Server(uvicorn.Server):
    """A server that finishes what is under way, and says so.

    Args:
        app: the application.
        under_way: how many requests are not finished.
        say: takes lines for people.
    """

    def __init__(self, app: Any, under_way: Callable[[], int], say: Callable[[str], None]) -> None:
        for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
            logging.getLogger(name).disabled = True  # what they say of a fault may quote a request
        config = uvicorn.Config(
            app, http=Connection, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            timeout_keep_alive=IDLE_S, timeout_graceful_shutdown=None, proxy_headers=False,
        )  # fmt: skip
        super().__init__(config)
        self.under_way, self.say = under_way, say

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end at the first signal; Ctrl-C again drops what is under way."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        elif not self.should_exit:
            self.should_exit = True
            if count := self.under_way():
                self.say(f"finishing {count} requests under way; Ctrl-C again drops them")


@contextlib.contextmanager
def address(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that has this address and does not listen yet, so nobody waits for an answer: see :func:`listen`.

    Raises:
        ConfigError: the address or the port cannot be used.
    """
    with _usable(host, port):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, at = found[0]
        made = socket.socket(family, kind, proto)
    with made:
        with _usable(host, port):
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(at)
        yield made


def listen(made: socket.socket) -> None:
    """Let clients come.

    Raises:
        ConfigError: another program listens there by now.
    """
    with _usable(*made.getsockname()[:2]):
        made.listen(2048)


@contextlib.contextmanager
def _usable(host: str, port: int) -> Iterator[None]:
    """Inside this block, an error of the operating system becomes one line about this address."""
    try:
        yield
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen at {host} port {port} ({why}); name another one with --port or --host"
        ) from error
