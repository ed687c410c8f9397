"""Checkpoints of a training: its progress, which step is the best so far, and how a killed run resumes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import CHECKPOINT, sealed, unsealed, write_json, writing
from agentopcd.core.stats import Mean, Rate
from agentopcd.core.text import first_line


@dataclasses.dataclass(kw_only=True)
class Progress:
    """The state of a training besides its weights."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    best_step: int = 0
    """The step whose student did best on select tasks; 0: no trained student was evaluated yet."""
    best_id: str = ""
    """The model id of that student on disk."""
    skipped: int = 0
    """Steps without an update, because the gradient was not finite or there were no samples."""
    select: dict[int, Rate | Mean] = dataclasses.field(default_factory=dict)
    """Success rate on select tasks by step, or the mean of another score; step 0 is the student before training."""

    def better(self, step: int, *, lowest: bool = False) -> bool:
        """Whether the student of ``step`` beats the best trained one so far. In a tie the earlier one stays the best.

        The student before training does not compete.

        Args:
            lowest: whether smaller is better.
        """
        if self.best_step == 0:
            return True
        best, new = self.select[self.best_step], self.select[step]
        if not (best.n and new.n):  # one of which no game has ended: its 0 is no score
            return new.n > best.n
        if isinstance(best, Rate) and isinstance(new, Rate):
            return new.wins * best.n > best.wins * new.n  # the fractions compared in integers, so a tie is exact
        return new.rate < best.rate if lowest else new.rate > best.rate

    def waited(self) -> int:
        """The evaluations on select tasks since the best one."""
        return sum(step > self.best_step for step in self.select)

    def to_dict(self) -> dict[str, Any]:
        """The progress as JSON, for a checkpoint."""
        select = {
            str(step): [rate.wins, rate.n] if isinstance(rate, Rate) else [*dataclasses.astuple(rate)]
            for step, rate in self.select.items()
        }
        return dataclasses.asdict(self) | {"select": select}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The progress that :meth:`to_dict` wrote."""
        select = {int(step): (Rate if len(rate) == 2 else Mean)(*rate) for step, rate in state["select"].items()}
        known = {name: state[name] for name in ("step", "best_step", "skipped")}
        return cls(**known, best_id=state.get("best_id", ""), select=select)  # version 0.1 wrote no id


MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's two moments; each has the shape of its parameter."""


