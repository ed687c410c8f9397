"""Sharded training: the weights are spread over the processes with PyTorch's FSDP2, and an unsharded copy plays.

A layer's weights are gathered when the layer runs and freed afterwards, so every process must run each layer equally
often. Sampling would gather the weights for each token. So an unsharded copy of the student plays instead; it takes
over the weights after each step, and it is the model that is saved.
"""

from __future__ import annotations

import copy
import dataclasses
import math
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
    """A copy of ``whole`` to train, sharded over all processes, with ``whole`` as its unsharded copy."""
    model = copy.deepcopy(whole.model)
    shard(model)
    return dataclasses.replace(whole, model=model, whole=whole)


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
def largest(parameters: Iterable[torch.nn.Parameter]) -> float:
    """The largest absolute value of all parameters, shards of other processes included; NaN if one of them is NaN."""
    norm: Any = torch.nn.utils.get_total_norm(parameters, norm_type=math.inf)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


@torch.no_grad()
def update_whole(student: LoadedModel) -> None:
    """Copy the weights of a sharded ``student`` into its unsharded copy, which plays. Without shards, do nothing."""
    if student.whole is not None:
        playing = dict(student.whole.model.named_parameters())
        for name, parameter in student.model.named_parameters():
            playing[name].copy_(parameter.full_tensor())
