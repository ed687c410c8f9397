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
from agentopcd.workspace.gateway.choice import (
    Followed,
    canary_context,
    canary_model,
    check_canary,
    context_served,
    folder_of,
    followed,
    student_named,
)
from agentopcd.workspace.gateway.connection import Server, address, listen
from agentopcd.workspace.gateway.dealer import Canary, Dealer, Served
from agentopcd.workspace.gateway.desk import Desk, Kept
from agentopcd.workspace.gateway.engine import Engine
from agentopcd.workspace.gateway.redact import read_rules
from agentopcd.workspace.named import model_named

_KEY = re.compile(r"[\x21-\x7e]{8,500}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model that can answer."""

    sampler: Stepwise
    chat: Chat
    kept: Kept
    moves: bool
    """Whether another model can take its place in this process."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready:
    """All that is needed to answer."""

    first: Loaded
    rules: Rules
    follows: Followed
    canary: Loaded | None
    load: Callable[[str, Context, str], Loaded]
    """Makes a model ready, by its name, with a context, and only if it has this id; empty: whatever it has."""


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
    _check_moves(config, config.engine in ("auto", "transformers") and not config.servers)
    check_engine(config)
    device = models.pick_device(config.device)
    compute = models.pick_compute(config.compute, device)

    def load(name: str, context: Context, wanted: str = "") -> Loaded:
        with Store.open(work / "store.db") as store:
            wanted = wanted or student_named(store, work, name)
            loaded = model_named(store, work, name, device)
        if wanted and loaded.id != wanted:
            raise ConfigError(f"the files of model {wanted[:12]} were changed ({name}); put them back, or roll back")
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
        return Loaded(sampler=sampler, chat=chat, kept=kept, moves=engine == "transformers")

    with Store.open(work / "store.db") as store:
        context = context_served(store, config, config.context) if config.context else EMPTY
    first = load(config.model, context)
    with Store.open(work / "store.db") as store:
        follows = followed(store, work, config, first.kept.model_id)
    if follows.env and not first.moves:
        _check_moves(config, False)
        say(f"note: this engine keeps the student that it has; moves of {config.model} are not followed")
        follows = Followed("", "")
    rules = Rules(
        model=config.model, max_tokens=config.max_tokens, max_waiting=config.max_waiting, key=key, here=config.here
    )
    return Ready(
        first=first, rules=rules, follows=follows, canary=_canary(config, work, first, load) if config.canary else None,
        load=load,
    )  # fmt: skip


def _check_moves(config: ServeConfig, moves: bool) -> None:
    """Refuse a canary where no other model can take the place of the one that answers.

    Raises:
        ConfigError: there is a canary, and none can.
    """
    if moves or not config.canary:
        return
    why = "--canary needs the weights of two models in this process"
    if config.canary_context:
        why = "--canary-context is compared with the student that plays, which may change while this server runs"
    raise ConfigError(f"{why}; only transformers can do that: add --engine transformers")


def _canary(config: ServeConfig, work: Path, first: Loaded, load: Callable[[str, Context], Loaded]) -> Loaded:
    """What a share of the sessions tries: the first model with another context, or another model."""
    with Store.open(work / "store.db") as store:
        if config.canary_context:
            context = canary_context(store, config, first.kept.model_id, first.kept.context)
            _try(first.sampler, first.chat, context)
            return dataclasses.replace(first, kept=dataclasses.replace(first.kept, context=context))
        name = canary_model(store, work, config, first.kept.model_id)
    canary = load(name, first.kept.context)
    with Store.open(work / "store.db") as store:
        check_canary(store, config, canary.kept.model_id, first.kept.model_id)
    return canary


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
    with address(config.host, config.port) as listener:  # before a model is loaded, which may take long
        ready = prepare(config, work, say)
        listen(listener)
        asyncio.run(_serve(config, ready, work, listener, say))


async def _serve(
    config: ServeConfig, ready: Ready, work: Path, listener: socket.socket, say: Callable[[str], None]
) -> None:
    first = ready.first
    desk = Desk(work / "store.db", first.kept, follows=bool(ready.follows.env))

    def engine(one: Loaded) -> Engine:
        return Engine(one.sampler, lambda error: say(f"error: the engine failed ({type(error).__name__})"))

    def served(one: Loaded, engine: Engine) -> Served:
        return Served(engine=engine, chat=one.chat, kept=one.kept, room=one.sampler.room)

    def again(model_id: str) -> Loaded:
        with Store.open(work / "store.db") as store:
            name = folder_of(store, work, model_id)
        return ready.load(name, first.kept.context, model_id)

    async def load(model_id: str) -> Served:
        one = await asyncio.to_thread(again, model_id)
        return served(one, engine(one))

    main, canary = served(first, engine(first)), None
    if ready.canary is not None:
        shares = ready.canary.sampler is first.sampler
        one = served(ready.canary, main.engine if shares else engine(ready.canary))
        canary = Canary(one, config.canary, "context" if shares else "model")
    dealer = Dealer(main, desk, env=ready.follows.env, base=ready.follows.base, load=load, canary=canary, say=say)
    gateway = Gateway(dealer, desk, ready.rules, say)
    server = Server(gateway.app, lambda: gateway.counts.under_way, say)
    for line in told(config, ready, *listener.getsockname()[:2]):
        say(line)
    try:
        await server.serve(sockets=[listener])
    finally:
        dropped = gateway.counts.under_way
        dealer.close()
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
    if ready.follows.env:
        lines.append(f"follows: {ready.follows.env}/student; a new session gets the student that plays then")
    if not config.record:
        return [*lines, "record: nothing is kept; --record NAME keeps every request as it was sampled"]
    if ready.canary is not None:
        kept = ready.canary.kept
        new = f"context {kept.context.id[:12]}" if config.canary_context else f"model {kept.model_id[:12]}"
        lines.append(f"canary: {config.canary:g} of new sessions try {new}; compare: agentopcd canary {config.record}")
    return [
        *lines,
        f"record: {config.record}, one episode for each X-Agentopcd-Session or conversation",
        f"rate: curl {at}/v1/feedback -H 'Content-Type: application/json' "
        + ('-H "Authorization: Bearer $KEY" ' if ready.rules.key else "")
        + '-d \'{"session": "ID", "success": true}\'',
    ]
