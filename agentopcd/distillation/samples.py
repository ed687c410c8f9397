"""Training data of a step: one sample per turn, and the batches that the models read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch

from agentopcd.core.errors import AlignmentError
from agentopcd.core.types import Context, Episode, Mixture
from agentopcd.distillation.positions import Row, begins_with
from agentopcd.knowledge.nearest import notes_for
from agentopcd.rollouts.chat import Chat


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One turn to learn from: two prompts and one response, all as token ids."""

    student_ids: tuple[int, ...]
    """The prompt without the context."""
    teacher_ids: tuple[int, ...]
    """The prompt with the context; it ends in the same generation header as ``student_ids``."""
    response_ids: tuple[int, ...]
    """The sampled response, end token included. Both models score these very ids."""
    logprobs: tuple[float, ...]
    """Log-probabilities of the response tokens as sampled, in nats; empty if the teacher answered."""
    turn: int
    """Index of the turn in its episode."""
    choices: tuple[tuple[int, ...], ...] = ()
    """The replies that were allowed; empty if every reply was."""
    context: str = ""
    """Id of the context in the teacher's prompt, whole or in part. Samples of one context are scored together."""
    by_teacher: bool = False
    """Whether the teacher gave the response, with the context, and not the student."""

    @property
    def num_tokens(self) -> int:
        return len(self.response_ids)

    def continues(self, before: Sample) -> bool:
        """Whether both prompts begin with the prompt and the response of ``before``, so that one pass reads both turns.

        See :func:`agentopcd.distillation.positions.sequences`.
        """
        sides = ((self.student_ids, before.student_ids), (self.teacher_ids, before.teacher_ids))
        return all(begins_with(mine, (*earlier, *before.response_ids)) for mine, earlier in sides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """The samples of one forward pass of the student."""

    samples: Sequence[Sample]
    weights_N: torch.Tensor
    """The weight of each response token in the loss of the whole step."""
    counts: bool = True
    """False for a padding batch, which keeps this process in step with the others and adds nothing to the loss."""
    passes: int = 0
    """The least number of forward passes that the teacher makes."""

    @property
    def by_teacher(self) -> bool:
        """Whether the teacher gave the responses; :func:`micro_batches` keeps those of the student apart."""
        return self.samples[0].by_teacher


def samples_of(
    episodes: Iterable[Episode],
    chat: Chat,
    context: Context | Mixture,
    cut_replies: str,
    *,
    by_teacher: bool = False,
    items: int = 0,
    fits: Callable[[Sample], bool] = lambda _: True,
) -> tuple[list[Sample], int]:
    """One sample per turn, and the number of turns left out.

    Turns with an empty response are left out, and so are turns with a cut one if ``cut_replies`` is ``drop``. Episodes
    that the environment broke give no samples.

    Args:
        by_teacher: the teacher gave the answers, with the context, and not the student.
        items: the teacher sees so many items of the context, those that fit the turn; 0: all of it.
        fits: whether the teacher can score a sample; turns for which it cannot are left out.

    Raises:
        AlignmentError: the prompt that was answered during play is not the prompt that would be scored.
    """
    samples, dropped = [], 0
    for episode in episodes:
        shown = context.drawn(episode.task, episode.rep)
        for index, turn in enumerate(episode.turns if episode.stop_reason != "env_error" else ()):
            if not turn.response_ids or (cut_replies == "drop" and turn.finish_reason == "length"):
                dropped += 1
                continue
            told = notes_for(shown, turn, items) if items else shown
            student_ids, teacher_ids = chat.prompts(turn.messages, told, turn.tools)
            # The prompts are rendered again here. A difference to what was answered would shift every position.
            asked = teacher_ids if by_teacher else student_ids
            if asked != turn.prompt_ids:
                raise AlignmentError(
                    f"turn {index} of task {episode.task.key} answered another prompt ({len(turn.prompt_ids)} tokens) "
                    f"than would be scored ({len(asked)}); take the chat template and context of the rollout"
                )
            sample = Sample(
                student_ids=student_ids, teacher_ids=teacher_ids, response_ids=turn.response_ids,
                logprobs=() if by_teacher else turn.logprobs, turn=episode.first + index,
                choices=turn.choices, context=shown.id, by_teacher=by_teacher,
            )  # fmt: skip
            if fits(sample):
                samples.append(sample)
            else:
                dropped += 1
    return samples, dropped


def micro_batches(
    samples: Sequence[Sample], weights: Sequence[float], budget: int, reads: Callable[[Sample], int] = lambda _: 0,
    *, branch: bool = False,
) -> Iterable[tuple[list[Sample], torch.Tensor]]:  # fmt: skip
    """Yield batches of samples of similar length, each with its token weights ``[N]``.

    A batch holds at most ``budget`` tokens, padding included, or a single longer sequence. All samples of a batch have
    the same context, and one model gave their responses. Consecutive turns that stand in one row
    (:func:`.positions.sequences`) stay together; prompts that only begin alike do so within the budget.

    Args:
        weights: the weight of each token of a sample, one number per sample.
        reads: how many tokens the teacher reads for a sample.
        branch: whether both models read prompts that begin alike in one row.
    """
    chats: list[_Turns] = []
    for i, sample in enumerate(samples):
        if not (chats and chats[-1].take(i, sample, reads, branch, budget)):
            chats.append(_Turns(sample))
            chats[-1].take(i, sample, reads, branch, budget)
    # Similar lengths side by side waste the least padding.
    chats.sort(key=lambda chat: (*chat.kind, chat.length))
    while chats:
        size, alike = 1, [chat for chat in chats if chat.kind == chats[0].kind]
        # ``alike`` is sorted by length, so the last chat taken sets the width of the padded batch.
        while size < len(alike) and (size + 1) * alike[size].length <= budget:
            size += 1
        chosen, chats = [i for chat in chats[:size] for i in chat.places], chats[size:]
        tokens = [weights[i] for i in chosen for _ in samples[i].response_ids]
        yield [samples[i] for i in chosen], torch.tensor(tokens)


BATCH_TOKENS = 4096
"""The most tokens of one forward pass that only scores."""


def in_batches(lengths: Sequence[int], budget: int = BATCH_TOKENS) -> list[list[int]]:
    """The places of sequences in batches of similar length, the longest first.

    A batch holds at most ``budget`` tokens, padding included, or a single longer sequence.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


class _Turns:
    """Consecutive samples that both models read in one row."""

    def __init__(self, first: Sample) -> None:
        self.kind, self.length = _kind(first), 0
        self.places: list[int] = []
        self._rows = (Row(), Row())

    def take(self, place: int, sample: Sample, reads: Callable[[Sample], int], branch: bool, budget: int) -> bool:
        """Take a sample if it stands in one row with those before; return whether it does.

        One that does not continue them is not taken if the row would then have more than ``budget`` tokens.
        """
        both, said = list(zip(self._rows, (sample.student_ids, sample.teacher_ids), strict=True)), sample.response_ids
        shared = [row.shared(prompt, said, branch) for row, prompt in both]
        if self.places and (not all(shared) or _kind(sample) != self.kind):
            return False
        # What earlier turns alone say, and all of this one.
        mine, theirs = (len(row.tokens) - n for row, n in zip(self._rows, shared, strict=True))
        length = max(mine + len(sample.student_ids) + sample.num_tokens, theirs + reads(sample))
        continues = all(n == len(row.path) for row, n in zip(self._rows, shared, strict=True))
        if length > budget and not continues:
            return False
        for (row, prompt), n in zip(both, shared, strict=True):
            row.add(prompt, said, n)
        self.length = length
        self.places.append(place)
        return True


def _kind(sample: Sample) -> tuple[str, bool]:
    """What the samples of a batch have in common: the context, and who gave the response."""
    return sample.context, sample.by_teacher


def read_apart(samples: Sequence[Sample]) -> int:
    """The number of later turns that do not continue the turn before, so that their whole prompt is read again."""
    return sum(s.turn > 0 and not (i and s.continues(samples[i - 1])) for i, s in enumerate(samples))
