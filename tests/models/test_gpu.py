"""What a CUDA device gives: ``pytest -m gpu`` (in ``benchmarks/gpu.sh``)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from agentopcd import models
from agentopcd.core.types import Request, Sampling
from agentopcd.rollouts.sampling.continuous import Continuous
from agentopcd.rollouts.sampling.same_weights import GAP_NATS
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests.models import architectures

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
HOT = Sampling(temperature=1.0, max_tokens=16)
ASKED = [Request(prompt_ids=tuple(range(20, 20 + n)), seed=n) for n in (9, 60, 24, 100)]


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt_oss"])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_replies_are_those_of_the_model(name: str, compute: torch.dtype, rank: int, tmp_path: Path) -> None:
    loaded = models.load_model(str(architectures.build(tmp_path / "model", name)), device="cuda")
    if rank:
        models.add_adapter(loaded, rank, compute, seed=0)
        with torch.no_grad():  # a new adapter adds nothing
            for key, weight in loaded.model.named_parameters():
                if "lora_B" in key:
                    weight.normal_(std=0.1)
    replies = TransformersSampler(loaded, compute=compute).sample(ASKED, HOT)
    with torch.no_grad(), models.autocast(torch.device("cuda"), compute):
        for request, reply in zip(ASKED, replies, strict=True):
            own = models.own_logits(loaded.model, request.prompt_ids, reply.token_ids).log_softmax(-1).cpu()
            chosen = own.gather(1, torch.tensor(reply.token_ids)[:, None])[:, 0]
            assert float((chosen - torch.tensor(reply.logprobs)).abs().mean()) < GAP_NATS[compute]


def test_the_cpu_and_the_gpu_draw_the_same_tokens(tmp_path: Path) -> None:
    folder = str(architectures.build(tmp_path / "model", "llama"))
    both = [
        TransformersSampler(models.load_model(folder, device=device), compute=torch.float32).sample(ASKED, HOT)
        for device in ("cpu", "cuda")
    ]
    assert [reply.token_ids for reply in both[0]] == [reply.token_ids for reply in both[1]]


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_steps_of_one_token_are_recorded(compute: torch.dtype, tmp_path: Path) -> None:
    loaded = models.load_model(str(architectures.build(tmp_path / "model", "qwen3")), device="cuda")
    engine = Continuous(loaded, compute, rows=4)
    asked = [Request(prompt_ids=tuple(range(20, 20 + n)), seed=n) for n in range(9, 20)]
    replies = engine.sample(asked, dataclasses.replace(HOT, max_tokens=40))
    assert engine._rows.recorded is not None and 4 in engine._rows.recorded._known
    with torch.no_grad(), models.autocast(torch.device("cuda"), compute):
        for request, reply in zip(asked, replies, strict=True):
            own = models.own_logits(loaded.model, request.prompt_ids, reply.token_ids).log_softmax(-1).cpu()
            chosen = own.gather(1, torch.tensor(reply.token_ids)[:, None])[:, 0]
            assert float((chosen - torch.tensor(reply.logprobs)).abs().mean()) < GAP_NATS[compute]
