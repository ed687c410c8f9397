"""Load, save and run a model; :mod:`agentopcd.sources` finds its files.

No code of a model repository is run. Master weights are float32: at the paper's learning rates a bfloat16 parameter
would not move. Where the machine has bfloat16 matrix instructions, products are computed in bfloat16
(:func:`autocast`). The output head never is: logits and everything after them are float32. Nor is attention on a CPU,
once :func:`prepare_process` has been called.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from agentopcd import sources
from agentopcd.errors import ModelError
from agentopcd.text import first_line

LEARNING_RATE = 2e-5
"""For models that suggest none; small ones want more than the paper's 1e-6 to 5e-6."""


# -- load -----------------------------------------------------------------------------------------


@dataclasses.dataclass
class LoadedModel:
    """A model in memory, its tokenizer, and who it is."""

    name: str
    """What was asked for."""
    id: str
    """sha256 over weights, config, tokenizer and chat template."""
    folder: Path
    model: Any
    """A ``PreTrainedModel`` with float32 parameters."""
    tokenizer: Any
    end_ids: tuple[int, ...]
    """Token ids that end a reply."""
    note: str = ""
    """What a reader of its figures must know."""
    parent_id: str | None = None
    learning_rate: float = LEARNING_RATE
    """For consolidation, where the user names none."""
    adapter: Any = None
    """The ``PeftModel`` around ``model`` while a LoRA adapter of it is trained: see :func:`add_adapter`."""
    whole: LoadedModel | None = None
    """Of a sharded student, the copy that plays and is saved: see :mod:`agentopcd.sharding`."""


def behind_api(name: str) -> LoadedModel:
    """A model that others run: its weights are not visible here, so its name alone identifies it."""
    id_ = hashlib.sha256(f"api\0{name}".encode()).hexdigest()
    return LoadedModel(name=name, id=id_, folder=Path(), model=None, tokenizer=None, end_ids=())


def load_model(name: str, *, device: str | torch.device = "cpu") -> LoadedModel:
    """Load ``name`` with float32 parameters.

    It leaves the process as it is: threads, attention and the log level of transformers are for the caller to set.
    :func:`prepare_process` sets them as the command line does, which takes the same to give the same numbers.

    Args:
        name: a built-in name, a folder written by ``save_pretrained``, a ``.gguf`` file, or a hub id.
        device: where the parameters go.

    Raises:
        ModelError: it cannot be found or loaded, or its tokenizer has no chat template or end token.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = sources.find_model(name)
    if (base := sources.base_of_adapter(folder)) is not None:
        return _with_adapter(load_model(base, device=device), name, folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        found: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot load model {name!r}: {first_line(error)}") from error
    model, report = found
    if missing := sorted(report["missing_keys"]):
        # transformers would fill them with random numbers and only warn.
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
    facts = sources.sidecar(folder)
    return LoadedModel(
        name=name,
        id=sources.fingerprint(folder),
        folder=folder,
        model=model,
        tokenizer=tokenizer,
        end_ids=end_ids,
        note=facts.get("note", ""),
        parent_id=facts.get("parent_id"),
        learning_rate=facts.get("learning_rate", LEARNING_RATE),
    )


def _with_adapter(base: LoadedModel, name: str, folder: Path) -> LoadedModel:
    """``base`` with the adapter of ``folder`` merged into it."""
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"adapter {name!r} has no adapter_model.safetensors; other formats are not read")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")  # PEFT would skip them
            model = _peft().PeftModel.from_pretrained(base.model, folder).merge_and_unload()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UserWarning) as error:
        raise ModelError(f"cannot put adapter {name!r} on {base.name!r}: {first_line(error)}") from error
    facts = sources.sidecar(folder)
    return dataclasses.replace(
        base, name=name, id=sources.fingerprint(folder), folder=folder, model=model.eval(),
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
    """Write an ordinary Hugging Face folder (safetensors, tokenizer, chat template) and return its id.

    Where an adapter is trained, only the adapter is written, as PEFT does. ``facts`` go into ``agentopcd.json`` beside
    the weights. The folder appears whole or not at all.
    """
    scratch = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    if loaded.adapter is None:
        loaded.model.save_pretrained(scratch)
    else:
        facts = facts | {"base": loaded.name if loaded.name in sources.BUILT_IN else ""}
        loaded.adapter.save_pretrained(scratch)
        settings = json.loads((scratch / sources.ADAPTER).read_text())  # PEFT writes sets in arbitrary order
        ordered = {name: sorted(v) if isinstance(v, list) else v for name, v in settings.items()}
        (scratch / sources.ADAPTER).write_text(json.dumps(ordered, indent=1, sort_keys=True) + "\n")
    loaded.tokenizer.save_pretrained(scratch)
    sources.write_sidecar(scratch, parent_id=parent_id, note=loaded.note, learning_rate=loaded.learning_rate, **facts)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    return sources.fingerprint(folder)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError("LoRA adapters need PEFT; install it with: pip install 'agentopcd[peft]'") from error
    return peft


def check_pair(student: LoadedModel, teacher: LoadedModel) -> None:
    """Refuse a teacher that cannot score the student's tokens.

    Raises:
        ModelError: vocabularies or end tokens differ.
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