def save(
    folder: Path,
    trained: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    teacher: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint into a run's ``folder``: parameters, optimizer moments, torch RNG state, progress. No pickle.

    The last complete checkpoint survives a kill or a full disk at any moment, and the one before it is kept. If the
    parameters are sharded, every process calls this function and writes its part; any number of processes can read the
    checkpoint again.

    Args:
        trained: the trained parameters by name.
        state: the result of :meth:`Progress.to_dict`.
        teacher: the parameters of a moving teacher by name.

    Raises:
        ConfigError: the checkpoint cannot be written.
    """
    moments = {
        f"optimizer.{index}.{name}": value.detach()
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    tensors = {f"model.{name}": p.detach() for name, p in trained.items()} | moments
    tensors |= {f"teacher.{name}": p.detach() for name, p in (teacher or {}).items()}
    sharded, main = _place_in(trained)
    new, current, old = (folder / name for name in ("checkpoint.tmp", *CHECKPOINT))
    try:
        with writing(new):
            if main:
                for path in (new, old) if _is_whole(current) else (new,):  # before, so that two at most need room
                    shutil.rmtree(path, ignore_errors=True)
                new.mkdir()
            _write_tensors(tensors, new, sharded)
            if not main:
                return
            # state.json comes last: a folder that holds it is complete.
            write_json(new / "state.json", _sealed(state, new))
            if current.exists():
                shutil.rmtree(old, ignore_errors=True)
                current.rename(old)
            new.rename(current)
    except ConfigError:
        shutil.rmtree(new, ignore_errors=True)  # it fills the disk, and is of no use
        raise


def _write_tensors(tensors: Mapping[str, torch.Tensor], folder: Path, sharded: bool) -> None:
    if not sharded:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "tensors.safetensors")
        return
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_parts

    dist.barrier()  # the folder must exist before any process writes into it
    save_parts(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def _sealed(state: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The content of state.json: the progress, torch's RNG state, and hashes of all files and of this content."""
    content = dict(state) | {"rng": torch.get_rng_state().numpy().tobytes().hex()}
    content["files"] = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    return sealed(content)


def _unsealed(folder: Path) -> dict[str, Any]:
    """The content of state.json without the hashes.

    Raises:
        ValueError: a file of the checkpoint is not as it was written. Checkpoints of version 0.1 have no hashes.
    """
    content = unsealed(json.loads((folder / "state.json").read_text(encoding="utf-8")))
    for name, wanted in content.pop("files", {}).items():
        if _sha256(folder / name) != wanted:
            raise ValueError(f"{name} was changed")
    return content


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _is_whole(folder: Path) -> bool:
    return (folder / "state.json").is_file()


def load(
    folder: Path,
    trained: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    teacher: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any] | None:
    """Restore the last sound checkpoint of a run's ``folder`` in place and return its ``state``.

    Args:
        say: told which checkpoint was damaged, if one was.

    Returns:
        The state, or None if there is no checkpoint.

    Raises:
        ConfigError: there are checkpoints, and all of them are damaged.
    """
    found = [path for name in CHECKPOINT if (path := folder / name).exists()]
    damages = []
    for path in found:
        try:
            state = _restore(path, trained, optimizer, teacher)
        except torch.OutOfMemoryError:
            raise
        except UNREADABLE as error:
            damages.append(f"{path.name} is damaged ({first_line(error, type(error).__name__)})")
            continue
        if damages:
            say(f"warning: {damages[0]}, so the training goes on from {path.name}")
        return state
    if damages:
        raise ConfigError(
            f"no checkpoint in {folder} can be read: {'; '.join(damages)}; put a copy back, or remove "
            "these folders to train again from the start"
        )
    return None


UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError, SafetensorError)
"""What reading a damaged checkpoint may raise."""


def tidy(folder: Path, step: int) -> None:
    """Remove a damaged checkpoint once the one before it, of ``step``, was restored, and put that one in its place."""
    current, old = (folder / name for name in CHECKPOINT)
    if _step(old) == step != _step(current):
        if current.is_file():
            current.unlink()
        shutil.rmtree(current, ignore_errors=True)
        old.rename(current)


def _step(folder: Path) -> int | None:
    try:
        return json.loads((folder / "state.json").read_text(encoding="utf-8"))["step"]
    except UNREADABLE:
        return None


def _restore(
    last: Path, trained: Mapping[str, Any], optimizer: torch.optim.Optimizer, teacher: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Restore one checkpoint in place and return its ``state``."""
    state = _unsealed(last)
    tensors: dict[str, Any]
    if _place_in(trained)[0]:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load as load_parts

        # PyTorch reads a sharded checkpoint into tensors that exist already, so list those that it may hold ...
        reader = HuggingFaceStorageReader(str(last))
        tensors = {f"model.{name}": parameter.detach() for name, parameter in trained.items()}
        for index, parameter in enumerate(trained.values()):
            tensors |= {f"optimizer.{index}.{name}": torch.zeros_like(parameter) for name in MOMENTS}
            tensors[f"optimizer.{index}.step"] = torch.zeros(())
        # ... and keep those that it does hold: before the first update, the optimizer has no moments.
        written = reader.read_metadata().state_dict_metadata
        tensors = {name: tensor for name, tensor in tensors.items() if name in written}
        load_parts(tensors, storage_reader=reader)
    else:
        tensors = load_file(last / "tensors.safetensors")
    # What is left in ``tensors`` after these two loops belongs to the optimizer.
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
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(state.pop("rng"))), dtype=torch.uint8))
    return state


def _place_in(trained: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the parameters are sharded, and whether this process writes the files that all processes share."""
    sharded = any(isinstance(parameter, DTensor) for parameter in trained.values())
    return sharded, not sharded or dist.get_rank() == 0
