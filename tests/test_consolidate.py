"""The loop: it learns, it counts every reply once, it goes on bit-equal after a kill, and it logs what it did."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import consolidate as loop
from agentopcd import envs, models
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import AlignmentError, ConfigError, ModelError
from agentopcd.core.runs import Run
from agentopcd.core.stats import Rate
from agentopcd.core.types import EMPTY, Context, Episode, Job, Mixture, Request, Sampling, Task
from agentopcd.distillation import checkpoint, learner, losses, played, samples
from agentopcd.distillation.methods import METHODS
from agentopcd.distillation.samples import Sample, micro_batches
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.envs import registry
from agentopcd.models import find
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests import tiny

LESSONS = Context("- EXPERIENCE ITEM: always go left\n- EXPERIENCE ITEM: the goal is down")
ENDS = (tiny.END, *range(20, 50))
"""A random model hardly ever stops; with this many end tokens replies have all lengths."""
SMALL: dict[str, Any] = {
    "env": "math", "steps": 4, "batch_size": 3, "tokens_per_batch": 420, "max_tokens": 4, "temperature": 1.0,
    "learning_rate": 3e-4, "select_every": 2, "save_every": 2, "compute": "float32",
}  # fmt: skip


class Killed(BaseException):
    """Not an Exception, as a kill is not one either."""


def tasks(first: int, n: int) -> list[Task]:
    env = envs.make("math")
    return [Task(seed, envs.task_key(*env.reset(seed=seed))) for seed in range(first, first + n)]


TRAIN, SELECT = tasks(0, 5), tasks(100, 3)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("untied") / "model", tie=False, hearing=4.0)


@dataclasses.dataclass
class Trained:
    result: loop.Consolidated
    run: Run
    student: models.LoadedModel
    teacher: FrozenTeacher
    lines: list[str]

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [record for record in self.run.records() if record["step"] > 0]

    @property
    def weights(self) -> bytes:
        return (self.result.folder / "model.safetensors").read_bytes()


def train(
    model_dir: Path, work: Path, *, context: Context | Mixture = LESSONS, kill_at: int = 0,
    ends: tuple[int, ...] = ENDS,
    share: bool = False, game: dict[str, Any] | None = None, **changes: Any,
) -> Trained:  # fmt: skip
    """One run of the loop; with ``kill_at`` it dies while it says its so-many-th line."""
    config = ConsolidateConfig(**SMALL | changes)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.compute]
    student = models.load_model(str(model_dir))
    student.end_ids = ends
    if config.lora_rank:
        models.add_adapter(student, config.lora_rank, dtype, config.seed)
    prefixes = [Chat(student.tokenizer).prefix(part) for part in context.parts] if share else []
    teacher = FrozenTeacher(student, student, compute=dtype, prefixes=prefixes)
    player = Player(
        game=Game(ref="math", **(game or {})), sampler=TransformersSampler(student, compute=dtype),
        chat=Chat(student.tokenizer), sampling=config.sampling, seed=config.seed,
    )  # fmt: skip
    run = Run(work, "consolidate", {"env": "math", "settings": config.to_dict()})
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if len(lines) == kill_at:
            raise Killed

    result = loop.consolidate(
        loop.Training(config=config, context=context, train=TRAIN, select=SELECT), student=student, teacher=teacher,
        method=METHODS[config.method](config, player), run=run, say=say,
    )  # fmt: skip
    return Trained(result, run, student, teacher, lines)


@pytest.fixture(scope="module")
def whole(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """An uninterrupted run; read it, do not change it."""
    return train(model_dir, tmp_path_factory.mktemp("whole"))


def timeless(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in r.items() if not name.startswith("time/")} for r in records]


# -- it learns ------------------------------------------------------------------------------------------


def test_the_divergence_falls(model_dir: Path, tmp_path: Path) -> None:
    done = train(model_dir, tmp_path, steps=20, batch_size=5, max_tokens=8, select_every=20, save_every=20)
    kl = [record["loss/value_nats"] for record in done.steps]
    assert kl[0] > 0.3
    assert max(kl[-3:]) < 0.2 * kl[0]


def test_the_student_alone_moves(whole: Trained, model_dir: Path) -> None:
    base = models.load_model(str(model_dir))
    whole.teacher.assert_unchanged()
    assert models.parameter_hash(whole.teacher.model) == models.parameter_hash(base.model)
    assert models.parameter_hash(whole.student.model) != models.parameter_hash(base.model)
    assert all(parameter.grad is None for parameter in whole.teacher.model.parameters())


def test_a_teacher_that_moved_during_the_run_stops_it(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = FrozenTeacher.hidden

    def drifting(self: FrozenTeacher, samples: Sequence[Sample], passes: int) -> torch.Tensor:
        with torch.no_grad():
            next(iter(self.model.parameters())).mul_(1.001)
        return hidden(self, samples, passes)

    monkeypatch.setattr(FrozenTeacher, "hidden", drifting)
    with pytest.raises(AlignmentError, match="changed"):
        train(model_dir, tmp_path, steps=1)


def test_bfloat16_products_leave_float32_masters(model_dir: Path, tmp_path: Path) -> None:
    done = train(model_dir, tmp_path, steps=1, compute="bfloat16")
    assert {p.dtype for p in done.student.model.parameters()} == {torch.float32}
    assert done.steps[0]["engine/logprob_gap_max_nats"] < 0.5
    from safetensors.torch import load_file

    assert {t.dtype for t in load_file(done.result.folder / "model.safetensors").values()} == {torch.float32}


def test_half_precision_masters_are_refused() -> None:
    with pytest.raises(ConfigError, match="float32"):
        learner.check_float32(dict(torch.nn.Linear(2, 2, dtype=torch.bfloat16).named_parameters()))


# -- what is scored -------------------------------------------------------------------------------------


def test_only_the_teacher_sees_the_context_and_both_score_the_same_tokens(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, scored = [], []
    sample, logits = TransformersSampler.sample, learner.response_hidden

    def spy_sample(self: TransformersSampler, requests: Sequence[Request], sampling: Sampling) -> Any:
        asked.extend(requests)
        return sample(self, requests, sampling)

    def spy(model: Any, pairs: Any, pad: int) -> torch.Tensor:
        scored.append((model, pairs))
        return logits(model, pairs, pad)

    monkeypatch.setattr(TransformersSampler, "sample", spy_sample)
    monkeypatch.setattr(learner, "response_hidden", spy)
    monkeypatch.setattr("agentopcd.distillation.teacher.response_hidden", spy)
    done = train(model_dir, tmp_path, steps=1)
    decode = done.student.tokenizer.decode
    assert not any("always go left" in decode(list(request.prompt_ids)) for request in asked)
    teacher_calls = [pairs for model, pairs in scored if model is done.teacher.model]
    student_calls = [pairs for model, pairs in scored if model is not done.teacher.model]
    assert len(teacher_calls) == len(student_calls) == 2
    for seen, unseen in zip(teacher_calls, student_calls, strict=True):
        assert [response for _, response in seen] == [response for _, response in unseen]
        assert all("always go left" in decode(list(prompt)) for prompt, _ in seen)
        assert not any("always go left" in decode(list(prompt)) for prompt, _ in unseen)


def test_the_loss_has_one_row_per_sampled_token_and_none_for_prompts(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, weights, replies = [], [], []
    divergence, weighted_sum, samples_of = losses.divergence, losses.weighted_sum, samples.samples_of

    def spy_rows(student_NV: torch.Tensor, teacher_NV: torch.Tensor, **kwargs: Any) -> Any:
        rows.append(len(student_NV))
        return divergence(student_NV, teacher_NV, **kwargs)

    def spy_weights(loss_N: torch.Tensor, weights_N: torch.Tensor) -> torch.Tensor:
        weights.extend(weights_N.tolist())
        return weighted_sum(loss_N, weights_N)

    def spy_samples(episodes: Any, *args: Any, **how: Any) -> Any:
        replies.extend(len(turn.response_ids) for episode in episodes for turn in episode.turns)
        return samples_of(episodes, *args, **how)

    monkeypatch.setattr(loop.losses, "divergence", spy_rows)
    monkeypatch.setattr(loop.losses, "weighted_sum", spy_weights)
    monkeypatch.setattr(played, "samples_of", spy_samples)
    done = train(model_dir, tmp_path, steps=1)
    assert sum(rows) == len(weights) == sum(replies) == done.steps[0]["turn/0/tokens"]
    assert sum(weights) == pytest.approx(1.0)  # a mean over the whole step


def play_some(model_dir: Path, **sampling: Any) -> tuple[list[Episode], Chat]:
    student = models.load_model(str(model_dir))
    student.end_ids = ENDS
    sampler, chat = TransformersSampler(student, compute=torch.float32), Chat(student.tokenizer)
    player = Player(game=Game(ref="math"), sampler=sampler, chat=chat, sampling=Sampling(max_tokens=3, **sampling))
    return list(player.play([Job(task) for task in TRAIN])), chat


def test_a_prompt_that_was_not_the_one_answered_is_refused(model_dir: Path) -> None:
    episodes, chat = play_some(model_dir)
    turn = episodes[0].turns[0]
    other = dataclasses.replace(episodes[0], turns=[dataclasses.replace(turn, prompt_ids=turn.prompt_ids[1:])])
    with pytest.raises(AlignmentError, match="another prompt"):
        samples.samples_of([other], chat, LESSONS, "keep")


def test_broken_episodes_and_empty_or_cut_replies_are_left_out(model_dir: Path) -> None:
    episodes, chat = play_some(model_dir)
    cut = sum(turn.finish_reason == "length" for e in episodes for turn in e.turns)
    assert cut
    broken = dataclasses.replace(episodes[0], stop_reason="env_error")
    empty = dataclasses.replace(
        episodes[0], turns=[dataclasses.replace(episodes[0].turns[0], response_ids=(), logprobs=())]
    )
    assert samples.samples_of([broken], chat, LESSONS, "keep") == ([], 0)
    assert samples.samples_of([empty], chat, LESSONS, "keep") == ([], 1)
    assert len(samples.samples_of(episodes, chat, LESSONS, "keep")[0]) == len(episodes)
    assert samples.samples_of(episodes, chat, LESSONS, "drop")[1] == cut


@pytest.mark.parametrize("budget", [450, 4096])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_how_a_step_is_computed_changes_nothing(
    budget: int, checkpointing: bool, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain gradient descent, for Adam's first step is a sign: it would blow a rounding error up to the rate."""
    monkeypatch.setattr(loop.torch.optim, "AdamW", lambda parameters, lr, **_: torch.optim.SGD(parameters, lr=lr))
    common: dict[str, Any] = {"steps": 1, "batch_size": 5, "learning_rate": 1.0, "max_tokens": 12}
    passes = count_passes(monkeypatch)
    one = train(model_dir, tmp_path, tokens_per_batch=1, **common)
    other = train(model_dir, tmp_path, tokens_per_batch=budget, gradient_checkpointing=checkpointing, **common)
    assert passes[0] == 5 and passes[-1] < 5
    base = models.load_model(str(model_dir)).model
    for a, b in zip(one.student.model.parameters(), other.student.model.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-6
    first, start = next(iter(one.student.model.parameters())), next(iter(base.parameters()))
    assert (first - start).abs().max() > 1e-2


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many batches each step was split into."""
    found: list[int] = []
    whole_step = loop.micro_batches

    def spy(*args: Any) -> Any:
        batches = list(whole_step(*args))
        found.append(len(batches))
        return batches

    monkeypatch.setattr(loop, "micro_batches", spy)
    return found


def turn_sample(student_ids: Sequence[int], teacher_ids: Sequence[int], response_ids: Sequence[int]) -> Sample:
    return Sample(
        student_ids=tuple(student_ids), teacher_ids=tuple(teacher_ids), response_ids=tuple(response_ids),
        logprobs=(0.0,) * len(response_ids), turn=0,
    )  # fmt: skip


def test_batches_keep_to_the_budget_and_hold_every_sample_once_with_its_weight() -> None:
    lengths = [5, 40, 7, 90, 6, 41, 8]
    sampled = [turn_sample(range(n), range(n), [1] * (1 + i)) for i, n in enumerate(lengths)]
    batches = list(micro_batches(sampled, [float(i) for i in range(7)], 100))
    found = [sampled.index(sample) for batch, _ in batches for sample in batch]
    assert sorted(found) == list(range(7))
    for batch, weights in batches:
        padded = len(batch) * max(len(s.student_ids) + s.num_tokens for s in batch)
        assert padded <= 100 or len(batch) == 1
        assert weights.tolist() == [float(sampled.index(s)) for s in batch for _ in s.response_ids]
    assert len(batches) == 3


def test_what_the_teacher_reads_counts_too() -> None:
    sampled = [turn_sample([1] * 5, [1] * 95, [1] * 5) for _ in range(4)]
    reads = lambda sample: len(sample.teacher_ids) + sample.num_tokens  # noqa: E731
    assert [len(batch) for batch, _ in micro_batches(sampled, [1.0] * 4, 200, reads)] == [2, 2]
    assert [len(batch) for batch, _ in micro_batches(sampled, [1.0] * 4, 200)] == [4]


def test_turns_that_one_pass_cannot_read_are_counted() -> None:
    grows = [turn_sample([5, *range(9 * t)], [7, 5, *range(9 * t)], range(9 * t, 9 * t + 4)) for t in range(3)]
    turns = [dataclasses.replace(sample, turn=t) for t, sample in enumerate(grows)]
    assert samples.read_apart(turns) == 0
    changed = dataclasses.replace(turns[2], teacher_ids=(8, *turns[2].teacher_ids[1:]))
    assert samples.read_apart([*turns[:2], changed]) == 1
    assert samples.read_apart([turns[0], turns[2], turns[1]]) == 1  # the third begins with the first, too


def test_turns_of_a_growing_chat_stay_together_in_order() -> None:
    def game(first: int) -> list[Sample]:
        prompts = [[first, *range(9 * turn)] for turn in range(3)]
        return [turn_sample(ids, [7, *ids], range(9 * t, 9 * t + 4)) for t, ids in enumerate(prompts)]

    sampled = [*game(50), *game(60), turn_sample([1], [7, 1], [2])]
    batches = list(micro_batches(sampled, [1.0] * 7, 50))
    assert [len(batch) for batch, _ in batches] == [4, 3]  # the single one is shortest and goes with the first game
    for batch, _ in batches:
        places = [sampled.index(sample) for sample in batch]
        assert places[-3:] == list(range(places[-3], places[-3] + 3))


@pytest.mark.parametrize("reduction", ["seq_mean", "token_mean"])
def test_the_step_follows_the_reduction(
    reduction: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    weighted_sum = losses.weighted_sum
    monkeypatch.setattr(loop.losses, "weighted_sum", lambda loss_N, w_N: seen.append(w_N) or weighted_sum(loss_N, w_N))
    done = train(model_dir, tmp_path, steps=1, batch_size=5, max_tokens=12, reduction=reduction, tokens_per_batch=4096)
    tokens = done.steps[0]["turn/0/tokens"]
    per_token = {round(float(w) * tokens, 4) for w in seen[0]}
    assert (per_token == {1.0}) is (reduction == "token_mean")


# -- tasks ----------------------------------------------------------------------------------------------


def test_every_task_comes_once_per_epoch_and_epochs_differ() -> None:
    config = ConsolidateConfig(**dict(SMALL, batch_size=5))
    epochs = [[job.task for job in loop.draw(TRAIN, step, config)] for step in range(1, 9)]
    assert all(sorted(epoch) == sorted(TRAIN) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_task_that_comes_twice_in_a_step_is_two_jobs_without_a_context() -> None:
    jobs = loop.draw(TRAIN, 1, ConsolidateConfig(**dict(SMALL, batch_size=12)))
    assert len(set(jobs)) == 12
    assert {job.context for job in jobs} == {EMPTY}


def test_a_task_that_comes_again_gets_other_noise() -> None:
    jobs = [job for step in range(1, 9) for job in loop.draw(TRAIN, step, ConsolidateConfig(**SMALL))]
    assert len(set(jobs)) == len(jobs) > len(TRAIN)


# -- it goes on -----------------------------------------------------------------------------------------


def test_two_runs_are_bit_equal(whole: Trained, model_dir: Path, tmp_path: Path) -> None:
    assert train(model_dir, tmp_path).weights == whole.weights


@pytest.mark.parametrize("line", [1, 3, 4, 5, 7])
def test_killed_at_any_line_and_continued_ends_bit_equal(
    line: int, whole: Trained, model_dir: Path, tmp_path: Path
) -> None:
    """Lines: before training, steps 1 to 4, and the evaluations after steps 2 and 4."""
    assert len(whole.lines) == 7
    with pytest.raises(Killed):
        train(model_dir, tmp_path, kill_at=line)
    again = train(model_dir, tmp_path)
    assert again.lines[0].startswith("resumed after step 2" if line >= 5 else "before training")
    assert again.weights == whole.weights
    assert again.result.select == whole.result.select
    assert timeless(again.run.records()) == timeless(whole.run.records())


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    whole: Trained, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json = checkpoint.write_json

    def dies(path: Path, value: Any) -> None:
        if path.name == "state.json" and value["step"] == 3:
            raise Killed
        write_json(path, value)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "write_json", dies)
        train(model_dir, tmp_path, save_every=1)
    again = train(model_dir, tmp_path, save_every=1)
    assert again.lines[0] == "resumed after step 2"
    assert again.weights == whole.weights


def test_a_kill_between_the_two_renames_leaves_the_old_checkpoint(
    whole: Trained, model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train(model_dir, tmp_path, kill_at=5)
    (folder,) = (tmp_path / "runs").iterdir()
    (folder / "checkpoint").rename(folder / "checkpoint.old")
    again = train(model_dir, tmp_path)
    assert again.lines[0] == "resumed after step 2"
    assert again.weights == whole.weights


def test_a_run_that_had_ended_but_was_not_closed_ends_the_same_again(
    whole: Trained, model_dir: Path, tmp_path: Path
) -> None:
    train(model_dir, tmp_path)
    again = train(model_dir, tmp_path)
    assert again.lines[0] == "resumed after step 4"
    assert again.weights == whole.weights


def test_the_optimizer_remembers(model_dir: Path, tmp_path: Path) -> None:
    """A resumed step with fresh moments would be a first step again: about the learning rate for every weight."""
    with pytest.raises(Killed):
        train(model_dir, tmp_path, kill_at=5)
    student = models.load_model(str(model_dir))
    optimizer = torch.optim.AdamW(student.model.parameters(), lr=1.0)
    (folder,) = (tmp_path / "runs").iterdir()
    run = Run(tmp_path, "consolidate", json.loads((folder / "config.json").read_text()))
    assert run.folder == folder
    state = checkpoint.load(run.folder, dict(student.model.named_parameters()), optimizer)
    assert state is not None and state["step"] == 2
    assert {float(entry["step"]) for entry in optimizer.state.values()} == {2.0}
    assert any(entry["exp_avg"].abs().max() > 0 for entry in optimizer.state.values())


def test_skipped_steps_are_counted_across_a_kill(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        poison(patch, {1})
        train(model_dir, tmp_path, kill_at=5)
    assert train(model_dir, tmp_path).steps[-1]["train/skipped_total"] == 1


# -- bad gradients --------------------------------------------------------------------------------------


def weights_hash(trained: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in trained.values())).hexdigest()


def poison(patch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """Make the loss of the given steps (counted by token_weights calls) infinite."""
    token_weights, weighted_sum = losses.token_weights, losses.weighted_sum
    step = 0

    def count(*args: Any) -> Any:
        nonlocal step
        step += 1
        return token_weights(*args)

    patch.setattr(loop.losses, "token_weights", count)
    patch.setattr(
        loop.losses, "weighted_sum",
        lambda loss_N, w_N: weighted_sum(loss_N, w_N) * (float("inf") if step in bad else 1.0),
    )  # fmt: skip


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {2})
    hashes: list[str] = []
    save = checkpoint.save

    def spy(folder: Path, trained: Any, *rest: Any) -> None:
        hashes.append(weights_hash(trained))
        save(folder, trained, *rest)

    monkeypatch.setattr(checkpoint, "save", spy)
    done = train(model_dir, tmp_path, steps=3, save_every=1)
    hashes.append(weights_hash(dict(done.student.model.named_parameters())))
    assert [record["train/skipped"] for record in done.steps] == [False, True, False]
    assert [record["train/skipped_total"] for record in done.steps] == [0, 1, 1]
    assert hashes[0] == hashes[1] != hashes[2]
    assert all(torch.isfinite(p).all() for p in done.student.model.parameters())


def test_a_step_without_a_sample_changes_nothing_and_goes_on(model_dir: Path, tmp_path: Path) -> None:
    done = train(model_dir, tmp_path, steps=1, max_tokens=1, cut_replies="drop", ends=(tiny.END,))
    assert done.steps[0]["rollout/samples"] == 0
    assert done.steps[0]["rollout/dropped"] == 3
    assert done.steps[0]["train/skipped"] is True
    base = models.load_model(str(model_dir))
    assert models.parameter_hash(done.student.model) == models.parameter_hash(base.model)


# -- which checkpoint -----------------------------------------------------------------------------------


def scripted(scores: Sequence[tuple[int, int]]) -> Callable[..., list[int]]:
    left: Iterator[tuple[int, int]] = iter(scores)
    return lambda player, tasks, ranks: list(next(left))


def test_the_best_checkpoint_follows_the_select_scores(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base never competes, the earlier of two equal ones wins, and its weights are those of its step."""
    monkeypatch.setattr(loop, "success_on", scripted([(9, 10), (1, 10), (5, 10), (10, 20), (2, 10)]))
    done = train(model_dir, tmp_path / "a", select_every=1)
    monkeypatch.setattr(loop, "success_on", scripted([(0, 1), (0, 1)]))
    until_2 = train(model_dir, tmp_path / "b", steps=2)
    assert done.result.best_step == 2
    assert done.result.select == {0: Rate(9, 10), 1: Rate(1, 10), 2: Rate(5, 10), 3: Rate(10, 20), 4: Rate(2, 10)}
    assert done.weights == until_2.weights
    assert json.loads((done.result.folder / "agentopcd.json").read_text())["step"] == 2
    assert [r["select/success"] for r in done.run.records()] == [0.9, 0.1, 0.5, 0.5, 0.2]


def test_the_result_is_an_ordinary_model_folder(whole: Trained, model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(whole.result.folder)
    tokenizer = AutoTokenizer.from_pretrained(whole.result.folder)
    assert tokenizer.chat_template
    facts = json.loads((whole.result.folder / "agentopcd.json").read_text())
    assert facts["parent_id"] == find.fingerprint(model_dir)
    assert facts["context"] == LESSONS.id
    assert whole.result.model_id == find.fingerprint(whole.result.folder)
    ids = torch.tensor([[1, 40, 50]])
    assert not torch.equal(model(ids).logits, models.load_model(str(model_dir)).model(ids).logits)


# -- what is refused, what is logged --------------------------------------------------------------------


def test_an_empty_context_is_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="empty"):
        train(model_dir, tmp_path, context=EMPTY)


@pytest.mark.parametrize("missing", ["TRAIN", "SELECT"])
def test_no_tasks_are_refused(missing: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), missing, [])
    with pytest.raises(ConfigError, match="needs both"):
        train(model_dir, tmp_path)


