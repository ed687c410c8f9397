"""The teachers: a frozen model, or a model that follows the student.

Their prompts, with the context, come ready in the samples: ``samples_of`` asks ``rollouts/chat.py`` for them.
"""

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
from agentopcd.distillation import losses
from agentopcd.distillation.compare import compare
from agentopcd.distillation.positions import logits_of, response_hidden
from agentopcd.distillation.prefix import SharedPrefix, prefix_of
from agentopcd.distillation.samples import Sample, in_batches
from agentopcd.models.parallel import sharding


class FrozenTeacher:
    """A teacher that never learns: the student before training, or another model.

    Args:
        loaded: the model to score with. If it is the student itself, it is copied; if the student trains an adapter,
            the teacher is the student with the adapter off.
        student: the model that learns. It must have the teacher's vocabulary and end tokens.
        compute: dtype of matrix products.
        prefixes: for each context, the token ids that all prompts with it begin with. Each is read once, and what the
            model keeps of it serves every sample of the run. Without prefixes each prompt is read in full.
        shard: shard the teacher's weights over the processes. All processes must then make equally many forward passes;
            see :meth:`passes`.
        strength: how much the context counts, see :func:`agentopcd.distillation.losses.strengthened`.
    """

    kind = "frozen"
    kept_in: torch.dtype | None = None
    """Dtype of the teacher's linear weights; None stands for ``compute``."""

    def __init__(
        self,
        loaded: models.LoadedModel,
        student: models.LoadedModel,
        *,
        compute: torch.dtype,
        prefixes: Sequence[Sequence[int]] = (),
        shard: bool = False,
        strength: float = 1.0,
    ) -> None:
        itself = loaded is student
        self.strength = strength
        if not itself:
            models.check_pair(student, loaded)
            models.check_head(loaded.model)
            self.kind = "other"
        self.adapter = loaded.adapter
        if self.adapter is not None:
            self.kind, self.model = "lora_base", loaded.model
        else:
            self.model = copy.deepcopy(loaded.model) if itself else loaded.model
            models.forget_shortcuts(self.model)  # the copy is compared again, in the state in which it scores
            models.freeze(self.model, self.kept_in or compute)
        self.hash = models.parameter_hash(self.model, frozen=True)
        if shard:
            sharding.shard(self.model)
        self.name, self.compute = loaded.name, compute
        self.pad_id = loaded.tokenizer.pad_token_id
        self.rows = models.shared_rows(student, loaded)
        """The number of tokens that both models have a row for. Both distributions are cut to these tokens."""
        self.embedded: int = self.model.get_input_embeddings().weight.shape[0]
        """The number of tokens that this model can read."""
        self.positions = models.positions(self.model)
        self.own_hash = models.parameter_hash(self.model, frozen=True) if shard else self.hash
        self.prefixes = [prefix_of(self.model, ids) for ids in prefixes if ids]

    def hidden(self, samples: Sequence[Sample], passes: int = 0) -> Tensor:
        """Last hidden states ``[N, H]`` that predict the response tokens of ``samples``, with the context in prompts.

        Args:
            passes: the least number of forward passes to make. Surplus passes read the first sample again, and their
                result is dropped.
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

    def hidden_without(self, samples: Sequence[Sample]) -> Tensor:
        """Last hidden states ``[N, H]`` of the same tokens without the context: after the student's own prompts."""
        with self._scoring():
            return response_hidden(self.model, [(s.student_ids, s.response_ids) for s in samples], self.pad_id)

    def compare(self, samples: Sequence[Sample]) -> list[str]:
        """Compare the shortcuts of scoring on some of ``samples``, set aside those that differ, and return a line each.

        Raises:
            ModelError: the logits cannot be recomputed from hidden states and output head.
        """
        pairs = [(s.teacher_ids, s.response_ids) for s in samples]
        with self._scoring():
            name = f"the teacher {self.name}"
            lines = compare(self.model, pairs, self.pad_id, self.compute, prefix=bool(self.prefixes), name=name)
            if isinstance(self.model, FSDPModule):
                for prefix in self._shareable:
                    # Read it now, in all processes at once: a sharded pass needs all of them, and later each process
                    # may need the prefix at a different time.
                    _ = prefix.state
        return lines + self._path(samples)

    def _path(self, samples: Sequence[Sample]) -> list[str]:
        """A line that says whether what prompts begin with is read once, how the rest is read, and why.

        About as in training, samples of one context and of similar length are judged together.
        """
        if not (self._shareable and samples and models.shortcuts_of(self.model).head):
            return []  # nothing is shared, or a line of the comparison has said why
        name, found, alike, often = f"the teacher {self.name}", [], 0, 0
        for context in dict.fromkeys(sample.context for sample in samples):
            group = [sample for sample in samples if sample.context == context]
            for batch in in_batches([self.reads(sample) for sample in group]):
                pairs = [(group[place].teacher_ids, group[place].response_ids) for place in batch]
                alike = max(alike, *(min(prefix.begins(ids) for ids, _ in pairs) for prefix in self._shareable), 0)
                if one := self._shared(pairs):
                    found.append(one)
                    often += len(pairs)
        if found:
            prefix, shared = max(found, key=lambda one: one[1])
            whose = "its prompts begin" if often == len(samples) else f"{often} of {len(samples)} prompts begin"
            return [f"{name} reads the {shared} tokens that {whose} with once; {prefix.how}"]
        return [f"{name} reads each prompt in full; the {alike} tokens that they share are too few beside the rest"]

    def passes(self, samples: Sequence[Sample]) -> int:
        """The number of forward passes that scoring ``samples`` takes."""
        pairs = [(s.teacher_ids, s.response_ids) for s in samples]
        if (found := self._shared(pairs)) is not None:
            prefix, shared = found
            return prefix.passes(pairs, shared)
        return 1

    @property
    def _shareable(self) -> list[SharedPrefix]:
        """The prefixes that are read once; none if the model scores otherwise after a shared prefix."""
        return self.prefixes if models.shortcuts_of(self.model).prefix else []

    def _shared(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[SharedPrefix, int] | None:
        """The prefix of which these prompts share the most tokens, and how many; None if sharing does not pay."""
        lengths = [(prefix, prefix.shared_by(pairs)) for prefix in self._shareable]
        return max((entry for entry in lengths if entry[1]), key=lambda entry: entry[1], default=None)

    @contextlib.contextmanager
    def _scoring(self) -> Iterator[None]:
        """Inside this block the model scores: eval mode, no gradients, the teacher's weights."""
        # A student that checkpoints gradients is in training mode, where transformers keeps no keys and values.
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self._in_place(), models.autocast(next(self.model.parameters()).device, self.compute):
                yield
        finally:
            self.model.train(training)

    def _in_place(self) -> contextlib.AbstractContextManager[Any]:
        """Inside this block a model that it shares with the student has the teacher's weights: the adapter is off."""
        return self.adapter.disable_adapter() if self.adapter else contextlib.nullcontext()

    @torch.no_grad()
    def logits(self, hidden_RH: Tensor, bare_RH: Tensor | None = None) -> Tensor:
        """Logits ``[R, V]``, float32, of some rows of :meth:`hidden`.

        Args:
            bare_RH: the same rows of :meth:`hidden_without`, for a teacher with another strength than 1.
        """
        shown_RV = logits_of(self.model, hidden_RH)
        if bare_RH is None:
            return shown_RV
        return losses.strengthened(logits_of(self.model, bare_RH), shown_RV, self.strength)

    def reads(self, sample: Sample) -> int:
        """The number of tokens that the teacher reads for ``sample``, without the prefix if sharing it pays."""
        found = self._shared([(sample.teacher_ids, sample.response_ids)])
        return len(sample.teacher_ids) + sample.num_tokens - (found[1] if found else 0)

    def fits(self, sample: Sample) -> bool:
        """Whether the teacher can score ``sample``: its prompt fits, and all has only tokens that it knows."""
        room = not self.positions or len(sample.teacher_ids) + sample.num_tokens <= self.positions
        read = [sample.teacher_ids] if self.strength == 1.0 else [sample.teacher_ids, sample.student_ids]
        known = all(max(ids, default=0) < self.embedded for ids in read)
        return room and known and max(sample.response_ids) < self.rows

    def score(self, samples: Sequence[Sample]) -> Tensor:
        """Logits ``[N, V]``, float32, of all response tokens of ``samples`` at once."""
        return self.logits(self.hidden(samples))

    @property
    def weights(self) -> dict[str, Tensor]:
        """The teacher's part of a checkpoint: nothing, because a resumed run builds the teacher again."""
        return {}

    def follow(self, student: Any, step: int) -> None:
        """Do nothing: a frozen teacher does not follow ``student``, a model, after an optimizer step."""

    def assert_unchanged(self) -> None:
        """Raise if a parameter has changed since the teacher was built.

        Raises:
            AlignmentError: the hash of the parameters differs.
        """
        if models.parameter_hash(self.model, frozen=True) != self.own_hash:
            raise AlignmentError("the frozen teacher's parameters changed during the run, so its scores are not valid")


class MovingTeacher(FrozenTeacher):
    """A teacher that follows the student; see :class:`FrozenTeacher`.

    Args:
        kind: whose weights the teacher has. ``live``: the student's current ones. ``periodic``: the student's at the
            last step that ``every`` divides. ``ema``: an exponential moving average of the student's.
        every: steps between two copies, for ``periodic``.
        keeps: the decay of the average, for ``ema``: the teacher's weights become ``keeps`` times their own value plus
            ``1 - keeps`` times the student's.
    """

    kept_in = torch.float32
    """In bfloat16, an average of many small steps would not move."""

    def __init__(
        self, student: models.LoadedModel, *, kind: str, every: int = 1, keeps: float = 0.0, compute: torch.dtype,
        prefixes: Sequence[Sequence[int]] = (), strength: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(student, student, compute=compute, prefixes=prefixes, strength=strength)
        self.kind, self.every, self.keeps = kind, every, keeps
        self._weights: dict[str, Tensor] = dict(self.model.named_parameters())
        if self.adapter is not None:  # one model in memory; its adapter is the teacher's while the teacher scores
            learns = {name: p for name, p in self._weights.items() if p.requires_grad}
            self._weights = {} if kind == "live" else {name: p.detach().clone() for name, p in learns.items()}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The teacher's part of a checkpoint: its parameters by name; with an adapter, those of its own adapter."""
        return self._weights

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        """Inside this block the student's adapter, if it has one, holds the teacher's weights."""
        learns = dict(self.model.named_parameters())
        held = {name: learns[name].data for name in self.weights} if self.adapter is not None else {}
        try:
            for name in held:
                learns[name].data = self.weights[name]
            yield
        finally:
            for name, weight in held.items():
                learns[name].data = weight

    @torch.no_grad()
    def follow(self, student: Any, step: int) -> None:
        """Update the teacher's weights from ``student``, a model that has just taken this optimizer step."""
        if self.kind == "periodic" and step % self.every:
            return
        learned = dict(student.named_parameters())
        for name, weight in self.weights.items():
            if self.kind == "ema":
                weight.mul_(self.keeps).add_(learned[name], alpha=1 - self.keeps)
            else:
                weight.copy_(learned[name])
        for prefix in self.prefixes:
            prefix.forget()  # its state was computed with the old weights

    def assert_unchanged(self) -> None:
        """Raise if a gradient has reached the teacher; its weights may change, by :meth:`follow` alone.

        Raises:
            AlignmentError: a parameter has a gradient or asks for one, or what an adapter lies on has changed.
        """
        if self.adapter is not None:
            super().assert_unchanged()
        if any(p.requires_grad or p.grad is not None for p in self.weights.values()):
            raise AlignmentError("a gradient reached the teacher; it follows the student and never learns")


def teacher_of(
    config: TrainConfig, teacher: models.LoadedModel, student: models.LoadedModel, *, compute: torch.dtype,
    prefixes: Sequence[Sequence[int]] = (),
) -> FrozenTeacher:  # fmt: skip
    """The teacher that the settings ask for."""
    strength = config.teacher_strength or 1.0
    if config.teacher_kind == "frozen":
        return FrozenTeacher(
            teacher, student, compute=compute, prefixes=prefixes, shard=config.shard, strength=strength
        )
    return MovingTeacher(
        student, kind=config.teacher_kind, every=config.teacher_every, keeps=config.teacher_keeps, compute=compute,
        prefixes=prefixes, strength=strength,
    )  # fmt: skip
