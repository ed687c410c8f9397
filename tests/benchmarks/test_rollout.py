"""The benchmark of play: what it counts as CPU time, and which engine its arms are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agentopcd import models
from agentopcd.core.types import Request, Sampling
from agentopcd.rollouts.sampling.rows import Rows
from benchmarks import rollout

BUSY = "import time\nwhile time.process_time() < 0.5: pass"


def test_the_cpu_time_of_processes_that_play_counts() -> None:
    def do() -> int:
        return subprocess.run([sys.executable, "-c", BUSY], check=True).returncode + 7

    tokens, spent = rollout.timed(do)
    assert tokens == 7 and spent >= 0.5


def test_the_padded_arm_is_not_our_engine(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("rows were made")

    monkeypatch.setattr(Rows, "__init__", refuse)
    padded = rollout.Padded(models.load_model(str(tiny_model_dir)), compute=torch.float32)
    replies = padded.sample(
        [Request(prompt_ids=(5, 6), seed=1), Request(prompt_ids=(7,), seed=2)], Sampling(max_tokens=3)
    )
    assert all(1 <= len(reply.token_ids) <= 3 for reply in replies)


def test_the_output_head_counts_only_where_a_token_is_asked_for(tiny_model_dir: Path) -> None:
    model = models.load_model(str(tiny_model_dir)).model
    head = model.get_output_embeddings().weight.numel()
    assert rollout.products_flop(model, 0, 3) == 6 * head
    assert rollout.products_flop(model, 5, 0) < 10 * sum(p.numel() for p in model.parameters()) - 10 * head + 1
