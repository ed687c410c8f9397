"""The student while it learns: what of it is trained, by which optimizer, at which rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from agentopcd import models
from agentopcd.core.config import TrainConfig
from agentopcd.core.errors import ConfigError
from agentopcd.distillation.positions import response_hidden
from agentopcd.distillation.samples import Sample
from agentopcd.models.parallel import sharding
from agentopcd.models.parallel.ranks import Ranks


class Learner:
    """A student with its optimizer. Changes the model in place.

    Args:
        student: trained whole, or its adapter alone where it has one.
        config: rate, weight decay, norm limit, gradient checkpointing.
        compute: dtype of matrix products; the parameters that are trained are float32.

    Raises:
        ModelError: its logits are more than its output head makes of its hidden states.
        ConfigError: a parameter that would be trained is not float32.
    """

    def __init__(self, student: models.LoadedModel, config: TrainConfig, compute: torch.dtype) -> None:
        self.student, self.config, self.compute = student, config, compute
        self.whole = student.whole or student
        """What plays and is saved."""
        self.model = student.model.eval()  # dropout stays off, as in the teacher's passes
        self.device = next(self.model.parameters()).device
        with models.autocast(self.device, compute):
            models.check_head(self.whole.model)
        if student.adapter is None:
            self.model.requires_grad_(True)
        models.attend_without_padding(student, compute)
        if config.gradient_checkpointing:
            models.checkpoint_gradients(self.model)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        check_float32(self.trained)
        self.learning_rate = config.learning_rate or student.learning_rate * (10 if student.adapter else 1)
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
        # A sharded model's weights come and go with each layer, so their casts must not be kept.
        with models.autocast(self.device, self.compute, keep=not self.config.shard):
            return response_hidden(self.model, pairs, self.student.tokenizer.pad_token_id)

    def step(self, ranks: Ranks, *, learned: bool) -> tuple[float, bool]:
        """Take the optimizer step that the gradients of all processes ask for.

        Args:
            learned: whether there was anything to learn from.

        Returns:
            The gradient norm before clipping, and whether the weights moved: not where nothing was learned or the norm
            is not finite.
        """
        ranks.sum_gradients(self.trained.values())
        norm = sharding.clip_gradients(self.trained.values(), self.config.clip_norm)
        moved = math.isfinite(norm) and learned
        if moved:
            self.optimizer.step()
            sharding.update_whole(self.student)
        self.optimizer.zero_grad(set_to_none=True)
        return norm, moved


def check_float32(parameters: Mapping[str, torch.Tensor]) -> None:
    """Refuse masters of lower precision: at a rate of 1e-6 a bfloat16 parameter does not move, and nobody would know.

    Raises:
        ConfigError: naming one of them.
    """
    wrong = {name for name, p in parameters.items() if p.dtype != torch.float32}
    if wrong:
        raise ConfigError(f"{len(wrong)} parameters are not float32 ({min(wrong)}); train float32 masters")
