"""The student while it learns: its trained parameters, its optimizer and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from agentopcd import models
from agentopcd.core.config import TrainConfig
from agentopcd.core.errors import ConfigError, TrainingError
from agentopcd.distillation.compare import compare
from agentopcd.distillation.memory import tokens_per_batch
from agentopcd.distillation.positions import response_hidden
from agentopcd.distillation.samples import Sample
from agentopcd.models.parallel import sharding
from agentopcd.models.parallel.ranks import Ranks


class Learner:
    """A student with its optimizer. Changes the model in place.

    Args:
        student: the model. All its weights are trained or, if it has an adapter, the adapter alone.
        config: learning rate, weight decay, clipping norm, gradient checkpointing.
        compute: dtype of matrix products; the trained parameters are float32.

    Raises:
        ModelError: the student's logits cannot be recomputed from its hidden states and its output head.
        ConfigError: a parameter that would be trained is not float32.
    """

    def __init__(self, student: models.LoadedModel, config: TrainConfig, compute: torch.dtype) -> None:
        self.student, self.config, self.compute = student, config, compute
        self.whole = student.whole or student
        """The model that is saved: the unsharded copy of a sharded student that plays in place, else ``student``."""
        self.model = student.model.eval()  # dropout stays off, as in the teacher's passes
        self.device = next(self.model.parameters()).device
        if not sharding.is_sharded(self.whole.model):  # it gives hidden states only; checked before it was sharded
            with models.autocast(self.device, compute):
                models.check_head(self.whole.model)
        if student.adapter is None:
            self.model.requires_grad_(True)
        models.attend_without_padding(student, compute)
        if config.gradient_checkpointing:
            models.checkpoint_gradients(self.model)
        self.tokens_per_batch = tokens_per_batch(self.model, config, self.device)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        check_float32(self.trained)
        self.learning_rate = config.learning_rate or student.learning_rate * (10 if student.adapter else 1)
        self.rate = self.learning_rate
        """The learning rate of the last step; it differs from the first one by the schedule."""
        # AdamW with the settings of the paper's released code.
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=self.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=config.weight_decay,
            fused=True,
        )

    def hidden(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Last hidden states ``[N, H]`` that predict the response tokens of ``samples``, with a graph."""
        pairs = [(sample.student_ids, sample.response_ids) for sample in samples]
        # Sharding gathers and frees the weights layer by layer, so autocast must not keep copies of them.
        with models.autocast(self.device, self.compute, keep=not self.config.shard):
            return response_hidden(self.model, pairs, self.student.tokenizer.pad_token_id)

    def compare(self, samples: Sequence[Sample]) -> list[str]:
        """Compare the shortcuts of scoring on some of ``samples``, set aside those that differ, and return a line each.

        Raises:
            ModelError: the logits cannot be recomputed from hidden states and output head.
        """
        pairs = [(sample.student_ids, sample.response_ids) for sample in samples]
        with models.autocast(self.device, self.compute, keep=not self.config.shard), models.heard(self.student):
            pad_id = self.student.tokenizer.pad_token_id
            return compare(self.model, pairs, pad_id, self.compute, name=f"the student {self.student.name}")

    def step(self, ranks: Ranks, number: int, *, learned: bool) -> tuple[float, bool]:
        """Sum the gradients of all processes, clip them and take one optimizer step.

        Args:
            number: the number of this step, from 1.
            learned: whether this step had any samples of what is taught; neutral ones do not count.

        Returns:
            The gradient norm before clipping, and whether the weights changed. They do not change if there were no such
            samples or if the norm is not finite.

        Raises:
            TrainingError: a weight is no longer finite.
        """
        ranks.sum_gradients(self.trained.values())
        norm = sharding.clip_gradients(self.trained.values(), self.config.clip_norm)
        # Without samples there is no gradient, but AdamW's moments and weight decay could still move the weights.
        moved = math.isfinite(norm) and learned
        self.rate = self.learning_rate * scheduled(number, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        if moved:
            self.optimizer.step()
            if not math.isfinite(sharding.norm_of(self.trained.values())):
                raise TrainingError(
                    f"weights are not finite any more (learning rate {self.learning_rate:g}), so there is no student; "
                    "lower --learning-rate"
                )
            sharding.update_whole(self.student)
        self.optimizer.zero_grad(set_to_none=True)
        return norm, moved


def scheduled(step: int, config: TrainConfig) -> float:
    """The share of the learning rate that a step takes: linear up to 1 over ``warmup_steps``, then as ``decay`` says.

    A function of the step alone, so a resumed run needs no state. The last step of a decay is above 0.
    """
    if step <= config.warmup_steps:
        return step / config.warmup_steps
    left = (config.steps + 1 - step) / (config.steps + 1 - max(1, config.warmup_steps))
    match config.decay:
        case "linear":
            return left
        case "cosine":
            return (1 - math.cos(math.pi * left)) / 2
    return 1.0


def check_float32(parameters: Mapping[str, torch.Tensor]) -> None:
    """Refuse master weights below float32: at a learning rate of 1e-6 a bfloat16 weight silently stays where it is.

    Raises:
        ConfigError: a parameter is not float32; the message names one.
    """
    wrong = {name for name, p in parameters.items() if p.dtype != torch.float32}
    if wrong:
        raise ConfigError(f"{len(wrong)} parameters are not float32 ({min(wrong)}); train float32 masters")
