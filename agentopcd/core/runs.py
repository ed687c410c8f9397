"""A run folder: config.json, metrics.jsonl, checkpoints, result.json; and how a killed run goes on.

A run is found again by its settings: the same command opens the same folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentopcd.core.errors import ConfigError

CHECKPOINTS = "checkpoints"
"""Folder of a run with the model of every evaluation, named by step, where they are kept."""


def workspace(folder: str | Path | None = None) -> Path:
    """The workspace: ``folder``, else ``$AGENTOPCD_WORK``, else ``./agentopcd-work``. Made when missing."""
    path = Path(folder or os.environ.get("AGENTOPCD_WORK") or "agentopcd-work")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot use {str(path)!r} as workspace ({error.strerror}); give --work a folder") from error
    return path


class Run:
    """One run of a verb, on disk.

    Args:
        root: the workspace.
        verb: what runs, such as ``consolidate``.
        identity: everything that makes this run what it is. Equal identities share a folder.
    """

    def __init__(self, root: Path, verb: str, identity: Mapping[str, Any]) -> None:
        text = json.dumps(identity, sort_keys=True)
        slug = re.sub(r"[^a-z0-9]+", "-", str(identity.get("env", "")).lower()).strip("-")[-40:]
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        self.folder = root / "runs" / "-".join(part for part in (verb, slug, digest) if part)
        self.folder.mkdir(parents=True, exist_ok=True)
        file, text = self.folder / "config.json", json_text(identity)
        if not file.is_file() or file.read_text() != text:
            write_text(file, text)
        self.metrics_file = self.folder / "metrics.jsonl"

    @property
    def result(self) -> dict[str, Any] | None:
        """What the run concluded, or None while it is unfinished."""
        file = self.folder / "result.json"
        return json.loads(file.read_text()) if file.is_file() else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Record the conclusion and drop the checkpoint, which nothing needs any more."""
        write_json(self.folder / "result.json", result)
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one JSON line."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(record, sort_keys=True) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """All complete lines written so far; a line cut by a kill is left out."""
        if not self.metrics_file.is_file():
            return []
        lines = self.metrics_file.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def rewind(self, step: int) -> None:
        """Forget what was logged after ``step``: those steps are run again."""
        kept = [record for record in self.records() if record.get("step", 0) <= step]
        write_text(self.metrics_file, "".join(json.dumps(record, sort_keys=True) + "\n" for record in kept))


def json_text(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_text(path, json_text(value))


def write_text(path: Path, text: str) -> None:
    """Replace a file at once, so that a kill leaves the old or the new one."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text)
    scratch.replace(path)
