"""Baselines and teachers: who answers, who scores, by which divergence, and that a kill changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import consolidate as loop
from agentopcd import models
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import Run
from agentopcd.core.types import Context, Episode
from agentopcd.distillation import losses, methods, played
from agentopcd.distillation.learner import Learner
from agentopcd.distillation.samples import Sample
from agentopcd.distillation.teacher import MovingTeacher, teacher_of
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests import tiny
from tests.training import ENDS, LESSONS, SELECT, SMALL, TRAIN, Killed, needs

F32 = torch.float32


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("methods") / "model", tie=False, hearing=4.0)


def settings(**changes: Any) -> ConsolidateConfig:
    return ConsolidateConfig(**SMALL | changes)


@dataclasses.dataclass
class Trained:
    result: loop.Consolidated
    run: Run
    student: models.LoadedModel
    teacher: Any
    answers: list[Episode]

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [record for record in self.run.records() if record["step"] > 0]

    @property
    def weights(self) -> str:
        """Hash of the last step's, which are not always those of the best one."""
        return models.parameter_hash(self.student.model)


def train(model_dir: Path, work: Path, *, kill_at: int = 0, share: bool = False, **changes: Any) -> Trained:
    """What ``distil.train_student`` does, on few tasks; with ``kill_at`` it dies at its so-many-th line."""
    config = settings(**changes)
    student = models.load_model(str(model_dir))
    student.end_ids = ENDS
    chat = Chat(student.tokenizer)
    player = Player(
        game=Game(ref="math"), sampler=TransformersSampler(student, compute=F32), chat=chat,
        sampling=config.sampling, seed=config.seed,
    )  # fmt: skip
    run = Run(work, "consolidate", {"env": "math", "settings": config.to_dict()})
    episodes = methods.METHODS[config.method].prepare(needs(config, LESSONS, player, run.folder))
    teacher = teacher_of(config, student, student, compute=F32, prefixes=[chat.prefix(LESSONS)] if share else [])
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == kill_at:
            raise Killed

    result = loop.consolidate(
        loop.Training(config=config, context=LESSONS, train=TRAIN, select=SELECT), student=student, teacher=teacher,
        method=methods.METHODS[config.method](config, player, episodes), run=run, say=say,
    )  # fmt: skip
    return Trained(result, run, student, teacher, episodes)


# -- baselines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["context-distillation", "seqkd"])
def test_a_baseline_learns_the_teachers_answers(method: str, model_dir: Path, tmp_path: Path) -> None:
    done = train(model_dir, tmp_path, method=method, steps=30, batch_size=5, learning_rate=2e-3)
    first, last = done.steps[0], done.steps[-1]
    assert last["loss/value_nats"] < first["loss/value_nats"] - 0.05
    assert first["loss/name"] == {"context-distillation": "forward_kl_topk256_tail", "seqkd": "cross_entropy"}[method]
    assert not any(name.startswith("engine/logprob_gap") for name in first)  # the student did not answer
    said = done.run.records()[0]["loss/definition"]
    assert (said["method"], said["answers"], said["support"]) == (method, "once", "teacher top-256")


def test_the_teacher_answers_each_task_once_with_the_context(model_dir: Path, tmp_path: Path) -> None:
    done = train(model_dir, tmp_path, method="context-distillation", steps=4)  # 12 places, 5 tasks
    assert sorted(e.task for e in done.answers) == sorted(TRAIN)
    assert {e.context_id for e in done.answers} == {LESSONS.id}
    chat = Chat(done.student.tokenizer)
    for episode in done.answers:
        assert episode.turns[0].prompt_ids == chat.render(episode.turns[0].messages, LESSONS)


def test_fresh_answers_are_others_in_every_epoch(model_dir: Path, tmp_path: Path) -> None:
    done = train(model_dir, tmp_path, method="seqkd", answers="fresh", steps=4)
    assert len(done.answers) == 12
    by_task = {task: {e.turns[0].response_ids for e in done.answers if e.task == task} for task in TRAIN}
    assert all(len(replies) >= 2 for replies in by_task.values())


def test_only_the_student_prompt_lacks_the_context(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Sample] = []
    samples_of = played.samples_of

    def spy(episodes: Sequence[Episode], *args: Any, **how: Any) -> Any:
        found = samples_of(episodes, *args, **how)
        seen.extend(found[0])
        return found

    monkeypatch.setattr(played, "samples_of", spy)
    done = train(model_dir, tmp_path, method="context-distillation", steps=2)
    text = done.student.tokenizer.decode
    assert seen
    for sample in seen:
        assert "always go left" in text(sample.teacher_ids) and "always go left" not in text(sample.student_ids)
        assert any(sample.response_ids == e.turns[0].response_ids for e in done.answers)


