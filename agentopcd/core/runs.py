"""Run folders: config.json, config.toml, metrics.jsonl, checkpoints and result.json, and how a killed run resumes.

The settings identify a run: the same command opens the same folder.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from agentopcd.core.errors import ConfigError
from agentopcd.core.files import is_dir, path_of, resolved
from agentopcd.core.terminal import plain

CHECKPOINT = ("checkpoint", "checkpoint.old")
"""Subfolders of a run with its last checkpoint and the one before."""
CHECKPOINTS = "checkpoints"
"""Subfolder of a run with the model of every evaluation, named by step; it exists only if these models are kept."""
METRICS_FILE, TOKENS_FILE = "metrics.jsonl", "tokens.jsonl"
"""A run's logs: a line for each step, and a line for each of the few turns whose tokens are kept to be looked at. Every
line is an object with its ``step``; later steps stand below earlier ones."""

MODELS = ("model", "teacher")
"""Settings that name a model."""

TAIL_BYTES = 1 << 16
"""How much of a log is read for its last record."""


def workspace(folder: str | Path | None = None) -> Path:
    """The workspace folder: ``folder``, else ``$AGENTOPCD_WORK``, else ``./agentopcd-work``. Created if missing."""
    path = path_of(folder) if folder else default_workspace()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot use {str(path)!r} as workspace ({error.strerror}); give --work a folder") from error
    return path


def default_workspace() -> Path:
    """The workspace if no ``--work`` is given; it need not exist."""
    return path_of(os.environ.get("AGENTOPCD_WORK") or "agentopcd-work")


def work_flag(work: str | Path | None) -> str:
    """The words that name a workspace in a command, with a space in front; '' for the workspace that needs none."""
    if work is None or path_of(work) == default_workspace():
        return ""
    return f" --work {shlex.quote(str(work))}"


def kept(work: Path, folder: str | Path) -> str:
    """The path to write down for a model's folder: relative to the workspace if it is inside, else in full."""
    path, root = resolved(folder), resolved(work)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def written_down(work: Path, name: str) -> str:
    """A model's name to write down: the path of :func:`kept` for a folder in the workspace, else as it was typed."""
    path = kept(work, path_of(name))
    return path if is_dir(name) and not Path(path).is_absolute() else name


def slug_of(env: str) -> str:
    """An environment's name in the names of run folders."""
    return re.sub(r"[^a-z0-9]+", "-", env.lower()).strip("-")[-40:]


def _named(root: Path, verb: str, identity: Mapping[str, Any]) -> Path:
    """The folder of a run of a workspace."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    return root / "runs" / "-".join(part for part in (verb, slug_of(str(identity.get("env", ""))), digest) if part)


def alike(settings: Mapping[str, Any], but: Sequence[str] = ()) -> str:
    """Settings as a text that is the same for equal ones, whether a whole number is written 1.0, or 1 as older versions
    did.

    Args:
        but: names that are left out.
    """
    pairs = ((name, value) for name, value in settings.items() if name not in but)
    whole = {name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in pairs}
    return json.dumps(whole, sort_keys=True)


def _of_older(folder: Path, identity: Mapping[str, Any]) -> Path:
    """The folder of the same run by a version that wrote 1 for 1.0, if there is one, else ``folder``."""
    for other in sorted(folder.parent.glob(f"{glob.escape(folder.name.rpartition('-')[0])}-*")):
        with suppress(ConfigError):
            known = read_json(other / "config.json", "")
            if isinstance(known, dict) and alike(known) == alike(identity):
                return other
    return folder


class Run:
    """One run of a verb, on disk.

    Args:
        root: the workspace.
        verb: what runs, such as ``consolidate``.
        identity: everything that distinguishes this run from others. Equal identities share a folder; so do two that
            name one model of the workspace by different paths.
        settings: the settings in TOML, which the folder then holds as ``config.toml``; ``--config`` takes it back.
    """

    def __init__(self, root: Path, verb: str, identity: Mapping[str, Any], settings: str = "") -> None:
        self.folder = _named(root, verb, identity)
        if not self.folder.is_dir():  # version 0.1 took the paths as they were typed
            models = {name: written_down(root, str(identity[name])) for name in MODELS if identity.get(name)}
            self.folder = _named(root, verb, {**identity, **models})
        if not self.folder.is_dir():
            self.folder = _of_older(self.folder, identity)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            file, text = self.folder / "config.json", json_text(identity)
            if not file.is_file() or file.read_bytes() != text.encode():
                write_text(file, text)
            if settings and not (self.folder / "config.toml").is_file():
                write_text(self.folder / "config.toml", settings)
        self.metrics_file = self.folder / METRICS_FILE
        self.follower: Callable[[Mapping[str, Any]], None] | None = None
        """Called with every record after it was logged."""

    @property
    def result(self) -> dict[str, Any] | None:
        """Result of the run, or None while it is unfinished.

        Raises:
            ConfigError: the file is damaged.
        """
        file = self.folder / "result.json"
        return read_result(file, f"remove {self.folder} to run it again") if file.is_file() else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Record the result and delete the checkpoints, which are no longer needed."""
        write_json(self.folder / "result.json", sealed(result))
        for name in CHECKPOINT:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one JSON line to the log of steps."""
        self._append(self.metrics_file, [record])
        if self.follower is not None:
            self.follower(plain(record))

    def log_tokens(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append a JSON line for each turn whose tokens are kept."""
        if records:
            self._append(self.folder / TOKENS_FILE, records)

    def _append(self, path: Path, records: Sequence[Mapping[str, Any]]) -> None:
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(plain(record), sort_keys=True) + "\n" for record in records)

    def records(self) -> list[dict[str, Any]]:
        """What was logged so far; see :func:`read_records`."""
        return read_records(self.metrics_file)

    def rewind(self, step: int) -> int:
        """Drop the records after ``step``, whose steps run again, from both logs, and the damaged lines of the log of
        steps; return the number of these."""
        damaged = _rewind(self.metrics_file, step)
        if (tokens := self.folder / TOKENS_FILE).is_file():
            _rewind(tokens, step)  # for people to look at: nothing is computed from it
        return damaged


