"""What `agentopcd serve` does: a model, loaded and tried, behind the endpoints until somebody ends it."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

from agentopcd import models
from agentopcd.core.config import SERVE_KEY, ServeConfig
from agentopcd.core.encoding import read_text
from agentopcd.core.errors import ConfigError
from agentopcd.core.files import path_of
from agentopcd.core.types import EMPTY, Context, Message, Sampling
from agentopcd.knowledge import Store
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.engine import chat_of, check_engine, engine_of, sampler_of
from agentopcd.rollouts.sampling.protocol import Stepwise
from agentopcd.workspace.day import day_of
from agentopcd.workspace.gateway.app import Gateway, Rules
from agentopcd.workspace.gateway.connection import Server, listening
from agentopcd.workspace.gateway.desk import Desk, Kept
from agentopcd.workspace.gateway.engine import Engine
from agentopcd.workspace.gateway.redact import read_rules
from agentopcd.workspace.named import context_named, model_named

_KEY = re.compile(r"[\x21-\x7e]{8,500}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready:
    """All that is needed to answer."""

    sampler: Stepwise
    chat: Chat
    kept: Kept
    rules: Rules


def key_of(config: ServeConfig) -> str:
    """The key that clients must send; '' if none is needed.

    Raises:
        ConfigError: it cannot be read, is no key, or is missing although others can reach the server.
    """
    file, found = config.key_file, os.environ.get(SERVE_KEY, "")
    if file:
        found = read_text(path_of(file)).strip()
    if (file or found) and not _KEY.fullmatch(found):
        raise ConfigError(
            f"the key in {file or SERVE_KEY} has {len(found)} characters; wanted 8 to 500 visible ASCII characters "
            "without spaces"
        )
    if not found and not config.here:
        raise ConfigError(
            f"--host {config.host} lets other machines in, and there is no key; set the environment variable "
            f"{SERVE_KEY}, or name a file with --key-file"
        )
    return found


def prepare(config: ServeConfig, work: Path, say: Callable[[str], None]) -> Ready:
    """Load and try what is to be served.

    Raises:
        AgentOpcdError: a file, a model, a context or an engine is not there, or of no use.
    """
    key, redact = key_of(config), read_rules(path_of(config.redact)) if config.redact else []
    check_engine(config)
    device = models.pick_device(config.device)
    compute = models.pick_compute(config.compute, device)
    with Store.open(work / "store.db") as store:
        context = context_named(store, config.context, config.placement)[0] if config.context else EMPTY
        loaded = model_named(store, work, config.model, device)
    if loaded.note:
        say(f"note: {loaded.note}")
    engine, why = engine_of(config, loaded)
    say(f"engine: {engine} ({why})")
    chat = chat_of(config, loaded, functools.partial(day_of, work))
    sampler = sampler_of(config, loaded, compute, say, in_order=True)
    _try(sampler, chat, context)
    kept = Kept(
        recording=config.record, model_id=loaded.id, engine=sampler.engine, context=context, rules=redact,
    )  # fmt: skip
    rules = Rules(
        model=config.model, max_tokens=config.max_tokens, max_waiting=config.max_waiting, key=key, here=config.here
    )
    return Ready(sampler=sampler, chat=chat, kept=kept, rules=rules)


def _try(sampler: Stepwise, chat: Chat, context: Context) -> None:
    """Answer once, so that an engine that cannot, or a template that drops the context, is known before clients come.

    Raises:
        AgentOpcdError: it cannot.
    """
    hello = [Message(role="user", content="Hello.")]
    chat.prompts(hello, context)
    sampler.sample([chat.request(hello, context, seed=0)], Sampling(max_tokens=8))


def serve(config: ServeConfig, work: Path, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is under way.

    Raises:
        AgentOpcdError: see :func:`prepare`; or the address cannot be used.
    """
    ready = prepare(config, work, say)
    with listening(config.host, config.port) as listener:
        asyncio.run(_serve(config, ready, work, listener, say))


async def _serve(
    config: ServeConfig, ready: Ready, work: Path, listener: socket.socket, say: Callable[[str], None]
) -> None:
    desk = Desk(work / "store.db", ready.chat, ready.kept)
    engine = Engine(ready.sampler, lambda error: say(f"error: the engine failed ({type(error).__name__})"))
    gateway = Gateway(engine, desk, ready.sampler.room, ready.rules, say)
    server = Server(gateway.app, lambda: gateway.counts.under_way, say)
    for line in told(config, ready, *listener.getsockname()[:2]):
        say(line)
    try:
        await server.serve(sockets=[listener])
    finally:
        dropped = gateway.counts.under_way
        engine.close()
        desk.close()
        say(f"stopped: {gateway.counts.answered} replies given" + (f", {dropped} dropped" if dropped else ""))


def told(config: ServeConfig, ready: Ready, host: str, port: int) -> list[str]:
    """What people are told when the server answers: its address, and what to do with it."""
    at = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    key = "your key" if ready.rules.key else "none"
    lines = [
        f"{config.model} answers at {at}; Ctrl-C ends it",
        f"client: OPENAI_BASE_URL={at}/v1 OPENAI_API_KEY={key!r}",
    ]
    if not config.record:
        return [*lines, "record: nothing is kept; --record NAME keeps every request as it was sampled"]
    return [
        *lines,
        f"record: {config.record}, one episode for each X-Agentopcd-Session or conversation",
        f"rate: curl {at}/v1/feedback -H 'Content-Type: application/json' "
        + ('-H "Authorization: Bearer $KEY" ' if ready.rules.key else "")
        + '-d \'{"session": "ID", "success": true}\'',
    ]
