"""Cheaper decoding changes nothing: it follows the weights, leaves the model as it was, and knows what it cannot do.

That replies are those of a plain forward pass is in ``test_sampling.py``, which goes through the same code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from agentopcd import models
from agentopcd.core.types import Request, Sampling
from agentopcd.rollouts.sampling import decoding
from agentopcd.rollouts.sampling.continuous import Continuous
from agentopcd.rollouts.sampling.rows import NAME
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests import tiny

ASKED = [Request(prompt_ids=(50, 60, 70), seed=1), Request(prompt_ids=(50, 61), seed=2)]
HOT = Sampling(temperature=1.0, max_tokens=6)


@pytest.fixture
def loaded(tmp_path: Path) -> models.LoadedModel:
    return models.load_model(str(tiny.build(tmp_path / "model", tie=False, hearing=4.0)))


def fused_step(model: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(torch.tensor([[5, 6, 7]])).logits.square().mean().backward()
    optimizer.step()


def copied(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * 1.5)


@pytest.mark.parametrize("change", [fused_step, copied])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_packed_weights_follow_the_weights(change: Any, compute: torch.dtype, loaded: models.LoadedModel) -> None:
    old = TransformersSampler(loaded, compute=compute)
    before = old.sample(ASKED, HOT)
    change(loaded.model)
    fresh = TransformersSampler(loaded, compute=compute).sample(ASKED, HOT)
    assert old.sample(ASKED, HOT) == fresh != before


def test_the_model_is_left_as_it_was_also_after_an_error(
    loaded: models.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "can_pack", lambda compute: True)
    monkeypatch.setattr(decoding, "_packed", decoding._plain)
    loaded.model.train()
    with pytest.raises(KeyboardInterrupt), decoding.packed_linears(loaded.model, torch.float32):
        assert sum("forward" in vars(module) for module in loaded.model.modules()) == 2 * 7 + 1  # layers and head
        raise KeyboardInterrupt
    monkeypatch.setattr(Continuous, "_step", lambda self: 1 / 0)
    running = Continuous(loaded, torch.float32, 4)
    running.submit(0, ASKED[0], HOT)
    with pytest.raises(ZeroDivisionError):
        running.collect()
    assert not any("forward" in vars(module) for module in loaded.model.modules())
    assert loaded.model.training and loaded.model.config._attn_implementation == "sdpa"
    assert NAME not in ALL_ATTENTION_FUNCTIONS


def test_a_layer_that_does_more_than_a_product_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "can_pack", lambda compute: True)
    monkeypatch.setattr(decoding, "_packed", decoding._plain)

    class Router(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> Any:
            return super().forward(input).topk(2)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = Router(8, 4)

        def get_output_embeddings(self) -> None:
            return None

    net = Net()
    with decoding.packed_linears(net, torch.float32):
        assert len(net.one(torch.randn(3, 8))) == 2


def test_biases_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Linear(8, 8)

        def get_output_embeddings(self) -> None:
            return None

    net, x = Net(), torch.randn(3, 8)
    exact = net.one(x)
    monkeypatch.setattr(decoding, "can_pack", lambda compute: torch.backends.mkldnn.is_available())
    with decoding.packed_linears(net, torch.float32):
        torch.testing.assert_close(net.one(x), exact)


def test_layers_that_read_the_same_are_one_product_whoever_asks_first(loaded: models.LoadedModel) -> None:
    attention, x, y = models.decoder(loaded.model).layers[0].self_attn, torch.randn(1, 3, 32), torch.randn(1, 3, 32)
    exact = {name: getattr(attention, name)(x) for name in ("q_proj", "k_proj", "v_proj")}
    other = attention.k_proj(y)
    with decoding.packed_linears(loaded.model, torch.float32):
        assert "forward" in vars(attention.q_proj)
        for name in ("v_proj", "q_proj", "k_proj", "q_proj"):
            torch.testing.assert_close(getattr(attention, name)(x), exact[name])
        attention.q_proj(x)
        torch.testing.assert_close(attention.k_proj(y), other)  # another input


def test_an_adapter_plays_as_it_trains(loaded: models.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    models.add_adapter(loaded, 4, torch.float32, seed=0)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    sampler = TransformersSampler(loaded, compute=torch.float32)
    cheap = sampler.sample(ASKED, HOT)
    with loaded.adapter.disable_adapter():
        base = sampler.sample(ASKED, HOT)
    assert not any("forward" in vars(module) for module in loaded.model.modules())
    other = decoding.can_pack(torch.float32) or not torch.backends.mkldnn.is_available()
    monkeypatch.setattr(decoding, "can_pack", lambda compute: not other)
    usual = sampler.sample(ASKED, HOT)
    assert [r.token_ids for r in cheap] == [r.token_ids for r in usual] != [r.token_ids for r in base]
    for one, other in zip(cheap, usual, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
