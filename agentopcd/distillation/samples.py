"""What a step learns from: one sample for each turn, and the batches they are read in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch

from agentopcd.core.errors import AlignmentError
from agentopcd.core.types import Context, Episode, Mixture
from agentopcd.distillation.positions import begins_with
from agentopcd.rollouts.chat import Chat


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
    choices: tuple[tuple[int, ...], ...] = ()
    """The replies that were allowed; none: all were."""
    context: str = ""
    """Id of the context in the teacher's prompt; samples of one context are scored together."""

    @property
    def num_tokens(self) -> int:
        return len(self.response_ids)

    def continues(self, before: Sample) -> bool:
        """Whether both prompts begin with all of ``before``, so that one pass reads both.

        See :func:`agentopcd.distillation.positions.sequences`.
        """
        sides = ((self.student_ids, before.student_ids), (self.teacher_ids, before.teacher_ids))
        return all(begins_with(mine, (*earlier, *before.response_ids)) for mine, earlier in sides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples that one forward pass reads."""

    samples: Sequence[Sample]
    weights_N: torch.Tensor
    """The weight of each response token in the loss of the whole step."""
    counts: bool = True
    """False for one that only keeps this process busy while others compute theirs."""
    passes: int = 0
    """Forward passes that the teacher makes at least."""


def samples_of(
    episodes: Iterable[Episode], chat: Chat, context: Context | Mixture, cut_replies: str, *, by_teacher: bool = False
) -> tuple[list[Sample], int]:
    """One sample per turn, and how many were left out: empty responses and, on request, cut ones.

    Args:
        by_teacher: the teacher answered, with the context, and not the student.

    Raises:
        AlignmentError: the prompt that was really answered is not the one that is scored.
    """
    samples, dropped = [], 0
    for episode in episodes:
        shown = context.drawn(episode.task, episode.rep)
        for index, turn in enumerate(episode.turns if episode.stop_reason != "env_error" else ()):
            if not turn.response_ids or (cut_replies == "drop" and turn.finish_reason == "length"):
                dropped += 1
                continue
            student_ids, teacher_ids = chat.prompts(turn.messages, shown)
            asked = teacher_ids if by_teacher else student_ids
            if asked != turn.prompt_ids:
                raise AlignmentError(
                    f"turn {index} of task {episode.task.key} was answered to another prompt "
                    f"({len(turn.prompt_ids)} tokens, rendered again {len(asked)})"
                )
            samples.append(
                Sample(
                    student_ids=student_ids, teacher_ids=teacher_ids, response_ids=turn.response_ids,
                    logprobs=() if by_teacher else turn.logprobs, turn=index, choices=turn.choices,
                    context=shown.id,
                )
            )  # fmt: skip
    return samples, dropped


def micro_batches(
    samples: Sequence[Sample], weights: Sequence[float], budget: int, reads: Callable[[Sample], int] = lambda _: 0
) -> Iterable[tuple[list[Sample], torch.Tensor]]:
    """Samples of similar length together, each with the weights of its tokens ``[N]``.

    A batch holds at most ``budget`` tokens, padding included, or a single sequence; all of it was scored with one
    context. Turns of a chat that only grows are one sequence.

    Args:
        reads: tokens that the teacher reads for a sample.
    """
    chats: list[list[int]] = []
    for i, sample in enumerate(samples):
        if i and sample.continues(samples[i - 1]):
            chats[-1].append(i)
        else:
            chats.append([i])

    def length(chat: list[int]) -> int:
        last = samples[chat[-1]]
        return max(len(last.student_ids) + last.num_tokens, reads(last))

    def shown(chat: list[int]) -> str:
        return samples[chat[0]].context

    chats.sort(key=lambda chat: (shown(chat), length(chat)))
    while chats:
        size, alike = 1, [chat for chat in chats if shown(chat) == shown(chats[0])]
        while size < len(alike) and (size + 1) * length(alike[size]) <= budget:
            size += 1
        chosen, chats = [i for chat in chats[:size] for i in chat], chats[size:]
        tokens = [weights[i] for i in chosen for _ in samples[i].response_ids]
        yield [samples[i] for i in chosen], torch.tensor(tokens)


def read_apart(samples: Sequence[Sample]) -> int:
    """Later turns of a growing chat that do not continue the one before, so that their whole prompt is read again."""
    return sum(s.turn > 0 and not (i and s.continues(samples[i - 1])) for i, s in enumerate(samples))
