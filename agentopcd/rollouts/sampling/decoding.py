"""Faster decoding for transformers' ``generate`` on a CPU, with the same result up to rounding.

Three avoidable costs take most of a decoding step on a CPU. oneDNN repacks the weights for every product. The cache of
keys and values is copied at every token. Keys and values are copied for every head that shares them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from agentopcd import models

PACKED_ROWS = 32
"""The number of rows that weights are packed for: a batch of replies, with one token each."""

PLAIN = (torch.nn.Linear, models.Float32Head)
"""Layers that are packed. Subclasses are not, because some do more than a product (routers of mixtures of experts)."""

KNOWN = {"dropout", "scaling", "is_causal", "position_ids", "use_cache", "sliding_window"}
"""Arguments of an attention call that :func:`_one_token` handles or, given the mask and one new token, may ignore."""


@contextlib.contextmanager
def packed_linears(model: Any, compute: torch.dtype) -> Iterator[None]:
    """Inside this block, all linear layers on a CPU use weights that were packed once. Other devices are left alone.

    Products are computed in ``compute``, those of the output head in float32. The weights must not change inside the
    block. Each block packs them anew, because a fused optimizer changes weights without leaving a trace. A LoRA
    adapter stays a separate product: if it were added to bfloat16 weights, rounding could lose what it has learned.
    """
    head = model.get_output_embeddings()
    adapted = [m for m in model.modules() if hasattr(m, "lora_A") and type(m.base_layer) in PLAIN]
    within = {id(part) for m in adapted for part in m.modules()}
    layers = [*adapted, *(m for m in model.modules() if type(m) in PLAIN and id(m) not in within)]
    layers = [layer for layer in layers if layer.weight.device.type == "cpu"] if can_pack(compute) else []
    for layer in layers:
        dtype = torch.float32 if layer is head else compute
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(dtype), PACKED_ROWS)
        bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        forward = functools.partial(_packed_linear, dtype, weight, bias)
        layer.forward = _with_adapter(layer, dtype, forward) if hasattr(layer, "lora_A") else forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _with_adapter(layer: Any, dtype: torch.dtype, forward: Any) -> Any:
    """``forward`` plus the product of the layer's adapter; ``forward`` alone if the adapter is off."""
    if layer.disable_adapters:
        return forward
    (name,) = layer.active_adapters
    down = layer.lora_A[name].weight.detach().T.to(dtype)
    up = layer.lora_B[name].weight.detach().mul(layer.scaling[name]).T.to(dtype)
    return lambda x: forward(x) + (x.to(dtype) @ down) @ up


def can_pack(compute: torch.dtype) -> bool:
    """Whether this build of torch can pack weights, and this CPU can multiply packed weights in ``compute``."""
    ops = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and hasattr(ops, "_reorder_linear_weight")):
        return False
    return compute == torch.float32 or bool(ops._is_mkldnn_bf16_supported())


def _packed_linear(dtype: torch.dtype, weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> Any:
    return torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, "none", [], "")


@contextlib.contextmanager
def grouped_attention(device: torch.device) -> Iterator[None]:
    """Inside this block, :func:`_one_token` computes the attention of a single new token on a CPU."""
    if device.type != "cpu":
        yield
        return
    usual = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = functools.partial(_one_token, usual)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = usual


def _one_token(usual: Any, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    """Attention of one new token, in the dtype of the cached keys (float32 on a CPU) and without copies of keys.

    The heads that share keys become rows of one query, so the keys need not be copied for each head.

    Args:
        usual: the attention to call for all other inputs.
        query: ``[B, H, 1, D]``; longer queries are left to ``usual``.
        key: ``[B, G, T, D]``. Head ``h`` reads group ``h // (H / G)``.
        value: the same shape as ``key``.
        attention_mask: ``[B, 1, 1, T]`` or None.
    """
    (batch, heads, new, width), groups = query.shape, key.shape[1]
    if new != 1 or not kwargs.keys() <= KNOWN or (attention_mask is not None and attention_mask.shape[1] != 1):
        return usual(module, query, key, value, attention_mask, **kwargs)
    with torch.autocast(query.device.type, enabled=False):
        out = scaled_dot_product_attention(
            query.reshape(batch, groups, heads // groups, width).to(key.dtype), key, value,
            attn_mask=attention_mask, scale=kwargs.get("scaling"),
        )  # fmt: skip
    return out.reshape(batch, 1, heads, value.shape[3]), None


def reserved_cache(model: Any, room: int, compute: torch.dtype) -> DynamicCache | None:
    """A cache with room for ``room`` tokens; None if some layer forgets, since such a model brings its own cache."""
    if not models.attends_to_all(model):
        return None
    on_cpu = next(model.parameters()).device.type == "cpu"
    cache = DynamicCache(config=model.config)
    cache.layers[:] = [_Reserved(room, torch.float32 if on_cpu else compute) for _ in cache.layers]
    return cache


class _Reserved(DynamicLayer):
    """A layer's keys and values, in memory that is allocated once and in the dtype that attention reads.

    A ``DynamicLayer`` instead copies everything at every new token, and under autocast converts it, too.
    """

    def __init__(self, room: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.room, self.dtype = room, dtype
        self.all: list[torch.Tensor] = []

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        """Append new keys and values, and return all of them so far ``[B, H, T, D]``, as views."""
        if not self.all:
            for new in (key_states, value_states):
                self.all.append(new.new_empty((*new.shape[:2], self.room, new.shape[3]), dtype=self.dtype))
            self.device, self.is_initialized = key_states.device, True
        start = 0 if self.keys is None else self.get_seq_length()
        end = start + key_states.shape[2]
        for room, new in zip(self.all, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self.all)
        return self.keys, self.values
