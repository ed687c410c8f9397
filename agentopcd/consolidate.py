"""THE LOOP: on-policy context distillation, one file, read from top to bottom (arXiv:2602.12275, Algorithm 1).

Each step:

1. the student plays ``batch_size`` train tasks **without** the context;
2. the teacher, **with** the context in its prompt, scores the very token ids the student sampled;
3. the student minimises the reverse KL to it on those tokens, and takes one optimizer step.

``methods.py`` holds this method and those it is compared with, ``losses.py`` the formulas, ``positions.py`` the rows
that are scored, ``chat.py`` the prompts, ``rollouts.py`` the games.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from agentopcd import models
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import CHECKPOINTS, Run
from agentopcd.core.stats import Rate
from agentopcd.core.types import Context, Mixture, Task
from agentopcd.distillation import checkpoint, losses
from agentopcd.distillation.checkpoint import Progress
from agentopcd.distillation.chunks import in_chunks
from agentopcd.distillation.learner import Learner
from agentopcd.distillation.methods import Method
from agentopcd.distillation.metrics import (
    Clock,
    StepMeter,
    console_line,
    context_tokens,
    definition,
    rollout_record,
    select_record,
    update_record,
)
from agentopcd.distillation.played import draw, play_step, say_read_apart, success_on
from agentopcd.distillation.samples import Batch, Sample, micro_batches
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.models import find
from agentopcd.models.load import LoadedModel
from agentopcd.models.parallel import sharding
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.player import Player


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What is taught, and on which tasks: gathered once, the same in every process.

    Raises:
        ConfigError: an empty context, or no tasks.
    """

    config: ConsolidateConfig
    context: Context | Mixture
    train: Sequence[Task]
    """Tasks to roll out on."""
    select: Sequence[Task]
    """Tasks the checkpoint is chosen on; disjoint from ``train``."""

    def __post_init__(self) -> None:
        if not self.context.text:
            raise ConfigError("the context is empty, so the teacher has nothing to teach; name one with --context")
        if not self.train or not self.select:
            raise ConfigError(f"{len(self.train)} train and {len(self.select)} select tasks; consolidation needs both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consolidated:
    """What a run of the loop leaves."""

    folder: Path
    """The best checkpoint, an ordinary Hugging Face folder."""
    model_id: str
    best_step: int
    select: dict[int, Rate]
    """Success on select tasks by step, without the context; step 0 is the student before training."""


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

    A run that was killed goes on from its last checkpoint and ends bit-equal to an uninterrupted one
    (transformers engine, same thread count): every random choice is a function of seed, step and task. Several
    processes (see ``ranks.py``) share the episodes of a step; each holds the student and the teacher, or, with
    ``config.shard``, a part of them (see ``sharding.py``).

    Args:
        method: whose answers are learned from, and by which divergence. Its player plays with the student's weights
            as they change, and never shows it the context.

    Raises:
        AlignmentError: the two prompts of a turn differ in more than the context.
    """
    config, player, ranks = training.config, method.player, Ranks.current()
    say = say if ranks.main else lambda line: None
    learner = Learner(student, config, teacher.compute)
    progress = resume(learner, teacher, player, run, say) or begin(training, learner, teacher, method, run, say)
    noted = False
    for step in range(progress.step + 1, config.steps + 1):
        clock = Clock()

        # 1. The student plays without the context (or, with a baseline, the teacher has played with it).
        played = play_step(method, draw(training.train, step, config), training.context, ranks)
        noted = noted or say_read_apart(played, say)
        player.sampler.rest()
        clock.lap("rollout")

        # 2. The teacher, with the context, scores the same tokens. 3. The student learns from it.
        meter = StepMeter(method.temperature, config.temperature, config.importance_cap)
        for batch in deal(played.samples, config, teacher, ranks):
            learn_from(batch, learner, teacher, method, meter, clock)
        norm, moved = learner.step(ranks, learned=bool(played.samples))

        # The weights have changed: a teacher that moves and an engine with a copy of its own hear of it.
        gap_nats = None
        if moved:
            teacher.follow(learner.model, step)
            gap_nats = player.sampler.update()
        progress.step, progress.skipped = step, progress.skipped + (not moved)
        clock.lap("update")

        # What the step did, and, every so often, how the student does on select tasks.
        meter.gather(ranks.everyone(meter.rows))
        record = meter.result() if played.samples else {"loss/value_nats": 0.0}
        record |= method.measured(rollout_record(played.episodes, played.samples, played.dropped))
        record |= update_record(progress, learner, norm, moved, gap_nats) | clock.times()
        record |= {"loss/name": method.name, "train/turns_read_apart": played.apart}
        record |= {"teacher/context_tokens": context_tokens(player.chat, training.context)}
        evaluated = step % config.select_every == 0 or step == config.steps
        if evaluated:
            record |= choose_checkpoint(progress, learner, player, training, run)
        if ranks.main:
            run.log(record)
        say(console_line(record, config.steps, clock.total_s * (config.steps - step)))
        if evaluated:
            say(f"         select {progress.select[step]}, best at step {progress.best_step}")
        # After an evaluation, too: the best checkpoint and the step it is said to be of must not part in a kill.
        if (ranks.main or config.shard) and (step % config.save_every == 0 or evaluated):
            checkpoint.save(run.folder, learner.trained, learner.optimizer, progress.to_dict(), teacher.weights)
    teacher.assert_unchanged()
    return finish(progress, config, run)


# -- begin or resume ------------------------------------------------------------------------------------


def resume(
    learner: Learner, teacher: FrozenTeacher, player: Player, run: Run, say: Callable[[str], None]
) -> Progress | None:
    """Go on after the last checkpoint of the run, if there is one."""
    state = checkpoint.load(run.folder, learner.trained, learner.optimizer, teacher.weights)
    if state is None:
        return None
    progress, ranks = Progress.from_dict(state), Ranks.current()
    sharding.update_whole(learner.student)
    player.sampler.update()
    ranks.wait()  # all have read the log's place before it is cut
    if ranks.main:
        run.rewind(progress.step)  # the steps after the checkpoint are run again
    say(f"resumed after step {progress.step}")
    return progress


def begin(
    training: Training,
    learner: Learner,
    teacher: FrozenTeacher,
    method: Method,
    run: Run,
    say: Callable[[str], None],
) -> Progress:
    """Write down what the loss is, and how the student does before training."""
    progress, ranks = Progress(), Ranks.current()
    method.player.sampler.update()  # an engine that cannot take weights says so now, not after the first step
    progress.select[0] = Rate(*success_on(method.player, training.select, ranks))
    if ranks.main:
        run.rewind(-1)
        said = {"step": 0, "loss/definition": definition(learner.student, teacher, training.context, method)}
        run.log(said | select_record(progress, 0))
    say(f"before training: {progress.select[0]} on {len(training.select)} select tasks, without the context")
    return progress


# -- 2. score, 3. learn ---------------------------------------------------------------------------------


def deal(samples: Sequence[Sample], config: ConsolidateConfig, teacher: FrozenTeacher, ranks: Ranks) -> Iterator[Batch]:
    """This process's batches of a step.

    The weights of tokens are those of the whole step, so how it is split into batches and processes changes nothing.
    """
    weights = losses.token_weights([sample.num_tokens for sample in samples], config.reduction)
    batches = list(micro_batches(samples, weights, config.tokens_per_batch, teacher.reads))
    for (chunk, weights_N), counts, round_ in ranks.deal(batches, even=config.shard):
        # Where weights are sharded, all processes must run a model equally often.
        passes = max(teacher.passes(other) for other, _ in round_) if config.shard else 0
        yield Batch(samples=chunk, weights_N=weights_N, counts=counts, passes=passes)


def learn_from(
    batch: Batch, learner: Learner, teacher: FrozenTeacher, method: Method, meter: StepMeter, clock: Clock
) -> None:
    """Let the teacher score a batch, and add the gradient of the student's loss on it to that of the step.

    Nothing but hidden states is kept of either model: logits are made, compared and dropped a chunk of rows at a time.
    """
    teacher_NH = teacher.hidden(batch.samples, passes=batch.passes)
    clock.lap("teacher")
    figures = meter if batch.counts else meter.aside()
    figures.begin(batch.samples)
    student_NH = learner.hidden(batch.samples)

    def loss_of(products_RV: torch.Tensor, rows: slice) -> torch.Tensor:
        # Neither model is scored on what the engine was not allowed to say.
        student_RV = figures.keep(rows, models.scaled(learner.model, products_RV))
        teacher_RV = figures.keep(rows, teacher.logits(teacher_NH[rows]))
        token = method.divergence(student_RV, teacher_RV, figures.ids[rows])
        figures.add(rows, student_RV, teacher_RV, token)
        return token.loss_N * figures.importance(rows, student_RV)

    weights_N = batch.weights_N * batch.counts
    in_chunks(loss_of, student_NH, weights_N, learner.model.get_output_embeddings()).backward()
    clock.lap("update")


# -- choose, finish -------------------------------------------------------------------------------------


def choose_checkpoint(
    progress: Progress, learner: Learner, player: Player, training: Training, run: Run
) -> dict[str, Any]:
    """Evaluate the student on select tasks and save it if it is the best so far; what the step's record says of it."""
    step, config, ranks = progress.step, training.config, Ranks.current()
    progress.select[step] = Rate(*success_on(player, training.select, ranks))
    names = [f"{CHECKPOINTS}/{step:06d}"] * config.keep_checkpoints
    if progress.better(step):
        progress.best_step = step
        names.append("best")
    facts = {"step": step, "context": training.context.id}
    for name in names if ranks.main else ():
        models.save_model(learner.whole, run.folder / name, parent_id=learner.student.id, facts=facts)
    return select_record(progress, step)


def finish(progress: Progress, config: ConsolidateConfig, run: Run) -> Consolidated:
    """Make the best checkpoint the student."""
    folder, best, ranks = run.folder / "student", run.folder / "best", Ranks.current()
    if ranks.main and best.is_dir():  # absent when a kill came right after this block
        shutil.rmtree(folder, ignore_errors=True)
        if config.merge:
            models.merge(best)
        best.rename(folder)
    ranks.wait()
    return Consolidated(
        folder=folder,
        model_id=find.fingerprint(folder),
        best_step=progress.best_step,
        select=dict(progress.select),
    )
