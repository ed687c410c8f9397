"""A check that an engine samples with the model's weights: its log-probabilities are compared with the model's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from agentopcd import models
from agentopcd.core.types import Completion, Request, Sampling
from agentopcd.models.parallel import sharding

GAP_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Mean difference of log-probabilities, in nats, that equal weights never reach. A test holds equal weights to 0.1 in
bfloat16."""
PROBES = ("Count from one to twenty.", "What do you see, and where do you go?")
SAMPLING = Sampling(temperature=0.7, max_tokens=16)
"""The temperature is not 1, which would hide an engine that leaves the temperature out of its log-probabilities."""


def limit_nats(compute: torch.dtype, temperature: float) -> float:
    """The mean difference of log-probabilities at ``temperature`` that equal weights never reach, in nats."""
    return GAP_NATS[compute] / min(1.0, temperature or 1.0)


def gap_nats(
    loaded: models.LoadedModel,
    compute: torch.dtype,
    sample: Callable[[Sequence[Request], Sampling], Sequence[Completion]],
) -> float:
    """The mean absolute difference between an engine's log-probabilities and the model's, in nats.

    The engine gives short replies to two fixed prompts, and the model scores the very tokens of these replies.

    Args:
        loaded: the model.
        compute: dtype of the model's matrix products; use the engine's.
        sample: asks the engine.
    """
    probes = [
        loaded.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in PROBES
    ]
    requests = [Request(prompt_ids=tuple(ids), seed=i) for i, ids in enumerate(probes)]
    return float(torch.cat(gaps_nats(loaded, compute, requests, sample(requests, SAMPLING))).mean())


def gaps_nats(
    loaded: models.LoadedModel, compute: torch.dtype, requests: Sequence[Request], replies: Sequence[Completion]
) -> list[torch.Tensor]:
    """For each reply, how far the log-probability of each token is off the one by the model's own forward pass.

    Args:
        loaded: the model.
        compute: dtype of the model's matrix products; use the engine's.
        requests: the prompts, each read alone.
        replies: the replies, sampled with :data:`SAMPLING`.
    """
    model, gaps = loaded.model, []
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        for request, reply in zip(requests, replies, strict=True):
            with models.autocast(device, compute):
                logits = _logits(model, request.prompt_ids, reply.token_ids)
            logprobs = (logits / SAMPLING.temperature).log_softmax(-1)
            chosen = logprobs.gather(1, torch.tensor(reply.token_ids, device=device)[:, None])[:, 0]
            gaps.append((chosen.cpu() - torch.tensor(reply.logprobs)).abs())
    finally:
        model.train(was_training)
    return gaps


@torch.no_grad()
def _logits(model: Any, prompt: Sequence[int], response: Sequence[int]) -> torch.Tensor:
    """The model's own logits for each token of ``response``; a sharded model gives hidden states only."""
    if not sharding.is_sharded(model):
        return models.own_logits(model, prompt, response)
    ids = torch.tensor([[*prompt, *response]], device=next(model.parameters()).device)
    hidden = model(input_ids=ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
    logits = models.scaled(model, model.get_output_embeddings()(hidden)).float()
    model.reshard()  # embeddings and head would stay gathered until the next backward pass
    return logits


def named_weights(loaded: models.LoadedModel) -> dict[str, torch.Tensor]:
    """All parameters by name; of a model with an adapter, those below it, under the names that they have without it.

    The output head is among them even if it is tied to the embeddings: ``named_parameters`` leaves a tied head out, but
    an engine keeps its own packed copy of the head.
    """
    weights = {
        name.replace(".base_layer.", "."): p.detach()
        for name, p in loaded.model.named_parameters()
        if ".lora_" not in name
    }
    return weights | {"lm_head.weight": loaded.model.get_output_embeddings().weight.detach()}
