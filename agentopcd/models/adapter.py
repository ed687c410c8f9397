"""Train an adapter instead of all weights (LoRA, by PEFT), and merge it."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from agentopcd.models import find
from agentopcd.models.compute import freeze
from agentopcd.models.load import LoadedModel, load_model, peft, save_model

# -- adapter --------------------------------------------------------------------------------------


def add_adapter(loaded: LoadedModel, rank: int, compute: torch.dtype, seed: int) -> None:
    """Freeze the weights of ``loaded`` and put a LoRA adapter on all linear layers but the head, in place.

    With the adapter off the model is the base, bit for bit, so one copy in memory is both student and teacher. The
    adapter's scale is 2 (``lora_alpha`` is twice the rank), its dropout is 0, and its weights are float32.

    Raises:
        ModelError: PEFT is not installed.
    """
    freeze(loaded.model, compute)
    settings = peft().LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # PEFT corrects it by itself for GPT-2
        torch.manual_seed(seed)
        loaded.adapter = peft().get_peft_model(loaded.model, settings)
    hub = not Path(loaded.name).exists() and loaded.name not in find.BUILT_IN
    loaded.adapter.peft_config["default"].base_model_name_or_path = loaded.name if hub else str(loaded.folder)
    loaded.adapter.eval()


def merge(folder: Path) -> str:
    """Replace the adapter in ``folder`` by the whole model, merged in float32; return its id."""
    loaded, facts = load_model(str(folder)), find.sidecar(folder)
    own = {name: facts[name] for name in facts if name not in ("parent_id", "note", "learning_rate", "base")}
    return save_model(loaded, folder, parent_id=facts["parent_id"], facts=own)