LOGGED = """
    loss/name loss/value_nats loss/kl_full_sampled_nats loss/negative_share
    kl/student_mass_mean kl/student_mass_p05 kl/teacher_mass_mean kl/teacher_mass_p05 kl/student_mass_outside_topk
    kl/top16_overlap kl/student_entropy_nats kl/teacher_entropy_nats
    train/grad_norm train/clipped train/skipped train/skipped_total train/learning_rate
    time/rollout_s time/teacher_s time/update_s time/step_s
    rollout/episodes rollout/env_errors rollout/success rollout/turns rollout/samples rollout/dropped
    rollout/response_tokens_mean rollout/response_tokens_p95 rollout/clipped_share rollout/repetition_mean
    rollout/looping_share rollout/empty_share rollout/invalid_share
    position/token0_nats position/tokens1_7_nats
    turn/0/nats turn/0/student_mass turn/0/tokens
    engine/logprob_gap_mean_nats engine/logprob_gap_max_nats engine/policy_step
    teacher/context_tokens
"""


def test_every_step_logs_what_the_method_asks_for(whole: Trained) -> None:
    for record in whole.steps:
        assert not set(LOGGED.split()) - set(record)


def test_tokens_after_the_eighth_have_a_figure_of_their_own(model_dir: Path, tmp_path: Path) -> None:
    assert "position/rest_nats" in train(model_dir, tmp_path, steps=1, max_tokens=24, ends=(tiny.END,)).steps[0]


