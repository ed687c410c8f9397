"""The peer of ``benchmarks.consolidate``: TRL 1.16's ``SDFTTrainer`` on the same model, prompts, context and lengths.

It runs in an environment of its own (TRL pins other things than we do) and imports nothing of agentopcd:

    python -m venv .venv-trl
    .venv-trl/bin/pip install -c constraints.txt torch transformers accelerate trl==1.16.0

``benchmarks.consolidate --trl .venv-trl/bin/python`` calls it, once for every measurement, with a JSON job on stdin.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl.experimental.sdft import SDFTConfig, SDFTTrainer
from trl.experimental.sdft.loss_utils import compute_topk_self_distillation_loss


def losses_of(job: dict[str, Any]) -> dict[str, Any]:
    """TRL's token losses on logits that agentopcd wrote: ``{"tail": [...], "renorm": [...]}``."""
    from safetensors.torch import load_file

    logits = load_file(job["logits"])
    return {
        form: compute_topk_self_distillation_loss(
            logits["student"][None], logits["teacher"][None], distillation_topk=256, distillation_alpha=1.0,
            distillation_add_tail=form == "tail",
        )[0].tolist()
        for form in ("tail", "renorm")
    }  # fmt: skip


class Timed(SDFTTrainer):
    """The trainer as it is, with a clock at its phases."""

    spent: dict[str, list[float]]
    longest = 0

    def _prepare_training_batch(self, inputs: Any) -> Any:
        began = now()
        batch = super()._prepare_training_batch(inputs)
        self._add("rollout", began)
        self.longest = batch["teacher_input_ids"].shape[1]
        return batch

    def _forward_logits(self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int) -> Any:
        began = now()
        logits = super()._forward_logits(model, input_ids, attention_mask, logits_to_keep)
        if not torch.is_grad_enabled():
            self._add("teacher", began)
        return logits

    def _add(self, phase: str, began: tuple[float, float]) -> None:
        ended = now()
        self.spent[phase] = [ended[0] - began[0], ended[1] - began[1]]


class Steps(TrainerCallback):
    """Collects the phases of each step; what is neither rollout nor teacher is the update."""

    def __init__(self, trainer: Timed) -> None:
        self.trainer, self.steps = trainer, []
        self.started = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        ended, spent = now(), dict(self.trainer.spent)
        known = [spent["rollout"][i] + spent["teacher"][i] for i in (0, 1)]
        spent["update"] = [ended[i] - self.started[i] - known[i] for i in (0, 1)]
        self.steps.append(spent)
        self.started = now()


def now() -> tuple[float, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # a GPU works on after a call has returned
    return time.process_time(), time.perf_counter()


def peak_mib() -> float:
    """Peak memory of the GPU, if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    rows = [{"prompt": messages, "privileged_context": job["context"]} for messages in job["asked"]]
    with tempfile.TemporaryDirectory() as scratch:
        config = SDFTConfig(
            output_dir=scratch, per_device_train_batch_size=len(rows), num_generations=1, num_iterations=1,
            max_steps=job["steps"] + 1, learning_rate=1e-6, lr_scheduler_type="constant", temperature=0.7,
            max_prompt_length=None, max_completion_length=job["reply"], shuffle_dataset=False,
            generation_kwargs={"min_new_tokens": job["reply"]}, teacher_model_kind="base",
            teacher_prompt_template="{privileged_context}\n\n{prompt}", disable_dropout=True,
            distillation_mode="topk_logits", distillation_topk=256, distillation_alpha=1.0,
            distillation_add_tail=True, distillation_is_clip=None, gradient_checkpointing=False,
            gradient_accumulation_steps=1, bf16=job["compute"] == "bfloat16", use_cpu=not torch.cuda.is_available(),
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
            model_init_kwargs={"dtype": "float32"},
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(job["model"])
        trainer = Timed(
            model=job["model"], args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        trainer.spent = {}
        steps = Steps(trainer)
        trainer.add_callback(steps)
        steps.started = now()
        trainer.train()
    weights = {str(p.dtype).removeprefix("torch.") for p in trainer.model.parameters() if p.requires_grad}
    return {
        "arm": "trl", "first": steps.steps[0], "steps": steps.steps[1:], "teacher_tokens": trainer.longest,
        "weights": sorted(weights), "peak_mib": peak_mib(),
    }  # fmt: skip


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    given = json.load(sys.stdin)
    print(json.dumps(losses_of(given) if "logits" in given else measure(given)))
