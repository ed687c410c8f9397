"""The benchmark of a consolidation step: what its arms do, and what it prints and refuses."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.distillation import positions
from benchmarks import consolidate, rollout, step_profile


def refuse(*args: object) -> None:
    raise AssertionError("it was called")


def step_of(folder: Path, arm: str, compute: str = "float32") -> consolidate.Step:
    return consolidate.Step(argparse.Namespace(
        model=str(folder), arm=arm, context=48, batch=2, reply=3, threads=1, compute=compute, tokens_per_batch=1 << 20,
    ))  # fmt: skip


def test_the_plain_arm_reads_every_prompt_whole(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "_who_sees_whom", refuse)
    step = step_of(tiny_model_dir, "plain")
    assert step.run().keys() == set(consolidate.PHASES)
    models.forget_shortcuts(step.teacher.model)
    with pytest.raises(AssertionError, match="called"):  # its prompts begin alike
        step.run()


def test_the_head_is_counted_at_the_rate_of_float32(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(rollout, "rate", lambda compute: {torch.float32: 1.0, torch.bfloat16: 4.0}[compute])
    step = step_of(tiny_model_dir, "plain", "bfloat16")
    samples = step.rollout()
    body, head = rollout.products_flop(step.student.model, consolidate.reads_of(step, samples)[0], 6)
    assert consolidate.limits_s(step, samples)["rollout"] == body / 4 + head


def timed(**more: Any) -> dict[str, Any]:
    phases = {phase: [1.0, 1.0] for phase in consolidate.PHASES}
    return {"first": phases, "steps": [phases], "peak_mib": 1000.0, "teacher_tokens": 9, **more}


def test_what_trl_needs_is_taken_from_an_arm_that_trains_all_weights(capsys: pytest.CaptureFixture[str]) -> None:
    def extra(**arms: float) -> str:
        found = {arm: [timed(needed_mib=needed)] for arm, needed in arms.items()}
        consolidate.report(9, {**found, "trl": [timed()]})
        (line,) = (line for line in capsys.readouterr().out.splitlines() if "  trl  " in line)
        return line.split("1000", 1)[1].strip()

    assert extra(lora=100, ours=600) == "400"
    assert extra(lora=100) == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--trl", "/nope"], "--trl /nope: no such program"), (["--parity"], "give --trl")],
)
def test_bad_input_is_refused_before_anything_is_measured(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["consolidate", *words])
    monkeypatch.setattr(consolidate, "measured", refuse)
    monkeypatch.setattr(consolidate, "parity", refuse)
    with pytest.raises(SystemExit):
        consolidate.main()
    assert said in capsys.readouterr().err


def test_a_failure_of_trl_ends_the_comparison(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--parity", "--trl", sys.executable, "--model", str(tiny_model_dir), "--contexts", "48", "--batch", "2"]
    monkeypatch.setattr(sys, "argv", ["consolidate", *words, "--reply", "3", "--compute", "float32"])
    monkeypatch.setattr(consolidate, "call", lambda *args: {"failed": "no TRL (exit 1)"})
    with pytest.raises(SystemExit, match="no TRL"):
        consolidate.main()


def test_the_profile_of_a_step_refuses_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(step_profile, "Step", refuse)
    monkeypatch.setattr(sys, "argv", ["step_profile"])
    with pytest.raises(SystemExit):
        step_profile.main()
    assert "it profiles a CPU" in capsys.readouterr().err
