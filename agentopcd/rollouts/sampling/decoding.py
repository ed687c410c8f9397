"""Cheaper products for sampling, with the same result up to rounding.

On a CPU, oneDNN would repack the weights for every product; on a GPU, each call costs more than the product it makes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from agentopcd import models

PACKED_ROWS = 32
"""The number of rows that weights are packed for: a batch of replies, with one token each."""

SMALL = 30_000_000
"""The most parameters of a small model: its steps on a CPU take their time in calls rather than in products."""

PLAIN = (torch.nn.Linear, models.Float32Head)
"""Layers that are packed. Subclasses are not, because some do more than a product (routers of mixtures of experts)."""


class Packed:
    """The linear layers of a model with weights that were packed once; on a GPU, that were cast once.

    Products are computed in ``compute``, those of the output head in float32. Layers that read the same input become
    one product. Other devices are left alone. The weights must not change as long as this object is used; a fused
    optimizer changes weights without leaving a trace. A LoRA adapter stays a separate product: if it were added to
    bfloat16 weights, rounding could lose what it has learned.
    """

    def __init__(self, model: Any, compute: torch.dtype) -> None:
        head, kind = model.get_output_embeddings(), next(model.parameters()).device.type
        pack = kind == "cpu" and can_pack(compute)
        cast = kind == "cuda" and compute != torch.float32
        self._forwards: list[tuple[Any, Any]] = []
        self._joined: dict[int, _Joined] = {}
        """By the first of the layers that are joined."""
        if not (pack or cast or (compute == torch.float32 and is_small(model))):
            return
        product = _packed if pack else _plain
        adapted = [m for m in model.modules() if hasattr(m, "lora_A") and type(m.base_layer) in PLAIN]
        within = {id(part) for m in adapted for part in m.modules()}
        for layers in _together(model):
            if all(type(layer) in PLAIN and id(layer) not in within for layer in layers):
                self._joined[id(layers[0])] = joined = _Joined(layers, product, compute)
                self._forwards += [(layer, joined.part(i)) for i, layer in enumerate(layers)]
                within.update(map(id, layers))
        alone = [m for m in model.modules() if type(m) in PLAIN and id(m) not in within]
        if cast:
            alone = [layer for layer in alone if layer is not head]  # float32, as it is
        for layer in (*adapted, *alone) if pack or cast else ():
            dtype = torch.float32 if layer is head else compute
            plain = layer.base_layer if layer in adapted else layer
            forward = product(plain.weight.detach().to(dtype), _bias([plain], dtype))
            self._forwards.append((layer, _with_adapter(layer, dtype, forward) if layer in adapted else forward))

    def product(self, *layers: Any) -> Callable[[torch.Tensor], Sequence[torch.Tensor]]:
        """The outputs of these layers, which read the same input, in as few products as there may be."""
        if (joined := self._joined.get(id(layers[0]))) is not None:
            return joined.all
        known = {id(layer): forward for layer, forward in self._forwards}
        forwards = [known.get(id(layer), layer.forward) for layer in layers]
        return lambda x: [forward(x) for forward in forwards]

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Inside this block the layers use the packed weights."""
        for layer, forward in self._forwards:
            layer.forward = forward
        try:
            yield
        finally:
            for layer, _ in self._forwards:
                del layer.forward


class _Joined:
    """Layers that read the same input, as one product of all their weights."""

    def __init__(self, layers: Sequence[Any], product: Any, dtype: torch.dtype) -> None:
        self.sizes = [layer.out_features for layer in layers]
        self.product = product(torch.cat([layer.weight.detach().to(dtype) for layer in layers]), _bias(layers, dtype))
        self.read: torch.Tensor | None = None
        self.out: tuple[torch.Tensor, ...] = ()

    def all(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs of all layers."""
        return self.product(x).split(self.sizes, dim=-1)

    def part(self, i: int) -> Any:
        """The forward of the layer at ``i``. The first one that gets an input computes the outputs of all."""

        def forward(x: torch.Tensor) -> torch.Tensor:
            if x is not self.read:
                self.read, self.out = x, self.all(x)
            out = self.out[i]
            if i == len(self.sizes) - 1:
                self.read, self.out = None, ()
            return out

        return forward


def _together(model: Any) -> Iterator[list[Any]]:
    """Linear layers that usually read the same input. One that gets another input computes all for itself."""
    for module in model.modules():
        for names in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            if all(isinstance(getattr(module, name, None), torch.nn.Linear) for name in names):
                yield [getattr(module, name) for name in names]


def is_small(model: Any) -> bool:
    """Whether a step's time goes into calls rather than into products: a small model on a CPU."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    return on_cpu and sum(p.numel() for p in model.parameters()) <= SMALL


def _bias(layers: Sequence[Any], dtype: torch.dtype) -> torch.Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    biases = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
    return torch.cat([bias.detach().to(dtype) for bias in biases])


@contextlib.contextmanager
def packed_linears(model: Any, compute: torch.dtype) -> Iterator[None]:
    """Inside this block, all linear layers on a CPU use weights that were packed once; see :class:`Packed`."""
    with Packed(model, compute).used():
        yield


def _packed(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
    return functools.partial(_packed_linear, weight.dtype, packed, bias)


def _plain(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    return lambda x: torch.nn.functional.linear(x, weight, bias)


def _with_adapter(layer: Any, dtype: torch.dtype, forward: Any) -> Any:
    """``forward`` plus the product of the layer's adapter; ``forward`` alone if the adapter is off."""
    if layer.disable_adapters:
        return forward
    (name,) = layer.active_adapters
    down = layer.lora_A[name].weight.detach().T.to(dtype)
    up = layer.lora_B[name].weight.detach().mul(layer.scaling[name]).T.to(dtype)
    return lambda x: forward(x) + (x.to(dtype) @ down) @ up


def can_pack(compute: torch.dtype) -> bool:
    """Whether this build of torch can pack weights, and this CPU is faster with packed weights in ``compute``.

    Without AVX-512, products in float32 are taken as they are: on one such CPU they were faster.
    """
    ops = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and hasattr(ops, "_reorder_linear_weight")):
        return False
    if compute == torch.float32:
        return bool(torch.cpu.get_capabilities().get("avx512_f"))
    return bool(ops._is_mkldnn_bf16_supported())


def _packed_linear(dtype: torch.dtype, weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> Any:
    return torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, "none", [], "")
