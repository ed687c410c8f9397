"""An estimate of the memory and operations of a consolidation, from the model's config alone. It loads no weights."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from agentopcd import models
from agentopcd.core.config import ConsolidateConfig, TrainConfig
from agentopcd.core.errors import ModelError
from agentopcd.core.files import is_dir, is_file
from agentopcd.distillation.chunks import CHUNK_LOGITS
from agentopcd.models import find
from agentopcd.models.parallel.ranks import launched

GIB = 2**30
MOST_TOKENS = 4096
"""The most tokens of a forward pass that is kept for the backward pass, if the settings do not say otherwise."""
KEPT_BYTES = 2**29
"""What activations may take on a CPU, if the settings do not say otherwise; there, more tokens a pass gain nothing."""
LEAST_TOKENS = 256
"""Fewer tokens in a pass would cost time, whatever the model."""
COPIES = 12
"""About how many copies of a chunk of logits the loss holds at once, measured by ``benchmarks/loss_memory.py``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes per process; ``batch`` and ``loss`` are rough."""

    student: int
    """Weights, gradients and AdamW's moments. With ``shard``: this process's part of them, and the whole copy that
    plays, unless servers do."""
    teacher: int
    """A frozen model of the same size; 0 if the teacher is the student with its adapter off."""
    context: int
    """Keys and values of 1,000 tokens that the teacher's prompts share. Copies of a state, at most 1 GiB
    (``COPIED_BYTES`` in ``prefix.py``), come on top for models with windows or states."""
    casts: int
    """Copies of the linear weights that the student's forward pass casts to ``compute``; 0 for float32."""
    batch: int
    """Activations of one forward pass of ``tokens_per_batch`` tokens, kept for the backward pass."""
    loss: int
    """Logits of one chunk of rows, in the loss."""

    @property
    def total(self) -> int:
        """The sum, for a context of 1,000 tokens."""
        return sum(getattr(self, field.name) for field in dataclasses.fields(self))

    def __str__(self) -> str:
        parts = ", ".join(f"{f.name} {getattr(self, f.name) / GIB:.2f}" for f in dataclasses.fields(self))
        return f"{self.total / GIB:.1f} GiB in each process: {parts} (context: each 1,000 tokens)"


def memory(name: str, config: ConsolidateConfig, compute: torch.dtype) -> Memory:
    """Estimate the memory that training model ``name`` needs.

    Raises:
        ModelError: there is no such model, it has not been fetched yet, or its config does not tell its sizes.
    """
    model = skeleton(name)
    settings, head = model.config.get_text_config(), model.get_output_embeddings()
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    body = sum(m.weight.numel() for m in linears)
    total = sum(p.numel() for p in model.parameters())
    rest = total - body  # embeddings and output head, above all
    # A frozen model keeps its linear weights in ``compute``; all else is float32. A trained parameter takes 16 bytes:
    # weight, gradient and two moments.
    frozen = body * compute.itemsize + rest * 4
    adapter = sum(config.lora_rank * (m.in_features + m.out_features) for m in linears)
    try:
        numbers = sum(_keys_and_values(layer) for layer in _layers(settings))
        tokens = tokens_per_batch(model, config, models.pick_device(config.device))
        kept = kept_bytes(model, checkpointing=config.gradient_checkpointing)
    except (AttributeError, RuntimeError) as error:  # an architecture with names of its own
        raise ModelError(f"the config of {name!r} does not tell its sizes: {error}") from error
    student = frozen + 16 * adapter if config.lora_rank else 16 * total
    teacher = 0 if config.lora_rank and not config.teacher else frozen
    if config.teacher_kind != "frozen":
        # float32, since an average would not move in bfloat16; a live teacher with an adapter is the student
        teacher = 4 * (total if not config.lora_rank else adapter if config.teacher_kind != "live" else 0)
    if config.shard:  # embeddings and head, with their gradients, stay gathered while a batch is computed
        student = student // launched() + 8 * rest + (0 if config.server else 4 * total)
        teacher = teacher // launched() + 4 * rest
    # With sharding and gradient checkpointing, each cast is freed once its layer has run.
    cast_one_by_one = compute == torch.float32 or config.lora_rank or (config.shard and config.gradient_checkpointing)
    return Memory(
        student=student,
        teacher=teacher,
        context=1000 * numbers * 4,
        casts=0 if cast_one_by_one else body * compute.itemsize,
        batch=tokens * kept,
        loss=COPIES * CHUNK_LOGITS * 4,
    )


