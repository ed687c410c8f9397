"""Settings, commands and environments as strangers may read them: no path of this machine, no password, no address of
a judge."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentopcd.core.config import ConsolidateConfig, flags_of, without_flag
from agentopcd.core.config.toml import toml_value
from agentopcd.core.files import told
from agentopcd.core.terminal import without_password
from agentopcd.knowledge.evidence import one_line
from agentopcd.knowledge.students import env_of
from agentopcd.workspace.ledger import SOME_SERVER

PATH = re.compile(r"""(^|[,;:="'\[({]\s*)((?:(?<!:)/|/(?!/[^/])|~[^/\s,"]*/|\.\./)[^,:"\]}]*)""")
"""A path from the root, the home folder or the folder above, at the start of a text or after a sign; no address."""
ADDRESS = re.compile(r"""\w+://[^\s,#"'\])}]+""")


def public(value: Any) -> Any:
    """A setting as strangers may read it: of each path its last part, of an address no password."""
    match value:
        case Mapping():
            return {name: public(entry) for name, entry in value.items()}
        case list() | tuple():
            return type(value)(public(entry) for entry in value)
        case str():
            names = PATH.sub(lambda found: found[1] + (Path(found[2]).name or found[2]), value)
            return one_line(without_password(names))
    return value


def nowhere(text: str) -> str:
    """A text such as the name of a game's tasks (:attr:`agentopcd.rollouts.game.Game.label`): no address either."""
    return ADDRESS.sub(SOME_SERVER, public(text))


def command(config: ConsolidateConfig, base: str) -> tuple[str, list[str]]:
    """The command that trains with these settings, as strangers may read it, and the lines of a file that it needs.

    It names the model that was trained, also where the command had not: what is trained then, depends on the workspace.
    """
    if not config.model or env_of(config.model):  # ENV/student was another model then
        config = dataclasses.replace(config, model=base)
    names = [field.name for field in dataclasses.fields(config)]
    shown: dict[str, Any] = {name: public(getattr(config, name)) for name in names}
    shown["judge"] = nowhere(config.judge)
    for name in ("model", "teacher"):
        if shown[name]:
            known = told(getattr(config, name))
            shown[name] = f"path/to/the/{name}" if " " in known else known
    if not config.mix:
        shown["context"] = "context.txt"
    config = dataclasses.replace(config, **shown)
    words = ["agentopcd consolidate", *(flags for name in names if (flags := flags_of(config, [name])))]
    file = [f"{name} = {toml_value(value)}" for name, value in without_flag(config).items()]
    if file:
        words.append("--config settings.toml")
    return " \\\n    ".join(words), file