def _rewind(file: Path, step: int) -> int:
    lines = _records(file)
    kept = [record for record in lines if record is not None and record.get("step", 0) <= step]
    write_text(file, "".join(json.dumps(record, sort_keys=True) + "\n" for record in kept))
    return lines.count(None)


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records of a log of ours. A line cut off by a kill is left out; without a file there are none.

    Raises:
        ConfigError: a line is damaged.
    """
    for number, record in enumerate(found := _records(file), 1):
        if record is None:
            raise ConfigError(f"{file} cannot be read: line {number} is damaged; remove that line")
    return [record for record in found if record is not None]


def last_record(file: Path) -> dict[str, Any] | None:
    """The last record of a log that may still be written to, without reading all of it; None if there is none."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            *lines, _ = log.read().split(b"\n")
    except OSError:
        return None
    return next((record for line in reversed(lines) if (record := _record(line)) is not None), None)


def _records(file: Path) -> list[dict[str, Any] | None]:
    """The record of each complete line; None for a damaged line."""
    if not file.is_file():
        return []
    *lines, _ = file.read_bytes().split(b"\n")  # a last line without its end was cut by a kill
    return [_record(line) for line in lines]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step", 0), int) else None


def read_result(file: Path, remedy: str) -> dict[str, Any]:
    """What :meth:`Run.finish` wrote.

    Raises:
        ConfigError: the file is damaged; the message ends with ``remedy``.
    """
    content = read_json(file, remedy)
    try:
        return unsealed(content)
    except ValueError as error:
        raise ConfigError(f"{file} was changed after it was written; {remedy}") from error


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON content with a hash of itself, so that a later change is seen."""
    content = json.loads(json_text(content))  # as it will be read: names are text, tuples are lists
    return {**content, "sha256": hashlib.sha256(json_text(content).encode()).hexdigest()}


def unsealed(content: Any) -> dict[str, Any]:
    """The content that :func:`sealed` was given. Files of version 0.1 have no hash and pass as they are.

    Raises:
        ValueError: it was changed.
    """
    if not isinstance(content, dict):
        raise ValueError("it was changed")
    sha256 = content.pop("sha256", None)
    if sha256 not in (None, sealed(content)["sha256"]):
        raise ValueError("it was changed")
    return content


def json_text(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_text(path, json_text(value))


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Replace a file atomically: a kill leaves either the old or the new content.

    Raises:
        ConfigError: the file cannot be written; then the old content is left.
    """
    if path.exists() and not path.is_file():  # a pipe or a device
        scratch = path
    else:
        path = resolved(path)  # a link stays a link
        scratch = path.with_name(f"{path.name[:50]}.{secrets.token_hex(4)}.tmp")  # no other process's, nor a person's
    with writing(path):
        try:
            with scratch.open("w" if scratch == path else "x", encoding="utf-8", newline="") as file:
                file.writelines([text] if isinstance(text, str) else text)
            if scratch != path:
                scratch.replace(path)
        except BaseException:
            if scratch != path:
                scratch.unlink(missing_ok=True)
            raise


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet.

    Raises:
        ConfigError: it is there already, or cannot be written.
    """
    with writing(path):
        try:
            with path.open("x", encoding="utf-8", newline="") as file:
                file.write(text)
        except FileExistsError as error:
            raise ConfigError(f"{path} is there already and is left as it is; give another name") from error


_ROOM = "make room on the disk and repeat the command; what was written before is kept"
_REMEDIES: dict[int | None, str] = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.ENOENT: "its folder is not there, or was removed while the command ran",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise what goes wrong while ``path`` is written as one line with a remedy.

    Raises:
        ConfigError: the disk is full, the folder is gone, or it may not be written.
    """
    try:
        yield
    except UnicodeEncodeError as error:
        raise ConfigError(f"cannot write {path}: {error}") from error
    except (OSError, SafetensorError) as error:
        code = getattr(error, "errno", None)  # weights are written by a library that puts it into words alone
        if found := re.search(r"os error (\d+)", str(error)):
            code = int(found[1])
        why = os.strerror(code) if code else str(error)
        raise ConfigError(
            f"cannot write {path} ({why}); {_REMEDIES.get(code, 'check that you may write there')}"
        ) from error


def read_json(path: Path, remedy: str) -> Any:
    """The content of a JSON file of ours.

    Raises:
        ConfigError: the file cannot be read; the message ends with ``remedy``.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); {remedy}") from error
