"""Who the teacher is, and how student and teacher score the same response tokens.

:func:`response_hidden` is the one place where positions are chosen, :class:`SharedPrefix` its equal for prompts with
a common beginning; a test compares the two, so a misalignment would have to come from the prompts.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import DynamicCache

from agentopcd import models, sharding
from agentopcd.chat import common_length
from agentopcd.config import TrainConfig
from agentopcd.errors import AlignmentError

ROW_TOKENS = 512
"""Tokens of a packed row where the shared prefix is shorter; else as many as the prefix has."""


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
        """Whether both prompts begin with all of ``before``, so that one pass reads both: see :func:`sequences`."""
        sides = ((self.student_ids, before.student_ids), (self.teacher_ids, before.teacher_ids))
        return all(_begins(mine, (*earlier, *before.response_ids)) for mine, earlier in sides)


class FrozenTeacher:
    """A model that never learns: the student as it was, or another one.

    Args:
        loaded: the model to score with. Where it is the student itself, it is copied, or, if the student trains an
            adapter, it is the student with the adapter off.
        student: refused when their tokens do not match.
        compute: dtype of matrix products.
        prefixes: for each context, what the prompts with it have in common at their beginning. It is read once, and its
            keys and values serve every sample of the run; none: each prompt is read whole.
        shard: spread its weights over the processes. All of them must then make equally many :meth:`passes`.
    """

    kind = "frozen"
    kept_in: torch.dtype | None = None
    """Dtype of its linear weights; None: that of the products."""

    def __init__(
        self,
        loaded: models.LoadedModel,
        student: models.LoadedModel,
        *,
        compute: torch.dtype,
        prefixes: Sequence[Sequence[int]] = (),
        shard: bool = False,
    ) -> None:
        itself = loaded is student or loaded is student.whole
        if not itself:
            models.check_pair(student, loaded)
            models.check_head(loaded.model)
            self.kind = "other"
        self.adapter = loaded.adapter
        if self.adapter is not None:
            self.kind, self.model = "lora_base", loaded.model
        else:
            self.model = copy.deepcopy(loaded.model) if itself else loaded.model
            models.freeze(self.model, self.kept_in or compute)
        self.hash = models.parameter_hash(self.model, frozen=True)
        if shard:
            sharding.shard(self.model)
        self.compute = compute
        self.pad_id = student.tokenizer.pad_token_id
        self.own_hash = models.parameter_hash(self.model, frozen=True)
        shareable = [ids for ids in prefixes if ids] if models.attends_to_all(self.model) else []
        self.prefixes = [SharedPrefix(self.model, ids) for ids in shareable]
        if isinstance(self.model, FSDPModule):
            with self._scoring():
                for prefix in self.prefixes:
                    _ = prefix.keys_and_values  # now, by all processes; each of them may need it at another time

    def hidden(self, samples: Sequence[Sample], passes: int = 0) -> Tensor:
        """Last hidden states ``[N, H]`` that predict the response tokens of ``samples``, after the prompts with it.

        Args:
            passes: forward passes to make at least; those that are too many read something again.
        """
        pairs = [(s.teacher_ids, s.response_ids) for s in samples]
        spare = passes - self.passes(samples) if passes else 0
        with self._scoring():
            for _ in range(spare):
                response_hidden(self.model, pairs[:1], self.pad_id)
            if (found := self._shared(pairs)) is not None:
                prefix, shared = found
                return prefix.response_hidden(pairs, shared)
            return response_hidden(self.model, pairs, self.pad_id)

    def passes(self, samples: Sequence[Sample]) -> int:
        """Forward passes that scoring ``samples`` takes."""
        pairs = [(s.teacher_ids, s.response_ids) for s in samples]
        if (found := self._shared(pairs)) is not None:
            prefix, shared = found
            return len(prefix.rows(pairs, shared))
        return 1

    def _shared(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[SharedPrefix, int] | None:
        """The prefix that these prompts share most of, and how many of its tokens, where that pays."""
        found = [(prefix, prefix.shared_by(pairs)) for prefix in self.prefixes]
        return max((one for one in found if one[1]), key=lambda one: one[1], default=None)

    @contextlib.contextmanager
    def _scoring(self) -> Iterator[None]:
        off = self.adapter.disable_adapter() if self.adapter else contextlib.nullcontext()
        training = self.model.training  # of a student that checkpoints gradients, which keeps no cache
        self.model.eval()
        try:
            with torch.no_grad(), off, models.autocast(next(self.model.parameters()).device, self.compute):
                yield
        finally:
            self.model.train(training)

    @torch.no_grad()
    def logits(self, hidden_RH: Tensor) -> Tensor:
        """Logits ``[R, V]`` before softmax, float32, of some of those rows."""
        return logits_of(self.model, hidden_RH)

    def reads(self, sample: Sample) -> int:
        """Tokens that ``sample`` costs it, besides its shared prefix."""
        shared = max((common_length(prefix.ids, sample.teacher_ids) for prefix in self.prefixes), default=0)
        return len(sample.teacher_ids) + sample.num_tokens - shared

    def score(self, samples: Sequence[Sample]) -> Tensor:
        """Logits ``[N, V]`` of all response tokens of ``samples`` at once."""
        return self.logits(self.hidden(samples))

    @property
    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of it: nothing, since it is made again."""
        return {}

    def follow(self, student: Any, step: int) -> None:
        """Hear that ``student``, a model, has taken this optimizer step: nothing to do."""

    def assert_unchanged(self) -> None:
        """Raise if a parameter moved since the teacher was made."""
        if models.parameter_hash(self.model, frozen=True) != self.own_hash:
            raise AlignmentError("the frozen teacher's parameters changed during the run; its scores mean nothing")


