"""The ways to sample: the first that gives the model's own log-probabilities, and a line if it is not the fast one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import AlignmentError
from agentopcd.core.types import Request, Sampling
from agentopcd.rollouts.sampling import decoding, lean, rows
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests.models import architectures

HOW = Sampling(temperature=0.7, max_tokens=10)
ASKED = [Request(prompt_ids=tuple(range(40, 40 + n)), seed=n) for n in (9, 60, 24)]


def load(name: str, folder: Path) -> models.LoadedModel:
    return models.load_model(str(architectures.build(folder / "model", name)))


def sampler_of(
    loaded: models.LoadedModel, lines: list[str], *, compute: torch.dtype = torch.float32, batch_size: int = 32
) -> TransformersSampler:
    return TransformersSampler(loaded, compute=compute, batch_size=batch_size, say=lines.append)


@torch.no_grad()
def off_nats(loaded: models.LoadedModel, replies: Any) -> float:
    gaps = []
    for request, reply in zip(ASKED, replies, strict=True):
        ids = torch.tensor([[*request.prompt_ids, *reply.token_ids]])
        rows = loaded.model(input_ids=ids).logits[0, len(request.prompt_ids) - 1 : -1] / HOW.temperature
        own = rows.log_softmax(-1).gather(1, torch.tensor(reply.token_ids)[:, None])[:, 0]
        gaps.append((own - torch.tensor(reply.logprobs)).abs().max())
    return float(max(gaps))


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("llama", "fast"),
        ("mpt", "padded"),
        ("gpt2", "fast"),
        ("gemma2", "fast"),
        ("mamba", "padded"),
        ("rwkv", "alone"),
    ],
)
def test_replies_have_the_log_probabilities_of_the_models_own_forward_pass(name: str, way: str, tmp_path: Path) -> None:
    loaded, lines = load(name, tmp_path), []
    replies = sampler_of(loaded, lines).sample(ASKED, HOW)
    assert off_nats(loaded, replies) < 1e-3
    assert models.shortcuts_of(loaded.model).decoding == way
    assert [f"the slower way, {way}" in line for line in lines] == [True] * (way != "fast")
    one = sampler_of(loaded, lines, batch_size=1).sample(ASKED[:1], HOW)[0]
    assert one.token_ids == replies[0].token_ids  # a reply does not depend on its neighbours


def wrong_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = rows._few_tokens
    monkeypatch.setattr(rows, "_few_tokens", lambda query, *rest: usual(query * 0.5, *rest))


def wrong_products(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = decoding._Joined.all
    monkeypatch.setattr(decoding._Joined, "all", lambda self, x: [out * 1.05 for out in usual(self, x)])


def wrong_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = rows.Rows.put

    def short(self: rows.Rows, row: int, column: int, read: Any, start: int, end: int) -> None:
        usual(self, row, column, read, start, end - 1)

    monkeypatch.setattr(rows.Rows, "put", short)


def wrong_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = lean._norm
    monkeypatch.setattr(lean, "_norm", lambda norm, x: usual(norm, x) * 0.97)


@pytest.mark.parametrize("fault", [wrong_attention, wrong_products, wrong_rows, wrong_pass])
def test_a_fast_way_that_is_off_gives_way_to_the_usual_one(
    fault: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, lines = load("llama", tmp_path), []
    fault(monkeypatch)
    replies = sampler_of(loaded, lines).sample(ASKED, HOW)
    assert models.shortcuts_of(loaded.model).decoding in ("padded", "alone")
    assert len(lines) == 1 and "fast decoding" in lines[0]
    if fault is not wrong_products:
        assert models.shortcuts_of(loaded.model).decoding == "padded"
    assert off_nats(loaded, replies) < 1e-3


def test_an_adapter_that_decoding_leaves_out_is_seen_before_it_has_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not decoding.can_pack(torch.float32):
        pytest.skip("this build of torch packs no weights")
    loaded, lines = load("llama", tmp_path), []
    sampler_of(loaded, lines).sample(ASKED, HOW)
    models.add_adapter(loaded, 4, torch.float32, seed=0)
    monkeypatch.setattr(decoding, "_with_adapter", lambda layer, dtype, forward: forward)
    sampler_of(loaded, lines).sample(ASKED, HOW)
    assert models.shortcuts_of(loaded.model).decoding in ("padded", "alone")  # the machine decides
    assert 1 <= len(lines) <= 2
    fresh = [p for name, p in loaded.model.named_parameters() if "lora_B" in name]
    assert fresh and not any(p.any() for p in fresh)  # the noise of the comparison is gone


def test_a_model_whose_own_decoding_is_off_is_refused(tmp_path: Path) -> None:
    """A model that sees the tokens after a position gives another probability to a reply than it sampled it with."""
    loaded, lines = load("bert, no decoder", tmp_path), []
    with pytest.raises(AlignmentError, match=r"cannot be sampled here: alone decoding is off by .* nats") as refused:
        sampler_of(loaded, lines).sample(ASKED, HOW)
    assert "\n" not in str(refused.value)


def test_a_model_is_compared_once_for_each_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, tried = load("llama", tmp_path), []
    usual = TransformersSampler._fault

    def spy(self: Any, way: str, *rest: Any) -> str:
        tried.append(way)
        return usual(self, way, *rest)

    monkeypatch.setattr(TransformersSampler, "_fault", spy)
    for _ in range(3):
        sampler_of(loaded, []).sample(ASKED, HOW)
    assert tried == ["fast"]
    sampler_of(loaded, [], compute=torch.bfloat16).sample(ASKED, HOW)
    assert tried == ["fast", "fast"]
