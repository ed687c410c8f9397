"""One session on an OpenEnv server: its WebSocket, and a seat where the server limits how many there are."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from agentopcd.core.errors import EnvError, GameFault
from agentopcd.core.text import first_line
from agentopcd.envs.guard import SLOW_STEP_LIMIT_S, OutOfTime

OPEN_S = 10.0
"""Seconds in which a server has to accept a connection."""
SEAT_S = 60.0
"""Seconds to wait for a session while others than this process have all of them."""
_AGAIN_S = 0.5
_MOST_BYTES = 100 * 2**20


class ServerSaid(Exception):
    """An error that the server reports; the session goes on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code


class _Seats:
    """The sessions that this process has on one server."""

    def __init__(self) -> None:
        self._taken = 0
        self._changed = threading.Condition()

    def add(self, number: int) -> None:
        with self._changed:
            self._taken += number
            self._changed.notify_all()

    def wait(self) -> bool:
        """Wait a moment, less if one of our sessions ends; return whether this process has any."""
        with self._changed:
            ours = self._taken > 0
            self._changed.wait(_AGAIN_S)
            return ours


_SEATS: dict[str, _Seats] = {}


def checked_url(url: str) -> str:
    """A server's address without the slash at its end.

    Raises:
        EnvError: it is no address of a server.
    """
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise EnvError(f"openenv:{url} names no server; write it like openenv:http://localhost:8000")
    return url.rstrip("/")


def get_json(url: str, path: str) -> Any:
    """What the server answers to GET, as JSON; ``None`` if it has no such page.

    Raises:
        EnvError: nobody answers there, or it is no OpenEnv server.
    """
    opener = build_opener(ProxyHandler({})) if _is_local(url) else build_opener()
    try:
        with opener.open(f"{url}{path}", timeout=OPEN_S) as answer:
            return json.load(answer)
    except HTTPError as error:
        if error.code in (404, 405):
            return None
        raise EnvError(f"the OpenEnv server {url} answers {path} with {error.code} {error.reason}") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise EnvError(f"no OpenEnv server answers at {url} ({reason}); start it, or correct the address") from None
    except ValueError:
        raise EnvError(f"{url}{path} gives no JSON, so {url} is no OpenEnv server") from None


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host == "::1" or host.startswith("127.")


class Session:
    """A session of its own. :meth:`close` may come from another thread, and ends a call that waits.

    Args:
        url: of the server, as :func:`checked_url` gives it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._seats = _SEATS.setdefault(url, _Seats())
        self._lock = threading.Lock()
        self._socket: ClientConnection | None = None
        self._seated = self._closed = False

    def enter(self) -> None:
        """Connect, and wait for a seat where all are taken.

        Raises:
            GameFault: nobody answers, or no seat is free.
        """
        patience = time.monotonic() + SEAT_S
        while not self._enters():
            full = f"all sessions of the OpenEnv server {self.url} are taken; raise its max_concurrent_envs"
            try:
                ours = self._seats.wait()
            except OutOfTime:
                raise GameFault(full) from None
            if ours:  # one is free as soon as an episode ends, so only the wait for others has a limit
                patience = time.monotonic() + SEAT_S
            elif time.monotonic() > patience:
                raise GameFault(f"{full}, or wait until others are done")

    def _enters(self) -> bool:
        """Connect; return whether the server has a seat."""
        socket = self._connect()
        with self._lock:
            if self._closed:
                socket.close()
                raise GameFault("the session was closed")
            self._socket = socket
        try:
            self.ask("state")
        except ServerSaid as said:  # a refused session gets this in place of its first answer
            if said.code == "CAPACITY_REACHED":
                socket.close()
                return False
        with self._lock:
            if not self._closed:
                self._seated = True
                self._seats.add(1)
        return True

    def _connect(self) -> ClientConnection:
        try:
            opened = connect(
                f"ws{self.url.removeprefix('http')}/ws", open_timeout=OPEN_S, close_timeout=1, max_size=_MOST_BYTES,
                proxy=None if _is_local(self.url) else True,
            )  # fmt: skip
            return opened.__enter__()  # left by close(), maybe of another thread
        except (OSError, WebSocketException) as error:
            raise self._gone(error) from None

    def _gone(self, error: Exception) -> GameFault:
        return GameFault(f"the OpenEnv server {self.url} is gone ({first_line(error, otherwise='no answer')})")

    def ask(self, kind: str, data: Any = None) -> dict[str, Any]:
        """Send one message and return the data of its answer.

        Raises:
            ServerSaid: the server reports an error; the session goes on.
            GameFault: the server is gone, or what it says is no answer.
        """
        assert self._socket is not None, "enter() comes first"
        message = {"type": kind} if data is None else {"type": kind, "data": data}
        answer: Any = None
        try:
            with contextlib.suppress(ConnectionClosed):  # a refusal may lie there to be read
                self._socket.send(json.dumps(message))
            answer = json.loads(self._socket.recv(timeout=SLOW_STEP_LIMIT_S))
        except (OSError, WebSocketException) as error:
            raise self._gone(error) from None
        except (ValueError, RecursionError):
            pass
        if not isinstance(answer, dict) or not isinstance(answer.get("data"), dict):
            raise GameFault(f"the OpenEnv server {self.url} answered {kind} with {str(answer)[:80]!r}, no message")
        if answer.get("type") == "error":
            raise ServerSaid(**_words(answer["data"]))
        return answer["data"]

    def close(self) -> None:
        """End the session; the server then forgets it."""
        with self._lock:
            self._closed = True
            was_seated, self._seated = self._seated, False
        if self._socket is not None:
            with contextlib.suppress(OSError, WebSocketException):
                self._socket.send(json.dumps({"type": "close"}))
            self._socket.close()
        if was_seated:
            self._seats.add(-1)


def _words(data: dict[str, Any]) -> dict[str, str]:
    """What an error frame says, with the places that a refused action lists."""
    message = str(data.get("message", "no message"))
    errors = data.get("errors")
    for error in errors if isinstance(errors, list) else ():
        if isinstance(error, dict):
            place = ".".join(str(part) for part in error.get("loc", ()))
            message += f"; {place}: {error.get('msg')}" if place else f"; {error.get('msg')}"
    return {"code": str(data.get("code", "no code")), "message": message}