class MovingTeacher(FrozenTeacher):
    """The student of some time ago; see :class:`FrozenTeacher`.

    Args:
        kind: ``live``: as it is now; ``periodic``: as it was at the last step that ``every`` divides; ``ema``: of its
            own weights it keeps the share ``keeps`` at each step and takes the rest from the student.
    """

    kept_in = torch.float32
    """An average of many small steps would not move in bfloat16."""

    def __init__(
        self, student: models.LoadedModel, *, kind: str, every: int = 1, keeps: float = 0.0, compute: torch.dtype,
        prefixes: Sequence[Sequence[int]] = (),
    ) -> None:  # fmt: skip
        super().__init__(student, student, compute=compute, prefixes=prefixes)
        self.kind, self.every, self.keeps = kind, every, keeps

    @property
    def weights(self) -> dict[str, Tensor]:
        """All of its own: what a checkpoint must hold."""
        return dict(self.model.named_parameters())

    @torch.no_grad()
    def follow(self, student: Any, step: int) -> None:
        """Take over from ``student``, a model, what this kind takes after this optimizer step."""
        if self.kind == "periodic" and step % self.every:
            return
        now = dict(student.named_parameters())
        for name, own in self.weights.items():
            if self.kind == "ema":
                own.mul_(self.keeps).add_(now[name], alpha=1 - self.keeps)
            else:
                own.copy_(now[name])
        for prefix in self.prefixes:
            prefix.__dict__.pop("keys_and_values", None)  # of weights that are no more

    def assert_unchanged(self) -> None:
        """Raise if a gradient has reached it."""
        if any(p.requires_grad or p.grad is not None for p in self.weights.values()):
            raise AlignmentError("a gradient reached the teacher; it follows the student and never learns")


def teacher_of(
    config: TrainConfig, teacher: models.LoadedModel, student: models.LoadedModel, *, compute: torch.dtype,
    prefixes: Sequence[Sequence[int]] = (),
) -> FrozenTeacher:  # fmt: skip
    """The teacher of these settings."""
    if config.teacher_kind == "frozen":
        return FrozenTeacher(teacher, student, compute=compute, prefixes=prefixes, shard=config.shard)
    return MovingTeacher(
        student, kind=config.teacher_kind, every=config.teacher_every, keeps=config.teacher_keeps, compute=compute,
        prefixes=prefixes,
    )  # fmt: skip


