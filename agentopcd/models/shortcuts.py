"""Shortcuts: cheaper ways to run a model. Each is used only if it gives what the model's own forward pass gives.

Attention that depends on more than the position ids, states, or a scale after the output head can make a shortcut
another function than the model. So the first rows of a run are computed both ways: the scoring of replies by
:mod:`agentopcd.distillation.compare`, their sampling by the transformers engine. What differs is set aside.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

NAME = "agentopcd_shortcuts"
"""The attribute that keeps a model's :class:`Shortcuts`; copies of the model take it along."""


@dataclasses.dataclass
class Shortcuts:
    """Which shortcuts a model allows, and what the comparisons found."""

    head: bool = True
    """Logits from the last hidden states and the output head, a chunk of rows at a time."""
    together: bool = True
    """Several sequences in one pass, padded or packed, and the turns of a growing chat as one sequence."""
    branch: bool = True
    """Several prompts that begin alike in one row, under a mask."""
    prefix: bool = True
    """A beginning that many prompts share is read once."""
    at_once: bool = True
    """After a beginning that is kept as a state, all the rest in one pass; else token by token."""
    decoding: str = "fast"
    """How the transformers engine samples: ``fast``, ``padded`` (transformers' own decoding) or ``alone`` (without
    batches)."""
    decoding_seen: Any = None
    """The state of the model in which ``decoding`` was chosen; None: not chosen yet."""
    off_nats: dict[str, float] = dataclasses.field(default_factory=dict)
    """How far each shortcut that was compared is off, by its name."""
    spent_s: float = 0.0
    """The time that the comparisons took."""

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of this block to :attr:`spent_s`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spent_s += time.perf_counter() - started

    def to_dict(self) -> dict[str, Any]:
        """What the comparisons found, for logs; empty if there were none."""
        if not self.off_nats:
            return {}
        aside = [name for name in ("head", "together", "branch", "prefix", "at_once") if not getattr(self, name)]
        off = {name: value if math.isfinite(value) else None for name, value in self.off_nats.items()}
        return {"off_nats": off, "set_aside": aside, "decoding": self.decoding, "seconds": round(self.spent_s, 3)}


def shortcuts_of(model: Any) -> Shortcuts:
    """The shortcuts of ``model``. All are allowed until a comparison sets one aside."""
    return vars(model).setdefault(NAME, Shortcuts())


def forget_shortcuts(model: Any) -> None:
    """Forget what was found about ``model``, a copy of another, so that it is compared itself."""
    vars(model).pop(NAME, None)


@torch.no_grad()
def own_logits(model: Any, prompt: Any, response: Any) -> torch.Tensor:
    """Logits ``[n, V]``, float32, that predict each token of ``response``, by the model's own forward pass.

    Nothing is added: one row, no padding, no mask, no position ids, no cache.
    """
    ids = torch.tensor([[*prompt, *response]], device=next(model.parameters()).device)
    logits = model(input_ids=ids, use_cache=False).logits[0]
    return logits[len(prompt) - 1 : len(prompt) - 1 + len(response)].float()
