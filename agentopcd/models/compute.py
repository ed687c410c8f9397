"""Where and how a model computes: device, dtype, autocast, frozen weights, gradient checkpointing."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from typing import Any, Literal

import torch
from torch.distributed.tensor import DTensor

from agentopcd.core.errors import ModelError
from agentopcd.core.text import first_line

Compute = Literal["auto", "float32", "bfloat16"]
RANDOM = ("dropout", "layerdrop", "jitter")
"""Words in the names of what a model does at random while it is in training mode."""
PASSES = threading.RLock()
"""Held for the passes of a batch, and of a comparison beside them: an adapter that is off is off for all threads."""


def pick_device(device: str = "auto") -> torch.device:
    """The torch device of that name; ``auto`` is the first accelerator that torch sees, else the CPU.

    Raises:
        ModelError: torch cannot use the device.
    """
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        probe = torch.zeros(1, device=device)
        probe.item()  # the device meta holds no numbers
        return probe.device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"cannot use device {device!r}: {first_line(error)}; try auto or cpu") from error


def pick_compute(compute: Compute, device: torch.device) -> torch.dtype:
    """The dtype of matrix products; ``auto`` is bfloat16 if the device has instructions for it, else float32."""
    if compute == "auto":
        return torch.bfloat16 if _has_bfloat16(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[compute]


def _has_bfloat16(device: torch.device) -> bool:
    if device.type != "cuda":
        return device.type == "cpu" and _cpu_has_bfloat16()
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)  # emulated, it is slower than float32


def _cpu_has_bfloat16() -> bool:
    has = torch.cpu.get_capabilities()
    return bool(has.get("amx_bf16") or has.get("avx512_bf16"))


def autocast(
    device: torch.device, compute: torch.dtype, *, keep: bool = True
) -> contextlib.AbstractContextManager[Any]:
    """Compute matrix products in ``compute``; does nothing for float32.

    With ``keep``, each weight is cast once per block, and all casts are held until the block ends.
    """
    if compute == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=compute, cache_enabled=keep)


def freeze(model: Any, compute: torch.dtype) -> None:
    """Freeze ``model``: no gradients, dropout off, linear weights in ``compute``.

    Autocast would cast the linear weights on every call. Casting them once gives the same products.
    """
    model.requires_grad_(False).eval()
    if compute == torch.float32:
        return
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            module.to(compute)


def parameter_hash(model: Any, *, frozen: bool = False) -> str:
    """sha256 over all parameters in order. A frozen teacher has the same hash before and after training.

    With ``frozen``, only parameters that are not trained count, under the names they have without an adapter. If the
    parameters are sharded, each process hashes its own part.
    """
    digest = hashlib.sha256()
    if hasattr(model, "reshard"):  # a sharded model, whose weights may still be gathered
        model.reshard()
    for name, parameter in model.named_parameters():
        if not (frozen and parameter.requires_grad):
            digest.update(name.replace(".base_layer.", ".").encode())
            local: Any = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            digest.update(local.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def checkpoint_gradients(model: Any) -> None:
    """Recompute activations in the backward pass instead of keeping them. Dropout stays off.

    Raises:
        ModelError: the model's class has no gradient checkpointing.
    """
    # transformers checkpoints in training mode only, so what is random there must be set to 0 where it lies.
    for module in model.modules():
        for name, value in vars(module).items():
            if any(word in name for word in RANDOM) and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise ModelError(f"{type(model).__name__} has no gradient checkpointing; leave it out") from error
    model.train()