@pytest.mark.parametrize("form", ["tail", "full", "raw", "renorm"])
def test_the_loss_of_a_baseline_is_the_forward_kl(form: Any, model_dir: Path) -> None:
    torch.manual_seed(0)
    student_NV, teacher_NV = torch.randn(4, 30, requires_grad=True), torch.randn(4, 30)
    config = settings(**{"method": "context-distillation", "divergence": form, "support": 8})
    player: Any = None
    token = methods.METHODS[config.method](config, player, []).divergence(student_NV, teacher_NV, torch.arange(4))
    if form == "full":
        wanted = losses.full_kl(student_NV, teacher_NV, direction="forward")
    else:
        wanted = losses.divergence(student_NV, teacher_NV, direction="forward", k=8, form=form).loss_N
    assert torch.equal(token.loss_N, wanted)


def test_the_loss_of_seqkd_is_the_cross_entropy_of_the_tokens() -> None:
    torch.manual_seed(0)
    student_NV, teacher_NV, ids_N = torch.randn(4, 30, requires_grad=True), torch.randn(4, 30), torch.arange(4)
    config = settings(**{"method": "seqkd", "temperature": 0.5})
    player: Any = None
    token = methods.METHODS[config.method](config, player, []).divergence(student_NV, teacher_NV, ids_N)
    wanted = torch.nn.functional.cross_entropy(student_NV / 0.5, ids_N, reduction="none")
    torch.testing.assert_close(token.loss_N, wanted)
    assert token.loss_N.requires_grad and not token.value_N.requires_grad


@pytest.mark.parametrize(
    "how", [("context-distillation", "once"), ("seqkd", "once"), ("mixed", "once"), ("mixed", "fresh")]
)
def test_a_killed_baseline_ends_bit_equal(how: tuple[str, str], model_dir: Path, tmp_path: Path) -> None:
    told: dict[str, Any] = {"method": how[0], "answers": how[1]}
    whole = train(model_dir, tmp_path / "whole", **told)
    with pytest.raises(Killed):
        train(model_dir, tmp_path / "killed", kill_at=4, **told)
    again = train(model_dir, tmp_path / "killed", **told)
    assert again.weights == whole.weights
    for a, b in zip(again.steps, whole.steps, strict=True):
        assert {k: v for k, v in a.items() if "time/" not in k} == {k: v for k, v in b.items() if "time/" not in k}


# -- teachers -------------------------------------------------------------------------------------------


def first_weight(model: Any) -> torch.Tensor:
    return next(iter(model.parameters())).detach().clone()


@pytest.fixture
def student(model_dir: Path) -> models.LoadedModel:
    return models.load_model(str(model_dir))


@torch.no_grad()
def move(model: Any) -> None:
    for parameter in model.parameters():
        parameter.add_(1.0)


