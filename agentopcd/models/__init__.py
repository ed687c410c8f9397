"""Weights: find, load, save, adapt and run a model.

No code of a model repository is run. Masters are float32: at the learning rates of the paper a bfloat16 parameter does
not move. Where the machine has bfloat16 matrix instructions the products are done in them (:func:`autocast`), the
output head never (logits and everything after them are float32), and attention on a CPU neither.
"""

from agentopcd.models.adapter import add_adapter, merge
from agentopcd.models.attention import attend_without_padding, attends_to_all, attends_without_padding
from agentopcd.models.compute import (
    Compute,
    autocast,
    checkpoint_gradients,
    freeze,
    parameter_hash,
    pick_compute,
    pick_device,
)
from agentopcd.models.head import Float32Head, check_head, decoder, float32_head, scaled
from agentopcd.models.load import LoadedModel, behind_api, check_pair, load_model, save_model
from agentopcd.models.process import prepare_process

__all__ = [
    "Compute",
    "Float32Head",
    "LoadedModel",
    "add_adapter",
    "attend_without_padding",
    "attends_to_all",
    "attends_without_padding",
    "autocast",
    "behind_api",
    "check_head",
    "check_pair",
    "checkpoint_gradients",
    "decoder",
    "float32_head",
    "freeze",
    "load_model",
    "merge",
    "parameter_hash",
    "pick_compute",
    "pick_device",
    "prepare_process",
    "save_model",
    "scaled",
]
