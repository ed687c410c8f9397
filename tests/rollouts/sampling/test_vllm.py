"""vLLM for real, beside transformers: ``make test-vllm``. The contract they share is in ``test_sampling.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import AlignmentError, ConfigError
from agentopcd.core.types import Request, Sampling
from agentopcd.rollouts.sampling import vllm_engine
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from agentopcd.rollouts.sampling.vllm_engine import VllmSampler, sampler_of
from tests import tiny

pytestmark = pytest.mark.vllm
COLD = Sampling(temperature=0.0, max_tokens=24)
TEXTS = ("Say hello.", "What is 3 + 4?", "Name a colour and an animal.", "Repeat: up, down, left.")


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    yield
    if VllmSampler.alive is not None:
        VllmSampler.alive.close()


def asked(loaded: models.LoadedModel, n: int = len(TEXTS)) -> list[Request]:
    prompts = [
        loaded.tokenizer.apply_chat_template(
            [{"role": "user", "content": TEXTS[i % len(TEXTS)]}], add_generation_prompt=True, return_dict=False
        )
        for i in range(n)
    ]
    return [Request(prompt_ids=tuple(ids), seed=i) for i, ids in enumerate(prompts)]


def own_logprobs(loaded: models.LoadedModel, request: Request, reply: Any, compute: torch.dtype) -> torch.Tensor:
    ids = torch.tensor([[*request.prompt_ids, *reply.token_ids]])
    with torch.no_grad(), models.autocast(torch.device("cpu"), compute):
        logits = loaded.model(ids).logits[0, len(request.prompt_ids) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, ids[0, len(request.prompt_ids) :, None])[:, 0]


@pytest.mark.parametrize("name", ["pocket", "smollm2-135m"])
def test_in_float32_the_same_tokens_and_log_probabilities(name: str) -> None:
    loaded = models.load_model(name)
    usual = TransformersSampler(loaded, compute=torch.float32).sample(asked(loaded), COLD)
    fast = VllmSampler(loaded, compute=torch.float32).sample(asked(loaded), COLD)
    assert [(r.token_ids, r.finish_reason) for r in fast] == [(r.token_ids, r.finish_reason) for r in usual]
    for one, other in zip(fast, usual, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


@pytest.mark.timeout(900)  # on a CPU without bfloat16 instructions, or beside other work
def test_in_bfloat16_log_probabilities_are_near_the_models() -> None:
    loaded = models.load_model("smollm2-135m")
    requests = asked(loaded, 24)
    replies = VllmSampler(loaded, compute=torch.bfloat16).sample(requests, Sampling(temperature=1.0, max_tokens=24))
    gaps = torch.cat(
        [
            (own_logprobs(loaded, request, reply, torch.bfloat16) - torch.tensor(reply.logprobs)).abs()
            for request, reply in zip(requests, replies, strict=True)
        ]
    )
    assert gaps.mean() <= 0.1
    assert gaps.quantile(0.99) <= 0.4


@pytest.mark.parametrize("tie", [True, False])
def test_an_update_reaches_every_weight(tie: bool, tmp_path: Path) -> None:
    loaded = models.load_model(str(tiny.build(tmp_path / "model", tie=tie, hearing=4.0, head_dim=32)))
    sampler = VllmSampler(loaded, compute=torch.float32)
    before = sampler.sample(asked(loaded), COLD)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    drift = sampler.update()
    assert drift is not None and drift < 1e-4
    after = sampler.sample(asked(loaded), COLD)
    assert [r.token_ids for r in after] != [r.token_ids for r in before]
    usual = TransformersSampler(loaded, compute=torch.float32).sample(asked(loaded), COLD)
    assert [r.token_ids for r in after] == [r.token_ids for r in usual]


@pytest.mark.parametrize(
    ("tie", "left_out", "label"),
    [
        (True, "lm_head", "output head"),
        (True, ".layers.", "layers"),
        (False, "lm_head", "output head"),
        (False, "embed_tokens", "embeddings"),  # tied, they come with the head
        (False, ".layers.", "layers"),
    ],
)
def test_what_an_update_leaves_out_stops_the_run_and_is_named(
    tie: bool, left_out: str, label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = models.load_model(str(tiny.build(tmp_path / "model", tie=tie, hearing=4.0, head_dim=32)))
    every = vllm_engine.named_weights
    monkeypatch.setattr(
        vllm_engine, "named_weights", lambda of: {n: p for n, p in every(of).items() if left_out not in n}
    )
    with pytest.raises(AlignmentError, match=f"'{label}' had not been updated"):
        VllmSampler(loaded, compute=torch.float32).sample(asked(loaded), COLD)


def test_an_adapter_plays_as_it_trains(tmp_path: Path) -> None:
    loaded = models.load_model(str(tiny.build(tmp_path / "model", tie=False, hearing=4.0, head_dim=32)))
    base = sampler_of(loaded, compute=torch.float32)
    plain = base.sample(asked(loaded), COLD)
    models.add_adapter(loaded, 4, torch.float32, seed=0)
    sampler = sampler_of(loaded, compute=torch.float32)
    assert sampler is not base
    assert [r.token_ids for r in sampler.sample(asked(loaded), COLD)] == [r.token_ids for r in plain]
    for scale in (0.2, 0.4):
        with torch.no_grad():
            for name, parameter in loaded.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=scale)
        drift = sampler.update()
        assert drift is not None and drift < 1e-4
        usual = TransformersSampler(loaded, compute=torch.float32).sample(asked(loaded), COLD)
        replies = [r.token_ids for r in sampler.sample(asked(loaded), COLD)]
        assert replies == [r.token_ids for r in usual] != [r.token_ids for r in plain]


def test_settings_that_vllm_refuses_are_one_line() -> None:
    loaded = models.load_model("pocket")
    with pytest.raises(ConfigError, match="vLLM refuses these settings: temperature must be in"):
        VllmSampler(loaded, compute=torch.float32).sample(asked(loaded), Sampling(temperature=3.0, max_tokens=2))


def test_tickets_come_back_with_their_replies_and_dropped_ones_do_not() -> None:
    loaded = models.load_model("pocket")
    sampler = VllmSampler(loaded, compute=torch.float32)
    requests = asked(loaded)
    alone = sampler.sample(requests, COLD)
    tickets = [sampler.submit(request, COLD) for request in requests]
    sampler.drop(tickets[:1])
    found: dict[int, Any] = {}
    while len(found) < len(requests) - 1:
        found |= dict(sampler.collect())
    assert {t: r.token_ids for t, r in found.items()} == {
        t: r.token_ids for t, r in zip(tickets[1:], alone[1:], strict=True)
    }


def test_tokens_are_heard_as_they_are_sampled() -> None:
    loaded = models.load_model("pocket")
    sampler = VllmSampler(loaded, compute=torch.float32)
    alone = sampler.sample(asked(loaded), COLD)
    heard: dict[int, list[int]] = {}
    sampler.heard = lambda ticket, ids, logprobs: heard.setdefault(ticket, []).extend(ids)
    tickets = [sampler.submit(request, COLD) for request in asked(loaded)]
    found: dict[int, Any] = {}
    pieces = 0
    while len(found) < len(tickets):
        found |= dict(sampler.advance())
        pieces += bool(heard)
    sampler.heard = None
    assert [heard[ticket] for ticket in tickets] == [list(reply.token_ids) for reply in alone] and pieces > 1


def test_a_round_of_learning_and_no_process_left_behind(tmp_path: Path) -> None:
    words = """learn --env frozen-lake-4x4 --model pocket --engine vllm --episodes-per-round 4 --chains 1
        --chain-steps 2 --candidates 2 --select-tasks 4 --confirm-tasks 4 --steps 2 --select-every 2 --batch-size 4
        --test-tasks 4 --force --json"""
    here = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "agentopcd", *words.split(), "--work", str(tmp_path)],
        capture_output=True, text=True, cwd=here, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "engine: vllm (as given)" in done.stderr
    (told,) = json.loads(done.stdout)
    (log,) = tmp_path.glob("runs/consolidate-*/metrics.jsonl")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    drifts = [r["engine/drift_nats"] for r in records if r["step"]]
    assert len(drifts) == 2 and all(0 <= drift < 0.25 for drift in drifts)
    assert told["distilled"]["folder"]
    assert str(tmp_path) not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
