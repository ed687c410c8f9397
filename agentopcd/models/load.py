"""Load a model with its tokenizer into memory, and save it; :mod:`agentopcd.models.find` finds its files.

No code from a model repository is run. Parameters are loaded as float32, and adapters are merged into their base.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from agentopcd.core.errors import ModelError
from agentopcd.core.files import is_gguf, path_of
from agentopcd.core.text import first_line
from agentopcd.models import find, folder_files, tokens
from agentopcd.models.head import float32_head
from agentopcd.models.merged import merged, peft, tie_or_untie
from agentopcd.models.process import relayed_warnings
from agentopcd.models.recast import check_range

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
    """The unsharded copy of a sharded student, which plays and is saved; None if servers play. See
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
    own, *bases = folders = find.folders_of(name)
    _check_config(folders[-1], name)
    tokenizer = _tokenizer(folders, name)
    model = _whole_model(folders[-1], name)
    for folder in reversed(folders[:-1]):
        model = merged(model, folder)
    tokens.check_template(tokenizer, name)
    model.eval()
    float32_head(model)
    end_ids = _fit_tokens(tokenizer, model, name)
    model.to(torch.device(device))
    facts, inherited = find.sidecar(own), [find.sidecar(folder) for folder in bases]
    said = [facts, *inherited]
    return LoadedModel(
        name=name,
        id=find.fingerprint(own),
        folder=own,
        model=model,
        tokenizer=tokenizer,
        end_ids=end_ids,
        note=next((one["note"] for one in said if "note" in one), ""),
        parent_id=facts.get("parent_id"),
        learning_rate=next((one["learning_rate"] for one in said if "learning_rate" in one), LEARNING_RATE),
    )


def _tokenizer(folders: Sequence[Path], name: str) -> Any:
    """The tokenizer and chat template of the first of these folders that has them: an adapter's own before its base's.

    Training with new tokens or a new template leaves them beside the adapter.
    """
    place = next((folder for folder in folders if tokens.has_tokenizer(folder)), folders[-1])
    tokenizer = tokens.load_tokenizer(place, name, config=folders[-1])
    before = folders[: folders.index(place)]
    if template := next((text for folder in before if (text := tokens.template_of(folder))), ""):
        tokenizer.chat_template = template
    for folder in folders[folders.index(place) + 1 :]:
        if not tokenizer.chat_template and tokens.has_tokenizer(folder):
            tokenizer.chat_template = tokens.load_tokenizer(folder, name, config=folders[-1]).chat_template
            warnings.warn(f"the tokenizer of {name!r} has no chat template, so that of {folder} is used", stacklevel=3)
    return tokenizer


def _whole_model(folder: Path, name: str) -> Any:
    """The model in ``folder``, in float32, with every weight that the folder holds.

    Raises:
        ModelError: the model cannot be loaded, or config and weights do not belong together.
    """
    from transformers import AutoModelForCausalLM

    try:
        with relayed_warnings(but=("LOAD REPORT", "generation flags are not valid")):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # the libraries raise whatever they like
        raise ModelError(f"cannot load model {name!r}: {first_line(error, type(error).__name__)}") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        # transformers only warns and fills missing weights with random numbers.
        raise ModelError(f"model {name!r} lacks {len(missing)} weights ({missing[0]}, ...); get a complete copy")
    if spare := sorted(report["unexpected_keys"]):
        # transformers only warns and leaves them out: the model would be another one, with fewer layers for instance.
        raise ModelError(
            f"model {name!r} has {len(spare)} weights that its config.json has no place for ({spare[0]}, ...), so it "
            "would not be the model that was saved; get the config.json that belongs to the weights"
        )
    for weight, values in model.named_parameters():
        if not torch.isfinite(values.detach().sum()):  # one NaN or infinity makes the sum one
            raise ModelError(f"model {name!r} has numbers that are not finite in {weight}; get a good copy")
    _make_savable(model.generation_config)
    tie_or_untie(model)
    return model