def test_the_loss_is_defined_once_per_run(whole: Trained) -> None:
    first, *rest = whole.run.records()
    assert first["loss/definition"]["name"] == "kl_topk256_tail"
    assert first["loss/definition"]["context"] == LESSONS.id
    assert first["loss/definition"]["teacher_hash"] == whole.teacher.hash
    assert not any("loss/definition" in record for record in rest)


def test_sampler_and_trainer_agree_on_the_sampled_tokens(whole: Trained) -> None:
    assert max(record["engine/logprob_gap_max_nats"] for record in whole.steps) < 1e-3


def test_the_figures_of_rollouts_match_hand_counts(model_dir: Path) -> None:
    from agentopcd.distillation.metrics import repetition, rollout_record

    assert repetition([1, 2, 3]) == 0.0
    assert repetition([1] * 8) == pytest.approx(1 - 1 / 5)
    episodes, _ = play_some(model_dir)
    broken = dataclasses.replace(episodes[0], stop_reason="env_error")
    won = dataclasses.replace(episodes[1], success=True, stop_reason="solved")
    found = rollout_record([broken, won, episodes[2]], [], 1)
    turns = [*won.turns, *episodes[2].turns]
    assert (found["rollout/episodes"], found["rollout/env_errors"], found["rollout/success"]) == (2, 1, 0.5)
    assert found["rollout/response_tokens_mean"] == sum(len(t.response_ids) for t in turns) / 2
    assert found["rollout/clipped_share"] == sum(t.finish_reason == "length" for t in turns) / 2


