"""Who the teacher is, and how student and teacher score the same response tokens.

:func:`response_logits` is the one place where positions are chosen; both models go through it, so a
misalignment between them would have to come from their prompts.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agentopcd import models
from agentopcd.errors import AlignmentError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One turn to learn from: two prompts, one response, token ids throughout."""

    student_ids: tuple[int, ...]
    """The prompt without the context."""
    teacher_ids: tuple[int, ...]
    """The prompt with it; ends in the same generation header."""
    response_ids: tuple[int, ...]
    """What the student sampled, its end token included; the very same ids for both models."""
    logprobs: tuple[float, ...]
    """Of the response, as sampled."""
    turn: int
    """Index of the turn in its episode."""

    @property
    def num_tokens(self) -> int:
        return len(self.response_ids)


class FrozenTeacher:
    """A model that never learns: a copy of the student as it was, or another one.

    Args:
        loaded: the model to score with. It is copied when it is the student itself.
        student: refused when their tokens do not match.
        compute: dtype of matrix products.
    """

    kind = "frozen"

    def __init__(self, loaded: models.LoadedModel, student: models.LoadedModel, *, compute: torch.dtype) -> None:
        if loaded is not student:
            models.check_pair(student, loaded)
            self.kind = "other"
        self.model = copy.deepcopy(loaded.model) if loaded is student else loaded.model
        models.freeze(self.model, compute)
        self.compute = compute
        self.pad_id = student.tokenizer.pad_token_id
        self.hash = models.parameter_hash(self.model)

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> Tensor:
        """Logits ``[N, V]`` of the response tokens of ``samples``, given the prompts with the context."""
        with models.autocast(next(self.model.parameters()).device, self.compute):
            return response_logits(self.model, [(s.teacher_ids, s.response_ids) for s in samples], self.pad_id)

    def assert_unchanged(self) -> None:
        """Raise if a parameter moved since the teacher was made."""
        if models.parameter_hash(self.model) != self.hash:
            raise AlignmentError("the frozen teacher's parameters changed during the run; its scores mean nothing")


def response_logits(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> Tensor:
    """Scores that predict each response token, all responses one after the other.

    With prompt length X and response length Y, rows ``X-1 .. X+Y-2`` of the model's output predict
    ``y_0 .. y_{Y-1}`` (``method.md`` §3). Sequences are padded on the left, so that responses end
    together and the output head runs on the last ``max(Y)+1`` positions only.

    Args:
        model: a causal language model.
        pairs: ``(prompt ids, response ids)``.
        pad_id: fills up on the left; masked.

    Returns:
        Logits ``[N, V]`` before softmax, float32, with ``N`` the sum of response lengths, in order.

    Raises:
        AlignmentError: an empty prompt, which has no position to predict the first token from.
    """
    if any(len(prompt) == 0 for prompt, _ in pairs):
        raise AlignmentError("a prompt is empty, so nothing predicts its first response token")
    width = max(len(prompt) + len(response) for prompt, response in pairs)
    longest = max(len(response) for _, response in pairs)
    ids = torch.full((len(pairs), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    keep = torch.zeros((len(pairs), longest + 1), dtype=torch.bool)
    for row, (prompt, response) in enumerate(pairs):
        tokens = [*prompt, *response]
        ids[row, width - len(tokens) :] = torch.tensor(tokens)
        mask[row, width - len(tokens) :] = 1
        keep[row, longest - len(response) : longest] = True  # the last position predicts nothing we have
    device = next(model.parameters()).device
    position_ids = (mask.cumsum(-1) - 1).clamp_(min=0)
    out = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=position_ids.to(device),
        logits_to_keep=longest + 1,
        use_cache=False,
    )
    return out.logits.float()[keep.to(device)]
