"""``agentopcd config``: the settings of a verb as a file to edit and pass back with ``--config``."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from agentopcd.cli.options import JSON, help_text
from agentopcd.core.config import (
    Config,
    ConfirmConfig,
    ConsolidateConfig,
    EvaluateConfig,
    LearnConfig,
    PlayConfig,
    ScoreConfig,
    choices,
    default_of,
    field_docs,
    flag_of,
    has_flag,
    panels,
)
from agentopcd.core.errors import ConfigError, did_you_mean
from agentopcd.core.terminal import emit

VERBS: dict[str, type[Config]] = {
    "play": PlayConfig,
    "score": ScoreConfig,
    "confirm": ConfirmConfig,
    "consolidate": ConsolidateConfig,
    "evaluate": EvaluateConfig,
    "learn": LearnConfig,
}
WIDTH = 100

HELP = "Show settings, including those without a flag."
app = typer.Typer(no_args_is_help=True)


@app.callback(help=HELP)
def root() -> None:
    """Keeps the name ``show``, which Typer drops in a group with one command."""


@app.command()
def show(
    verb: Annotated[str, typer.Argument(help=f"One of: {', '.join(VERBS)}.", metavar="VERB")],
    as_json: JSON = False,
) -> None:
    """Print all settings of a verb, with their defaults, as a TOML file for --config.

    Example: agentopcd config show consolidate > run.toml
    """
    if verb not in VERBS:
        raise ConfigError(f"no verb {verb!r} with settings{did_you_mean(verb, VERBS)}")
    if as_json:
        emit(as_dict(VERBS[verb]), indent=1)
    else:
        print(as_toml(verb, VERBS[verb]), end="")


def as_dict(config: type[Config]) -> dict[str, dict[str, Any]]:
    """Every setting with its default, its documentation, and its flag, if it has one."""
    docs = field_docs(config)
    return {
        field.name: {
            "default": default_of(field),
            "help": help_text(docs[field.name], choices(config).get(field.name, ())),
            "panel": panel,
            "flag": flag_of(field.name) if has_flag(config, field.name) else None,
        }
        for panel, fields in panels(config).items()
        for field in fields
    }


def as_toml(verb: str, config: type[Config]) -> str:
    """A TOML file with the defaults; the environment is left for the reader to fill in."""
    command = f"knowledge {verb}" if verb in ("score", "confirm") else verb
    lines = [
        f"# Settings of `agentopcd {command}` and their defaults. Edit this file, then pass it with",
        "# --config FILE; flags override it. The environment has no default: name it here, or with --env.",
    ]
    for panel, fields in panels(config).items():
        title = "most used" if panel == "Options" else panel.lower()
        lines += ["", f"# -- {title} ".ljust(WIDTH, "-")]
        for field in fields:
            lines += ["", *_setting(config, field)]
    return "\n".join(lines) + "\n"


def _setting(config: type[Config], field: dataclasses.Field[Any]) -> Iterator[str]:
    doc = help_text(field_docs(config)[field.name], choices(config).get(field.name, ()))
    yield from textwrap.wrap(doc, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    yield f"{field.name} = {_value(default_of(field))}"


def _value(value: Any) -> str:
    """A default in TOML: text, numbers and booleans as in JSON, a table on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(entry)}" for key, entry in value.items()) + " }" if value else "{}"
    return json.dumps(value)