def test_select_success_leaves_broken_episodes_out(model_dir: Path) -> None:
    episodes, _ = play_some(model_dir)
    mixed = [
        dataclasses.replace(episodes[0], success=True),
        dataclasses.replace(episodes[1], success=False),
        dataclasses.replace(episodes[2], success=False, stop_reason="env_error"),
    ]

    class Fixed:
        def play(self, jobs: Sequence[Job]) -> Iterator[Episode]:
            return iter(mixed)

    assert loop.success_on(Fixed(), TRAIN[:3], Ranks()) == [1, 2]  # type: ignore[arg-type]


def test_selection_does_not_depend_on_the_step(whole: Trained, model_dir: Path, tmp_path: Path) -> None:
    """A student that does not move scores the same at every evaluation: same tasks, same noise."""
    seen: list[list[Request]] = []
    sample = TransformersSampler.sample

    def spy(self: TransformersSampler, requests: Sequence[Request], sampling: Sampling) -> Any:
        seen.append(list(requests))
        return sample(self, requests, sampling)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersSampler, "sample", spy)
        train(model_dir, tmp_path, steps=2, select_every=1)
    select = [requests for requests in seen if requests == seen[0]]
    assert len(select) == 3


# -- LoRA -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(model_dir, tmp_path_factory.mktemp("lora"), lora_rank=4, steps=12, learning_rate=3e-3, batch_size=5)


