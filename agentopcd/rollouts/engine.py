"""From settings to play: the game, the engine and the player that the settings ask for."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable
from typing import Any

import torch

from agentopcd import models
from agentopcd.core.config import EngineConfig, PlayerConfig
from agentopcd.core.terminal import without_password
from agentopcd.models import tokens
from agentopcd.models.parallel.ranks import launched
from agentopcd.rollouts.chat import ApiChat, Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling import Sampler, vllm_engine
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler


def game_of(config: PlayerConfig) -> Game:
    """The game that the settings describe."""
    return Game(
        ref=config.env,
        kwargs=config.env_args | {name: value for name in ("grader", "judge") if (value := getattr(config, name))},
        rules=config.rules,
        max_steps=config.max_steps,
        history=config.history,
        constrain=config.constrain,
        success_when=config.success_when,
    )


def engine_of(config: EngineConfig, loaded: models.LoadedModel) -> tuple[str, str]:
    """The name of the engine that samples from ``loaded``, and the reason for the choice."""
    several = launched() > 1
    engine = "server" if config.server and config.engine == "auto" else config.engine
    if engine != "auto":
        return engine, without_password(config.server) if config.server else "as given"
    device = next(loaded.model.parameters()).device.type
    if device != "cuda":
        return "transformers", "no GPU"
    if several or not vllm_engine.installed():
        return "transformers", "several processes" if several else "vLLM is not installed"
    kind = type(loaded.model).__name__
    try:
        return ("vllm", "installed") if vllm_engine.supports(kind) else ("transformers", f"vLLM does not know {kind}")
    except (ImportError, OSError) as error:
        return "transformers", f"vLLM cannot be imported: {error}"


def check_engine(config: EngineConfig) -> None:
    """Refuse an engine that is not installed, and a server that nobody can reach, before a model is loaded.

    Raises:
        DependencyError: vLLM is not installed.
        EngineError: a server does not answer, or it wants another key.
    """
    if config.engine == "vllm":
        vllm_engine.check_installed()
    if config.servers:
        from agentopcd.rollouts.sampling.chat_api import ApiServer, in_background

        for url in config.servers:
            in_background(ApiServer(url).look_up()).result()


def chat_of(config: EngineConfig, loaded: models.LoadedModel, day: Callable[[], datetime.date] | None = None) -> Chat:
    """What renders the model's prompts and reads its replies.

    Args:
        day: returns the day for a chat template that tells the model one.
    """
    return Chat(loaded.tokenizer, config.template_args, day() if day and tokens.asks_clock(loaded.tokenizer) else None)


def sampler_of(
    config: EngineConfig,
    loaded: models.LoadedModel,
    compute: torch.dtype,
    say: Callable[[str], None] = print,
    *,
    together: bool = False,
    in_order: bool = False,
) -> Any:
    """The sampler that the settings ask for; but for an API's, a :class:`.sampling.protocol.Stepwise`.

    Args:
        together: see :func:`player_of`.
        in_order: whoever waits longest is answered first, where this process decides that.
    """
    engine = engine_of(config, loaded)[0]
    make: Callable[..., Sampler] = functools.partial(TransformersSampler, say=say, in_order=in_order)
    if engine == "vllm":
        make = vllm_engine.sampler_of
    elif engine == "server":
        from agentopcd.rollouts.sampling import vllm_server

        make = functools.partial(vllm_server.sampler_of, urls=config.servers, together=together)
    elif engine == "api":
        from agentopcd.rollouts.sampling import chat_api

        make = functools.partial(chat_api.ApiSampler, urls=config.servers, template_args=config.template_args)
    return make(loaded, compute=compute, batch_size=config.sample_batch)


def player_of(
    config: PlayerConfig,
    loaded: models.LoadedModel,
    compute: torch.dtype,
    day: Callable[[], datetime.date] | None = None,
    say: Callable[[str], None] = print,
    *,
    together: bool = False,
) -> Player:
    """A player of the settings' environment, with replies from ``loaded``.

    Args:
        together: whether every process of this run makes such a player, and all play at once.
        day: returns the day for a chat template that tells the model one.
        say: takes lines for people.
    """
    chat = ApiChat(config.template_args) if engine_of(config, loaded)[0] == "api" else chat_of(config, loaded, day)
    sampler = sampler_of(config, loaded, compute, say, together=together)
    return Player(
        game=game_of(config),
        sampler=sampler,
        chat=chat,
        sampling=config.sampling,
        seed=config.seed,
        concurrency=max(Player.concurrency, 4 * config.sample_batch * max(1, len(config.servers))),
    )
