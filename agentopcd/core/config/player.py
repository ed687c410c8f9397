"""The settings that every verb which plays shares: who plays what, and how replies are sampled."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from agentopcd.core.config.engine import EngineConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Sampling

RECORDED = "recorded:"
"""How the reference of an environment begins that is a recording of the workspace."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayerConfig(EngineConfig):
    """Who plays what, and how replies are sampled. Every verb that plays takes these settings."""

    env: str = ""
    """A name of `agentopcd envs list`, gym:ID (or textarena:, twx:, rg:, openenv:, verifiers:), rows.jsonl,
    recorded:NAME of `agentopcd serve --record NAME`, file.py:Class or pkg.mod:Class."""
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
    """A Hub id, folder, .gguf file or built-in name; empty: ENV/student, else pocket for built-in
    grid games, smollm2-135m elsewhere."""
    temperature: float = 0.7
    """Divides the logits when replies are sampled; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this much probability mass; 1 keeps all."""
    top_k: int = 0
    """Sample from only this many of the likeliest tokens; 0: from all."""
    seed: int = 0
    """Seed of all that is random: replies, task order, candidate chains."""
    splits: str = ""
    """Splits manifest written by `agentopcd envs splits -o FILE`; empty: made once and kept in the workspace."""

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
        if self.engine == "api" and self.constrain:
            raise ConfigError("an API cannot restrict replies to a list; leave out --constrain")
        self._temperature("temperature")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0 or self.max_steps < 0 or self.seed < 0:
            raise ConfigError("top_k, max_steps and seed must be 0 or more")

    def _needs_weights(self, what_for: str) -> None:
        if self.engine == "api":
            raise ConfigError(
                f"{self.model!r} behind an API has no weights here {what_for}: it can play, score and extract "
                "experience, but not be the student; leave out --engine api and name a model whose weights you have"
            )

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, max_tokens=self.max_tokens)
