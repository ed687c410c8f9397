"""The settings that say which model answers, and what samples its replies."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal
from urllib.parse import urlsplit

from agentopcd.core.config.base import Config
from agentopcd.core.errors import ConfigError
from agentopcd.core.terminal import without_password

KEY = "AGENTOPCD_API_KEY"
"""The environment variable with the key that is sent to servers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig(Config):
    """Who answers, and where the replies are sampled."""

    model: str = ""
    """A Hub id, folder, .gguf file or built-in name."""
    max_tokens: int = 128
    """Longest reply, in tokens."""
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
    template_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the chat template: key=value, such as enable_thinking=false; repeat the flag for each argument."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("max_tokens", "sample_batch")
        if self.engine in ("server", "api") and not self.servers:
            raise ConfigError(f"--engine {self.engine} needs an address; add --server URL")
        if self.engine == "api" and not self.model:
            raise ConfigError("--engine api needs the API's name for its model; add --model NAME")
        if self.server and self.engine in ("transformers", "vllm"):
            raise ConfigError(f"--server is of no use to --engine {self.engine}; leave one of them out")
        for url in self.servers:
            check_address(url)

    @property
    def servers(self) -> list[str]:
        return [url.strip() for url in self.server.split(",") if url.strip()]


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
