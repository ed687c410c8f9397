"""Settings as TOML: those of one run to give back, or all of them with their defaults to edit."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from agentopcd.core.config.base import VERBS, Config, about, default_of
from agentopcd.core.config.flags import flag_of, has_flag, panels, without_flag
from agentopcd.core.terminal import harmless, without_password

WIDTH = 100


def command_of(verb: str) -> str:
    """How a verb is called on the command line."""
    return f"agentopcd knowledge {verb}" if verb in ("score", "confirm") else f"agentopcd {verb}"


def toml_value(value: Any) -> str:
    """A value in TOML, on one line.

    Raises:
        ValueError: it holds a null, which TOML does not have.
    """
    match value:
        case None:
            raise ValueError("TOML has no null")
        case str():  # JSON's escapes are TOML's, except that TOML wants DEL escaped, too
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case dict():
            entries = [f"{_key(name)} = {toml_value(entry)}" for name, entry in value.items()]
            return f"{{ {', '.join(entries)} }}" if entries else "{}"
        case list() | tuple():
            return f"[{', '.join(map(toml_value, value))}]"
        case float():
            return repr(value)  # also inf
        case _:
            return json.dumps(value)


def without_flags(config: Config) -> str:
    """What a ``--config`` file has to say besides a command's flags, on one line; '' if nothing."""
    return ", ".join(f"{name} = {toml_value(value)}" for name, value in without_flag(config).items())


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)


def saved(config: Config, notes: Mapping[str, str] | None = None) -> tuple[str, list[str]]:
    """The settings of one command as a section, for ``--config``.

    Args:
        notes: what a setting that was left to the environment or the model came out as, by name. It becomes a comment:
            as a value it would make another run of the command.

    Returns:
        The text, and what is not in it, one line for each such setting: passwords, and values that TOML does not have.
    """
    kind, left_out = type(config), []
    verb = next(verb for verb, known in VERBS.items() if known is kind)
    lines = [f"# Settings of a command; give them back with: {command_of(verb)} --config FILE", "", f"[{verb}]"]
    for panel, fields in panels(kind).items():
        lines += ["", f"# {panel}"]
        for field in fields:
            value, flag = getattr(config, field.name), flag_of(field.name)
            where = f"give it with {flag}" if has_flag(kind, field.name) else "write it into the file"
            try:
                line = f"{field.name} = {toml_value(value)}"
            except ValueError as error:
                lines.append(f"# {field.name} is left out: {error}; {where}")
                left_out.append(f"{field.name} ({error}; {where})")
                continue
            if without_password(line) != line:
                lines.append(f"# {without_password(line)}  # without its password; {where}")
                left_out.append(f"{field.name} (it holds a password; {where})")
                continue
            derived = (notes or {}).get(field.name) or about(kind, field.name)[1]
            told = without_password(harmless(" ".join(derived.split())))
            lines.append(f"{line}  # {told}" if told and not value else line)
    return "\n".join(lines) + "\n", left_out


def defaults(verb: str) -> str:
    """All settings of one verb with their defaults, without a section; the environment is left for the reader."""
    lines = [
        f"# Settings of `{command_of(verb)}` and their defaults. Edit this file, then pass it with",
        "# --config FILE; flags override it. The environment has no default: name it here, or with --env.",
    ]
    for panel, fields in panels(VERBS[verb]).items():
        lines += ["", f"# -- {panel.lower()} ".ljust(WIDTH, "-")]
        for field in fields:
            lines += ["", *_documented(VERBS[verb], field.name), f"{field.name} = {toml_value(default_of(field))}"]
    return "\n".join(lines) + "\n"


def template() -> str:
    """All settings of all verbs, commented out, with defaults: those of every verb first, then a section a verb.

    What was documented before in the same words is only named again.
    """
    lines = [
        "# Settings of agentopcd, with their defaults. To change one, remove the # before its name.",
        "# Pass this file to any verb with --config FILE; flags override it.",
        "# What stands above the first section counts for every verb; a section counts for its verb alone.",
        "# A setting without a text was explained further up.",
    ]
    told: set[str] = set()
    names = {verb: {field.name for field in dataclasses.fields(config)} for verb, config in VERBS.items()}
    common = set.intersection(*names.values())
    parts = [("", VERBS["play"], common), *((verb, VERBS[verb], own - common) for verb, own in names.items())]
    for title, config, own in parts:
        lines += ["", f"# == {command_of(title)} ".ljust(WIDTH, "="), f"[{title}]"] if title else []
        for panel, fields in panels(config).items():
            here = [field for field in fields if field.name in own]
            lines += ["", f"# -- {panel.lower()} ".ljust(WIDTH, "-")] if here else []
            for field in here:
                doc = "\n".join(_documented(config, field.name))
                lines += ["", *doc.split("\n")] if doc not in told else []
                told.add(doc)
                lines.append(f"#{field.name} = {toml_value(default_of(field))}")
    return "\n".join(lines) + "\n"


def _documented(config: type[Config], name: str) -> Iterator[str]:
    text, default = about(config, name)
    text = f"{text} Default: {default}." if default else text
    yield from textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
