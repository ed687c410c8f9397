"""THE LOOP: on-policy context distillation, one file, read from top to bottom (arXiv:2602.12275, Algorithm 1).

Each step:

1. the student plays ``batch_size`` train tasks **without** the context;
2. the teacher, **with** the context in its prompt, scores the very token ids the student sampled;
3. the student minimises the reverse KL to it on those tokens, and takes one optimizer step.

``methods.py`` holds this method and those it is compared with, ``losses.py`` the formulas, ``teacher.py`` the
positions, ``chat.py`` the prompts, ``rollouts.py`` the games.
"""

from __future__ import annotations

import dataclasses
import math
import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from agentopcd import losses, methods, models, sharding, sources
from agentopcd.chat import Chat
from agentopcd.config import ConsolidateConfig
from agentopcd.errors import AlignmentError, ConfigError
from agentopcd.measures import StepMeter, rollout_measures
from agentopcd.ranks import Ranks
from agentopcd.rollouts import Player
from agentopcd.runs import CHECKPOINTS, Run, console_line
from agentopcd.stats import Rate
from agentopcd.teacher import FrozenTeacher, Sample, response_hidden
from agentopcd.types import Context, Episode, Job, Mixture, Task


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
    config: ConsolidateConfig,
    *,
    student: models.LoadedModel,
    teacher: FrozenTeacher,
    context: Context | Mixture,
    player: Player,
    train: Sequence[Task],
    select: Sequence[Task],
    run: Run,
    compute: torch.dtype,
    method: methods.Opcd | None = None,
    say: Callable[[str], None] = print,
) -> Consolidated:
    """Distil ``context`` into ``student``, in place, and save the best checkpoint as ``run.folder/student``.

    A run that was killed goes on from its last checkpoint and ends bit-equal to an uninterrupted one
    (transformers engine, same thread count): every random choice is a function of seed, step and task. Several
    processes (see ``ranks.py``) share the episodes of a step; each holds the student and the teacher, or, with
    ``config.shard``, a part of them (see ``sharding.py``).

    Args:
        player: plays with the student's weights as they change, and never shows it the context.
        train: tasks to roll out on.
        select: tasks the checkpoint is chosen on; disjoint from ``train``.
        method: whose answers are learned from, and how; None: the student's own, by reverse KL.

    Raises:
        ConfigError: an empty context, or no tasks.
        AlignmentError: the two prompts of a turn differ in more than the context.
    """
    if not context.text:
        raise ConfigError("the context is empty, so the teacher has nothing to teach; name one with --context")
    if not train or not select:
        raise ConfigError(f"{len(train)} train and {len(select)} select tasks; consolidation needs both")
    device = next(student.model.parameters()).device
    method = method or methods.Opcd(config, player)
    ranks = Ranks()
    whole = student.whole or student  # what plays and is saved
    say = say if ranks.main else lambda line: None
    model = student.model.eval()  # dropout off in both models' passes
    with models.autocast(device, compute):
        models.check_head(whole.model)
    if student.adapter is None:
        model.requires_grad_(True)
    models.attend_without_padding(student, compute)
    if config.gradient_checkpointing:
        models.checkpoint_gradients(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    check_float32(trained)
    learning_rate = config.learning_rate or student.learning_rate * (10 if student.adapter else 1)
    optimizer = torch.optim.AdamW(
        trained.values(), lr=learning_rate, betas=(0.9, 0.999), weight_decay=config.weight_decay, fused=True
    )

    state = run.load(trained, optimizer, teacher.weights)
    if state is None:
        state = {"step": 0, "best_step": 0, "skipped": 0, "select": {}}
        player.sampler.update()  # an engine that cannot take weights says so now, not after the first step
        state["select"]["0"] = success_on(player, select, ranks)
        if ranks.main:
            run.rewind(-1)
            run.log(
                {"step": 0, "loss/definition": definition(config, student, teacher, context, method)}
                | select_record(state, 0)
            )
        say(f"before training: {rate_of(state, 0)} on {len(select)} select tasks, without the context")
    else:
        sharding.update_whole(student)
        player.sampler.update()
        ranks.wait()  # all have read the log's place before it is cut
        if ranks.main:
            run.rewind(state["step"])
        say(f"resumed after step {state['step']}")

    temperature = config.loss_temperature or config.temperature
    noted = False
    for step in range(state["step"] + 1, config.steps + 1):
        clock = Clock()

        # 1. The student plays without the context (or, with a baseline, the teacher has played with it).
        drift = None
        played = []
        for episode in method.play(ranks.mine(draw(train, step, config))):
            own = samples_of([episode], player.chat, context, config.cut_replies, by_teacher=method.by_teacher)
            played.append((episode, *own))
        played = [one for share in ranks.everyone(played) for one in share]
        played.sort(key=lambda one: (one[0].task, one[0].rep))  # they finish in any order; the sum should not
        samples = [sample for _, own, _ in played for sample in own]
        apart = read_apart(samples) if player.game.form == "chat" else 0
        if apart and not noted:
            noted = True
            why = "the template, or how earlier replies are shown, changes them"
            say(f"note: {apart} later turns are not read in one pass with those before: {why}")
        player.sampler.rest()
        clock.lap("rollout")

        # 2. + 3. The teacher scores the same tokens with the context; the student learns from it.
        meter = StepMeter(temperature, config.temperature)
        weights = losses.token_weights([s.num_tokens for s in samples], config.reduction)
        batches = list(micro_batches(samples, weights, config.tokens_per_batch, teacher.reads))
        for (chunk, chunk_weights), counts, round_ in ranks.deal(batches, even=config.shard):
            most = max(teacher.passes(other) for other, _ in round_) if config.shard else 0
            teacher_NH = teacher.hidden(chunk, passes=most)
            clock.lap("teacher")
            into = meter if counts else StepMeter(temperature, config.temperature)
            into.begin(chunk)
            with models.autocast(device, compute, keep=not config.shard):
                pairs = [(s.student_ids, s.response_ids) for s in chunk]
                student_NH = response_hidden(model, pairs, student.tokenizer.pad_token_id)

            def loss_of(
                products_RV: torch.Tensor, where: slice, teacher_NH: torch.Tensor = teacher_NH, into: StepMeter = into
            ) -> torch.Tensor:
                # What the engine could not say, neither model is scored on.
                student_RV = into.keep(where, models.scaled(model, products_RV))
                teacher_RV = into.keep(where, teacher.logits(teacher_NH[where]))
                token = method.divergence(student_RV, teacher_RV, into.ids[where])
                into.add(where, student_RV, teacher_RV, token)
                return token.loss_N * into.importance(where, student_RV, config.importance_cap)

            # The weights hold for the whole step, so how it is split into batches and processes changes nothing.
            losses.in_chunks(loss_of, student_NH, chunk_weights * counts, model.get_output_embeddings()).backward()
            clock.lap("update")
        ranks.sum_gradients(trained.values())
        norm = sharding.clip_gradients(trained.values(), config.clip_norm)
        ok = math.isfinite(norm) and bool(samples)
        if ok:
            optimizer.step()
            sharding.update_whole(student)
            teacher.follow(model, step)
            drift = player.sampler.update()
        else:
            state["skipped"] += 1
        optimizer.zero_grad(set_to_none=True)
        clock.lap("update")

        meter.gather(ranks.everyone(meter.rows))
        dropped = sum(dropped for _, _, dropped in played)
        measures = method.measured(rollout_measures([e for e, _, _ in played], samples, dropped))
        record: dict[str, Any] = {
            "step": step, "loss/name": method.name,
            **(meter.result() if samples else {"loss/value_nats": 0.0}),
            **measures, "engine/policy_step": step - 1, **({} if drift is None else {"engine/drift_nats": drift}),
            "train/grad_norm": norm if math.isfinite(norm) else None,
            "train/clipped": norm > config.clip_norm, "train/skipped": not ok,
            "train/skipped_total": state["skipped"], "train/learning_rate": learning_rate,
            "train/turns_read_apart": apart,
            "teacher/context_tokens": longest(player.chat, context), **clock.times(),
        }  # fmt: skip
        state["step"] = step
        if step % config.select_every == 0 or step == config.steps:
            state["select"][str(step)] = success_on(player, select, ranks)
            facts = {"step": step, "context": context.id}
            names = [f"{CHECKPOINTS}/{step:06d}"] * config.keep_checkpoints
            if better(state, step):
                state["best_step"] = step
                names.append("best")
            for name in names if ranks.main else ():
                models.save_model(whole, run.folder / name, parent_id=student.id, facts=facts)
            record |= select_record(state, step)
        if ranks.main:
            run.log(record)
        say(console_line(record, config.steps, clock.total_s * (config.steps - step)))
        if str(step) in state["select"]:
            say(f"         select {rate_of(state, step)}, best at step {state['best_step']}")
        # After an evaluation, too: the best checkpoint and the step it is said to be of must not part in a kill.
        if (ranks.main or config.shard) and (step % config.save_every == 0 or str(step) in state["select"]):
            run.save(trained, optimizer, state, teacher.weights)

    teacher.assert_unchanged()
    folder = run.folder / "student"
    if ranks.main and (run.folder / "best").is_dir():  # absent when a kill came right after this line
        shutil.rmtree(folder, ignore_errors=True)
        if config.merge:
            models.merge(run.folder / "best")
        (run.folder / "best").rename(folder)
    ranks.wait()
    return Consolidated(
        folder=folder,
        model_id=sources.fingerprint(folder),
        best_step=state["best_step"],
        select={int(at): Rate(*rate) for at, rate in state["select"].items()},
    )


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


def draw(train: Sequence[Task], step: int, config: ConsolidateConfig) -> list[Job]:
    """The jobs of one step: every task once per epoch, in an order seeded by epoch.

    The epoch is the repetition, so a task that comes twice in one step gets other noise.
    """
    picked = []
    for place in range((step - 1) * config.batch_size, step * config.batch_size):
        epoch, index = divmod(place, len(train))
        order = list(range(len(train)))
        random.Random(f"{config.seed}:{epoch}").shuffle(order)
        picked.append(Job(train[order[index]], rep=epoch))
    return picked


def success_on(player: Player, tasks: Sequence[Task], ranks: Ranks) -> list[int]:
    """``[wins, n]`` of the student without the context; broken episodes do not count."""
    jobs = [Job(task) for task in ranks.mine(tasks)]
    scored = [e.success for e in player.play(jobs) if e.stop_reason != "env_error"]
    return [sum(column) for column in zip(*ranks.everyone((sum(scored), len(scored))), strict=True)]


def better(state: dict[str, Any], step: int) -> bool:
    """Whether this evaluation beats the best trained one so far; the earlier one wins a tie."""
    best = state["select"].get(str(state["best_step"]))
    wins, n = state["select"][str(step)]
    return state["best_step"] == 0 or wins * best[1] > best[0] * n


def rate_of(state: dict[str, Any], step: int) -> str:
    return str(Rate(*state["select"][str(step)]))


def select_record(state: dict[str, Any], step: int) -> dict[str, Any]:
    wins, n = state["select"][str(step)]
    rate = Rate(wins, n)
    return {"select/success": wins / max(n, 1), "select/n": n, "select/low": rate.low, "select/high": rate.high}


def definition(
    config: ConsolidateConfig, student: models.LoadedModel, teacher: FrozenTeacher,
    context: Context | Mixture, method: methods.Opcd,
) -> dict[str, Any]:  # fmt: skip
    """What the loss is, once per run. A model's id covers its weights, tokenizer and chat template."""
    return {
        "student": student.id,
        "method": config.method, "answers": config.answers if method.by_teacher else "the student's own",
        "direction": method.direction, "name": method.name, "support": f"{method.support_of} top-{config.support}",
        "rollout_temperature": config.temperature, "loss_temperature": config.loss_temperature or config.temperature,
        "reduction": config.reduction, "cut_replies": config.cut_replies,
        "importance_cap": config.importance_cap, "teacher": teacher.kind,
        "teacher_hash": teacher.hash, "context": context.id, "placement": context.placement,
        "context_tokens": longest(method.player.chat, context), "setup": method.player.setup(),
    }  # fmt: skip


def longest(chat: Chat, context: Context | Mixture) -> int:
    """Tokens of the context, of the longest one of a mixture."""
    return max(chat.count_tokens(part.text) for part in context.parts)


def check_float32(parameters: Mapping[str, torch.Tensor]) -> None:
    """At lr 1e-6 a bfloat16 parameter does not move, and nobody would be told."""
    wrong = {name for name, p in parameters.items() if p.dtype != torch.float32}
    if wrong:
        raise ConfigError(f"{len(wrong)} parameters are not float32 ({min(wrong)}); train float32 masters")


class Clock:
    """Seconds by phase of one step."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.phases: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self.last
        self.last = now

    @property
    def total_s(self) -> float:
        return self.last - self.started

    def times(self) -> dict[str, float]:
        """``time/PHASE_s`` for rollout, teacher and update, and ``time/step_s``."""
        phases = {f"time/{name}_s": round(self.phases.get(name, 0.0), 3) for name in ("rollout", "teacher", "update")}
        return phases | {"time/step_s": round(self.total_s, 3)}
