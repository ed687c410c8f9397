"""When vLLM sleeps and wakes, on a stand-in: only its build for GPUs can, and that was not run yet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agentopcd import models
from agentopcd.core.types import Request, Sampling
from agentopcd.rollouts.sampling import vllm_engine
from tests import tiny


class Recorder:
    """An ``LLM`` that writes down what is asked of it."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.llm_engine = self

    def sleep(self, level: int) -> None:
        self.heard.append(f"sleep {level}")

    def wake_up(self) -> None:
        self.heard.append("wake up")

    def add_request(self, name: str, *args: object, **kwargs: object) -> None:
        self.heard.append("request")


@pytest.mark.parametrize("rank", [0, 4])
def test_it_sleeps_while_the_trainer_works_and_wakes_for_new_weights(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = models.load_model(str(tiny.build(tmp_path / "model")))
    if rank:
        models.add_adapter(loaded, rank, torch.float32, seed=0)
    monkeypatch.setattr(vllm_engine, "installed", lambda: True)
    monkeypatch.setattr(vllm_engine.VllmSampler, "_sleeps", True)
    llm = Recorder()
    monkeypatch.setattr(vllm_engine.VllmSampler, "_take_over", lambda self: llm.heard.append("weights") or 0.0)
    monkeypatch.setattr(vllm_engine.VllmSampler, "_ask", lambda self, *args: self._llm.add_request(*args))
    sampler = vllm_engine.VllmSampler(loaded, compute=torch.float32)
    sampler.rest()  # not started: nothing to give back
    sampler._llm = llm
    sampler.rest()
    assert sampler.update() == 0.0
    sampler.rest()
    for _ in range(2):  # the step was skipped, so no update came
        sampler.submit(Request(prompt_ids=(5,), seed=0), Sampling(max_tokens=1))
    level = 1 if rank else 2
    assert llm.heard == [
        f"sleep {level}", "wake up", "weights", f"sleep {level}", "wake up", "weights", "request", "request"
    ]  # fmt: skip
