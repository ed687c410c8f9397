"""LoRA: the adapter learns, the base stays, and the result loads as a student."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import AlignmentError, ConfigError, ModelError
from agentopcd.distillation.positions import response_hidden
from agentopcd.distillation.teacher import FrozenTeacher, MovingTeacher
from agentopcd.models import find
from tests import tiny
from tests.training import Killed, Trained, train, turn_sample


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("untied") / "model", tie=False, hearing=4.0)


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
    assert "state" in vars(done.teacher.prefixes[0])
    kl = [record["loss/value_nats"] for record in done.steps]
    assert min(kl[-3:]) < kl[0]
    done.teacher.assert_unchanged()


MOVING: dict[str, dict[str, Any]] = {"ema": {"teacher_keeps": 0.5}, "periodic": {"teacher_every": 3}, "live": {}}


def learned(run: Trained) -> bytes:
    return (run.result.folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(("keeps", "same_as"), [(1.0, "frozen"), (0.0, "live")])
def test_the_ends_of_a_moving_average_of_adapters(keeps: float, same_as: str, model_dir: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"lora_rank": 4, "learning_rate": 3e-3}
    ema = train(model_dir, tmp_path / "ema", teacher_kind="ema", teacher_keeps=keeps, **how)
    other = train(model_dir, tmp_path / "other", teacher_kind=same_as, **how)
    assert learned(ema) == learned(other)
    values = [[step["loss/value_nats"] for step in done.steps] for done in (ema, other)]
    assert values[0] == values[1]


def test_teachers_of_adapters_differ_in_what_the_student_learns(model_dir: Path, tmp_path: Path) -> None:
    kinds = {"frozen": {}, **MOVING}
    how: dict[str, Any] = {"lora_rank": 4, "learning_rate": 3e-3, "compute": "bfloat16", "share": True}
    runs = {kind: train(model_dir, tmp_path / kind, teacher_kind=kind, **how, **kinds[kind]) for kind in kinds}
    values = [tuple(step["loss/value_nats"] for step in run.steps) for run in runs.values()]
    assert len(set(values)) == len(kinds)
    for run in runs.values():
        run.teacher.assert_unchanged()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", MOVING)
def test_a_teacher_that_moves_scores_as_a_copy_does(kind: str, checkpointing: bool, model_dir: Path) -> None:
    """One model in memory holds two adapters in turn; a deep copy of the student at each time is the yardstick."""
    student = models.load_model(str(model_dir))
    models.add_adapter(student, 4, torch.float32, seed=0)
    if checkpointing:
        models.checkpoint_gradients(student.model)
    teacher = MovingTeacher(student, kind=kind, every=2, keeps=0.5, compute=torch.float32)
    pairs = [turn_sample([5, 6, 7], [9, 5, 6, 7], [8, 30, 40]), turn_sample([5, 6], [9, 5, 6], [8])]
    copy_ = copy.deepcopy(student.model)
    for step in (1, 2, 3):
        with torch.no_grad():
            for parameter in student.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))
        if kind == "ema":
            with torch.no_grad():
                for average, own in zip(copy_.parameters(), student.model.parameters(), strict=True):
                    average.mul_(0.5).add_(own, alpha=0.5)
        elif kind == "live" or step == 2:
            copy_ = copy.deepcopy(student.model)
        teacher.follow(student.model, step)
        before = {name: p.clone() for name, p in student.model.named_parameters()}
        exact = response_hidden(copy_, [(s.teacher_ids, s.response_ids) for s in pairs], 0)
        torch.testing.assert_close(teacher.hidden(pairs), exact.detach(), atol=1e-6, rtol=0)
        assert all(torch.equal(p, before[name]) for name, p in student.model.named_parameters())
    teacher.assert_unchanged()
    with torch.no_grad():
        next(p for p in student.model.parameters() if not p.requires_grad).add_(1.0)
    with pytest.raises(AlignmentError, match="changed during the run"):
        teacher.assert_unchanged()


@pytest.mark.parametrize("kind", MOVING)
def test_a_killed_run_of_an_adapter_and_a_teacher_that_moves_ends_bit_equal(
    kind: str, model_dir: Path, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"lora_rank": 4, "steps": 6, "learning_rate": 3e-3, "teacher_kind": kind, **MOVING[kind]}
    whole = train(model_dir, tmp_path / "whole", **how)
    with pytest.raises(Killed):
        train(model_dir, tmp_path / "killed", kill_at=8, **how)
    again = train(model_dir, tmp_path / "killed", **how)
    assert again.lines[0].startswith("resumed after step")
    assert learned(again) == learned(whole)


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