def check_files(name: str) -> str:
    """Refuse a model that cannot be loaded, as far as its files show without its weights.

    Returns:
        Why nothing could be looked at, if its files are not on this machine yet or not converted; else ''.

    Raises:
        ModelError: the model cannot be found or loaded.
    """
    folders: list[Path] = []
    wanted: str | None = name
    while wanted is not None:
        with find.naming(folders[-1]) if folders else contextlib.nullcontext():
            folder = find.find_cached(wanted)
        if folder is None and is_gguf(wanted):
            return f"{wanted} is not converted yet, so it was not looked at; it is converted on first use"
        if folder is None:
            return f"{wanted} is not on this machine yet, so it was not looked at; it is fetched on first use"
        if folder in folders:
            raise ModelError(f"the adapter in {folders[-1]} names {wanted!r} as its base, an adapter of itself")
        folders.append(folder)
        wanted = find.base_of_adapter(folder)
    if len(folders) > 1:
        peft()
    _check_config(folders[-1], name)
    tokens.check_template(_tokenizer(folders, name), name)
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


def _make_savable(settings: Any) -> None:
    """Let a vendor's generation config say that it samples, if it has settings of sampling.

    transformers loads such a file and refuses to write it again, with the first student. Play here ignores the file.
    """
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True


def _fit_tokens(tokenizer: Any, model: Any, name: str) -> tuple[int, ...]:
    """Check that the model has a row for every token that can occur, mend the padding, and return the end tokens.

    Raises:
        ModelError: a token that text or template can contain has no row, or nothing ends a reply.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    shown = tokens.conversation(tokenizer, "user", header=True) + tokens.conversation(tokenizer, "user", "assistant")
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    outside = [
        token for token, id_ in tokenizer.get_vocab().items() if id_ >= rows and (id_ not in special or token in shown)
    ]
    if outside:
        raise ModelError(
            f"{len(outside)} tokens of the tokenizer of {name!r} ({outside[0]!r}, ...) have no row in the model's "
            f"embeddings, which have {rows}; take the tokenizer that belongs to the model"
        )
    named = _end_ids(tokenizer, model, name)
    end_ids = tuple(id_ for id_ in named if 0 <= id_ < rows)
    if len(end_ids) < len(named):
        lost = next(id_ for id_ in named if id_ not in end_ids)
        warnings.warn(
            f"end token {lost} of {name!r} has no row in its {rows} embeddings and ends nothing", stacklevel=3
        )
    if not end_ids:
        raise ModelError(f"model {name!r} names no end-of-sequence token; its replies would never end")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token_id = end_ids[0]
    return end_ids


def _end_ids(tokenizer: Any, model: Any, name: str) -> list[int]:
    """The tokens that end a reply, by tokenizer, generation config and chat template."""
    found: list[int] = []
    for source in (tokenizer.eos_token_id, model.generation_config.eos_token_id):
        for token in source if isinstance(source, list) else [source]:
            if not isinstance(token, int | None):
                raise ModelError(f"model {name!r} names {token!r} as an end token; wanted a number (eos_token_id)")
            if token is not None and token not in found:
                found.append(token)
    last = tokens.end_of_turn(tokenizer)
    if last is not None and last not in found:
        warnings.warn(
            f"the chat template of {name!r} ends a turn with {tokenizer.convert_ids_to_tokens(last)!r}, which neither "
            "the tokenizer nor generation_config.json names as an end token; replies end there, too",
            stacklevel=4,
        )
        found.append(last)
    return found


def save_model(
    loaded: LoadedModel, folder: Path, *, parent_id: str, facts: dict[str, Any], weights: Path | None = None
) -> str:
    """Write an ordinary Hugging Face folder (safetensors, tokenizer, chat template) and return the model's id.

    While an adapter is trained, only the adapter is written, as PEFT does. The folder appears whole or not at all.

    Args:
        loaded: the model to save.
        folder: replaced if it exists.
        parent_id: the id of the model that this one was trained from.
        facts: written to ``agentopcd.json`` beside the weights.
        weights: a safetensors file with all parameters, for a sharded model. It is mapped, not read into memory.
    """
    scratch = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    if weights is not None:
        whole = load_file(weights)
        state = {name: whole.get(name, value) for name, value in loaded.model.state_dict().items()}
        loaded.model.save_pretrained(scratch, state_dict=state)
    elif loaded.adapter is None:
        loaded.model.save_pretrained(scratch)
    else:
        facts = facts | {"base": _save_adapter(loaded, scratch)}
    loaded.tokenizer.save_pretrained(scratch)
    own = {"parent_id": parent_id, "note": loaded.note, "learning_rate": loaded.learning_rate}
    folder_files.write_sidecar(scratch, **own, origin=find.hub_id(loaded.folder), **facts)
    folder_files.open_to_all(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    return find.fingerprint(folder)


def _save_adapter(loaded: LoadedModel, scratch: Path) -> str:
    """Write the adapter as PEFT does, and the base with it if the base is part of this package and of no hub.

    Returns:
        The name by which this package finds the base, if the adapter's own settings do not say where it is; else ''.
    """
    loaded.adapter.save_pretrained(scratch)
    (scratch / "README.md").unlink(missing_ok=True)  # PEFT's empty card, with the path of the base
    # PEFT writes sets in arbitrary order, which would change the id.
    settings = json.loads((scratch / find.ADAPTER).read_text())
    ordered = {name: sorted(v) if isinstance(v, list) else v for name, v in settings.items()}
    ordered["base_model_name_or_path"] = _base_name(loaded)
    (scratch / find.ADAPTER).write_text(json.dumps(ordered, indent=1, sort_keys=True) + "\n")
    folder = loaded.folder
    if find.is_shipped(folder):
        shutil.copytree(folder, scratch / find.CARRIED, copy_function=shutil.copyfile)
        return folder.name
    if not find.is_cached(folder):
        return ""
    if folder.name in find.FETCHED:  # whatever name it was loaded by
        return folder.name
    return str(find.resolved(path_of(loaded.name))) if is_gguf(loaded.name) else str(folder)


def _base_name(loaded: LoadedModel) -> str | None:
    """What PEFT writes as the adapter's base: its hub id, else the folder that a person named, never one of a cache.

    None: the adapter carries its base, or ``agentopcd.json`` says of what file it was made.
    """
    own = find.sidecar(loaded.folder).get("parent_id")  # a student was trained from its hub id, and is not it
    if not own and (hub := find.hub_id(loaded.folder)):
        return hub
    if find.is_shipped(loaded.folder) or find.is_cached(loaded.folder):
        return None
    return str(loaded.folder.resolve())


def check_savable(loaded: LoadedModel, dtype: str = "float32") -> None:
    """Try, with the small files, whether the model can be saved and its tokenizer read back.

    Args:
        dtype: the dtype in which the weights will be saved.

    Raises:
        ModelError: it cannot, so that a student would be lost after its training.
    """
    check_range(loaded.model.named_parameters(), dtype)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            loaded.model.config.save_pretrained(folder)
            loaded.model.generation_config.save_pretrained(folder)
            loaded.tokenizer.save_pretrained(folder)
        except Exception as error:  # the libraries raise whatever they like
            reason = first_line(error, type(error).__name__)
            raise ModelError(f"model {loaded.name!r} can be loaded, but not saved: {reason}") from error
        again = tokens.load_tokenizer(folder, loaded.name, config=folder)
    if (again.get_vocab(), again.chat_template) != (loaded.tokenizer.get_vocab(), loaded.tokenizer.chat_template):
        raise ModelError(f"the tokenizer of {loaded.name!r} is another one after it was saved; save it anew yourself")


def check_pair(student: LoadedModel, teacher: LoadedModel) -> None:
    """Refuse a teacher that cannot score the student's tokens.

    Two sizes of a family may pad one vocabulary to other numbers of rows. Then the rows that both have must stand for
    the same tokens; see :func:`shared_rows`.

    Raises:
        ModelError: the two models differ in their vocabularies or end tokens.
    """
    rows = shared_rows(student, teacher)
    mine, theirs = (
        {token: id_ for token, id_ in model.tokenizer.get_vocab().items() if id_ < rows} for model in (student, teacher)
    )
    if mine != theirs:
        other = min(set(mine.items()) ^ set(theirs.items()), key=lambda pair: pair[1])
        raise ModelError(
            f"teacher {teacher.name!r} and student {student.name!r} have different vocabularies (token {other[1]} is "
            f"{other[0]!r} in one of them); on-policy distillation scores the same token ids, so take models of one "
            "family"
        )
    if set(student.end_ids) != set(teacher.end_ids):
        raise ModelError(
            f"teacher {teacher.name!r} ends replies with {sorted(teacher.end_ids)}, student {student.name!r} "
            f"with {sorted(student.end_ids)}; take an instruct model for both"
        )


def shared_rows(one: LoadedModel, other: LoadedModel) -> int:
    """The number of tokens that two models both have a row for: the smaller of their padded vocabularies."""
    return min(model.model.get_output_embeddings().weight.shape[0] for model in (one, other))
