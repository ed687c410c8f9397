"""Models of kinds that cannot be used here are refused in one line, before anything is played."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import ModelError
from tests import tiny

QUANTISED: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "one of tomorrow": {"quant_method": "of-tomorrow"},
}


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_weights_are_refused(name: str, tmp_path: Path) -> None:
    folder = tiny.build(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": QUANTISED[name]}))
    for look in (models.load_model, models.check_files):
        with pytest.raises(ModelError, match=r"are quantised .*; name the model that it was made from") as error:
            look(str(folder))
        assert "\n" not in str(error.value) and QUANTISED[name]["quant_method"] in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "of-tomorrow"}', "{}", '"\\ud83d"', "\xff", "[" * 100_000])
def test_a_config_that_cannot_be_read_is_refused(text: str, tmp_path: Path) -> None:
    folder = tiny.build(tmp_path / "model")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    for look in (models.load_model, models.check_files):
        with pytest.raises(ModelError):
            look(str(folder))


def test_an_adapter_on_what_peft_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    pytest.importorskip("peft")
    loaded = models.load_model(str(tiny.build(tmp_path / "model")))
    config = transformers.Mamba2Config(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, state_size=8, num_heads=8, head_dim=8, expand=2,
        n_groups=1, chunk_size=8, tie_word_embeddings=False,
    )  # fmt: skip
    loaded.model = transformers.AutoModelForCausalLM.from_config(config)
    adapts = (lambda: models.check_adapter(loaded, 2), lambda: models.add_adapter(loaded, 2, torch.float32, seed=0))
    for adapt in adapts:
        with pytest.raises(ModelError, match=r"PEFT cannot put an adapter on .* \(Mamba2ForCausalLM\): .*--lora-rank"):
            adapt()


def test_an_adapter_is_tried_without_touching_the_model(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    loaded = models.load_model(str(tiny.build(tmp_path / "model")))
    before = models.parameter_hash(loaded.model)
    state = torch.get_rng_state()
    models.check_adapter(loaded, 2)
    assert models.parameter_hash(loaded.model) == before and loaded.adapter is None
    assert torch.equal(torch.get_rng_state(), state)


def test_a_folder_of_a_sound_model_is_looked_at_without_its_weights(tmp_path: Path) -> None:
    folder = tiny.build(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert models.check_files(str(folder)) == ""
    assert "not on this machine yet" in models.check_files("owner/name")


def test_a_model_in_the_hubs_cache_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (kept := tmp_path / "models--owner--name" / "refs").mkdir(parents=True)
    (kept / "main").write_text("0" * 40)
    folder = tiny.build(kept.parent / "snapshots" / ("0" * 40))
    assert models.check_files("owner/name") == ""
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="chat template"):
        models.check_files("owner/name")
    for file in ("model.safetensors", "tokenizer.json"):  # someone has looked at the config alone
        (folder / file).unlink()
    assert "not on this machine yet" in models.check_files("owner/name")
