"""The files in a model's folder: their sha256, their JSON, and ``agentopcd.json``, the facts beside the weights."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from agentopcd.core.errors import ModelError
from agentopcd.core.text import first_line


def file_sha256(path: Path) -> str:
    """sha256 of a file.

    A hub cache names its blobs by their sha256, and then the file need not be read.
    """
    blob = path.resolve().name
    if path.is_symlink() and len(blob) == 64 and all(c in "0123456789abcdef" for c in blob):
        return blob
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder.

    Raises:
        ModelError: the file cannot be read, or it holds no object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {file}: {first_line(error)}; get a complete copy of the model") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} holds no JSON object; get a complete copy of the model")
    return found


def sidecar(folder: Path) -> dict[str, Any]:
    """The facts in a model folder's ``agentopcd.json``; empty if there is no such file.

    Raises:
        ModelError: the file cannot be read, or a fact is of another kind.
    """
    file = folder / "agentopcd.json"
    facts = read_json(file) if file.is_file() else {}
    rate = facts.get("learning_rate", 1.0)
    if type(rate) not in (int, float) or not 0 < rate < math.inf:
        raise ModelError(f"{file} has learning_rate {rate!r}; wanted a number above 0: mend it, or remove the file")
    for name in ("note", "parent_id"):
        if not isinstance(facts.get(name), str | None):
            raise ModelError(f"{file} has {name} {facts[name]!r}; wanted text: mend it, or remove the file")
    return facts


def write_sidecar(folder: Path, **facts: Any) -> None:
    """Write ``agentopcd.json`` into a model folder."""
    (folder / "agentopcd.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def open_to_all(folder: Path) -> None:
    """Let everybody read a model folder whom this machine lets read new files: a server may run as another user.

    Weights are written by libraries to files that only their owner may read, and a temporary folder is made so, too.
    """
    mode = (folder / "agentopcd.json").stat().st_mode & 0o777  # written with open, so as the umask says
    for entry in (folder, *folder.rglob("*")):
        entry.chmod(mode | (mode & 0o444) >> 2 if entry.is_dir() else mode)
