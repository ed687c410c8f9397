"""The mask of :mod:`agentopcd.rollouts.sampling.choices` inside vLLM, which imports this module when it starts."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from agentopcd.rollouts.sampling.choices import Choices, allowed_ids, keep

ARGUMENT = "agentopcd_choices"


class Constrain(AdapterLogitsProcessor):
    """Applies the mask to requests whose ``extra_args`` hold a list of allowed replies."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        # From another process they come as lists.
        choices: Choices = tuple(map(tuple, (params.extra_args or {}).get(ARGUMENT, ())))
        if not choices:
            return None

        def process(output_ids: list[int], logits_V: torch.Tensor) -> torch.Tensor:
            return keep(logits_V[None], [allowed_ids(choices, tuple(output_ids))])[0]

        return process
