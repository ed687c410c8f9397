"""Samplers: token ids in; token ids, log-probabilities and finish reason out."""

from agentopcd.sampling.protocol import Sampler, request_seed

__all__ = ["Sampler", "request_seed"]
