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


def test_the_model_is_left_as_it_was_also_after_an_error(loaded: models.LoadedModel) -> None:
    usual = ALL_ATTENTION_FUNCTIONS["sdpa"]
    packed = decoding.packed_linears(loaded.model, torch.float32)
    with pytest.raises(KeyboardInterrupt), packed, decoding.grouped_attention(torch.device("cpu")):
        if decoding.can_pack(torch.float32):
            assert sum("forward" in vars(module) for module in loaded.model.modules()) == 2 * 7 + 1  # layers and head
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not usual
        raise KeyboardInterrupt
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is usual
    assert not any("forward" in vars(module) for module in loaded.model.modules())


def test_a_layer_that_does_more_than_a_product_is_left_alone() -> None:
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


def test_biases_are_added() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Linear(8, 8)

        def get_output_embeddings(self) -> None:
            return None

    net, x = Net(), torch.randn(3, 8)
    exact = net.one(x)
    with decoding.packed_linears(net, torch.float32):
        torch.testing.assert_close(net.one(x), exact)


@pytest.mark.parametrize("extra", [{"position_bias": torch.randn(2, 4, 1, 5)}, {}])
def test_what_one_token_attention_does_not_know_goes_the_usual_way(extra: dict[str, Any]) -> None:
    asked: list[str] = []

    def usual(*args: Any, **kwargs: Any) -> str:
        asked.append("usual")
        return "usual"

    key, value = torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    decoding._one_token(usual, None, torch.randn(2, 4, 1, 8), key, value, None, scaling=0.3, **extra)
    assert bool(asked) is bool(extra)
    decoding._one_token(usual, None, torch.randn(2, 4, 3, 8), key, value, None, scaling=0.3)
    assert asked[-1] == "usual"  # three new tokens


def test_one_token_attention_is_attention_with_repeated_keys() -> None:
    query, key, value = torch.randn(2, 6, 1, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 4)
    mask = torch.tensor([[True] * 5, [False, True, True, False, True]])[:, None, None]
    found, _ = decoding._one_token(None, None, query, key, value, mask, scaling=0.3)
    exact = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), attn_mask=mask, scale=0.3
    )
    torch.testing.assert_close(found, exact.transpose(1, 2))


def test_layers_with_a_window_keep_their_own_cache() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    small: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4,
             "num_key_value_heads": 2, "num_hidden_layers": 2}  # fmt: skip
    windows = Qwen2Config(**small, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    sliding: Any = Qwen2ForCausalLM(windows)
    assert decoding.reserved_cache(sliding, 10, torch.float32) is None
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    exact = sliding.eval().generate(ids, max_new_tokens=8, do_sample=False)
    with decoding.packed_linears(sliding, torch.float32), decoding.grouped_attention(torch.device("cpu")):
        assert torch.equal(sliding.generate(ids, max_new_tokens=8, do_sample=False), exact)


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
    if decoding.can_pack(torch.float32):
        with decoding.packed_linears(loaded.model, torch.float32):
            assert sum("forward" in vars(module) for module in loaded.model.modules()) == 2 * 7 + 1
    assert not any("forward" in vars(module) for module in loaded.model.modules())
    monkeypatch.setattr(decoding, "can_pack", lambda compute: False)
    usual = sampler.sample(ASKED, HOT)
    assert [r.token_ids for r in cheap] == [r.token_ids for r in usual] != [r.token_ids for r in base]
    for one, other in zip(cheap, usual, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
