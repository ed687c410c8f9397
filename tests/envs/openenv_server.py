"""A small OpenEnv server in this process, for tests: the protocol of openenv 0.10 with games as plain classes."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, ClassVar

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

TEXT = {"message": {"type": "string"}, "metadata": {"type": "object"}}


class Game:
    """One session. ``reset`` and ``step`` return (observation, reward, done); an error is raised."""

    fields: ClassVar[dict[str, Any]] = TEXT
    required: tuple[str, ...] = ("message",)
    tools: tuple[dict[str, Any], ...] = ()

    def reset(self, seed: int, **options: Any) -> tuple[dict[str, Any], float | None, bool]:
        self.seed = seed
        return {"text": f"Say {seed}.", "metadata": {}}, None, False

    def step(self, action: dict[str, Any]) -> tuple[dict[str, Any], float | None, bool]:
        right = action["message"] == str(self.seed)
        return {"text": "Right." if right else "Wrong."}, float(right), right

    def state(self) -> dict[str, Any]:
        return {"episode_id": str(uuid.uuid4()), "step_count": 0}


class Refused(Exception):
    """An error frame: its code, then what it says."""


@contextlib.contextmanager
def running(game: Callable[[], Game], sessions: int = 64) -> Iterator[Fake]:
    """A server of a game, while the block runs."""
    with Fake(game, sessions) as fake:
        yield fake


class Fake:
    """The server: its address, and who is there."""

    def __init__(self, game: Callable[[], Game], sessions: int) -> None:
        self.game, self.most, self.here, self.at_once, self.served = game, sessions, 0, 0, 0
        self.lock = threading.Lock()
        self.server: Server = serve(self._talk, "127.0.0.1", 0, process_request=self._page)
        self.port = self.server.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.sockets: list[ServerConnection] = []

    def __enter__(self) -> Fake:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Die: no more sessions, and those that are there are cut."""
        threading.Thread(target=self.server.shutdown, daemon=True).start()  # it waits for games, which may call this
        for connection in self.sockets:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)

    def _page(self, _: ServerConnection, request: Request) -> Response | None:
        if request.path == "/ws":
            return None
        kind = self.game if isinstance(self.game, type) else Game
        action = {"properties": kind.fields, "required": list(kind.required)}
        body = json.dumps({"action": action}).encode() if request.path == "/schema" else b""
        status = HTTPStatus.OK if body else HTTPStatus.NOT_FOUND
        return Response(status, status.phrase, Headers({"Content-Length": str(len(body))}), body)

    def _talk(self, connection: ServerConnection) -> None:
        with self.lock:
            full = self.here >= self.most
            self.here += not full
            self.at_once = max(self.at_once, self.here)
            self.served += not full
            self.sockets.append(connection)
        if full:
            data = {"code": "CAPACITY_REACHED", "message": "full"}
            return connection.send(json.dumps({"type": "error", "data": data}))
        game = self.game()
        try:
            for line in connection:
                message = json.loads(line)
                if message["type"] == "close":
                    break
                connection.send(json.dumps(self._answer(game, message["type"], message.get("data"))))
        except ConnectionClosed:
            pass
        finally:
            with self.lock:
                self.here -= 1
        return None

    def _answer(self, game: Game, kind: str, data: Any) -> dict[str, Any]:
        try:
            if kind == "state":
                return {"type": "state", "data": game.state()}
            if kind == "mcp" and game.tools:
                return {"type": "mcp", "data": {"result": {"tools": list(game.tools)}}}
            if kind not in ("reset", "step"):
                raise Refused("UNKNOWN_TYPE", f"Unknown message type: {kind}")
            observation, reward, done = game.reset(**data) if kind == "reset" else game.step(data)
            return {"type": "observation", "data": {"observation": observation, "reward": reward, "done": done}}
        except Refused as said:
            code, message, *errors = said.args
            return {"type": "error", "data": {"code": code, "message": message, "errors": errors}}
