"""``agentopcd config``: the settings of the verbs as a file to edit and pass back with ``--config``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from agentopcd.cli.help import App
from agentopcd.cli.options import JSON
from agentopcd.core.config import VERBS, Config, about, default_of, flag_of, has_flag, panels
from agentopcd.core.config.toml import defaults, template
from agentopcd.core.errors import ConfigError, did_you_mean
from agentopcd.core.files import path_of
from agentopcd.core.runs import write_new
from agentopcd.core.terminal import emit

app = App(
    help="Write or show a file of settings for --config.",
    epilog="First: agentopcd config init, edit agentopcd.toml, then agentopcd play --config agentopcd.toml",
)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="A new file.")] = Path("agentopcd.toml"),
) -> None:
    """Write a commented file with the settings of all verbs: those that all have, then a section for each verb.

    Example: agentopcd config init run.toml
    """
    write_new(path_of(file), template())
    print(f"wrote {file}; next: remove the # before a setting, then agentopcd play --config {shlex.quote(str(file))}")


@app.command()
def show(
    verb: Annotated[
        str, typer.Argument(help=f"One of: {', '.join(VERBS)}.", metavar="VERB", autocompletion=lambda: list(VERBS))
    ],
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
        print(defaults(verb), end="")


def as_dict(config: type[Config]) -> dict[str, dict[str, Any]]:
    """Every setting with its default, what that stands for, its documentation, and its flag, if it has one."""
    described = {}
    for panel, fields in panels(config).items():
        for field in fields:
            text, stands_for = about(config, field.name)
            flag = flag_of(field.name) if has_flag(config, field.name) else None
            described[field.name] = {
                "default": default_of(field), "stands_for": stands_for, "help": text, "panel": panel, "flag": flag,
            }  # fmt: skip
    return described