def test_an_adapter_learns_and_the_base_stays(adapted: Trained, model_dir: Path) -> None:
    kl = [record["loss/value_nats"] for record in adapted.steps]
    assert min(kl[-3:]) < 0.6 * kl[0]
    assert adapted.teacher.kind == "lora_base"
    adapted.teacher.assert_unchanged()
    trained = {name for name, p in adapted.student.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)


def test_the_teacher_of_an_adapter_is_the_base_bit_for_bit(adapted: Trained, model_dir: Path) -> None:
    base = models.load_model(str(model_dir))
    pairs = [turn_sample([5, 6, 7], [9, 5, 6, 7], [8, 30, 40]), turn_sample([5, 6], [9, 5, 6], [8])]
    exact = FrozenTeacher(base, base, compute=torch.float32)
    assert torch.equal(adapted.teacher.score(pairs), exact.score(pairs))
    assert adapted.teacher.hash == exact.hash
    ids = torch.tensor([[9, 5, 6, 7]])
    assert not torch.equal(adapted.student.model(ids).logits, base.model(ids).logits)


def test_an_adapter_is_saved_as_peft_does_and_loads_as_a_student(adapted: Trained, model_dir: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = adapted.result.folder
    assert not (folder / "model.safetensors").exists()
    loaded = models.load_model(str(folder))
    assert loaded.id == adapted.result.model_id
    assert loaded.parent_id == find.fingerprint(model_dir)
    ids = torch.tensor([[9, 5, 6, 7]])
    with_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), folder)(ids).logits
    torch.testing.assert_close(loaded.model(ids).logits, with_peft, atol=1e-4, rtol=0)
    assert (loaded.model(ids).logits - models.load_model(str(model_dir)).model(ids).logits).abs().max() > 0.1


