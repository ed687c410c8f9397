"""Who the teacher is: a model that never learns, or one that follows the student."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from agentopcd import models
from agentopcd.core.config import TrainConfig
from agentopcd.core.errors import AlignmentError
from agentopcd.distillation.positions import SharedPrefix, logits_of, response_hidden
from agentopcd.distillation.samples import Sample
from agentopcd.models.parallel import sharding
from agentopcd.rollouts.chat import common_length


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
            passes: forward passes to make at least; surplus ones read the first sample again.
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
