"""The panel of each setting in ``--help-all`` and in files, and which settings have a flag and are usual."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from agentopcd.core.config.base import Config, default_of
from agentopcd.core.config.player import PlayerConfig
from agentopcd.core.config.training import TrainConfig

PANELS: Mapping[str, tuple[str, ...]] = {
    "Environment": (
        "env", "env_args", "rules", "history", "placement", "max_steps", "constrain", "success_when", "grader", "judge",
        "split", "splits",
    ),
    "Model and engine": (
        "model", "student", "device", "compute", "template_args", "engine", "server", "sample_batch",
    ),
    "Sampling": ("max_tokens", "temperature", "top_p", "top_k", "seed"),
    "Experience": (
        "rounds", "episodes", "episodes_per_round", "since", "extract", "extractor", "extract_prompt", "chains",
        "chain_steps", "extract_tokens", "budget_tokens", "show_earlier", "gate",
    ),
    "Loss and teacher": (
        "method", "one_method", "answers", "teacher", "turn_items", "teacher_strength", "teacher_kind",
        "teacher_every", "teacher_keeps", "direction", "divergence", "support", "loss_temperature", "importance_cap",
        "token_cap", "anchor", "turn_fade", "reduction", "turn_decay", "cut_replies",
    ),
    "Optimiser": (
        "steps", "batch_size", "learning_rate", "warmup_steps", "decay", "lora_rank", "weight_decay", "clip_norm",
        "shard", "async_steps", "tokens_per_batch", "gradient_checkpointing",
    ),
    "Choosing": (
        "context", "mix", "placebo", "pool", "method", "candidates", "by", "traces", "turns", "confirm", "force",
        "select_tasks", "select_every", "patience", "confirm_tasks", "gate_tasks", "margin", "drift_budget",
        "test_tasks",
    ),
    "Serving": (
        "record", "canary", "canary_model", "canary_context", "redact", "host", "port", "key_file", "max_waiting",
    ),
    "Output": ("merge", "save_dtype", "track", "save_every", "keep_checkpoints"),
}  # fmt: skip
"""Panel -> its settings, both in display order. A setting in two panels is in the first that its verb has."""

ONLY_TRAINING = {"Loss and teacher", "Optimiser"}
"""Panels of the verbs that train. ``method`` of the others says how contexts are ranked."""

USUAL: Mapping[str, tuple[str, ...]] = {
    "play": ("env", "env_args", "model", "episodes", "context", "extract", "max_tokens", "temperature", "seed"),
    "score": (
        "env", "env_args", "model", "method", "candidates", "confirm", "select_tasks", "confirm_tasks", "max_tokens",
        "seed",
    ),
    "confirm": ("env", "env_args", "model", "context", "confirm_tasks", "max_tokens", "seed"),
    "forecast": ("env", "env_args", "model", "context", "episodes", "max_tokens", "seed"),
    "consolidate": (
        "env", "env_args", "model", "context", "placement", "method", "steps", "batch_size", "learning_rate",
        "lora_rank", "max_tokens", "seed",
    ),
    "evaluate": ("env", "env_args", "model", "student", "context", "test_tasks", "max_tokens", "seed"),
    "learn": (
        "env", "env_args", "model", "rounds", "episodes_per_round", "chains", "candidates", "steps", "batch_size",
        "learning_rate", "lora_rank", "max_tokens", "seed",
    ),
}  # fmt: skip
"""Verb -> the settings that ``--help`` shows, in this order; ``--help-all`` shows all, in panels."""

FILE_ONLY = {"show_earlier", "pool", "cut_replies", "weight_decay", "clip_norm", "reduction", "keep_checkpoints"}
"""Settings that few people need. They have no flag; set them in the ``--config`` file."""

DICT_FLAGS = {"env_args": "--env-arg", "template_args": "--template-arg"}
"""Settings that map names to values. Each use of the flag adds one ``key=value``."""


def flag_of(name: str) -> str:
    return DICT_FLAGS.get(name, f"--{name.replace('_', '-')}")


def has_flag(config: type[Config], name: str) -> bool:
    """Whether a verb takes a setting on the command line. Training needs untruncated samples, so it has no ``--top-p``
    and ``--top-k``."""
    return name not in FILE_ONLY and not (issubclass(config, TrainConfig) and name in ("top_p", "top_k"))


def panels(config: type[Config]) -> dict[str, list[dataclasses.Field[Any]]]:
    """The settings of a verb by panel; empty panels are left out."""
    left = {field.name: field for field in dataclasses.fields(config)}
    by_panel: dict[str, list[dataclasses.Field[Any]]] = {}
    for panel, names in PANELS.items():
        if panel not in ONLY_TRAINING or issubclass(config, TrainConfig):
            by_panel[panel] = [left.pop(name) for name in names if name in left]
    return {panel: settings for panel, settings in by_panel.items() if settings}


def player_flags(config: PlayerConfig, verb: type[PlayerConfig] = PlayerConfig) -> str:
    """The command-line flags that make another verb play the same tasks in the same way."""
    names = [*PlayerConfig.__annotations__, *(field.name for field in dataclasses.fields(PlayerConfig))]
    return flags_of(config, list(dict.fromkeys(names)), verb)


def flags_for(config: PlayerConfig, verb: type[PlayerConfig]) -> str:
    """The command-line flags of another verb that keep every setting that both verbs have.

    A context or a pool is named for one command only, and insisting on something as well.
    """
    types = {field.name: field.type for field in dataclasses.fields(config)}
    wanted = {field.name: field.type for field in dataclasses.fields(verb)}
    shared = {name for name, kind in wanted.items() if types.get(name) == kind} - {"context", "pool", "force"}
    return flags_of(config, [name for names in PANELS.values() for name in names if name in shared], verb)


def flags_of(config: Config, names: Sequence[str] | None = None, verb: type[Config] | None = None) -> str:
    """The settings that differ from their defaults as command-line flags, quoted for a shell.

    Args:
        names: the settings to write, in this order; None: all, in the order of their panels.
        verb: settings of the verb that the flags are for; None: those of ``config``. What has no flag there is left
            out.
    """
    kind = verb or type(config)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if names is None:
        names = [field.name for shown in panels(kind).values() for field in shown]
    names = [name for name in names if has_flag(kind, name)]
    words: list[str] = []
    for name in names:
        value, flag = getattr(config, name), flag_of(name)
        if value == default_of(fields[name]):
            continue
        if name in DICT_FLAGS:
            pairs = [f"{key}={_as_typed(entry)}" for key, entry in value.items()]
            words += [f"{flag} {shlex.quote(pair)}" for pair in pairs]
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words.append(f"{flag} {shlex.quote(str(value))}")
    return " ".join(words)


def without_flag(config: Config) -> dict[str, Any]:
    """The settings that differ from their defaults and have no flag: a ``--config`` file sets them."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if not has_flag(type(config), field.name) and getattr(config, field.name) != default_of(field)
    }


def _as_typed(value: Any) -> str:
    """An argument of an environment as it is typed: JSON, or plain text where that does not read as JSON."""
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return json.dumps(value) if meant_as(value) else value
    return json.dumps(value)


def meant_as(text: str) -> str:
    """The JSON that a person means who types an argument as Python or YAML has it, such as False; '' for other text."""
    word = text.strip()
    return "null" if word == "None" else word.lower() if word.lower() in ("true", "false", "null") else ""
