"""A saved model in another dtype: half the size, and what a server would make of it anyway."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from agentopcd.core.errors import ModelError
from agentopcd.core.runs import write_json


def recast(folder: Path, dtype: str) -> None:
    """Give the float32 weights of a model folder, or of an adapter's, another dtype, in place.

    A killed call is repeated: a weight that has the dtype already stays as it is.

    Args:
        dtype: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        ModelError: a weight is too large for the dtype.
    """
    wanted, total = getattr(torch, dtype), 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata()
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
        check_range(weights.items(), dtype)
        cast = {name: value.to(wanted) if value.is_floating_point() else value for name, value in weights.items()}
        total += sum(value.nbytes for value in cast.values())
        scratch = file.with_name(f"{file.name}.tmp")
        save_file(cast, scratch, metadata=about)
        scratch.chmod(file.stat().st_mode & 0o777)
        scratch.replace(file)
    if (index := folder / "model.safetensors.index.json").is_file():
        found = json.loads(index.read_text(encoding="utf-8"))
        write_json(index, found | {"metadata": {**found.get("metadata", {}), "total_size": total}})
    if (config := folder / "config.json").is_file():
        write_json(config, json.loads(config.read_text(encoding="utf-8")) | {"dtype": dtype})


def check_range(weights: Iterable[tuple[str, Tensor]], dtype: str) -> None:
    """Refuse weights that would be infinite in another dtype.

    Raises:
        ModelError: one is too large for the dtype.
    """
    largest = torch.finfo(getattr(torch, dtype)).max
    for name, value in weights:
        if value.is_floating_point() and value.numel() and (top := float(value.detach().abs().max())) > largest:
            raise ModelError(
                f"{name} has a weight of {top:.3g}, and {dtype} ends at {largest:.3g}; save in bfloat16 (--save-dtype)"
            )
