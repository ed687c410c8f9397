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

from agentopcd.errors import ConfigError

CHECKPOINTS = "checkpoints"
"""Folder of a run with the model of every evaluation, named by step, where they are kept."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, shaped as their parameter."""


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

    def save(
        self, trained: Mapping[str, Any], optimizer: Any, state: Mapping[str, Any],
        teacher: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Write a checkpoint to resume from: trained parameters, optimizer moments, torch RNG, position. No pickle.

        The last complete checkpoint survives a kill at any moment. Where parameters are sharded, every process calls
        this and writes its part; it is read again by another number of them.

        Args:
            teacher: parameters of a teacher that moves.
        """
        import torch
        from safetensors.torch import save_file

        moments = {
            f"optimizer.{index}.{name}": value.detach()
            for index, entry in optimizer.state_dict()["state"].items()
            for name, value in entry.items()
        }
        tensors = {f"model.{name}": p.detach() for name, p in trained.items()} | moments
        tensors |= {f"teacher.{name}": p.detach() for name, p in (teacher or {}).items()}
        sharded, main = _place_in(trained)
        new, now, old = (self.folder / name for name in ("checkpoint.tmp", "checkpoint", "checkpoint.old"))
        if main:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
        if sharded:
            from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
            from torch.distributed.checkpoint.state_dict_saver import save

            torch.distributed.barrier()
            save(tensors, storage_writer=HuggingFaceStorageWriter(str(new), save_distributed=True))
        else:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new / "tensors.safetensors")
        if not main:
            return
        write_json(new / "state.json", dict(state) | {"rng": torch.get_rng_state().numpy().tobytes().hex()})
        if now.exists():
            shutil.rmtree(old, ignore_errors=True)
            now.rename(old)
        new.rename(now)
        shutil.rmtree(old, ignore_errors=True)

    def load(
        self, trained: Mapping[str, Any], optimizer: Any, teacher: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Restore the last checkpoint in place and return its ``state``, or None if there is none."""
        import torch
        from safetensors.torch import load_file

        found = [self.folder / name for name in ("checkpoint", "checkpoint.old")]
        folder = next((path for path in found if (path / "state.json").is_file()), None)
        if folder is None:
            return None
        tensors: dict[str, Any]
        if _place_in(trained)[0]:
            from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
            from torch.distributed.checkpoint.state_dict_loader import load

            reader = HuggingFaceStorageReader(str(folder))
            tensors = {f"model.{name}": parameter.detach() for name, parameter in trained.items()}
            for index, parameter in enumerate(trained.values()):
                tensors |= {f"optimizer.{index}.{name}": torch.zeros_like(parameter) for name in MOMENTS}
                tensors[f"optimizer.{index}.step"] = torch.zeros(())
            written = reader.read_metadata().state_dict_metadata
            tensors = {name: tensor for name, tensor in tensors.items() if name in written}
            load(tensors, storage_reader=reader)
        else:
            tensors = load_file(folder / "tensors.safetensors")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(tensors.pop(f"model.{name}"))
            for name, parameter in (teacher or {}).items():
                parameter.copy_(tensors.pop(f"teacher.{name}"))
        entries: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            _, index, name = key.split(".")
            entries.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
        state = json.loads((folder / "state.json").read_text())
        torch.set_rng_state(torch.tensor(list(bytes.fromhex(state.pop("rng"))), dtype=torch.uint8))
        return state


def _place_in(trained: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the parameters are sharded, and whether this process is the one that writes what is not."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    sharded = any(isinstance(parameter, DTensor) for parameter in trained.values())
    return sharded, not sharded or dist.get_rank() == 0


def json_text(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_text(path, json_text(value))


def write_text(path: Path, text: str) -> None:
    """Replace a file at once, so that a kill leaves the old or the new one."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text)
    scratch.replace(path)


def console_line(record: Mapping[str, Any], steps: int, eta_s: float) -> str:
    """One line per step for people; ``record`` is the step's line of metrics.jsonl."""
    step, norm = record["step"], record["train/grad_norm"]
    won = f"success {record['rollout/success']:.2f} " if "rollout/success" in record else ""
    return (
        f"step {step:03d}/{steps:03d} | {record['loss/name']} {record['loss/value_nats']:.4f} nats/tok"
        f" | response {record['rollout/response_tokens_mean']:.0f} tok"
        f" | {won}({record['rollout/episodes']} ep)"
        f" | grad {'not finite' if norm is None else f'{norm:.2f}'} | {record['time/step_s']:.1f} s"
        f" (roll {record['time/rollout_s']:.1f} score {record['time/teacher_s']:.1f}"
        f" train {record['time/update_s']:.1f}) | eta {eta_s / 60:.1f} min"
    )
