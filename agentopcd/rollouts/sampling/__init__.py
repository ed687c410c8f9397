"""Samplers: token ids in; token ids, log-probabilities and finish reason out."""

from agentopcd.rollouts.sampling.protocol import InBatches, Sampler, request_seed

__all__ = ["InBatches", "Sampler", "request_seed"]
