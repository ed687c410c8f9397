"""What a model's attention can do: attend to all earlier tokens, and take packed sequences without padding."""

from __future__ import annotations

from typing import Any

import torch

from agentopcd.models.load import LoadedModel


def attends_to_all(model: Any) -> bool:
    """Whether every layer of ``model`` attends to all earlier tokens, without a window or a recurrent state."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    # transformers gives a layer with a window or a state another cache class.
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def attend_without_padding(loaded: LoadedModel, compute: torch.dtype) -> None:
    """Switch a model on a GPU to flash-attn, which needs no padding, if it is installed and the model supports it.

    A model that trains an adapter keeps its attention, because it is its own teacher and
    :class:`~agentopcd.distillation.positions.SharedPrefix` needs a mask. Not run on a GPU yet.
    """
    from transformers.utils.import_utils import is_flash_attn_2_available

    model = loaded.model
    fits = next(model.parameters()).device.type == "cuda" and compute == torch.bfloat16 and loaded.adapter is None
    if fits and is_flash_attn_2_available() and getattr(model, "_supports_flash_attn", False):
        model.set_attn_implementation("flash_attention_2")


def attends_without_padding(model: Any) -> bool:
    """Whether ``model`` takes several sequences packed into one row, with no attention between them."""
    return "flash" in (model.config._attn_implementation or "")
