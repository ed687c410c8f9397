"""The adapter in a folder, merged into its base."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from agentopcd.core.errors import ModelError
from agentopcd.core.text import first_line

WEIGHTS = "adapter_model.safetensors"


def merged(model: Any, folder: Path) -> Any:
    """``model`` with the adapter in ``folder`` merged into its weights.

    Raises:
        ModelError: PEFT is not installed, or the adapter does not belong to this model.
    """
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"adapter {str(folder)!r} has no {WEIGHTS}; other formats are not read")
    library = peft()
    try:
        _resize(model, folder)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")  # PEFT only warns and skips them
            wrapped = library.PeftModel.from_pretrained(model, folder)
        _check_all_taken(wrapped, folder)
        _part_ends(model)
        model = wrapped.merge_and_unload()
    except ModelError:
        raise
    except Exception as error:  # PEFT raises whatever it likes
        reason = first_line(error, type(error).__name__)
        raise ModelError(f"cannot put adapter {str(folder)!r} on its base {model.name_or_path!r}: {reason}") from error
    tie_or_untie(model)
    return model


def _shapes(folder: Path) -> dict[str, list[int]]:
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (it is no dict)


def _resize(model: Any, folder: Path) -> None:
    """Give ``model`` the vocabulary that the adapter was trained with, if that was resized.

    PEFT writes embeddings and output head of a resized model into the adapter.
    """
    names = {id(module): name for name, module in model.named_modules()}
    ends = [names[id(part)] for part in (model.get_input_embeddings(), model.get_output_embeddings())]
    rows: dict[str, int] = {}
    for key, shape in _shapes(folder).items():
        for end in ends:
            if re.search(rf"(^|\.){re.escape(end)}\.(modules_to_save\.)?(base_layer\.)?weight$", key):
                rows[end] = shape[0]
    before = model.get_input_embeddings().weight.shape[0]
    wanted = set(rows.values()) - {before}
    if not wanted:
        return
    if len(wanted) > 1 or not (len(rows) == len(ends) or _ties(model)):
        raise ModelError(
            f"adapter {str(folder)!r} has embeddings for a vocabulary of {max(wanted)}, its base has {before}, and the "
            "adapter does not hold both embeddings and output head; save it with save_embedding_layers=True"
        )
    with torch.random.fork_rng(devices=[]):
        model.resize_token_embeddings(wanted.pop(), mean_resizing=False)


def _part_ends(model: Any) -> None:
    """Give embeddings and head that share their weights weights of their own, if an adapter is on one of them.

    Merged into shared weights, it would change the other end too, or, if it is on both, twice.
    """
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    body, head = (getattr(end, "base_layer", end) for end in ends)
    if (body, head) != ends and body.weight is head.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def _check_all_taken(wrapped: Any, folder: Path) -> None:
    """Refuse an adapter of another model: PEFT leaves out what it finds no place for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about saving
        taken = set(peft().get_peft_model_state_dict(wrapped))
    if left := sorted(set(_shapes(folder)) - taken):
        raise ModelError(
            f"adapter {str(folder)!r} has {len(left)} weights that its base has no place for ({left[0]}, ...); "
            "give it the base that it was trained on (base_model_name_or_path)"
        )


def tie_or_untie(model: Any) -> None:
    """Let a model's config say whether embeddings and head are tied; equal ones are tied where it says they are.

    An adapter may hold both of a model that ties them, and some folders hold two whose config says that they are one.
    """
    settings = model.config.get_text_config()
    body, head = (getattr(end, "weight", None) for end in (model.get_input_embeddings(), model.get_output_embeddings()))
    if _ties(model) and body is not head and body is not None and head is not None:
        if torch.equal(body, head):
            model.tie_weights()
        else:
            settings.tie_word_embeddings = model.config.tie_word_embeddings = False


def _ties(model: Any) -> bool:
    return bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))


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
