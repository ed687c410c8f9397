"""A server in a thread of this process, and a sampler that says what it is told to say."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import torch

from agentopcd import models
from agentopcd.core.types import EMPTY, Completion, Context
from agentopcd.knowledge import Store
from agentopcd.knowledge.recordings import Recorded, sessions
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from agentopcd.workspace.gateway.app import Gateway, Rules
from agentopcd.workspace.gateway.connection import Server, address, listen
from agentopcd.workspace.gateway.dealer import Dealer, Served
from agentopcd.workspace.gateway.desk import Desk, Kept
from agentopcd.workspace.gateway.engine import Engine
from agentopcd.workspace.gateway.redact import Rule
from tests import tiny
from tests.rollouts.scripted import Scripted

NAME = "tiny"


class Says(Scripted):
    """Answers each prompt with ``reply(prompt text)``, all of it at once."""

    heard = None
    advance = Scripted.collect


class Stuck(Says):
    """Answers when it is let go."""

    def __init__(self, tokenizer: Any, reply: Callable[[str], str]) -> None:
        super().__init__(tokenizer, reply)
        self.go = threading.Event()
        self.dropped: list[int] = []

    def advance(self) -> list[tuple[int, Completion]]:  # type: ignore[override]
        return self.collect() if self.go.wait(0.01) else []

    def drop(self, tickets: Any) -> None:
        self.dropped += tickets
        super().drop(self.dropped)


class Running:
    """A server that answers until the ``with`` block ends."""

    def __init__(
        self, loaded: models.LoadedModel, work: Path, *, sampler: Any = None, record: str = "shop", key: str = "",
        context: Context = EMPTY, redact: Sequence[Rule] = (), max_tokens: int = 32, max_waiting: int = 64,
    ) -> None:  # fmt: skip
        self.loaded, self.work, self.record, self.key = loaded, work, record, key
        self.lines: list[str] = []
        """What the server has said."""
        with Store.open(work / "store.db") as store:
            store.add_model(loaded.id, loaded.name)
            store.add_context(context)
        self.sampler = sampler or TransformersSampler(
            loaded, compute=torch.float32, say=self.lines.append, in_order=True
        )
        self.chat = Chat(loaded.tokenizer)
        self._kept = Kept(
            recording=record, model_id=loaded.id, engine=self.sampler.engine, context=context, rules=redact
        )
        self._rules = Rules(model=NAME, max_tokens=max_tokens, max_waiting=max_waiting, key=key)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self.desk = Desk(self.work / "store.db", self._kept)
        self.engine = Engine(self.sampler, lambda error: self.lines.append(f"engine: {type(error).__name__}"))
        room = models.positions(self.loaded.model)
        served = Served(engine=self.engine, chat=self.chat, kept=self._kept, room=room)
        self.gateway = Gateway(Dealer(served, self.desk), self.desk, self._rules, self.lines.append)
        self.server = Server(self.gateway.app, lambda: self.gateway.counts.under_way, self.lines.append)
        with address("127.0.0.1", 0) as listener:
            listen(listener)
            self.at = f"http://127.0.0.1:{listener.getsockname()[1]}"
            self._ready.set()
            await self.server.serve(sockets=[listener])
        self.engine.close()
        self.desk.close()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    # -- what clients do ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def client(self) -> Iterator[openai.OpenAI]:
        with openai.OpenAI(base_url=f"{self.at}/v1", api_key=self.key or "none", max_retries=0, timeout=60) as client:
            yield client

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """POST a body; a text or bytes as they are, all else as JSON."""
        own = {"content-type": "application/json", **({"authorization": f"Bearer {self.key}"} if self.key else {})}
        given: Any = {"content": body} if isinstance(body, str | bytes) else {"json": body}
        return httpx.post(self.at + path, headers=own | named(headers), timeout=60, **given)

    def ask(self, *texts: str, more: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
        """Ask for a reply to a conversation of user, assistant, user ..."""
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        body = {"model": NAME, "messages": messages, "max_tokens": 12, **(more or {})}
        return self.post("/v1/chat/completions", body, **headers)

    def recorded(self) -> list[Recorded]:
        with Store.open(self.work / "store.db") as store:
            return list(sessions(store, self.record))


def named(headers: dict[str, str]) -> dict[str, str]:
    """Keyword arguments as header names: ``x_agentopcd_session`` to ``x-agentopcd-session``."""
    return {name.replace("_", "-").lower(): value for name, value in headers.items()}


def text_of(response: httpx.Response) -> str:
    return response.json()["choices"][0]["message"]["content"]


def says(loaded: models.LoadedModel, *texts: str, kind: type[Says] = Says) -> Any:
    """A sampler that answers with these texts in turn, the last one again and again."""
    left = list(texts)
    return kind(loaded.tokenizer, lambda prompt: left.pop(0) if len(left) > 1 else left[0])


def load(folder: Path, template: str = tiny.TEMPLATE) -> models.LoadedModel:
    loaded = models.load_model(str(folder))
    loaded.tokenizer.chat_template = template
    return loaded
