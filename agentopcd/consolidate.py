"""THE LOOP: on-policy context distillation (arXiv:2602.12275, Algorithm 1). Read this file from top to bottom.

Each step:

1. The student plays ``batch_size`` train tasks **without** the context.
2. The teacher, **with** the context in its prompt, scores the very token ids that the student sampled.
3. The student minimises the reverse KL to the teacher on those tokens and takes one optimizer step.

The parts of a step are in ``distillation/``: ``methods.py`` has this method and its baselines, ``losses.py`` the
formulas, ``positions.py`` the token positions that are scored. ``rollouts/chat.py`` renders the prompts, and
``rollouts/player.py`` plays the episodes. The letters at the end of a tensor's name are its axes: N response tokens,
H hidden size, R the rows of a chunk, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from agentopcd import models
from agentopcd.core.callable_module import make_callable
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ConfigError, TrainingError
from agentopcd.core.runs import CHECKPOINTS, Run
from agentopcd.core.stats import Mean, Rate
from agentopcd.core.types import Context, Mixture, Task
from agentopcd.distillation import best, checkpoint
from agentopcd.distillation.checkpoint import Progress
from agentopcd.distillation.checks import check_sampler, compare_shortcuts
from agentopcd.distillation.chunks import in_chunks
from agentopcd.distillation.deal import deal
from agentopcd.distillation.distance import DISTANCE, score_student
from agentopcd.distillation.learner import Learner
from agentopcd.distillation.methods import Method
from agentopcd.distillation.metrics import (
    Clock,
    StepMeter,
    console_line,
    definition,
    select_record,
    step_record,
    update_record,
)
from agentopcd.distillation.played import Batches
from agentopcd.distillation.samples import Batch
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.distillation.tokens import Watch, watched
from agentopcd.models import find
from agentopcd.models.load import LoadedModel
from agentopcd.models.parallel import sharding
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.player import Player


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What is taught, and on which tasks. Built once; every process holds the same.

    Raises:
        ConfigError: the context is empty, or there are no train or no select tasks.
    """

    config: ConsolidateConfig
    context: Context | Mixture
    train: Sequence[Task]
    """Tasks for the rollouts."""
    select: Sequence[Task]
    """Tasks for choosing the checkpoint; disjoint from ``train``."""
    by: str = "success"
    """What the checkpoint is chosen by: success, reward, a metric, or the distance to the teacher."""

    def __post_init__(self) -> None:
        if not self.context.text:
            raise ConfigError("the context is empty, so the teacher has nothing to teach; name one with --context")
        if not self.train or not self.select:
            raise ConfigError(f"{len(self.train)} train and {len(self.select)} select tasks; consolidation needs both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consolidated:
    """The result of a run of the loop."""

    folder: Path
    """The best checkpoint, as an ordinary Hugging Face folder."""
    model_id: str
    best_step: int
    steps: int
    """Steps taken: all, unless training stopped early."""
    skipped: int
    """Steps that changed nothing."""
    select: dict[int, Rate | Mean]
    """Success rate (or mean of ``Training.by``) on select tasks by step, without the context; step 0: untrained."""


def consolidate(
    training: Training,
    *,
    student: LoadedModel,
    teacher: FrozenTeacher,
    method: Method,
    run: Run,
    say: Callable[[str], None] = print,
) -> Consolidated:
    """Distil the context into ``student``, in place, and save the best checkpoint as ``run.folder/student``.

    A killed run resumes from its last checkpoint and ends bit-equal to an uninterrupted one (transformers engine,
    same thread count), because every random choice is a function of seed, step and task. Several processes share the
    episodes of a step (``models/parallel/ranks.py``) and, with ``config.shard``, the weights (``sharding.py`` there).

    Args:
        method: whose answers the student learns from, and by which divergence. The method's player plays with the
            student's current weights and never shows the student the context.

    Raises:
        AlignmentError: the two prompts of a turn differ in more than the context.
        TrainingError: the loss or a weight is not finite, or no step changed the weights.
    """
    config, player, ranks = training.config, method.player, Ranks.current()
    say = say if ranks.main else lambda line: None
    learner = Learner(student, config, teacher.compute)
    progress = resume(training, learner, teacher, player, run, say) or begin(
        training, learner, teacher, method, run, say
    )
    batches = Batches(method, training.train, training.context, teacher.fits, say)
    for step in range(progress.step + 1, config.steps + 1):
        if config.patience and progress.best_step and progress.waited() >= config.patience:
            say(f"stopped before step {step}: {config.patience} evaluations on select tasks brought nothing better")
            break
        clock = Clock()

        # 1. The student plays without the context. (Off-policy, the teacher has played with it; half, if mixed.) Each
        # turn becomes a sample with both prompts, the student's without and the teacher's with the context.
        played = batches.take(step)
        player.sampler.rest()  # the engine may free its memory for the passes below
        clock.lap("rollout")
        compare_shortcuts(learner, teacher, played.samples, run, say)  # once, at the start of a run
        clock.lap("compare")

        # 2. The teacher scores the same tokens, with the context. 3. The student learns from those scores.
        # Gradients add up over the batches, so a step is one update however it is split.
        watch = Watch(played.samples, method.temperature) if watched(step, config.steps, config.select_every) else None
        meter = StepMeter(method.temperature, config.temperature, config.importance_cap, config.token_cap, watch)
        for batch in deal(played.samples, learner, teacher, ranks):
            with models.PASSES:
                learn_from(batch, learner, teacher, method, meter, clock)
        meter.gather(ranks.everyone(meter.rows))
        if watch:
            watch.gather(ranks.everyone(watch.rows))
        check_sampler(meter, config, teacher.compute, on_policy=played.policy_step == step - 1)
        batches.settle(clock.lap)  # with --async-steps, servers have played the next batch meanwhile
        norm, moved = learner.step(ranks, step, learned=played.teaches)

        # A moving teacher follows, after a skipped step too; an engine with its own copy takes over changed weights.
        gap_nats = follow(learner, teacher, player, step, moved)
        progress.step, progress.skipped = step, progress.skipped + (not moved)
        clock.lap("update")

        # Log the step and, every ``select_every`` steps, evaluate the student on select tasks.
        record = step_record(method, training.context, played, meter)
        if moved and not math.isfinite(loss := record["loss/value_nats"]):
            raise TrainingError(f"the loss of step {step} is {loss}, so it taught nothing of use")
        record |= update_record(progress, learner, norm, moved, gap_nats) | clock.times()
        evaluated = step % config.select_every == 0 or step == config.steps
        if evaluated:
            record |= choose_checkpoint(progress, learner, teacher, method, training, run)
        if ranks.main:
            run.log(record)
            run.log_tokens(watch.records(step, student.tokenizer) if watch else [])
        say(console_line(record, config.steps, clock.total_s * (config.steps - step)))
        if evaluated:
            say(f"         select {progress.select[step]}, best at step {progress.best_step}")
        # Save after an evaluation too: after a kill, ``best`` on disk must be the step that ``progress`` names.
        if (ranks.main or config.shard) and (step % config.save_every == 0 or evaluated):
            checkpoint.save(run.folder, learner.trained, learner.optimizer, progress.to_dict(), teacher.weights)
    teacher.assert_unchanged()
    return finish(progress, config, run, say)


# -- begin or resume ------------------------------------------------------------------------------------


def resume(
    training: Training, learner: Learner, teacher: FrozenTeacher, player: Player, run: Run, say: Callable[[str], None]
) -> Progress | None:
    """Restore the run's last checkpoint and return its progress; None if there is no checkpoint."""
    state = checkpoint.load(run.folder, learner.trained, learner.optimizer, teacher.weights, say)
    if state is None:
        return None
    progress, ranks = Progress.from_dict(state), Ranks.current()
    sharding.update_whole(learner.student)
    player.sampler.update()
    lost = progress.best_step > 0 and not best.is_there(run.folder, progress)
    ranks.wait()  # every process has read the folder before one changes it
    if ranks.main:
        checkpoint.tidy(run.folder, progress.step)
        if dropped := run.rewind(progress.step):  # steps after the checkpoint run again, so their log lines go
            say(f"warning: {dropped} damaged lines of {run.metrics_file.name} are left out")
        best.put_back(run.folder, progress)
    if lost:
        best.replace(progress, learner, training.context.id, run.folder, say)
    say(f"resumed after step {progress.step}")
    return progress


def begin(
    training: Training, learner: Learner, teacher: FrozenTeacher, method: Method, run: Run, say: Callable[[str], None]
) -> Progress:
    """Log the definition of the loss and the student's success before training."""
    method.player.sampler.update()  # an engine that cannot take weights fails now, not after the first step
    before = score_student(method, training.select, training.by, training.context, learner, teacher, run, say)
    progress = Progress(select={0: before})
    if Ranks.current().main:
        run.rewind(-1)
        said = {"step": 0, "loss/definition": definition(learner.student, teacher, training.context, method)}
        run.log(said | select_record(progress, 0, training.by))
    what = "nats a token from the model that sees it, " if training.by == DISTANCE else ""
    say(f"before training: {before} {what}on {len(training.select)} select tasks, without the context")
    return progress


# -- 2. score, 3. learn ---------------------------------------------------------------------------------


def learn_from(
    batch: Batch, learner: Learner, teacher: FrozenTeacher, method: Method, meter: StepMeter, clock: Clock
) -> None:
    """Let the teacher score a batch, and add the gradient of the student's loss to the gradient of the step.

    Only hidden states are kept for the whole batch. Logits come and go, one chunk of rows at a time.
    """
    teacher_NH = teacher.hidden(batch.samples, passes=batch.passes)
    bare_NH = teacher.hidden_without(batch.samples) if teacher.strength != 1 else None
    clock.lap("teacher")
    figures = meter if batch.counts else meter.aside()  # a padding batch must not reach the log
    figures.begin(batch.samples)
    student_NH, part = learner.hidden(batch.samples), method.part(by_teacher=batch.by_teacher)

    def loss_of(products_RV: torch.Tensor, rows: slice) -> torch.Tensor:
        # Only tokens that both models know; of these, mask those that the engine was not allowed to sample, in both.
        student_RV = figures.keep(rows, models.scaled(learner.model, products_RV)[:, : teacher.rows])
        bare_RH = None if bare_NH is None else bare_NH[rows]
        teacher_RV = figures.keep(rows, teacher.logits(teacher_NH[rows], bare_RH)[:, : teacher.rows])
        token = part.divergence(student_RV, teacher_RV, figures.ids[rows])
        figures.add(rows, student_RV, teacher_RV, token)
        return token.loss_N * figures.importance(rows, student_RV) * figures.capped(token)

    weights_N = batch.weights_N * batch.counts  # zero for a padding batch, which still runs its backward pass
    in_chunks(loss_of, student_NH, weights_N, learner.model.get_output_embeddings()).backward()
    clock.lap("update")


def follow(learner: Learner, teacher: FrozenTeacher, player: Player, step: int, moved: bool) -> float | None:
    """Let a moving teacher follow, and the engine if the weights moved; return how far its copy is off, in nats."""
    teacher.follow(learner.model, step)
    return player.sampler.update() if moved else None


# -- choose, finish -------------------------------------------------------------------------------------


def choose_checkpoint(
    progress: Progress, learner: Learner, teacher: FrozenTeacher, method: Method, training: Training, run: Run
) -> dict[str, Any]:
    """Evaluate the student on select tasks, save it if it is the best so far, and return the fields for the log."""
    step = progress.step
    progress.select[step] = score_student(method, training.select, training.by, training.context, learner, teacher)
    if training.config.keep_checkpoints:
        best.save_student(learner, training.context.id, step, run.folder / CHECKPOINTS / f"{step:06d}")
    if progress.better(step, lowest=training.by == DISTANCE):
        best.save(progress, learner, training.context.id, run.folder)
    return select_record(progress, step, training.by)


def finish(progress: Progress, config: ConsolidateConfig, run: Run, say: Callable[[str], None]) -> Consolidated:
    """Move the best checkpoint to ``run.folder/student``, merged into a whole model where ``config.merge`` asks.

    Raises:
        TrainingError: every step was skipped, so the checkpoint is the base.
    """
    skipped = f"{progress.skipped} of {progress.step} steps were skipped: no finite gradient, or no reply to learn from"
    if progress.skipped == progress.step:  # of fewer than config.steps, if training stopped early
        raise TrainingError(f"{skipped}; nothing was learned, so there is no student")
    if progress.skipped:
        say(f"warning: {skipped}")
    folder, model_id = run.folder / "student", ""
    if Ranks.current().main:
        best.finish(run.folder, merge=config.merge, dtype=config.save_dtype)
        model_id = find.fingerprint(folder)
    Ranks.current().wait()
    return Consolidated(
        folder=folder, model_id=model_id, best_step=progress.best_step, steps=progress.step,
        skipped=progress.skipped, select={**progress.select},
    )  # fmt: skip


make_callable(__name__)  # agentopcd.consolidate(...) works, too