def test_a_periodic_teacher_is_copied_every_so_many_steps(student: models.LoadedModel) -> None:
    teacher = MovingTeacher(student, kind="periodic", every=3, compute=F32)
    start = first_weight(teacher.model)
    for step in range(1, 7):
        move(student.model)
        teacher.follow(student.model, step)
        torch.testing.assert_close(first_weight(teacher.model), start + step // 3 * 3)


def test_an_ema_teacher_keeps_the_share_it_is_told(student: models.LoadedModel) -> None:
    teacher = MovingTeacher(student, kind="ema", keeps=0.75, compute=F32)
    start = first_weight(teacher.model)
    move(student.model)
    teacher.follow(student.model, 1)
    torch.testing.assert_close(first_weight(teacher.model), start + 0.25)


@pytest.mark.parametrize(("keeps", "same_as"), [(1.0, "frozen"), (0.0, "live")])
def test_the_ends_of_ema_are_frozen_and_live(keeps: float, same_as: str, model_dir: Path, tmp_path: Path) -> None:
    ema = train(model_dir, tmp_path / "ema", teacher_kind="ema", teacher_keeps=keeps)
    other = train(model_dir, tmp_path / "other", teacher_kind=same_as)
    assert ema.weights == other.weights
    values = [[step["loss/value_nats"] for step in done.steps] for done in (ema, other)]
    assert values[0] == values[1]


def test_teachers_differ_in_what_the_student_learns(model_dir: Path, tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "frozen": {}, "live": {}, "ema": {"teacher_keeps": 0.5}, "periodic": {"teacher_every": 2}
    }  # fmt: skip
    found = {
        kind: train(model_dir, tmp_path / kind, teacher_kind=kind, learning_rate=3e-3, **more).weights
        for kind, more in kinds.items()
    }
    assert len(set(found.values())) == len(kinds)


def test_a_teacher_follows_when_a_step_is_skipped(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step of a periodic teacher's copy was skipped; its weights are the student's of the step before."""
    step_of, seen = Learner.step, {}

    def step(self: Learner, ranks: Ranks, step: int, *, learned: bool) -> Any:
        found = step_of(self, ranks, step, learned=learned and step != 2)
        seen[step] = first_weight(self.model)
        return found

    monkeypatch.setattr(Learner, "step", step)
    done = train(model_dir, tmp_path, teacher_kind="periodic", teacher_every=2, steps=3, learning_rate=3e-3)
    assert done.result.skipped == 1
    assert torch.equal(seen[1], seen[2]) and not torch.equal(seen[2], seen[3])
    assert torch.equal(first_weight(done.teacher.model), seen[2])


@pytest.mark.parametrize("kind", ["ema", "periodic", "live"])
def test_a_killed_run_with_a_teacher_that_moves_ends_bit_equal(kind: str, model_dir: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"teacher_kind": kind} | ({"teacher_every": 3} if kind == "periodic" else {})
    whole = train(model_dir, tmp_path / "whole", steps=6, **how)
    with pytest.raises(Killed):
        train(model_dir, tmp_path / "killed", steps=6, kill_at=8, **how)
    assert train(model_dir, tmp_path / "killed", steps=6, **how).weights == whole.weights


def test_keys_and_values_of_a_teacher_that_moved_are_read_anew(student: models.LoadedModel) -> None:
    chat = Chat(student.tokenizer)
    context = Context("go left, " * 20)
    teacher = MovingTeacher(student, kind="live", compute=F32, prefixes=[chat.prefix(context)])
    messages: Any = [{"role": "user", "content": "which way?"}]
    student_ids, teacher_ids = chat.prompts(messages, context)
    samples = [
        Sample(student_ids=student_ids, teacher_ids=teacher_ids, response_ids=(5, 6, 7), logprobs=(), turn=0)
    ] * 2
    before = teacher.score(samples)
    assert "state" in teacher.prefixes[0].__dict__
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    teacher.follow(student.model, 1)
    after = teacher.score(samples)
    plain = MovingTeacher(student, kind="live", compute=F32).score(samples)
    torch.testing.assert_close(after, plain, atol=2e-4, rtol=0)
    assert (after - before).abs().max() > 0.1


def test_no_gradient_reaches_a_teacher_that_moves(model_dir: Path, tmp_path: Path) -> None:
    done = train(model_dir, tmp_path, teacher_kind="ema")
    done.teacher.assert_unchanged()
    next(done.teacher.model.parameters()).requires_grad_(True)
    with pytest.raises(Exception, match="never learns"):
        done.teacher.assert_unchanged()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"teacher_kind": "live", "shard": True}, "--shard wants"),
        ({"teacher_kind": "live", "method": "seqkd"}, "--method wants"),
        ({"teacher_kind": "live", "anchor": 0.5}, "--anchor wants a teacher that stands still"),
        ({"teacher_kind": "live", "teacher": "pocket"}, "leave out --teacher pocket"),
        ({"teacher_keeps": 0.5}, "--teacher-keeps is for --teacher-kind ema"),
        ({"teacher_every": 2, "teacher_kind": "ema"}, "--teacher-every is for"),
        ({"teacher_kind": "ema", "teacher_keeps": 1.5}, "it is a share"),
        ({"answers": "fresh"}, "--answers is for"),
        ({"method": "seqkd", "divergence": "stopgrad"}, "the student's own answers"),
        ({"method": "seqkd", "importance_cap": 2.0}, "the student's own answers"),
        (
            {"method": "seqkd", "teacher_strength": 2.0},
            "--teacher-strength is for methods that learn from the teacher's",
        ),
        ({"method": "mixed", "batch_size": 1}, "--method mixed needs --batch-size 2 or more"),
        ({"method": "mixed", "divergence": "stopgrad"}, "mixed has the teacher's, too"),
        ({"method": "mixed", "turn_items": 2}, "--turn-items is for the student's own answers"),
        ({"method": "mixed", "teacher_kind": "ema"}, "--method wants a teacher that stands still"),
        ({"method": "mixed", "async_steps": 1}, "--async-steps is for --server"),
        ({"method": "mixed", "direction": "jensen-shannon", "divergence": "raw"}, "has no form 'raw'"),
        ({"method": "opdc"}, "did you mean 'opcd'"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ConsolidateConfig(env="math", **changes)
