"""Convert a ``.gguf`` file: every weight is there, dequantised to float32, or nothing is kept."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from agentopcd.core.errors import ModelError
from agentopcd.core.text import first_line
from agentopcd.models.folder_files import open_to_all, write_sidecar


def convert(gguf: Path, target: Path, note: str) -> None:
    """Dequantise a GGUF file and write it to ``target`` as safetensors. The folder appears whole or not at all.

    Raises:
        ModelError: the file cannot be converted.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        _dequantise(gguf, scratch)
        write_sidecar(scratch, note=note)
        open_to_all(scratch)
        _settle(scratch, target)
    except Exception as error:  # the libraries raise whatever they like: of a file that was cut, struct.error
        raise ModelError(f"cannot convert {gguf.name}: {first_line(error, type(error).__name__)}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _settle(scratch: Path, target: Path) -> None:
    """Give a finished folder its name, unless another process was faster: its folder holds the same, and is in use.

    Raises:
        ModelError: something else has that name.
    """
    try:
        scratch.rename(target)
    except OSError as error:
        if not target.exists():
            raise
        if not (target / "config.json").is_file():
            raise ModelError(f"{target} is there and holds no config.json, so no model; remove it") from error


def _dequantise(file: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file into ``folder``, as safetensors in float32.

    Raises:
        ModelError: it is not the model in the file.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    _check(model, report)
    # save_pretrained refuses a model that still calls itself quantised.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check(model: Any, report: dict[str, Any]) -> None:
    """Refuse a model that is not the one in the file, and one whose weights are still quantised.

    Raises:
        ModelError: it is not what was asked for.
    """
    if missing := sorted(report["missing_keys"]):  # transformers only warns and fills them with random numbers
        raise ModelError(f"it lacks {len(missing)} weights ({missing[0]}, ...); get a complete file")
    if spare := sorted(report["unexpected_keys"]):  # transformers only warns and leaves them out
        raise ModelError(f"transformers has no place for {len(spare)} of its weights ({spare[0]}, ...)")
    if packed := [name for name, weight in model.named_parameters() if not weight.is_floating_point()]:
        raise ModelError(
            f"transformers left {len(packed)} weights quantised ({packed[0]}, ...), as it does with the package "
            "`kernels`; uninstall that, and convert again"
        )
