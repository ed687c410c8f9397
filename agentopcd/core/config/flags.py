"""The panel of each setting in ``--help`` and ``config show``, and which settings have a flag."""

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
    "Options": (
        "env", "env_args", "model", "student", "context", "method", "rounds", "episodes", "episodes_per_round", "steps",
        "batch_size", "learning_rate", "max_tokens", "seed",
    ),
    "Environment": (
        "rules", "history", "placement", "max_steps", "constrain", "success_when", "grader", "judge", "split",
        "splits",
    ),
    "Sampling": ("temperature", "top_p", "top_k", "engine", "server", "sample_batch"),
    "Model": ("device", "compute", "template_args"),
    "Experience": (
        "extract", "extractor", "extract_prompt", "chains", "chain_steps", "extract_tokens", "budget_tokens",
        "show_earlier", "gate",
    ),
    "Choosing": (
        "pool", "candidates", "by", "traces", "turns", "mix", "confirm", "force", "select_tasks", "select_every",
        "confirm_tasks", "test_tasks",
    ),
    "Training": (
        "lora_rank", "turn_decay", "shard", "async_steps", "tokens_per_batch", "gradient_checkpointing", "answers",
        "cut_replies", "weight_decay", "clip_norm",
    ),
    "Teacher": ("teacher", "teacher_kind", "teacher_every", "teacher_keeps"),
    "Loss": ("divergence", "support", "loss_temperature", "importance_cap", "reduction"),
    "Output": ("merge", "save_every", "keep_checkpoints"),
}  # fmt: skip
"""Panel -> its settings, both in display order. The first panel holds what most people need."""

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
    fields = {field.name: field for field in dataclasses.fields(config)}
    by_panel = {panel: [fields[name] for name in names if name in fields] for panel, names in PANELS.items()}
    return {panel: settings for panel, settings in by_panel.items() if settings}


def player_flags(config: PlayerConfig, verb: type[PlayerConfig] = PlayerConfig) -> str:
    """The command-line flags that make another verb play the same tasks in the same way."""
    return flags_of(config, [field.name for field in dataclasses.fields(PlayerConfig)], verb)


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
        return value
    return json.dumps(value)
