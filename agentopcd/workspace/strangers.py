"""Settings and environments as strangers may read them: no path of this machine, no password, no address of a judge."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentopcd.core.terminal import without_password
from agentopcd.knowledge.evidence import one_line
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
