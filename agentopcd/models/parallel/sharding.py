"""Sharded training: the weights are spread over the processes with PyTorch's FSDP2.

A layer's weights are gathered when the layer runs and freed afterwards, so every process must run each layer equally
often. Sampling in place would gather the weights for each token. So an unsharded copy of the student plays instead
(:func:`sharded`); it takes over the weights after each step, and it is the model that is saved. Where servers
play, no process needs a whole student: :func:`write_whole` gathers one parameter after the other into a file, for the
servers and for the student on disk.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from agentopcd.core.errors import ModelError
from agentopcd.models.load import LoadedModel
from agentopcd.models.process import give_back_memory


def sharded(student: LoadedModel, *, plays: bool) -> LoadedModel:
    """``student`` to train, sharded over all processes.

    Args:
        plays: whether the student plays in place. Then a copy of it is sharded, and the whole student stays beside it.
            Otherwise the student itself is sharded, and no process holds it whole any more.
    """
    if not plays:
        shard(student.model)
        gc.collect()  # the memory that benchmarks.sharded_memory prints was measured with it
        give_back_memory()
        return student
    model = copy.deepcopy(student.model)
    shard(model)
    return dataclasses.replace(student, model=model, whole=student)


def shard(model: Any) -> None:
    """Shard the parameters of ``model`` over all processes, in place.

    Afterwards, calling ``model`` returns the output of its decoder. Embeddings, last norm and output head stay gathered
    from the forward pass to the end of the backward pass, because the loss needs them. Gradients are summed, not
    averaged.

    Raises:
        ModelError: the model's class does not name its layers.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ModelError(f"{type(model).__name__} does not name its layers; leave out --shard")
    decoder = model.get_decoder()
    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    for part in (*layers, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=part is not model)
    # FSDP averages gradients by default. The loss weights are those of the whole step, so a sum is right.
    for part in (*layers, model):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    # The hooks that gather weights sit on a module's call, so the decoder must run inside a call of ``model``.
    model.forward = lambda **inputs: decoder(**inputs)


def clip_gradients(parameters: Iterable[torch.nn.Parameter], limit: float) -> float:
    """Scale the gradients to a norm of at most ``limit``, over all shards, and return the norm before scaling."""
    norm: Any = torch.nn.utils.clip_grad_norm_(parameters, limit)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


@torch.no_grad()
def norm_of(parameters: Iterable[torch.nn.Parameter]) -> float:
    """The Euclidean norm of all parameters, shards of other processes included; not finite if one of them is not.

    On a CPU the largest absolute value would take seven times as long (docs/performance.md).
    """
    norm: Any = torch.nn.utils.get_total_norm(parameters)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


@torch.no_grad()
def update_whole(student: LoadedModel) -> None:
    """Copy the weights of a sharded ``student`` into its unsharded copy, which plays. Without shards, do nothing."""
    if student.whole is not None:
        playing = dict(student.whole.model.named_parameters())
        student.model.reshard()  # a forward pass that no backward pass followed has left some parameters gathered
        for name, parameter in student.model.named_parameters():
            playing[name].copy_(parameter.full_tensor())


def is_sharded(model: Any) -> bool:
    """Whether the parameters of ``model`` are spread over the processes."""
    return isinstance(model, FSDPModule)


@torch.no_grad()
def write_whole(model: Any, file: Path) -> None:
    """Write all parameters of a sharded ``model`` into one safetensors file; every process must call this.

    They are gathered one after the other, so no process ever holds more than one whole parameter. The main process
    writes. The output head is among them even if it is tied to the embeddings, because a server keeps its own copy.
    """
    model.reshard()  # a forward pass that no backward pass followed has left some parameters gathered
    parameters = dict(model.named_parameters())
    parameters["lm_head.weight"] = model.get_output_embeddings().weight
    with contextlib.ExitStack() as stack:
        out: BinaryIO | None = stack.enter_context(file.open("wb")) if dist.get_rank() == 0 else None
        if out is not None:
            out.write(_header(parameters))
        for name in sorted(parameters):
            whole = parameters[name].full_tensor()
            if out is not None:
                out.write(whole.reshape(-1).cpu().view(torch.uint8).numpy().data)


def _header(parameters: dict[str, Any]) -> bytes:
    """The beginning of a safetensors file with these parameters, sorted by name: its length, and where each one is.

    The safetensors library writes a file in one go, so all tensors would have to be in memory.
    """
    places, end = {}, 0
    for name in sorted(parameters):
        start, end = end, end + parameters[name].numel() * parameters[name].element_size()
        places[name] = {"dtype": "F32", "shape": list(parameters[name].shape), "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}} | places).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