# -- adapter --------------------------------------------------------------------------------------


def add_adapter(loaded: LoadedModel, rank: int, compute: torch.dtype, seed: int) -> None:
    """Freeze the weights of ``loaded`` and put a LoRA adapter on all linear layers but the head, in place.

    With the adapter off the model is the base, bit for bit, so one copy in memory is both student and teacher. The
    adapter's scale is 2 (``lora_alpha`` is twice the rank), its dropout is 0, and its weights are float32.

    Raises:
        ModelError: PEFT is not installed.
    """
    peft = _peft()
    freeze(loaded.model, compute)
    settings = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # PEFT corrects it by itself for GPT-2
        torch.manual_seed(seed)
        loaded.adapter = peft.get_peft_model(loaded.model, settings)
    hub = not Path(loaded.name).exists() and loaded.name not in sources.BUILT_IN
    loaded.adapter.peft_config["default"].base_model_name_or_path = loaded.name if hub else str(loaded.folder)
    loaded.adapter.eval()


def merge(folder: Path) -> str:
    """Replace the adapter in ``folder`` by the whole model, merged in float32; return its id."""
    loaded, facts = load_model(str(folder)), sources.sidecar(folder)
    own = {name: facts[name] for name in facts if name not in ("parent_id", "note", "learning_rate", "base")}
    return save_model(loaded, folder, parent_id=facts["parent_id"], facts=own)


# -- compute --------------------------------------------------------------------------------------

Compute = Literal["auto", "float32", "bfloat16"]


def pick_device(device: str = "auto") -> torch.device:
    """``auto`` is the first accelerator torch sees, else the CPU.

    Raises:
        ModelError: torch cannot use the device.
    """
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"cannot use device {device!r}: {first_line(error)}; try auto or cpu") from error


def pick_compute(compute: Compute, device: torch.device) -> torch.dtype:
    """The dtype of matrix products; ``auto`` is bfloat16 where the machine has instructions for it, else float32."""
    if compute == "auto":
        has = _cpu_has_bfloat16() if device.type == "cpu" else torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[compute]


def _cpu_has_bfloat16() -> bool:
    has = torch.cpu.get_capabilities()
    return bool(has.get("amx_bf16") or has.get("avx512_bf16"))


def autocast(
    device: torch.device, compute: torch.dtype, *, keep: bool = True
) -> contextlib.AbstractContextManager[Any]:
    """Compute matrix products in ``compute``; does nothing for float32.

    With ``keep`` each weight is cast once in the block, and all casts are held until its end.
    """
    if compute == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=compute, cache_enabled=keep)


def freeze(model: Any, compute: torch.dtype) -> None:
    """Freeze ``model``: no gradients, dropout off, linear weights kept in ``compute``.

    Autocast would cast those weights on every call; casting them once gives the same products.
    """
    model.requires_grad_(False).eval()
    if compute == torch.float32:
        return
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            module.to(compute)


