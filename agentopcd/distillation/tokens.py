"""What the loss sees at each token, kept for a few turns so that a person can look at it (``agentopcd report``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agentopcd.distillation import losses
from agentopcd.distillation.samples import Sample

TURNS = 8
"""Turns of one step that are kept."""
TOKENS = 512
"""The first tokens of a reply that are kept."""
TIMES = 10
"""Evaluations at which turns are kept; of more, evenly many. The first step comes on top."""
ASKED = 96
"""The last tokens of the prompt that are kept."""
BEFORE = 4
"""Tokens that a token is decoded together with, so that its spaces and the bytes of its characters come out right."""


class Seen(NamedTuple):
    """What the loss saw at one token."""

    nats: float
    """The divergence, as the loss takes it."""
    student: float
    """Log-probability of the token for the student, in nats."""
    teacher: float
    """Log-probability of the token for the teacher, in nats."""
    likeliest: int
    """The teacher's likeliest token."""
    likeliest_logprob: float
    """Its log-probability for the teacher, in nats."""


class Watch:
    """Keeps what the loss sees at the tokens of up to :data:`TURNS` turns of a step. It reads and changes nothing.

    Args:
        samples: all samples of the step; those that are kept lie evenly in it.
        temperature: the loss temperature.
    """

    def __init__(self, samples: Sequence[Sample], temperature: float) -> None:
        n = min(TURNS, len(samples))
        self.samples = [samples[i * len(samples) // n] for i in range(n)]
        self.temperature = temperature
        self.rows: dict[int, list[Seen]] = {}
        """By place in ``samples``, what was seen at each of its tokens."""
        self._places: list[tuple[int, int]] = []

    def begin(self, batch: Sequence[Sample]) -> None:
        """Begin a batch: its rows come in the order of :func:`agentopcd.distillation.positions.response_hidden`."""
        numbers, start = {id(sample): number for number, sample in enumerate(self.samples)}, 0
        self._places = []
        for sample in batch:
            if (number := numbers.get(id(sample))) is not None:
                self._places += [(start + i, number) for i in range(min(TOKENS, sample.num_tokens))]
            start += sample.num_tokens

    @torch.no_grad()
    def add(self, where: slice, student_RV: Tensor, teacher_RV: Tensor, ids_R: Tensor, value_R: Tensor) -> None:
        """Keep what is wanted of the rows ``where`` of the batch.

        Args:
            student_RV: the student's logits; -inf for tokens that were not allowed.
            teacher_RV: the teacher's.
            ids_R: the sampled tokens.
            value_R: the divergence of each row, in nats.
        """
        wanted = [(row - where.start, number) for row, number in self._places if where.start <= row < where.stop]
        if not wanted:
            return
        at = torch.tensor([row for row, _ in wanted], device=student_RV.device)
        student_NV, teacher_NV, ids_N = student_RV.detach()[at], teacher_RV[at], ids_R.to(at.device)[at]
        likeliest_N = teacher_NV.argmax(-1)
        columns = (
            value_R[at],
            losses.token_logprobs(student_NV, ids_N, self.temperature),
            losses.token_logprobs(teacher_NV, ids_N, self.temperature),
            likeliest_N,
            losses.token_logprobs(teacher_NV, likeliest_N, self.temperature),
        )
        for (_, number), row in zip(wanted, zip(*(column.tolist() for column in columns), strict=True), strict=True):
            self.rows.setdefault(number, []).append(Seen(*row))

    def gather(self, of_all: Sequence[dict[int, list[Seen]]]) -> None:
        """Replace this process's rows by those of all processes; each turn was scored by one of them."""
        self.rows = {number: rows for found in of_all for number, rows in found.items()}

    def records(self, step: int, tokenizer: Any) -> list[dict[str, Any]]:
        """The turns as JSON, in the order of play; see :data:`agentopcd.core.runs.TOKENS_FILE`."""
        return [_record(step, self.samples[number], rows, tokenizer) for number, rows in sorted(self.rows.items())]


def watched(step: int, steps: int, every: int) -> bool:
    """Whether turns of a step are kept: of the first, and of the last and up to ``TIMES - 1`` other evaluated ones.

    Args:
        steps: steps of the whole training.
        every: steps between two evaluations.
    """
    if step in (1, steps):
        return True
    apart = max(1, -(-(steps // every) // (TIMES - 1)))  # so many evaluations, rounded up
    return step % (every * apart) == 0


def _record(step: int, sample: Sample, rows: Sequence[Seen], tokenizer: Any) -> dict[str, Any]:
    ids, prompt = sample.response_ids, sample.student_ids
    texts = [text_of(tokenizer, ids[max(0, n - BEFORE) : n], ids[n]) for n in range(len(rows))]
    said = [text_of(tokenizer, ids[max(0, n - BEFORE) : n], row.likeliest) for n, row in enumerate(rows)]
    return {
        "step": step, "turn": sample.turn, "context": sample.context, "prompt": tokenizer.decode(prompt[-ASKED:]),
        "prompt_tokens": len(prompt), "teacher_tokens": len(sample.teacher_ids), "held_to": len(sample.choices),
        **({"by_teacher": True} if sample.by_teacher else {}),
        "tokens_left_out": len(ids) - len(rows),
        "tokens": [
            {
                "text": text, "nats": round(row.nats, 5), "student": round(row.student, 5),
                "teacher": round(row.teacher, 5), "likeliest": other,
                "likeliest_logprob": round(row.likeliest_logprob, 5),
            }
            for text, other, row in zip(texts, said, rows, strict=True)
        ],
    }  # fmt: skip


def text_of(tokenizer: Any, before: Sequence[int], token: int) -> str:
    """What a token adds to the text before it; where it adds no whole character, its name in the vocabulary."""
    start, whole = tokenizer.decode(before), tokenizer.decode([*before, token])
    added = whole[len(start) :] if whole.startswith(start) else tokenizer.decode([token])
    if added and "\N{REPLACEMENT CHARACTER}" not in added:
        return added
    return str(tokenizer.convert_ids_to_tokens(token) or "")
