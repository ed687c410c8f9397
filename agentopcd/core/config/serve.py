"""The settings of `agentopcd serve`. They are no verb's section in a settings file: a server plays no environment."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from agentopcd.core.config.engine import EngineConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.hosts import is_here
from agentopcd.core.types import Placement

SERVE_KEY = "AGENTOPCD_KEY"
"""The environment variable with the key that clients of `agentopcd serve` must send."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig(EngineConfig):
    """`agentopcd serve`: a model behind an OpenAI-compatible endpoint, every request kept as it was sampled."""

    model: str = ""
    """Who answers: a Hub id, folder, .gguf file, built-in name, or ENV/student, the student of an environment."""
    context: str = ""
    """Context that is put into every prompt and that no client sees: a ref such as ENV/best, an id, or a text file;
    empty: none."""
    placement: Placement = "user"
    """Where a context from a file is placed: in the user message or in the system message."""
    max_tokens: int = 1024
    """Longest reply that a client may ask for, in tokens, and the length for those who name none."""
    engine: Literal["auto", "transformers", "vllm", "server"] = "auto"
    """What samples replies. auto: the vLLM servers of --server if given, else vLLM on a GPU if it supports the model,
    else transformers."""
    record: str = ""
    """Name of the recording that requests are kept in; empty: nothing is kept."""
    canary: float = 0.0
    """Share of new sessions that a canary answers: another model, or the same one with another context; see
    `agentopcd canary`; 0: none."""
    canary_model: str = ""
    """The canary's model, as for --model; empty: the newest student of recorded:NAME that does not play."""
    canary_context: str = ""
    """The canary's context, as for --context, with the same model; empty: that of --context."""
    redact: str = ""
    """TOML file of rules by which text is replaced before it is kept; empty: it is kept as it is."""
    host: str = "127.0.0.1"
    """Address to listen at. Beyond this machine (0.0.0.0 for all addresses) a key is needed."""
    port: int = 8643
    """Port, 0 for a free one."""
    key_file: str = ""
    """File with the key that clients must send; empty: the environment variable AGENTOPCD_KEY, or no key at all."""
    max_waiting: int = 256
    """Requests under way or waiting at once; more are refused for the moment (429)."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("no model given; add --model NAME, such as pocket or ENV/student")
        super().__post_init__()
        self._positive("max_waiting")
        if self.record and not _NAME.fullmatch(self.record):
            raise ConfigError(
                f"record is {self.record!r}; wanted a name of 1 to 64 letters, digits, '.', '_' and '-' that begins "
                "with a letter or a digit"
            )
        if self.redact and not self.record:
            raise ConfigError("--redact is about what is kept, and nothing is; add --record NAME, or leave it out")
        if not 0 <= self.canary < 1:
            raise ConfigError(f"canary is {self.canary}; wanted a share of sessions above 0 and below 1, such as 0.1")
        for name in ("canary_model", "canary_context"):
            self._only_with(name, self.canary > 0, "--canary SHARE")
        self._only_with("placement", bool(self.context or self.canary_context), "--context FILE")
        if self.canary_model and self.canary_context:
            raise ConfigError("--canary-model and --canary-context try two things at once; leave one of them out")
        if self.canary and not self.record:
            raise ConfigError("--canary compares recorded sessions, and nothing is kept; add --record NAME")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; wanted 0 to 65535")

    @property
    def here(self) -> bool:
        """Whether only programs on this machine can reach the server."""
        return is_here(self.host)