def parameter_hash(model: Any, *, frozen: bool = False) -> str:
    """sha256 over all parameters in order: a frozen teacher's is the same before and after training.

    With ``frozen`` only the parameters that are not trained count, under the names they have without an adapter. Where
    they are sharded, each process hashes its own part.
    """
    digest = hashlib.sha256()
    if hasattr(model, "reshard"):  # a sharded model, whose weights may be gathered just now
        model.reshard()
    for name, parameter in model.named_parameters():
        if not (frozen and parameter.requires_grad):
            digest.update(name.replace(".base_layer.", ".").encode())
            own: Any = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            digest.update(own.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def checkpoint_gradients(model: Any) -> None:
    """Recompute activations in the backward pass; dropout stays off although the model is in training mode."""
    for module in model.modules():
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise ModelError(f"{type(model).__name__} has no gradient checkpointing; leave it out") from error
    model.train()


# -- head -----------------------------------------------------------------------------------------


class Float32Head(torch.nn.Linear):
    """An output head whose logits are float32 even under autocast: a bfloat16 logit of 20 is off by up to 0.06."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(input.float(), self.weight.float(), bias)


def float32_head(model: Any) -> None:
    """Make the output head of ``model`` a :class:`Float32Head`, in place; its weights are neither copied nor changed.

    Raises:
        ModelError: the head is not a plain linear layer.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        raise ModelError(f"{type(model).__name__} has no plain linear output head; it cannot be trained here")
    head.__class__ = Float32Head


def scaled(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """Apply what ``model`` does to the output of its head: a scale, a divisor, a soft cap, or nothing."""
    config = model.config.get_text_config()
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


@torch.no_grad()
def check_head(model: Any) -> None:
    """Make sure that hidden states, output head and :func:`scaled` give the logits of ``model``.

    Raises:
        ModelError: they do not, so a loss computed from hidden states would not be the model's own.
    """
    ids = torch.arange(8, device=next(model.parameters()).device)[None] % model.config.get_text_config().vocab_size
    logits = model(input_ids=ids, use_cache=False).logits.float()
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    again = scaled(model, model.get_output_embeddings()(hidden)).float()
    if again.shape != logits.shape or (again - logits).abs().max() > 1e-3 * logits.abs().max():
        raise ModelError(
            f"{type(model).__name__} does more to its logits than a scale and a soft cap; it cannot be trained here"
        )


def decoder(model: Any) -> Any:
    """What to call for the last hidden states: a sharded model itself, so that its weights are gathered."""
    return model if isinstance(model, FSDPModule) else model.get_decoder()


# -- attention ------------------------------------------------------------------------------------


def attends_to_all(model: Any) -> bool:
    """Whether every layer of ``model`` attends to all earlier tokens: no window, no recurrent state."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def attend_without_padding(loaded: LoadedModel, compute: torch.dtype) -> None:
    """Switch a model on a GPU to flash-attn, which needs no padding, where it is installed and the model supports it.

    A model that trains an adapter keeps its attention: it is its own teacher, and the shared prefix needs a mask. Not
    run on a GPU yet.
    """
    from transformers.utils.import_utils import is_flash_attn_2_available

    model = loaded.model
    fits = next(model.parameters()).device.type == "cuda" and compute == torch.bfloat16 and loaded.adapter is None
    if fits and is_flash_attn_2_available() and getattr(model, "_supports_flash_attn", False):
        model.set_attn_implementation("flash_attention_2")


def attends_without_padding(model: Any) -> bool:
    """Whether ``model`` takes sequences packed into one row and computes no attention between them."""
    return "flash" in (model.config._attn_implementation or "")


# -- process --------------------------------------------------------------------------------------

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def prepare_process() -> None:
    """Set this process up for models: what the command line does once, before it loads one.

    It silences transformers, keeps freed memory, computes attention on a CPU in float32 and takes no more threads than
    the container has CPUs. The last two move the last digits of results. Calling it again changes nothing.
    """
    quiet()
    keep_freed_memory()
    float32_attention()
    fit_threads()


def quiet() -> None:
    """Silence the progress bars and warnings of transformers and its hub client; their errors still show."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()


def keep_freed_memory() -> None:
    """Let glibc keep freed buffers: mapping large ones again at each token or step costs page faults.

    Does nothing without glibc (macOS, Windows, musl).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt(m_mmap_max, 0)  # allocate from the heap, which is kept; a mapping of its own would be returned
    mallopt(m_trim_threshold, 512 << 20)


def float32_attention() -> None:
    """On a CPU, keep the attention of transformers in float32 under autocast.

    With gradients it takes 0.6 times as long as in bfloat16 for a hundred tokens and about as long for a thousand
    (``benchmarks.machine``), and it rounds less. It is set for the whole process, because gradient checkpointing
    computes attention again outside of any ``with`` block.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    usual = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if getattr(usual, "func", None) is not _in_float32:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = functools.partial(_in_float32, usual)


def _in_float32(usual: Any, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    """Under autocast on a CPU, ``usual`` on float32 ``[B, H, T, D]`` with autocast off; elsewhere just ``usual``."""
    if query.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return usual(module, query, key, value, attention_mask, **kwargs)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        return usual(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)


def fit_threads() -> None:
    """Use no more threads than the container has CPUs: torch counts the host's, and waiting threads spin.

    ``OMP_NUM_THREADS`` wins. The quota is read from Linux control groups, version 2. The number follows from the
    machine and not from a timing, because it changes the last digits of results.
    """
    try:
        quota, period = CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return
    if quota != "max" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), int(quota) // int(period))))
