"""Checkpoints of a training: its progress, which step is the best so far, and how a killed run resumes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from agentopcd.core.runs import write_json
from agentopcd.core.stats import Rate


@dataclasses.dataclass(kw_only=True)
class Progress:
    """The state of a training besides its weights."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    best_step: int = 0
    """The step whose student did best on select tasks; 0: no trained student was evaluated yet."""
    skipped: int = 0
    """Steps without an update, because the gradient was not finite or there were no samples."""
    select: dict[int, Rate] = dataclasses.field(default_factory=dict)
    """Success rate on select tasks by step; step 0 is the student before training."""

    def better(self, step: int) -> bool:
        """Whether the student of ``step`` beats the best trained one so far. In a tie the earlier one stays the best.

        The student before training does not compete.
        """
        if self.best_step == 0:
            return True
        best, new = self.select[self.best_step], self.select[step]
        return new.wins * best.n > best.wins * new.n  # the fractions compared in integers, so a tie is exact

    def to_dict(self) -> dict[str, Any]:
        """The progress as JSON, for a checkpoint."""
        select = {str(step): [rate.wins, rate.n] for step, rate in self.select.items()}
        return dataclasses.asdict(self) | {"select": select}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The progress that :meth:`to_dict` wrote."""
        select = {int(step): Rate(*rate) for step, rate in state["select"].items()}
        return cls(step=state["step"], best_step=state["best_step"], skipped=state["skipped"], select=select)


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

    The last complete checkpoint survives a kill at any moment. If the parameters are sharded, every process calls this
    function and writes its part; any number of processes can read the checkpoint again.

    Args:
        trained: the trained parameters by name.
        state: the result of :meth:`Progress.to_dict`.
        teacher: the parameters of a moving teacher by name.
    """
    moments = {
        f"optimizer.{index}.{name}": value.detach()
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    tensors = {f"model.{name}": p.detach() for name, p in trained.items()} | moments
    tensors |= {f"teacher.{name}": p.detach() for name, p in (teacher or {}).items()}
    sharded, main = _place_in(trained)
    new, current, old = (folder / name for name in ("checkpoint.tmp", "checkpoint", "checkpoint.old"))
    if main:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
    if sharded:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save as save_parts

        dist.barrier()  # the folder must exist before any process writes into it
        save_parts(tensors, storage_writer=HuggingFaceStorageWriter(str(new), save_distributed=True))
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new / "tensors.safetensors")
    if not main:
        return
    # state.json comes last: a folder that holds it is complete. The old checkpoint goes only once the new one is there.
    write_json(new / "state.json", dict(state) | {"rng": torch.get_rng_state().numpy().tobytes().hex()})
    if current.exists():
        shutil.rmtree(old, ignore_errors=True)
        current.rename(old)
    new.rename(current)
    shutil.rmtree(old, ignore_errors=True)


def load(
    folder: Path,
    trained: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    teacher: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Restore the last checkpoint of a run's ``folder`` in place and return its ``state``, or None if there is none."""
    # A kill between the two renames of ``save`` leaves ``checkpoint.old`` alone.
    saved = [folder / name for name in ("checkpoint", "checkpoint.old")]
    last = next((path for path in saved if (path / "state.json").is_file()), None)
    if last is None:
        return None
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
    state = json.loads((last / "state.json").read_text())
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(state.pop("rng"))), dtype=torch.uint8))
    return state


def _place_in(trained: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the parameters are sharded, and whether this process writes the files that all processes share."""
    sharded = any(isinstance(parameter, DTensor) for parameter in trained.values())
    return sharded, not sharded or dist.get_rank() == 0
