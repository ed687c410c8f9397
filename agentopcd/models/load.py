"""Load a model with its tokenizer into memory, and save it; :mod:`agentopcd.models.find` finds its files.

No code from a model repository is run. Parameters are loaded as float32, and adapters are merged into their base.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from agentopcd.core.errors import ModelError
from agentopcd.core.text import first_line
from agentopcd.models import find
from agentopcd.models.head import float32_head

LEARNING_RATE = 2e-5
"""For models that suggest none. Small models need more than the paper's 1e-6 to 5e-6."""


@dataclasses.dataclass
class LoadedModel:
    """A model in memory, with its tokenizer and its identity."""

    name: str
    """The name that the model was asked for by."""
    id: str
    """sha256 over weights, config, tokenizer and chat template."""
    folder: Path
    model: Any
    """A ``PreTrainedModel`` with float32 parameters."""
    tokenizer: Any
    end_ids: tuple[int, ...]
    """Token ids that end a reply."""
    note: str = ""
    """What a reader of the model's results must know."""
    parent_id: str | None = None
    """The id of the model that a student was trained from."""
    learning_rate: float = LEARNING_RATE
    """The learning rate that the model suggests, for use if the settings give none."""
    adapter: Any = None
    """The ``PeftModel`` around ``model`` while a LoRA adapter is trained; see
    :func:`agentopcd.models.adapter.add_adapter`."""
    whole: LoadedModel | None = None
    """The unsharded copy of a sharded student, which plays and is saved; see
    :mod:`agentopcd.models.parallel.sharding`."""


def behind_api(name: str) -> LoadedModel:
    """A model that others run behind an API. Its weights are not visible here, so its name alone identifies it."""
    id_ = hashlib.sha256(f"api\0{name}".encode()).hexdigest()
    return LoadedModel(name=name, id=id_, folder=Path(), model=None, tokenizer=None, end_ids=())


def load_model(name: str, *, device: str | torch.device = "cpu") -> LoadedModel:
    """Load ``name`` with float32 parameters.

    The function leaves the process as it is: the caller sets threads, attention and the log level of transformers.
    :func:`agentopcd.models.process.prepare_process` sets them as the command line does; call it to get the same numbers
    as the command line.

    Args:
        name: a built-in name, a folder written by ``save_pretrained``, a ``.gguf`` file, or a hub id.
        device: the device of the parameters.

    Raises:
        ModelError: the model cannot be found or loaded, or its tokenizer has no chat template or end token.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = find.find_model(name)
    if (base := find.base_of_adapter(folder)) is not None:
        return _with_adapter(load_model(base, device=device), name, folder)
    _check_config(folder, name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # libraries raise whatever they like at the many kinds of models that they do not know
        raise ModelError(f"cannot load model {name!r}: {first_line(error, type(error).__name__)}") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        # transformers only warns and fills missing weights with random numbers.
        raise ModelError(f"model {name!r} lacks {len(missing)} weights ({missing[0]}, ...); get a complete copy")
    if not tokenizer.chat_template:
        raise ModelError(
            f"model {name!r} has a tokenizer without a chat template; take an instruct model, or set "
            "tokenizer.chat_template and save it with the model"
        )
    end_ids = _end_ids(tokenizer, model, name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = end_ids[0]
    model.eval()
    float32_head(model)
    model.to(torch.device(device))
    facts = find.sidecar(folder)
    return LoadedModel(
        name=name,
        id=find.fingerprint(folder),
        folder=folder,
        model=model,
        tokenizer=tokenizer,
        end_ids=end_ids,
        note=facts.get("note", ""),
        parent_id=facts.get("parent_id"),
        learning_rate=facts.get("learning_rate", LEARNING_RATE),
    )


def check_files(name: str) -> str:
    """Refuse a model that cannot be loaded, as far as its files show without its weights.

    Returns:
        Why nothing could be looked at, if its files are not on this machine yet; else ''.

    Raises:
        ModelError: the model cannot be found or loaded.
    """
    folder = find.find_local(name)
    if folder is None:
        return f"{name} is not on this machine yet, so it was not looked at; it is fetched or converted on first use"
    if (base := find.base_of_adapter(folder)) is not None:
        peft()
        return check_files(base)
    _check_config(folder, name)
    return ""


def _check_config(folder: Path, name: str) -> None:
    """Refuse a model whose config cannot be read, or whose weights are quantised: they are no float32 parameters.

    Raises:
        ModelError: the model cannot be loaded.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"cannot read the config of model {name!r}: {first_line(error, type(error).__name__)}"
        ) from error
    if quantised := getattr(config, "quantization_config", None):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
        raise ModelError(
            f"the weights of model {name!r} are quantised ({method}), and parameters must be float32 here; "
            "name the model that it was made from, or a .gguf file, which is dequantised"
        )


