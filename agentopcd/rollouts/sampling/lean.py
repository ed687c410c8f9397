"""A lean forward pass for the commonest family of models: the same sums as transformers' modules, in fewer calls.

A step that reads one token for each of a few requests takes its time in calls and not in sums. transformers makes about
a hundred calls a layer, most of them in Python; this pass makes about 25. What it gives is compared with the model's
own forward pass like every shortcut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from agentopcd import models
from agentopcd.rollouts.sampling import decoding

FAMILY = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")
"""Decoders that are this and nothing else: norm, attention with rotary positions, norm, gated feed-forward."""

Attend = Callable[..., Tensor]
"""Given a layer's number, queries ``[1, heads, N, D]``, keys and values: attention ``[1, N, heads, E]``.
The queries may be those of some tokens alone, see :class:`Lean`."""


def fits(model: Any) -> bool:
    """Whether :class:`Lean` knows how this model is made, and nothing in it was replaced."""
    decoder = models.decoder(model)
    layers = [part for layer in decoder.layers for part in layer.modules()] if _is_known(decoder) else []
    kinds = {type(part).__name__ for part in layers if not list(part.children())}
    return bool(layers) and all(
        name in ("Linear", "SiLU", "SiLUActivation") or name.endswith("RMSNorm") for name in kinds
    )


def _is_known(decoder: Any) -> bool:
    return type(decoder).__name__ in FAMILY and type(decoder).__module__.startswith("transformers.models.")


@dataclasses.dataclass
class _Layer:
    """One layer's weights, ready for use."""

    norms: tuple[Any, Any]
    heads: tuple[int, int]
    """Of the queries, and of the keys and values."""
    size: int
    scaling: float
    window: int | None
    own_norms: tuple[Any, Any] | None
    """Of each head's queries and keys, if the model has them."""
    read: Any
    """Queries, keys and values of the input, side by side."""
    out: Any
    gate_up: Any
    down: Any


class Lean:
    """The decoder of a model for which :func:`fits` is true.

    Args:
        model: the model.
        packed: gives the products of its linear layers.
    """

    def __init__(self, model: Any, packed: decoding.Packed) -> None:
        self.decoder = models.decoder(model)
        config = self.decoder.config
        self.layers = [self._layer(layer, config, packed) for layer in self.decoder.layers]

    @staticmethod
    def _layer(layer: Any, config: Any, packed: decoding.Packed) -> _Layer:
        attention, feed = layer.self_attn, layer.mlp
        size = attention.head_dim
        window = getattr(attention, "sliding_window", None)
        if type(layer).__name__.startswith("Mistral"):
            window = config.sliding_window
        own = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        return _Layer(
            norms=(layer.input_layernorm, layer.post_attention_layernorm),
            heads=(attention.q_proj.out_features // size, attention.k_proj.out_features // size),
            size=size, scaling=attention.scaling, window=window, own_norms=own,
            read=packed.product(attention.q_proj, attention.k_proj, attention.v_proj),
            out=packed.product(attention.o_proj), gate_up=packed.product(feed.gate_proj, feed.up_proj),
            down=packed.product(feed.down_proj),
        )  # fmt: skip

    def __call__(self, ids: Tensor, positions: Tensor, wanted: Tensor, attend: Attend) -> Tensor:
        """Last hidden states ``[M, H]`` of the tokens at the places ``wanted [M]`` among ``N``.

        Args:
            ids: ``[1, N]``.
            positions: ``[1, N]``.
            wanted: the tokens whose hidden states are wanted; all others leave keys and values only.
            attend: does the attention.
        """
        hidden_1NH = self.decoder.embed_tokens(ids)
        cos_1ND, sin_1ND = self.decoder.rotary_emb(hidden_1NH, positions)
        cos, half = cos_1ND[0, :, None], sin_1ND.shape[-1] // 2
        sin = torch.cat([-sin_1ND[0, :, None, :half], sin_1ND[0, :, None, half:]], dim=-1)  # of the halves exchanged
        hidden_NH = hidden_1NH[0]
        for number, layer in enumerate(self.layers):
            some = wanted if layer is self.layers[-1] and len(wanted) < len(hidden_NH) else None
            seen = self._attention(number, layer, hidden_NH, cos, sin, some, attend)
            hidden_NH = (hidden_NH if some is None else hidden_NH[some]) + seen
            gate, up = layer.gate_up(_norm(layer.norms[1], hidden_NH))
            hidden_NH = hidden_NH + layer.down(silu(gate) * up)[0]
        return _norm(self.decoder.norm, hidden_NH)

    def _attention(
        self, number: int, layer: _Layer, hidden_NH: Tensor, cos: Tensor, sin: Tensor, wanted: Tensor | None,
        attend: Attend,
    ) -> Tensor:  # fmt: skip
        heads, groups = layer.heads
        queries, keys, values = layer.read(_norm(layer.norms[0], hidden_NH))
        n = len(hidden_NH)
        queries, keys = queries.view(n, heads, layer.size), keys.view(n, groups, layer.size)
        if layer.own_norms is not None:
            queries, keys = _norm(layer.own_norms[0], queries), _norm(layer.own_norms[1], keys)
        both = torch.cat([queries, keys], dim=1)
        both = torch.addcmul(both * cos, both.roll(layer.size // 2, dims=-1), sin)
        queries, keys = both.transpose(0, 1)[None].split([heads, groups], dim=1)
        if wanted is not None:
            queries, n = queries[:, :, wanted], len(wanted)
        values = values.view(1, -1, groups, layer.size).transpose(1, 2)
        seen = attend(number, queries, keys, values, scaling=layer.scaling, window=layer.window)
        return layer.out(seen.reshape(n, -1))[0]


def _norm(norm: Any, x: Tensor) -> Tensor:
    x = x.to(norm.weight.dtype)  # of two dtypes, torch would make ten calls and not one
    return rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)
