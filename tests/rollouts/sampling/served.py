"""Requests for a served engine, its replies, and those of the model itself."""

from __future__ import annotations

import torch

from agentopcd import models
from agentopcd.core.types import Request, Sampling
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from agentopcd.rollouts.sampling.vllm_server import ServerSampler

HOT, COLD = Sampling(temperature=0.7, max_tokens=8), Sampling(temperature=0.0, max_tokens=8)
REQUESTS = [Request(prompt_ids=tuple(range(40, 44 + n)), seed=n) for n in range(6)]


def own(loaded: models.LoadedModel, how: Sampling = HOT) -> list[tuple[int, ...]]:
    return [r.token_ids for r in TransformersSampler(loaded, compute=torch.float32).sample(REQUESTS, how)]


def replies(sampler: ServerSampler, how: Sampling = HOT) -> list[tuple[int, ...]]:
    return [reply.token_ids for reply in sampler.sample(REQUESTS, how)]


@torch.no_grad()
def move(loaded: models.LoadedModel) -> None:
    for parameter in loaded.model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