def kept_bytes(model: Any, *, checkpointing: bool = False) -> int:
    """About what autograd keeps of each token of a forward pass, in bytes."""
    settings = model.config.get_text_config()
    layers, hidden = settings.num_hidden_layers, settings.hidden_size
    widths = [getattr(layer, "intermediate_size", None) or 4 * hidden for layer in _layers(settings)]
    inner = max(max(one) if isinstance(one, list | tuple) else one for one in widths)  # Gemma 3n lists them
    kept = 36 * hidden + 10 * inner  # per layer
    return 4 * hidden * layers + kept if checkpointing else kept * layers


def _layers(settings: Any) -> list[Any]:
    """A config for each layer; where layers differ (Gemma 4), the model's own refuses to say what differs."""
    return [*(getattr(settings, "per_layer_config", None) or ())] or [settings] * settings.num_hidden_layers


def _keys_and_values(layer: Any) -> int:
    """How many numbers a layer keeps of each token; none if the model has no attention heads (Mamba)."""
    if not (heads := getattr(layer, "num_attention_heads", None)):
        return 0
    width = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    return 2 * (getattr(layer, "num_key_value_heads", None) or heads) * width


def tokens_per_batch(model: Any, config: TrainConfig, device: torch.device) -> int:
    """The tokens of a forward pass: what the settings say or, if they leave it open, what memory suggests."""
    if config.tokens_per_batch or device.type != "cpu":
        return config.tokens_per_batch or MOST_TOKENS
    settings = model.config.get_text_config()
    if not all(getattr(settings, name, None) for name in ("num_hidden_layers", "hidden_size")):
        return MOST_TOKENS  # an architecture with names of its own
    fit = KEPT_BYTES // kept_bytes(model, checkpointing=config.gradient_checkpointing)
    return max(LEAST_TOKENS, min(MOST_TOKENS, fit))


def train_flop(name: str, tokens: int) -> float:
    """Operations to sample, score and train on ``tokens`` reply tokens: 2 per weight and token to sample, 2 to score, 6
    to train.

    This is a lower bound: prompts come on top, and memory bandwidth limits sampling, not operations.

    Raises:
        ModelError: there is no such model, or it has not been fetched yet.
    """
    model = skeleton(name)
    embedding = 0 if model.config.get_text_config().tie_word_embeddings else model.get_input_embeddings().weight.numel()
    return (2 + 2 + 6) * tokens * (sum(p.numel() for p in model.parameters()) - embedding)


def skeleton(name: str) -> Any:
    """The model on the meta device, without weights. For a hub id, only the config is fetched."""
    from transformers import AutoModelForCausalLM

    if name in find.FETCHED and not (find.cache_dir() / name / "config.json").is_file():
        raise ModelError(f"{name} has not been fetched yet")
    local = name in find.BUILT_IN or is_dir(name) or is_file(name) or name.count("/") != 1
    try:
        settings = _config(str(find.find_base(name))) if local else _from_hub(name)
        if isinstance(settings, Exception):
            raise settings
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot read the config of {name!r}: {error}") from error


def _config(name: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name, trust_remote_code=False)


@functools.cache
def _from_hub(name: str) -> Any:
    """The config of a hub id, or the error; cached, because without a network the answer takes half a minute."""
    try:
        return _config(name)
    except (OSError, ValueError, KeyError) as error:
        return error
