"""LoRA adapters, by PEFT: add one to a model, and merge one into its base."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from agentopcd.core.errors import ModelError
from agentopcd.core.text import first_line
from agentopcd.models import find
from agentopcd.models.compute import freeze
from agentopcd.models.load import LoadedModel, load_model, save_model
from agentopcd.models.merged import peft

NOISE = 0.02
"""The spread of the noise in :func:`heard`: about a tenth of what a layer puts out, at rank 16."""


def add_adapter(loaded: LoadedModel, rank: int, compute: torch.dtype, seed: int) -> None:
    """Freeze the weights of ``loaded`` and add a LoRA adapter to all linear layers but the head, in place.

    With the adapter off, the model equals the base bit for bit. So one copy in memory is both student and teacher. The
    adapter's scale is 2 (``lora_alpha`` is twice the rank), its dropout is 0, and its weights are float32.

    Args:
        loaded: the model to adapt.
        rank: the rank of the adapter.
        compute: dtype in which the frozen linear weights are kept.
        seed: seeds the adapter's initial weights; torch's global generator is left as it was.

    Raises:
        ModelError: PEFT is not installed, or it cannot adapt a model of this kind.
    """
    freeze(loaded.model, compute)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loaded.adapter = _adapted(loaded.model, loaded.name, rank)
    loaded.adapter.eval()


def check_adapter(loaded: LoadedModel, rank: int) -> None:
    """Refuse a model that cannot be adapted, before anything is played. A copy without weights is adapted.

    Raises:
        ModelError: PEFT is not installed, or it cannot adapt a model of this kind.
    """
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        with torch.device("meta"):
            twin = AutoModelForCausalLM.from_config(copy.deepcopy(loaded.model.config), trust_remote_code=False)
        _adapted(twin, loaded.name, rank)


def _adapted(model: Any, name: str, rank: int) -> Any:
    settings = peft().LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # for GPT-2, PEFT corrects this setting itself
        try:
            return peft().get_peft_model(model, settings)
        except Exception as error:  # PEFT knows many models that it cannot adapt, and has no error of its own for them
            raise ModelError(
                f"PEFT cannot put an adapter on {name!r} ({type(model).__name__}): "
                f"{first_line(error, type(error).__name__)}; leave out --lora-rank to train all weights"
            ) from error


@contextlib.contextmanager
def heard(loaded: LoadedModel) -> Iterator[None]:
    """Inside this block a fresh adapter of ``loaded`` changes the model, so that a pass without it would be seen.

    The second matrix of a fresh adapter is zero; here it holds noise. Without an adapter, or with one that has learned,
    the block changes nothing.
    """
    parameters = loaded.model.named_parameters() if loaded.adapter is not None else ()
    fresh = [p for name, p in parameters if "lora_B" in name and not p.any()]
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in fresh:
            parameter.copy_(torch.randn(parameter.shape, generator=noise) * NOISE)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter in fresh:
                parameter.zero_()


def merge(folder: Path, into: Path | None = None) -> str:
    """Write the whole model of the adapter in ``folder``, merged in float32, and return the model's id.

    Args:
        into: the folder of the whole model; None: in the adapter's place.

    Raises:
        ModelError: ``folder`` holds no adapter, or it cannot be loaded.
    """
    if (base := find.base_of_adapter(folder)) is None:
        raise ModelError(f"{str(folder)!r} holds no adapter ({find.ADAPTER}), so there is nothing to merge")
    loaded, facts = load_model(str(folder)), find.sidecar(folder)
    # save_model writes the other facts itself; a merged model has no base.
    own = ("parent_id", "note", "learning_rate", "base", "origin")
    kept = {name: facts[name] for name in facts if name not in own}
    parent_id = facts.get("parent_id") or find.fingerprint(find.find_model(base))  # adapters of others name no parent
    return save_model(loaded, into or folder, parent_id=parent_id, facts=kept)
