"""What is refused before anything is played because it could not be trained, and leaves the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import ModelError
from tests.models import architectures


def load(name: str, folder: Path) -> Any:
    return models.load_model(str(architectures.build(folder / "model", name))).model


def test_logits_that_are_no_function_of_the_head_are_refused(tmp_path: Path) -> None:
    """HyperCLOVAX multiplies by what Granite divides by."""
    with pytest.raises(ModelError, match="does more to its logits") as refused:
        models.check_head(load("hyperclovax", tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["granite", "falcon_h1", "recurrent_gemma", "cohere", "gemma2", "llama4"])
def test_factors_divisors_and_caps_after_the_head_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    model, ids = load(name, tmp_path), torch.arange(40, 60)[None]
    models.check_head(model)
    with torch.no_grad():
        hidden = models.decoder(model)(input_ids=ids, use_cache=False).last_hidden_state
        found = models.scaled(model, model.get_output_embeddings()(hidden))
        torch.testing.assert_close(found, model(input_ids=ids).logits, atol=1e-4, rtol=0)


def test_a_backward_pass_that_fails_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("llama", tmp_path)
    before = models.parameter_hash(model)
    models.check_backward(model)
    assert models.parameter_hash(model) == before
    assert all(p.grad is None for p in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks

    def fails(*_: Any) -> Any:
        raise NotImplementedError("no derivative\nof this")

    layer = model.model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda module, inputs, output: Underivable.apply(output))
    monkeypatch.setattr(Underivable, "backward", staticmethod(fails))
    with pytest.raises(ModelError, match=r"its backward pass fails .no derivative") as refused:
        models.check_backward(model)
    assert "\n" not in str(refused.value)
    assert not model.get_input_embeddings()._forward_hooks


class Underivable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any: ...


def test_nothing_is_random_while_gradients_are_checkpointed(tmp_path: Path) -> None:
    """transformers checkpoints in training mode, in which some architectures drop layers or shake their routers."""
    model = load("llama", tmp_path)
    layer = model.model.layers[0]
    layer.layerdrop, layer.router_jitter_noise, layer.attention_dropout, layer.hidden_scale = 0.5, 0.1, 0.2, 0.3
    models.checkpoint_gradients(model)
    assert (layer.layerdrop, layer.router_jitter_noise, layer.attention_dropout, layer.hidden_scale) == (0, 0, 0, 0.3)
