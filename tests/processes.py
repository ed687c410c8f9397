"""Commands in processes of their own, one or several, and what two trainings have in common."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny

TWO = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")
THREE = ("-m", "torch.distributed.run", "--nproc_per_node", "3", "--standalone")
STOPPED = """
import sys
from agentopcd import consolidate
from agentopcd.cli import main
line = consolidate.console_line
def dies(record, *rest):
    if record["step"] == 3:
        raise KeyboardInterrupt
    return line(record, *rest)
consolidate.console_line = dies
sys.argv = ["agentopcd", *sys.argv[1:]]
main()
"""
SHARDED = """
import torch
from torch.distributed.tensor import DTensor, Shard
from agentopcd.distillation import learner, prefix
prefix.ROW_TOKENS = 8  # so that batches of different sizes take the teacher different numbers of passes
prefix.COPIED_BYTES = 1  # in either form of a shared prefix
check = learner.check_float32
def all_sharded(trained):
    check(trained)
    for name, p in trained.items():
        assert isinstance(p, DTensor) and p.placements == (Shard(0),) and p.device_mesh.size() > 1, name
    print("sharded:", len(trained), flush=True)
learner.check_float32 = all_sharded
"""
NO_WHOLE = """
import gc, sys
import torch
from torch.distributed.tensor import DTensor
from agentopcd import consolidate
from agentopcd.cli import main
line = consolidate.console_line
def looks(record, *rest):
    gc.collect()
    # What FSDP gathers is an ordinary parameter, too, with an empty storage while it is not gathered.
    plain = [p for p in gc.get_objects() if isinstance(p, torch.nn.Parameter) and not isinstance(p, DTensor)]
    inner = [p for p in plain if tuple(p.shape) == (64, 32) and p.untyped_storage().nbytes()]  # of each layer's MLP
    assert plain and not inner, f"{len(inner)} whole layers in this process"
    print("no whole layer", flush=True)
    return line(record, *rest)
consolidate.console_line = looks
sys.argv = ["agentopcd", *sys.argv[1:]]
main()
"""
"""Fails if a process holds a whole student of tests/tiny.py at the end of a step."""


def uneven(folder: Path) -> list[str]:
    """A consolidation whose batches do not divide evenly between two processes, as words of a command."""
    model = tiny.build(folder / "model", tie=False, hearing=4.0)
    settings = json.loads((model / "generation_config.json").read_text())
    settings["eos_token_id"] = [tiny.END, *range(20, 50)]  # so that replies have all lengths
    (model / "generation_config.json").write_text(json.dumps(settings))
    context = folder / "context.txt"
    context.write_text("- EXPERIENCE ITEM: always go left\n" * 4)
    words = f"""consolidate --env math --model {model} --context {context} --steps 4 --batch-size 5 --max-tokens 12
        --learning-rate 1e-3 --select-every 2 --save-every 2 --select-tasks 3 --test-tasks 0 --temperature 1
        --compute float32 --tokens-per-batch 450"""
    return words.split()


def run(*words: Any, rc: int = 0) -> str:
    here, environment = Path(__file__).parents[1], os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=environment, cwd=here)
    assert done.returncode == rc, done.stdout + done.stderr
    return done.stdout + done.stderr


def trained(work: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    from safetensors.torch import load_file

    (folder,) = (work / "runs").iterdir()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return records, load_file(folder / "student" / "model.safetensors")


def same(one: Path, other: Path) -> None:
    """Up to rounding, which Adam keeps within a small part of its step of 1e-3."""
    (records, weights), (again, found) = trained(one), trained(other)
    assert [r["step"] for r in records] == [r["step"] for r in again] == [0, 1, 2, 3, 4]
    for a, b in zip(records, again, strict=True):
        # Which tokens are every fourth one depends on their order.
        compared = [n for n in a if not n.startswith("time/") and n != "loss/kl_full_sampled_nats"]
        for name in compared:
            rounded = pytest.approx(a[name], rel=1e-3, abs=1e-5) if isinstance(a[name], float) else a[name]
            assert b[name] == rounded, name
    for name, tensor in weights.items():
        assert (tensor - found[name]).abs().max() < 1e-4, name
