"""What a model's attention can do: how many positions it has, whether it attends to all earlier tokens, and whether it
takes packed sequences without padding.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from agentopcd.core.errors import ModelError
from agentopcd.models.load import LoadedModel


def positions(model: Any) -> int:
    """The most positions at which ``model`` is one function of its tokens; 0 if it names none.

    Two kinds of rotary scales follow the longest row of a batch beyond a length: dynamic NTK beyond the model's
    positions, longrope beyond those of its first training. There, a reply would depend on its neighbours, and a teacher
    with a long context would be another function than its student. So the model ends where its scale begins to move.
    """
    config = model.config.get_text_config()
    found = max(0, getattr(config, "max_position_embeddings", None) or 0)  # XLNet's is -1
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *(part for part in ropes.values() if isinstance(part, dict))):  # in all, or by layer type
        if rope.get("rope_type") == "longrope":
            first = int(rope.get("original_max_position_embeddings") or found)
            found = min(found or first, first)
    return found


def check_positions(model: Any, tokens: int) -> None:
    """Refuse a row of so many ``tokens``, prompt and reply, if the model does not have the positions for it.

    Raises:
        ModelError: the row is too long.
    """
    if (room := positions(model)) and tokens > room:
        raise ModelError(
            f"a prompt and its reply are {tokens} tokens, and {type(model).__name__} reads {room} (its "
            "max_position_embeddings, or as many as its rotary scale stays the same for); shorten the context or the "
            "replies, or take a model with more positions"
        )


def attends_to_all(model: Any) -> bool:
    """Whether every layer of ``model`` attends to all earlier tokens, and the position ids alone say where they stand.

    It does not with a window, a recurrent state, or a bias by the distance in the cache (ALiBi).
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    by_ids = "position_ids" in inspect.signature(model.get_decoder().forward).parameters
    if not by_ids or getattr(model.config, "alibi", False):
        return False
    if "local" in getattr(model.config, "attention_layers", ()):  # GPT-Neo's windows have no cache class of their own
        return False
    # transformers gives a layer with a window or a state another cache class.
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def attend_without_padding(loaded: LoadedModel, compute: torch.dtype) -> None:
    """Switch a model on a GPU to flash-attn, which needs no padding, if it is installed and the model supports it.

    A model that trains an adapter keeps its attention, because it is its own teacher and
    :class:`~agentopcd.distillation.prefix.SharedPrefix` needs a mask. Not run on a GPU yet.
    """
    from transformers.utils.import_utils import is_flash_attn_2_available

    model = loaded.model
    fits = next(model.parameters()).device.type == "cuda" and compute == torch.bfloat16 and loaded.adapter is None
    if fits and is_flash_attn_2_available() and getattr(model, "_supports_flash_attn", False):
        model.set_attn_implementation("flash_attention_2")


def attends_without_padding(model: Any) -> bool:
    """Whether ``model`` takes several sequences packed into one row, with no attention between them."""
    return "flash" in (model.config._attn_implementation or "")
