"""Shard weights over the processes with PyTorch's FSDP2, and keep an unsharded copy of the student that plays.

A layer's weights are gathered when it runs and freed afterwards, so every process must run it equally often. Sampling
would gather them for each token, so an unsharded copy plays instead. It takes over the weights after each step, and it
is what gets saved.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from agentopcd.core.errors import ModelError
from agentopcd.models.load import LoadedModel


def sharded_copy(whole: LoadedModel) -> LoadedModel:
    """A copy of ``whole`` to train, sharded over all processes; it keeps a reference to ``whole``."""
    model = copy.deepcopy(whole.model)
    shard(model)
    return dataclasses.replace(whole, model=model, whole=whole)


def shard(model: Any) -> None:
    """Shard the parameters of ``model`` over all processes, in place.

    Afterwards a call of ``model`` returns what its decoder returns. Embeddings, last norm and output head stay gathered
    from the forward pass to the end of the backward pass, for the loss. Gradients are summed, not averaged.

    Raises:
        ModelError: its class does not say what its layers are.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ModelError(f"{type(model).__name__} does not say what its layers are; leave out --shard")
    decoder = model.get_decoder()
    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    for part in (*layers, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=part is not model)
    for part in (*layers, model):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    model.forward = lambda **inputs: decoder(**inputs)


def clip_gradients(parameters: Iterable[torch.nn.Parameter], limit: float) -> float:
    """Scale gradients to a norm of at most ``limit``, over all shards; return the norm from before."""
    norm: Any = torch.nn.utils.clip_grad_norm_(parameters, limit)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


@torch.no_grad()
def update_whole(student: LoadedModel) -> None:
    """Copy the weights of a sharded ``student`` into the copy that plays."""
    if student.whole is not None:
        playing = dict(student.whole.model.named_parameters())
        for name, parameter in student.model.named_parameters():
            playing[name].copy_(parameter.full_tensor())