def test_an_id_of_an_adapter_covers_its_base(adapted: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(adapted.result.folder, folder)
    assert find.fingerprint(folder) == adapted.result.model_id
    facts = json.loads((folder / find.ADAPTER).read_text())
    other = tiny.build(tmp_path / "other", seed=1, tie=False)
    (folder / find.ADAPTER).write_text(json.dumps(facts | {"base_model_name_or_path": str(other)}))
    first = find.fingerprint(folder)
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    assert len({first, find.fingerprint(folder), adapted.result.model_id}) == 3


def test_merged_it_is_a_whole_model_that_answers_the_same(adapted: Trained, model_dir: Path, tmp_path: Path) -> None:
    merged = train(model_dir, tmp_path, lora_rank=4, steps=12, learning_rate=3e-3, batch_size=5, merge=True)
    assert not (merged.result.folder / find.ADAPTER).exists()
    one, other = (models.load_model(str(run.result.folder)) for run in (adapted, merged))
    assert other.parent_id == find.fingerprint(model_dir)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_importance_weights_are_one_for_ones_own_tokens_and_weigh_those_of_another_engine(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(model_dir, tmp_path / "plain", steps=1)
    own = train(model_dir, tmp_path / "own", steps=1, importance_cap=2.0)
    assert own.steps[0]["loss/importance_mean"] == pytest.approx(1, abs=1e-3)
    assert own.steps[0]["train/grad_norm"] == pytest.approx(plain.steps[0]["train/grad_norm"], rel=1e-3)
    assert "loss/importance_mean" not in plain.steps[0]
    exact = TransformersSampler._completion

    def drawn_by_another(self: TransformersSampler, ids: list[int], logprobs: list[float]) -> Any:
        return exact(self, ids, [logprob + math.log(2) for logprob in logprobs])  # twice as likely there

    monkeypatch.setattr(TransformersSampler, "_completion", drawn_by_another)
    other = train(model_dir, tmp_path / "other", steps=1, importance_cap=2.0)
    assert other.steps[0]["loss/importance_max"] == pytest.approx(0.5, abs=1e-3)
    assert other.steps[0]["train/grad_norm"] == pytest.approx(plain.steps[0]["train/grad_norm"] / 2, rel=1e-3)


def test_replies_that_were_held_to_a_list_are_scored_on_the_list_by_both_models(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tuple(f"[{n}]" for n in range(12))
    spec = dataclasses.replace(envs.get_spec("math"), choices=words)
    monkeypatch.setitem(registry._SPECS, "math", spec)
    held = train(model_dir, tmp_path, steps=2, max_tokens=8, game={"constrain": True})
    for step in held.steps:
        assert step["kl/student_mass_mean"] == pytest.approx(1, abs=1e-5)  # of eleven tokens at most, not of all
        assert step["kl/teacher_mass_p05"] == pytest.approx(1, abs=1e-5)
        assert step["engine/logprob_gap_max_nats"] < 1e-3
        assert step["loss/value_nats"] == pytest.approx(step["loss/kl_full_sampled_nats"], abs=0.3)
        assert step["loss/value_nats"] > 0
        assert step["rollout/clipped_share"] == 0


def test_a_sampler_with_weights_of_its_own_hears_of_every_change(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    def update(self: TransformersSampler) -> float:
        heard.append(models.parameter_hash(self.loaded.model))
        return 0.5

    monkeypatch.setattr(TransformersSampler, "update", update)
    with pytest.raises(Killed):
        train(model_dir, tmp_path, kill_at=5, steps=4, save_every=2, select_every=2)
    before = list(heard)
    again = train(model_dir, tmp_path, steps=4, save_every=2, select_every=2)
    assert again.lines[0] == "resumed after step 2"
    assert heard[len(before)] == before[2]  # the restored weights, before anything is played with them
    assert len(heard) == len(before) + 3  # and after steps 3 and 4
    assert [step["engine/drift_nats"] for step in again.steps] == [0.5] * 4


def test_a_killed_run_of_an_adapter_ends_the_same(model_dir: Path, tmp_path: Path) -> None:
    exact = train(model_dir, tmp_path / "a", lora_rank=4)
    with pytest.raises(Killed):
        train(model_dir, tmp_path / "b", lora_rank=4, kill_at=5)
    again = train(model_dir, tmp_path / "b", lora_rank=4)
    assert again.lines[0] == "resumed after step 2"
    file = "adapter_model.safetensors"
    assert (again.result.folder / file).read_bytes() == (exact.result.folder / file).read_bytes()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_learns_in_bfloat16_after_a_shared_prefix(
    checkpointing: bool, model_dir: Path, tmp_path: Path
) -> None:
    done = train(
        model_dir, tmp_path, lora_rank=4, compute="bfloat16", gradient_checkpointing=checkpointing, share=True,
        learning_rate=3e-3, steps=6, batch_size=5,
    )  # fmt: skip
    assert "keys_and_values" in vars(done.teacher.prefixes[0])
    kl = [record["loss/value_nats"] for record in done.steps]
    assert min(kl[-3:]) < kl[0]
    done.teacher.assert_unchanged()


def test_an_adapter_learns_on_layers_that_are_no_linears(tmp_path: Path) -> None:
    """GPT-2 keeps its weights transposed, in a layer of its own."""
    from transformers import AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel

    folder = tiny.build(tmp_path / "model")
    size = len(AutoTokenizer.from_pretrained(folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = GPT2Config(vocab_size=size, n_positions=512, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5)
        made = GPT2LMHeadModel(shape)
    made.generation_config = GenerationConfig(eos_token_id=tiny.END, pad_token_id=tiny.PAD)
    made.save_pretrained(folder)
    done = train(folder, tmp_path / "work", lora_rank=4, steps=6, learning_rate=1e-2, batch_size=5)
    kl = [record["loss/value_nats"] for record in done.steps]
    assert min(kl[-3:]) < 0.8 * kl[0]
    base = models.load_model(str(folder))
    sampled = [turn_sample([5, 6, 7], [9, 5, 6, 7], [8, 30, 40])]
    exact = FrozenTeacher(base, base, compute=torch.float32)
    assert torch.equal(done.teacher.score(sampled), exact.score(sampled))
    ids, saved = torch.tensor([[9, 5, 6, 7]]), models.load_model(str(done.result.folder))
    assert (saved.model(ids).logits - models.load_model(str(folder)).model(ids).logits).abs().max() > 0.1


def test_an_id_does_not_follow_the_order_or_the_place_of_things(adapted: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(adapted.result.folder, folder)
    settings = json.loads((folder / find.ADAPTER).read_text())
    assert settings["target_modules"] == sorted(settings["target_modules"])
    moved = shutil.copytree(settings["base_model_name_or_path"], tmp_path / "moved")
    (folder / find.ADAPTER).write_text(json.dumps(settings | {"base_model_name_or_path": str(moved)}))
    assert find.fingerprint(folder) == adapted.result.model_id


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "other formats are not read"),
        (lambda folder: drop_key(folder / find.ADAPTER, "base_model_name_or_path"), "which model"),
        (lambda folder: halve(folder / "adapter_model.safetensors"), "missing adapter keys"),
    ],
)
def test_a_damaged_adapter_is_refused_in_one_line(
    damage: Callable[[Path], Any], message: str, adapted: Trained, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(adapted.result.folder, folder)
    damage(folder)
    with pytest.raises(ModelError, match=message):
        models.load_model(str(folder))


def drop_key(file: Path, name: str) -> None:
    facts = json.loads(file.read_text())
    del facts[name]
    file.write_text(json.dumps(facts))


def halve(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    save_file({name: tensors[name] for name in sorted(tensors)[::2]}, file)


def test_merging_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="add --lora-rank"):
        ConsolidateConfig(env="math", merge=True)


def test_without_peft_one_line_says_what_to_install(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"pip install 'agentopcd\[peft\]'"):
        models.add_adapter(models.load_model(str(model_dir)), 4, torch.float32, 0)
