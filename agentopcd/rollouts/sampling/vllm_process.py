"""The process that vLLM runs in: its environment variables, and whether it is this process.

With one process of ours vLLM runs in it, and takes tensors as they are. Several processes are connected by
torch.distributed, where vLLM would set up groups of its own, which all processes would have to join at the same moment.
So the engine of each then runs in a process beside it, knows of no other, and reads weights from a file.
"""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import torch

from agentopcd.models.parallel.ranks import launched

ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # "auto" would reserve a core
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process with threads may hang
}
"""Environment variables that are set before vLLM is imported, unless the user has set them."""
USERS_CACHE = os.environ.get("VLLM_CPU_KVCACHE_SPACE")
"""GiB of keys and values on a CPU, if the user has set it. Otherwise each engine gets what its model needs."""


def apart() -> bool:
    """Whether the engine runs in a process of its own."""
    return launched() > 1


def prepare(cache_gib: int) -> None:
    """Set the environment variables of vLLM, which reads them when it is imported and when an engine starts."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(apart()))
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not USERS_CACHE:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(cache_gib)
    if apart() and torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = _own_gpu()  # torch has read it already, in this process


@functools.cache
def _own_gpu() -> str:
    """The GPU of this process, as the engine's process must be told. Not run on a GPU yet."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    index = torch.cuda.current_device()
    return visible[index] if visible else str(index)


def cache_gib(config: Any, positions: int) -> int:
    """GiB of keys and values on a CPU: room for two sequences of full length, and at least 1 GiB."""
    text = config.get_text_config()
    groups = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return max(1, math.ceil(2 * positions * text.num_hidden_layers * 2 * groups * width * 4 / 2**30))
