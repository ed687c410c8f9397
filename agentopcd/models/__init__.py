"""Models: find, load, save, adapt and run one.

No code from a model repository is run. Master weights are float32, because at the paper's learning rates a bfloat16
weight would not move. If the machine has bfloat16 matrix instructions, products are computed in bfloat16
(:func:`autocast`). Two things stay in float32: the output head with everything after it, and, once
:func:`prepare_process` has been called, attention on a CPU.
"""

from agentopcd.models.adapter import add_adapter, check_adapter, heard, merge
from agentopcd.models.attention import (
    attend_without_padding,
    attends_to_all,
    attends_without_padding,
    check_positions,
    positions,
)
from agentopcd.models.compute import (
    PASSES,
    Compute,
    autocast,
    checkpoint_gradients,
    freeze,
    parameter_hash,
    pick_compute,
    pick_device,
)
from agentopcd.models.head import Float32Head, check_backward, check_head, decoder, float32_head, scaled
from agentopcd.models.load import (
    LoadedModel,
    behind_api,
    check_files,
    check_pair,
    check_savable,
    load_model,
    save_model,
    shared_rows,
)
from agentopcd.models.process import prepare_process
from agentopcd.models.recast import recast
from agentopcd.models.shortcuts import Shortcuts, forget_shortcuts, own_logits, shortcuts_of

__all__ = [
    "PASSES",
    "Compute",
    "Float32Head",
    "LoadedModel",
    "Shortcuts",
    "add_adapter",
    "attend_without_padding",
    "attends_to_all",
    "attends_without_padding",
    "autocast",
    "behind_api",
    "check_adapter",
    "check_backward",
    "check_files",
    "check_head",
    "check_pair",
    "check_positions",
    "check_savable",
    "checkpoint_gradients",
    "decoder",
    "float32_head",
    "forget_shortcuts",
    "freeze",
    "heard",
    "load_model",
    "merge",
    "own_logits",
    "parameter_hash",
    "pick_compute",
    "pick_device",
    "positions",
    "prepare_process",
    "recast",
    "save_model",
    "scaled",
    "shared_rows",
    "shortcuts_of",
]
