"""Run folders: config.json, metrics.jsonl, checkpoints and result.json, and how a killed run resumes.

The settings identify a run: the same command opens the same folder.
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
from agentopcd.core.files import path_of
from agentopcd.core.terminal import plain

CHECKPOINTS = "checkpoints"
"""Subfolder of a run with the model of every evaluation, named by step; it exists only if these models are kept."""


def workspace(folder: str | Path | None = None) -> Path:
    """The workspace folder: ``folder``, else ``$AGENTOPCD_WORK``, else ``./agentopcd-work``. Created if missing."""
    path = path_of(folder or os.environ.get("AGENTOPCD_WORK") or "agentopcd-work")
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
        identity: everything that distinguishes this run from others. Equal identities share a folder.
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
        """Result of the run, or None while it is unfinished."""
        file = self.folder / "result.json"
        return json.loads(file.read_text()) if file.is_file() else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Record the result and delete the checkpoint, which is no longer needed."""
        write_json(self.folder / "result.json", result)
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one JSON line."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(plain(record), sort_keys=True) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """All complete lines written so far. A line cut off by a kill is left out."""
        if not self.metrics_file.is_file():
            return []
        lines = self.metrics_file.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def rewind(self, step: int) -> None:
        """Drop the records after ``step``: those steps run again."""
        kept = [record for record in self.records() if record.get("step", 0) <= step]
        write_text(self.metrics_file, "".join(json.dumps(record, sort_keys=True) + "\n" for record in kept))


def json_text(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_text(path, json_text(value))


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: a kill leaves either the old or the new content."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text)
    scratch.replace(path)
