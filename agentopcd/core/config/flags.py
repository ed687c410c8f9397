"""The panel of each setting in ``--help`` and ``config show``, and which settings have a flag."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from typing import Any

from agentopcd.core.config.base import Config
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
    "Output": ("merge", "save_dtype", "track", "save_every", "keep_checkpoints"),
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
    words = []
    for field in dataclasses.fields(PlayerConfig):
        value, flag = getattr(config, field.name), flag_of(field.name)
        if not has_flag(verb, field.name):
            continue
        if field.name in DICT_FLAGS:
            pairs = ((k, v if isinstance(v, str) else json.dumps(v)) for k, v in value.items())
            words += [f"{flag} {shlex.quote(f'{k}={v}')}" for k, v in pairs]
        elif isinstance(value, bool):
            words += [flag] * value
        elif value != field.default:
            words.append(f"{flag} {shlex.quote(str(value))}")
    return " ".join(words)
