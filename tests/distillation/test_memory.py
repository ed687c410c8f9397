"""Memory estimates: what can be counted is counted right, and settings move what they should."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ModelError
from agentopcd.distillation import memory as module
from agentopcd.distillation.memory import Memory, kept_bytes, memory, tokens_per_batch, train_flop
from agentopcd.distillation.teacher import FrozenTeacher, MovingTeacher
from tests import tiny
from tests.models import architectures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("estimate") / "model", tie=True)


def of(folder: Path, compute: torch.dtype = torch.bfloat16, **settings: Any) -> Memory:
    return memory(str(folder), ConsolidateConfig(env="math", **settings), compute)


def size(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_student_and_teacher_are_counted_to_the_byte(folder: Path, compute: torch.dtype) -> None:
    loaded = models.load_model(str(folder))
    found = of(folder, compute)
    assert found.student == 4 * size(loaded.model)
    assert found.teacher == size(FrozenTeacher(loaded, loaded, compute=compute).model)


def test_an_adapter_is_counted_to_the_byte(folder: Path) -> None:
    loaded = models.load_model(str(folder))
    models.add_adapter(loaded, 4, torch.bfloat16, 0)
    trained = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    found = of(folder, lora_rank=4)
    assert found.student == size(loaded.model) + 12 * trained
    assert found.teacher == 0


@pytest.mark.parametrize("kind", ["live", "periodic", "ema"])
def test_the_adapter_of_a_teacher_that_moves_is_counted_to_the_byte(folder: Path, kind: str) -> None:
    loaded = models.load_model(str(folder))
    models.add_adapter(loaded, 4, torch.bfloat16, 0)
    teacher = MovingTeacher(loaded, kind=kind, compute=torch.bfloat16)
    held = sum(p.numel() * p.element_size() for p in teacher.weights.values())
    assert (held > 0) == (kind != "live")
    assert of(folder, lora_rank=4, teacher_kind=kind).teacher == held


def test_the_cache_of_a_context_is_counted_at_four_bytes_a_number(folder: Path) -> None:
    from agentopcd.distillation.prefix import SharedPrefix

    loaded = models.load_model(str(folder))
    with torch.no_grad():
        pairs = SharedPrefix(loaded.model, [5] * 1000).state
    assert of(folder).context == 4 * sum(t.numel() for layer in pairs.layers for t in (layer.keys, layer.values))


def test_settings_move_what_they_should(folder: Path) -> None:
    usual = of(folder, tokens_per_batch=4096)
    half = of(folder, tokens_per_batch=2048)
    assert 2 * half.batch == usual.batch and dataclasses.replace(half, batch=usual.batch) == usual
    assert of(folder, tokens_per_batch=4096, gradient_checkpointing=True).batch < usual.batch
    assert usual.total == sum(dataclasses.asdict(usual).values())
    usual = of(folder)
    assert of(folder, torch.float32).casts == of(folder, lora_rank=4).casts == 0 < usual.casts
    assert of(folder, shard=True).casts == usual.casts
    assert of(folder, shard=True, gradient_checkpointing=True).casts == 0
    assert f"{usual.total / 2**30:.1f} GiB" in str(usual)


@pytest.mark.parametrize(
    ("hidden", "layers", "device", "tokens"),
    [(192, 6, "cpu", 4096), (576, 30, "cpu", 495), (4096, 32, "cpu", 256), (4096, 32, "cuda", 4096)],
)
def test_a_pass_on_a_cpu_takes_as_many_tokens_as_half_a_gib_holds(
    hidden: int, layers: int, device: str, tokens: int
) -> None:
    sizes = {"hidden_size": hidden, "intermediate_size": hidden * 8 // 3, "num_hidden_layers": layers}
    settings = SimpleNamespace(**sizes)
    model: Any = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: settings))
    config = ConsolidateConfig(env="math")
    assert tokens_per_batch(model, config, torch.device(device)) == tokens
    assert tokens_per_batch(model, dataclasses.replace(config, tokens_per_batch=9), torch.device(device)) == 9
    settings.intermediate_size = [hidden * 8 // 3] * layers
    assert tokens_per_batch(model, config, torch.device(device)) == tokens
    odd: Any = SimpleNamespace(config=SimpleNamespace(get_text_config=SimpleNamespace))
    assert tokens_per_batch(odd, config, torch.device("cpu")) == 4096


def test_sharding_divides_what_is_trained_and_adds_a_whole_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, whole = of(folder), size(models.load_model(str(folder)).model)
    students = []
    for processes in ("2", "4"):
        monkeypatch.setenv("WORLD_SIZE", processes)
        students.append(of(folder, shard=True).student)
    assert students[0] - students[1] == usual.student // 4
    assert students[1] > usual.student // 4 + whole
    assert of(folder, shard=True, server="http://there").student == students[1] - whole  # servers play


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("llama", 2 * 2 * 2 * 8),
        *((kind, 0) for kind in ("mamba", "mamba2", "falcon_mamba", "rwkv")),
        ("gemma4_text", 2 * 2 * 8 + 2 * 2 * 16),
    ],
)
def test_models_without_heads_and_with_layers_that_differ_are_estimated(
    kind: str, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = meta(kind)
    monkeypatch.setattr(module, "skeleton", lambda name: model)
    found = memory("it", ConsolidateConfig(env="math", device="cpu"), torch.float32)
    assert found.context == 1000 * numbers * 4 and found.batch > 0
    assert train_flop("it", 7) > 0


def test_layers_of_different_widths_count_as_the_widest() -> None:
    model = meta("gemma4_text")
    usual = kept_bytes(model)
    model.config.per_layer_config = {0: {"intermediate_size": 128}}
    assert kept_bytes(model) == usual + 2 * 10 * 64


def test_a_config_that_does_not_tell_its_sizes_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = meta("llama")
    model.config.per_layer_config = {0: {"hidden_size": 16}}
    monkeypatch.setattr(module, "skeleton", lambda name: model)
    with pytest.raises(ModelError, match="the config of 'it' does not tell its sizes: 'hidden_size'"):
        memory("it", ConsolidateConfig(env="math", device="cpu"), torch.float32)


def meta(kind: str) -> Any:
    """A tiny model on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    changes = {"layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 16}
    kind, settings = architectures.ARCHITECTURES.get(kind, (kind, architectures.HEAD | changes))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))


def test_an_unknown_model_is_one_line() -> None:
    with pytest.raises(ModelError, match="no model 'pokcet'"):
        memory("pokcet", ConsolidateConfig(env="math"), torch.float32)


def test_operations_are_ten_a_weight_and_token_without_a_separate_embedding(tmp_path: Path) -> None:
    for tie in (True, False):
        folder = tiny.build(tmp_path / str(tie), tie=tie)
        model = models.load_model(str(folder)).model
        embedding = 0 if tie else model.get_input_embeddings().weight.numel()
        weights = sum(p.numel() for p in model.parameters()) - embedding
        assert train_flop(str(folder), 7) == 10 * 7 * weights
