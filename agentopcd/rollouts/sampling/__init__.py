"""Samplers: they take prompts as token ids and return token ids, log-probabilities and finish reasons.

:mod:`~agentopcd.rollouts.sampling.protocol` says what every sampler must do; the engines are in modules of their own.
"""

from agentopcd.rollouts.sampling.protocol import InBatches, Sampler, request_seed

__all__ = ["InBatches", "Sampler", "request_seed"]