def _with_adapter(base: LoadedModel, name: str, folder: Path) -> LoadedModel:
    """``base`` with the adapter in ``folder`` merged into its weights."""
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"adapter {name!r} has no adapter_model.safetensors; other formats are not read")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")  # PEFT only warns and skips them
            model = peft().PeftModel.from_pretrained(base.model, folder).merge_and_unload()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UserWarning) as error:
        raise ModelError(f"cannot put adapter {name!r} on {base.name!r}: {first_line(error)}") from error
    facts = find.sidecar(folder)
    return dataclasses.replace(
        base, name=name, id=find.fingerprint(folder), folder=folder, model=model.eval(),
        note=facts.get("note", base.note), parent_id=facts.get("parent_id"),
        learning_rate=facts.get("learning_rate", base.learning_rate),
    )  # fmt: skip


def _end_ids(tokenizer: Any, model: Any, name: str) -> tuple[int, ...]:
    found: list[int] = []
    for source in (tokenizer.eos_token_id, model.generation_config.eos_token_id):
        for token in source if isinstance(source, list) else [source]:
            if token is not None and token not in found:
                found.append(int(token))
    if not found:
        raise ModelError(f"model {name!r} names no end-of-sequence token; its replies would never end")
    return tuple(found)


def save_model(loaded: LoadedModel, folder: Path, *, parent_id: str, facts: dict[str, Any]) -> str:
    """Write an ordinary Hugging Face folder (safetensors, tokenizer, chat template) and return the model's id.

    While an adapter is trained, only the adapter is written, as PEFT does. The folder appears whole or not at all.

    Args:
        loaded: the model to save.
        folder: replaced if it exists.
        parent_id: the id of the model that this one was trained from.
        facts: written to ``agentopcd.json`` beside the weights.
    """
    scratch = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    if loaded.adapter is None:
        loaded.model.save_pretrained(scratch)
    else:
        facts = facts | {"base": loaded.name if loaded.name in find.BUILT_IN else ""}
        loaded.adapter.save_pretrained(scratch)
        # PEFT writes sets in arbitrary order, which would change the id.
        settings = json.loads((scratch / find.ADAPTER).read_text())
        ordered = {name: sorted(v) if isinstance(v, list) else v for name, v in settings.items()}
        (scratch / find.ADAPTER).write_text(json.dumps(ordered, indent=1, sort_keys=True) + "\n")
    loaded.tokenizer.save_pretrained(scratch)
    find.write_sidecar(scratch, parent_id=parent_id, note=loaded.note, learning_rate=loaded.learning_rate, **facts)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    return find.fingerprint(folder)


def peft() -> Any:
    """The PEFT library, imported on first use.

    Raises:
        ModelError: PEFT is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ModelError("LoRA adapters need PEFT; install it with: pip install 'agentopcd[peft]'") from error
    return peft


def check_pair(student: LoadedModel, teacher: LoadedModel) -> None:
    """Refuse a teacher that cannot score the student's tokens.

    Raises:
        ModelError: the two models differ in their vocabularies or end tokens.
    """
    if student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise ModelError(
            f"teacher {teacher.name!r} and student {student.name!r} have different vocabularies; "
            "on-policy distillation scores the same token ids, so take models of one family"
        )
    if set(student.end_ids) != set(teacher.end_ids):
        raise ModelError(
            f"teacher {teacher.name!r} ends replies with {sorted(teacher.end_ids)}, student {student.name!r} "
            f"with {sorted(student.end_ids)}; take an instruct model for both"
        )
