"""The output head: float32 logits, and the scaling that a model applies to them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.distributed.fsdp import FSDPModule

from agentopcd.core.errors import ModelError
from agentopcd.core.text import first_line

FACTORS = ("logit_scale", "lm_head_multiplier")
"""Names of factors in the configs of models: Cohere's, Falcon-H1's."""
CAPS = ("final_logit_softcapping", "logits_soft_cap")
"""Names of soft caps in the configs of models: Gemma's, RecurrentGemma's."""


class Float32Head(torch.nn.Linear):
    """An output head whose logits are float32 even under autocast. A bfloat16 logit of 20 is off by up to 0.06."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(input.float(), self.weight.float(), bias)


def float32_head(model: Any) -> None:
    """Turn the output head of ``model`` into a :class:`Float32Head`, in place. Its weights are not copied or changed.

    Raises:
        ModelError: the head is not a plain linear layer.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        raise ModelError(f"{type(model).__name__} has no plain linear output head; it cannot be trained here")
    head.__class__ = Float32Head


def scaled(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """The logits after the scaling that ``model`` applies to its head's output: factors, divisors, soft caps, or
    nothing.
    """
    config = model.config.get_text_config()
    for name in FACTORS:
        if (factor := getattr(config, name, None)) is not None:
            logits = logits * factor
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    for name in CAPS:
        if (cap := getattr(config, name, None)) is not None:
            logits = torch.tanh(logits / cap) * cap
    return logits


@torch.no_grad()
def check_head(model: Any) -> None:
    """Check that the hidden states, the output head and :func:`scaled` together give the logits of ``model``.

    Raises:
        ModelError: they do not, so a loss computed from hidden states would not be the loss of the model.
    """
    ids = torch.arange(8, device=next(model.parameters()).device)[None] % model.config.get_text_config().vocab_size
    kind = type(model).__name__
    try:
        logits = model(input_ids=ids, use_cache=False).logits.float()
        hidden = decoder(model)(input_ids=ids, use_cache=False).last_hidden_state
        again = scaled(model, model.get_output_embeddings()(hidden)).float()
    except Exception as error:  # whatever the code of an architecture raises
        raise ModelError(
            f"{kind} cannot be trained here: {first_line(error, otherwise=type(error).__name__)}"
        ) from error
    if again.shape != logits.shape or not (again - logits).abs().max() <= 1e-3 * logits.abs().max():
        raise ModelError(f"{kind} does more to its logits than a scale and a soft cap; it cannot be trained here")


def decoder(model: Any) -> Any:
    """The module to call for the last hidden states.

    For a sharded model this is the model itself, since only its own call gathers the weights.
    """
    if isinstance(model, FSDPModule):
        return model
    found = model.get_decoder()
    # Where a class does not say which part is its decoder, transformers guesses, and may name the model or its head.
    wrong = found is None or found is model or found is model.get_output_embeddings()
    return getattr(model, "model", found) if wrong else found


def check_backward(model: Any) -> None:
    """Check that a gradient reaches the embeddings of ``model``, which is left as it was.

    Raises:
        ModelError: the backward pass fails.
    """
    ids = torch.arange(8, device=next(model.parameters()).device)[None] % model.config.get_text_config().vocab_size
    embedded: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # some architectures scale it in place

    hook = model.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad():
            hidden = decoder(model)(input_ids=ids, use_cache=False).last_hidden_state
            torch.autograd.grad(hidden.float().sum(), embedded)
    except Exception as error:  # whatever the code of an architecture raises
        why = first_line(error, otherwise=type(error).__name__)
        raise ModelError(f"{type(model).__name__} cannot be trained here: its backward pass fails ({why})") from error
    finally:
        hook.remove()
