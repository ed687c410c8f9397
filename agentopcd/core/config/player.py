"""The settings that every verb which plays shares: who plays what, and how replies are sampled."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal
from urllib.parse import urlsplit

from agentopcd.core.config.base import Config
from agentopcd.core.errors import ConfigError
from agentopcd.core.terminal import without_password
from agentopcd.core.types import Sampling

KEY = "AGENTOPCD_API_KEY"
"""The environment variable with the key that is sent to servers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayerConfig(Config):
    """Who plays what, and how replies are sampled. Every verb that plays takes these settings."""

    env: str = ""
    """A name of `agentopcd envs list`, gym:ID (or textarena:, twx:, rg:, openenv:, verifiers:), rows.jsonl,
    file.py:Class or pkg.mod:Class."""
    env_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Argument of the environment, as name=value with a JSON value; repeat the flag for more."""
    rules: str = ""
    """View of the rules text: full, hidden, none or one of the environment's own; empty: hidden if the environment has
    such a view, else full."""
    history: Literal["", "transcript", "chat"] = ""
    """How earlier turns are shown: transcript (one user message with the whole log) or chat (one message per turn);
    empty: chat for questions and tools, transcript for games."""
    max_steps: int = 0
    """Replies per episode, invalid ones included; 0: the environment's limit, 20 if it has none."""
    constrain: bool = False
    """Restrict replies to the legal actions that the environment lists; teacher and student are scored under the same
    restriction."""
    success_when: str = ""
    """When an episode is solved: 'reward >= 1' (the last reward), 'return >= 475' (the sum of all) or 'terminated' (it
    came to its own end); empty: when the environment says so."""
    grader: str = ""
    """FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION that grades the replies to a file's rows: it gets the row and the
    reply, and returns a bool, a number (1 or more passes), or numbers by name, one called success or score. With
    --judge: the file of the question to the judge."""
    judge: str = ""
    """URL#NAME of a model behind an OpenAI-compatible API that grades replies to conversations, asked by the file of
    --grader; its answers are kept beside that file."""
    model: str = ""
    """A Hub id, folder, .gguf file or built-in name; empty: this environment's newest student, else pocket for grid
    games, smollm2-135m elsewhere."""
    temperature: float = 0.7
    """Divides the logits when replies are sampled; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this much probability mass; 1 keeps all."""
    top_k: int = 0
    """Sample from only this many of the likeliest tokens; 0: from all."""
    max_tokens: int = 128
    """Longest reply, in tokens."""
    seed: int = 0
    """Seed of all that is random: replies, task order, candidate chains."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products; auto uses bfloat16 if the hardware supports it, else float32. Weights stay
    float32."""
    device: str = "auto"
    """Device of the model: auto, cpu, cuda, ..."""
    engine: Literal["auto", "transformers", "vllm", "server", "api"] = "auto"
    """What samples replies. auto: the servers of --server if given, else vLLM on a GPU if it supports the model, else
    transformers. api: the chat endpoint at --server that runs --model; it can play, score and extract experience, but
    cannot learn."""
    server: str = ""
    """Address of a running vLLM server, such as http://localhost:8000, or of an API; separate several addresses with
    commas (see docs/engines.md); empty: no server."""
    sample_batch: int = 32
    """Sequences sampled at once: per generate call, in vLLM, or in flight at each server."""
    splits: str = ""
    """Splits manifest written by `agentopcd envs splits -o FILE`; empty: made once and kept in the workspace."""
    template_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the chat template: key=value, such as enable_thinking=false; repeat the flag for each argument."""

    def __post_init__(self) -> None:
        if not self.env:
            raise ConfigError("no environment given; add --env NAME (see `agentopcd envs list`)")
        super().__post_init__()
        if self.grader and "grader" in self.env_args:
            raise ConfigError("--grader and --env-arg grader=... say the same thing; leave one of them out")
        if self.judge and not self.grader:
            raise ConfigError(
                "--judge needs a question to ask; add --grader FILE with {conversation} and {reply} in it"
            )
        self._positive("max_tokens", "sample_batch")
        self._check_engine()
        self._temperature("temperature")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0 or self.max_steps < 0 or self.seed < 0:
            raise ConfigError("top_k, max_steps and seed must be 0 or more")

    def _check_engine(self) -> None:
        if self.engine in ("server", "api") and not self.servers:
            raise ConfigError(f"--engine {self.engine} needs an address; add --server URL")
        if self.engine == "api" and not self.model:
            raise ConfigError("--engine api needs the API's name for its model; add --model NAME")
        if self.engine == "api" and self.constrain:
            raise ConfigError("an API cannot restrict replies to a list; leave out --constrain")
        if self.server and self.engine in ("transformers", "vllm"):
            raise ConfigError(f"--server is of no use to --engine {self.engine}; leave one of them out")
        for url in self.servers:
            check_address(url)

    def _needs_weights(self, what_for: str) -> None:
        if self.engine == "api":
            raise ConfigError(
                f"{self.model!r} behind an API has no weights here {what_for}: it can play, score and extract "
                "experience, but not be the student; leave out --engine api and name a model whose weights you have"
            )

    @property
    def servers(self) -> list[str]:
        return [url.strip() for url in self.server.split(",") if url.strip()]

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, max_tokens=self.max_tokens)


def check_address(url: str) -> None:
    """Refuse what cannot be the address of a server.

    Raises:
        ConfigError: it is none.
    """
    try:
        sound = url.startswith(("http://", "https://")) and urlsplit(url).hostname and urlsplit(url).port != 0
    except ValueError:  # brackets that do not close, or a port that is no number
        sound = False
    if not sound:
        raise ConfigError(f"{without_password(url)!r} is no address of a server; wanted one like http://localhost:8000")
