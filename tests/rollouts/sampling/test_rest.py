"""When vLLM sleeps and wakes, and how weights reach it in another process, on a stand-in.

Only its build for GPUs can sleep, and that was not run yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

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

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        if "weights_path" in kwargs:
            self.given = load_file(Path(kwargs["weights_path"]) / "model.safetensors")
        else:
            self.given = dict(kwargs["weights_iterator"])
        self.heard.append(" ".join((method, *kwargs)))

    def reset_prefix_cache(self) -> bool:
        return True


class Probabilities(list[dict[int, Any]]):
    """The log-probabilities of a reply, which count how many of them are read."""

    read = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.read += len(found) if isinstance(key, slice) else 1
        return found

    def __iter__(self) -> Iterator[dict[int, Any]]:
        self.read += len(self)
        return super().__iter__()


def test_what_is_heard_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "installed", lambda: True)
    loaded = models.load_model(str(tiny.build(tmp_path / "model")))
    sampler = vllm_engine.VllmSampler(loaded, compute=torch.float32)
    said = SimpleNamespace(token_ids=[], logprobs=Probabilities())
    output = SimpleNamespace(request_id="0", finished=False, outputs=[said])
    sampler._llm = SimpleNamespace(llm_engine=SimpleNamespace(step=lambda: [output]))
    heard: list[tuple[int, float]] = []
    sampler.heard = lambda ticket, ids, logprobs: heard.extend(zip(ids, logprobs, strict=True))
    for token in range(20):
        said.token_ids.append(token)
        said.logprobs.append({token: SimpleNamespace(logprob=-token / 4)})
        assert sampler._step() is None and said.logprobs.read == len(heard) == token + 1
    output.finished = True
    ((_, reply),) = sampler.advance()
    assert heard == list(zip(reply.token_ids, reply.logprobs, strict=True)) and len(heard) == 20
    assert reply.finish_reason == "length" and sampler._told == {}


@pytest.mark.parametrize(("processes", "way"), [("1", "weights_iterator"), ("2", "weights_path")])
def test_an_engine_beside_one_of_several_processes_reads_the_weights_from_a_file(
    processes: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setattr(vllm_engine, "installed", lambda: True)
    monkeypatch.setattr(vllm_engine.VllmSampler, "_gap", lambda self: 0.0)
    loaded = models.load_model(str(tiny.build(tmp_path / "model", tie=True)))
    sampler = vllm_engine.VllmSampler(loaded, compute=torch.float32)
    sampler._llm = llm = Recorder()
    assert sampler.update() == 0.0
    assert llm.heard == [f"reload_weights {way}"]
    head, inputs = llm.given.pop("lm_head.weight"), llm.given["model.embed_tokens.weight"]
    assert torch.equal(head, inputs) and llm.given.keys() == dict(loaded.model.named_parameters()).keys()


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