def response_hidden(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> Tensor:
    """Hidden states that predict each response token, all responses one after the other.

    :func:`sequences` chooses what is read. Sequences are padded on the left, so that responses end together, or, where
    the model's attention takes sequences of any length (:func:`agentopcd.models.attend_without_padding`), packed.

    Args:
        model: a causal language model.
        pairs: ``(prompt ids, response ids)``.
        pad_id: fills up on the left; masked.

    Returns:
        Last hidden states ``[N, H]``, the input of the output head, with ``N`` the sum of response lengths, in order.

    Raises:
        AlignmentError: an empty prompt, which has no position to predict the first token from.
    """
    rows = sequences(pairs)
    if models.attends_without_padding(model):
        return packed_hidden(model, rows)
    width = max(len(tokens) for tokens, _ in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    keep = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (tokens, predicting) in enumerate(rows):
        left = width - len(tokens)
        ids[row, left:] = torch.tensor(tokens)
        mask[row, left:] = 1
        keep[row, left + torch.tensor(predicting, dtype=torch.long)] = True
    device = next(model.parameters()).device
    position_ids = (mask.cumsum(-1) - 1).clamp_(min=0)
    out = models.decoder(model)(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=position_ids.to(device),
        use_cache=False,
    )
    return out.last_hidden_state[keep.to(device)]


def packed_hidden(model: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """What :func:`response_hidden` returns for these :func:`sequences`, all of them in one row ``[1, T]``.

    Without a mask and a cache, transformers takes a position that does not go on from the one before as the beginning
    of a sequence that sees nothing of the others.
    """
    device = next(model.parameters()).device
    starts = itertools.accumulate((len(tokens) for tokens, _ in rows), initial=0)
    keep = [start + at for start, (_, predicting) in zip(starts, rows, strict=False) for at in predicting]
    out = models.decoder(model)(
        input_ids=torch.tensor([[token for tokens, _ in rows for token in tokens]], device=device),
        position_ids=torch.cat([torch.arange(len(tokens)) for tokens, _ in rows])[None].to(device),
        use_cache=False,
    )
    return out.last_hidden_state[0, keep]


def sequences(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[list[int], list[int]]]:
    """What has to be read to score the responses of ``pairs``, and the positions in it that predict their tokens.

    With prompt length X and response length Y, positions ``X-1 .. X+Y-2`` predict ``y_0 .. y_{Y-1}``
    (``method.md`` §3). A prompt that begins with all of the pair before it (the next turn of a growing chat) goes on
    with that pair's sequence: what came before is read once.

    Returns:
        ``(token ids, positions)`` of each sequence; positions rise, and all of them together are in the order of
        ``pairs``.

    Raises:
        AlignmentError: an empty prompt, which has no position to predict the first token from.
    """
    found: list[tuple[list[int], list[int]]] = []
    for prompt, response in pairs:
        if not prompt:
            raise AlignmentError("a prompt is empty, so nothing predicts its first response token")
        if not (found and _begins(prompt, found[-1][0])):
            found.append(([], []))
        tokens, predicting = found[-1]
        tokens += [*prompt[len(tokens) :], *response]
        predicting += range(len(prompt) - 1, len(prompt) - 1 + len(response))
    return found


def response_logits(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> Tensor:
    """Scores ``[N, V]`` before softmax, float32, that predict each response token: see :func:`response_hidden`."""
    return logits_of(model, response_hidden(model, pairs, pad_id))


def logits_of(model: Any, hidden_RH: Tensor) -> Tensor:
    """Logits ``[R, V]`` before softmax, float32, of rows of last hidden states."""
    return models.scaled(model, model.get_output_embeddings()(hidden_RH)).float()


class SharedPrefix:
    """A beginning that many prompts share, read by a frozen model once.

    What follows it is scored in packed rows: all remainders one after the other, each seeing the shared keys and
    values and itself. There is one copy of them however many samples there are, and the result differs from
    :func:`response_hidden` by rounding only.

    Args:
        model: a causal language model that :func:`agentopcd.models.attends_to_all`; it must not change afterwards.
        ids: the shared token ids.
    """

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        self.model, self.ids = model, tuple(ids)

    @functools.cached_property
    def keys_and_values(self) -> list[tuple[Tensor, Tensor]]:
        """For each layer, keys and values ``[1, H, C, D]`` of the shared tokens."""
        ids = torch.tensor([self.ids], device=next(self.model.parameters()).device)
        cache = models.decoder(self.model)(input_ids=ids, use_cache=True).past_key_values
        return [(layer.keys, layer.values) for layer in cache.layers]

    def shared_by(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> int:
        """How many tokens all prompts of ``pairs`` share with the prefix; 0 where sharing does not pay.

        A packed row costs attention between its samples, so what is shared must be longer than what is not.
        """
        shared = min(common_length(self.ids, prompt[:-1]) for prompt, _ in pairs)
        rows = sequences(pairs)
        rest = sum(len(tokens) - shared for tokens, _ in rows)
        return shared if shared * len(rows) >= rest else 0

    def response_hidden(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], shared: int) -> Tensor:
        """What :func:`response_hidden` returns, for prompts that begin with the first ``shared`` tokens."""
        return torch.cat([self._row(row, shared) for row in self.rows(pairs, shared)])

    def rows(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], shared: int
    ) -> list[list[tuple[list[int], list[int]]]]:
        """The :func:`sequences` that follow the shared tokens, packed into rows: a forward pass each."""
        rows: list[list[tuple[list[int], list[int]]]] = [[]]
        room = max(shared, ROW_TOKENS)
        for tokens, predicting in sequences([(prompt[shared:], response) for prompt, response in pairs]):
            if rows[-1] and len(tokens) > room:
                rows.append([])
                room = max(shared, ROW_TOKENS)
            rows[-1].append((tokens, predicting))
            room -= len(tokens)
        return rows

    def _row(self, parts: Sequence[tuple[list[int], list[int]]], shared: int) -> Tensor:
        device = next(self.model.parameters()).device
        lengths = [len(tokens) for tokens, _ in parts]
        starts = itertools.accumulate(lengths, initial=0)
        keep = [start + at for start, (_, predicting) in zip(starts, parts, strict=False) for at in predicting]
        ids = torch.tensor([[token for tokens, _ in parts for token in tokens]], device=device)
        positions = torch.cat([torch.arange(shared, shared + n) for n in lengths])[None].to(device)
        own = torch.block_diag(*(torch.ones(n, n).tril() for n in lengths)).bool()
        seen = torch.cat([torch.ones(sum(lengths), shared, dtype=torch.bool), own], dim=1).to(device)
        known = [(keys[:, :, :shared], values[:, :, :shared]) for keys, values in self.keys_and_values]
        mask = torch.zeros(seen.shape, dtype=known[0][0].dtype, device=device)
        out = models.decoder(self.model)(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)[None, None],
            past_key_values=DynamicCache(ddp_cache_data=known),
            use_cache=True,
        )
        return out.last_hidden_state[0, keep]


def _begins(whole: Sequence[int], beginning: Sequence[int]) -> bool:
    return len(whole) > len(beginning) and tuple(whole[: len(beginning)]) == tuple(beginning)
