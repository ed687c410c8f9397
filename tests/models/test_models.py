"""Finding, loading, pairing and saving models: float32 where it counts, and an id that follows the weights."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging as transformers_log

from agentopcd import models
from agentopcd.cli import main
from agentopcd.core.errors import ModelError
from agentopcd.models import compute, find, folder_files, process
from tests import tiny

IDS = torch.tensor([[1, 40, 50, 60, 70]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it; a test that writes takes ``own``."""
    return tiny.build(tmp_path_factory.mktemp("untied") / "model", tie=False)


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "own"))


@pytest.fixture
def loaded(folder: Path) -> models.LoadedModel:
    return models.load_model(str(folder))


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None deletes one."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


@torch.no_grad()
def logits(model: Any, compute: torch.dtype = torch.float32) -> torch.Tensor:
    with models.autocast(torch.device("cpu"), compute):
        return model(IDS).logits


# -- finding and loading --------------------------------------------------------------------------------


def test_a_folder_is_loaded_in_float32_and_ready_to_play(loaded: models.LoadedModel, folder: Path) -> None:
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert not loaded.model.training
    assert loaded.end_ids == (tiny.END,)
    assert loaded.folder == folder.resolve()
    assert loaded.id == find.fingerprint(folder)


def test_weights_saved_in_bfloat16_become_float32(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shutil.copytree(folder, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    half = models.load_model(str(tmp_path / "half"))
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smolm2-135m", "did you mean 'smollm2-135m'"),
        ("./nowhere", "neither a built-in name"),
        ("weights/missing.gguf", "no file 'weights/missing.gguf'"),
    ],
)
def test_a_name_that_finds_nothing_says_so(name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        models.load_model(name)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        models.load_model(str(tmp_path))


def test_a_tokenizer_without_chat_template_is_refused(own: Path) -> None:
    (own / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="chat template"):
        models.load_model(str(own))


def test_a_model_without_an_end_token_is_refused(own: Path) -> None:
    edit(own / "tokenizer_config.json", eos_token=None)
    edit(own / "config.json", eos_token_id=None)
    (own / "generation_config.json").unlink()
    (own / "chat_template.jinja").write_text(tiny.TEMPLATE.replace("<|im_end|>", ""))
    with pytest.raises(ModelError, match="end-of-sequence"):
        models.load_model(str(own))


def test_end_tokens_come_from_tokenizer_and_generation_config(own: Path) -> None:
    edit(own / "generation_config.json", eos_token_id=[7, 2, 9])
    assert models.load_model(str(own)).end_ids == (2, 7, 9)


def test_a_missing_pad_token_is_an_end_token(own: Path) -> None:
    edit(own / "tokenizer_config.json", pad_token=None)
    assert models.load_model(str(own)).tokenizer.pad_token_id == tiny.END


def test_weights_that_are_only_pickled_are_refused(own: Path, loaded: models.LoadedModel) -> None:
    (own / "model.safetensors").unlink()
    torch.save(loaded.model.state_dict(), own / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot load model"):
        models.load_model(str(own))


def test_code_of_a_model_folder_is_not_run(own: Path) -> None:
    edit(own / "config.json", model_type="mine", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    (own / "code.py").write_text(f"open({str(own / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError):
        models.load_model(str(own))
    assert not (own / "ran").exists()


def test_broken_weights_are_a_model_error(own: Path) -> None:
    (own / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(ModelError, match="cannot load"):
        models.load_model(str(own))


def test_missing_weights_are_a_model_error(own: Path) -> None:
    """Transformers fills them with random numbers and a warning."""
    from safetensors.torch import load_file, save_file

    weights = load_file(own / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="up_proj"):
        models.load_model(str(own))


# -- the output head ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_logits_are_exact_products_even_under_autocast(tie: bool, tmp_path: Path) -> None:
    """A bfloat16 head would round its products: few of its logits would survive a second rounding as they are."""
    model = models.load_model(str(tiny.build(tmp_path / "m", tie=tie))).model
    with torch.no_grad(), models.autocast(torch.device("cpu"), torch.bfloat16):
        hidden = model.model(IDS).last_hidden_state
        found = model.lm_head(hidden)
    assert found.dtype == torch.float32
    assert torch.allclose(found, hidden.float() @ model.lm_head.weight.T, atol=1e-5)
    assert not torch.equal(found, found.bfloat16().float())


def test_the_head_stays_tied(tmp_path: Path) -> None:
    model = models.load_model(str(tiny.build(tmp_path / "m", tie=True))).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_copy_has_a_head_of_its_own(loaded: models.LoadedModel) -> None:
    before = logits(loaded.model)
    twin = copy.deepcopy(loaded.model)
    with torch.no_grad():
        loaded.model.lm_head.weight.zero_()
    assert isinstance(twin.lm_head, models.Float32Head)
    assert torch.equal(logits(twin), before)
    assert logits(loaded.model).abs().max() == 0


def test_a_head_that_is_not_linear_is_refused(loaded: models.LoadedModel) -> None:
    loaded.model.set_output_embeddings(torch.nn.Sequential(loaded.model.lm_head))
    with pytest.raises(ModelError, match="linear output head"):
        models.float32_head(loaded.model)


def test_freezing_for_bfloat16_changes_no_logit(loaded: models.LoadedModel) -> None:
    plain = logits(loaded.model, torch.bfloat16)
    assert not torch.equal(plain, logits(loaded.model))
    models.freeze(loaded.model, torch.bfloat16)
    assert torch.equal(logits(loaded.model, torch.bfloat16), plain)
    assert loaded.model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert loaded.model.lm_head.weight.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_freezing_for_float32_casts_nothing(loaded: models.LoadedModel) -> None:
    models.freeze(loaded.model.train(), torch.float32)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert not loaded.model.training


@pytest.mark.parametrize("has", [True, False])
def test_compute_is_what_was_asked_for_or_what_the_device_has(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that only emulates bfloat16, such as a T4, does not have it."""
    cpu, second, asked = torch.device("cpu"), torch.device("cuda:1"), []
    monkeypatch.setattr(compute, "_cpu_has_bfloat16", lambda: has)
    monkeypatch.setattr(torch.cuda, "device", lambda one: contextlib.nullcontext(asked.append(one)))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has)
    for device in (cpu, second):
        assert models.pick_compute("float32", device) == torch.float32
        assert models.pick_compute("bfloat16", device) == torch.bfloat16
        assert models.pick_compute("auto", device) == (torch.bfloat16 if has else torch.float32)
    assert asked == [second]


# -- who it is ------------------------------------------------------------------------------------------


def test_the_id_follows_everything_that_changes_replies(own: Path) -> None:
    first = find.fingerprint(own)
    for name in ("LICENSE", "pytorch_model.bin", "model.onnx", ".gitattributes", "USE_POLICY.md", "modeling_own.py"):
        (own / name).write_text("of another tool")
        assert find.fingerprint(own) == first, name  # no such file is ever loaded
    (own / "agentopcd.json").write_text("{}")
    assert find.fingerprint(own) == first
    (own / "chat_template.jinja").write_text("{{ messages }}")
    second = find.fingerprint(own)
    weights = bytearray((own / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (own / "model.safetensors").write_bytes(weights)
    assert len({first, second, find.fingerprint(own)}) == 3


@pytest.mark.parametrize("name", ["Qwen/Qwen3-1.7B@main", "owner/na me", "-owner/name", "owner/name--x", "owner/..x"])
def test_what_no_hub_can_hold_is_told_without_asking_one(name: str) -> None:
    with pytest.raises(ModelError, match=rf"no model '{re.escape(name)}': .*wanted owner/name \(for one revision"):
        find.find_cached(name)


def test_the_parameter_hash_sees_one_changed_bit(loaded: models.LoadedModel) -> None:
    before = models.parameter_hash(loaded.model)
    assert models.parameter_hash(copy.deepcopy(loaded.model)) == before
    with torch.no_grad():
        loaded.model.model.norm.weight[3] = torch.nextafter(loaded.model.model.norm.weight[3], torch.tensor(99.0))
    assert models.parameter_hash(loaded.model) != before


def test_a_model_pairs_with_itself_and_with_other_weights(loaded: models.LoadedModel, tmp_path: Path) -> None:
    models.check_pair(loaded, loaded)
    models.check_pair(loaded, models.load_model(str(tiny.build(tmp_path / "other", seed=1))))


def test_other_vocabularies_do_not_pair(loaded: models.LoadedModel, folder: Path) -> None:
    from tokenizers.models import BPE

    other = models.load_model(str(folder))
    other.tokenizer.backend_tokenizer.model = BPE({"a": 3, "b": 4}, [])
    with pytest.raises(ModelError, match="vocabularies"):
        models.check_pair(loaded, other)


def test_other_end_tokens_do_not_pair(loaded: models.LoadedModel, own: Path) -> None:
    edit(own / "generation_config.json", eos_token_id=[2, 7])
    with pytest.raises(ModelError, match=r"\[2, 7\]"):
        models.check_pair(loaded, models.load_model(str(own)))


# -- saving ---------------------------------------------------------------------------------------------


def test_a_saved_model_is_an_ordinary_folder_with_equal_logits(loaded: models.LoadedModel, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved_id = models.save_model(loaded, tmp_path / "out", parent_id=loaded.id, facts={"step": 3})
    again = models.load_model(str(tmp_path / "out"))
    assert torch.equal(logits(again.model), logits(loaded.model))
    assert (again.id, again.parent_id, again.end_ids) == (saved_id, loaded.id, loaded.end_ids)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.allclose(logits(plain), logits(loaded.model), atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tiny.TEMPLATE
    assert {file.name for file in tmp_path.iterdir()} == {"out"}
    assert json.loads((tmp_path / "out" / "agentopcd.json").read_text())["step"] == 3


def test_saving_twice_gives_one_id_and_replaces_the_folder(loaded: models.LoadedModel, tmp_path: Path) -> None:
    first = models.save_model(loaded, tmp_path / "out", parent_id="p", facts={"step": 1})
    (tmp_path / "out" / "left-over").write_text("x")
    second = models.save_model(loaded, tmp_path / "out", parent_id="p", facts={"step": 2})
    assert first == second
    assert not (tmp_path / "out" / "left-over").exists()


def test_a_save_that_dies_leaves_the_folder_before(
    loaded: models.LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = models.save_model(loaded, tmp_path / "out", parent_id="p", facts={})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folder_files, "write_sidecar", lambda *args, **facts: (_ for _ in ()).throw(KeyboardInterrupt))
        models.save_model(loaded, tmp_path / "out", parent_id="p", facts={})
    assert find.fingerprint(tmp_path / "out") == first
    assert models.save_model(loaded, tmp_path / "out", parent_id="p", facts={}) == first


def test_the_note_of_a_dequantised_parent_is_kept(own: Path, tmp_path: Path) -> None:
    (own / "agentopcd.json").write_text('{"note": "from 4-bit weights"}')
    loaded = models.load_model(str(own))
    models.save_model(loaded, tmp_path / "out", parent_id=loaded.id, facts={})
    assert models.load_model(str(tmp_path / "out")).note == "from 4-bit weights"


@pytest.mark.parametrize(
    ("quota", "variable", "threads"),
    [("150000 100000", "", 1), ("400000 100000", "", 4), ("50000 100000", "", 1), ("max 100000", "", 6),
     ("100000 100000", "6", 6), ("nonsense", "", 6)],
)  # fmt: skip
def test_threads_fit_the_quota_of_a_container(
    quota: str, variable: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(process, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setenv("OMP_NUM_THREADS", variable) if variable else monkeypatch.delenv("OMP_NUM_THREADS", False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(6)
        process.fit_threads()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_loading_a_model_leaves_the_process_as_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    monkeypatch.setattr(process, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.delenv("OMP_NUM_THREADS", False)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", sdpa_attention_forward)
    threads, verbosity = torch.get_num_threads(), transformers_log.get_verbosity()
    try:
        torch.set_num_threads(2)
        transformers_log.set_verbosity_info()
        models.load_model(str(folder))
        assert torch.get_num_threads() == 2
        assert transformers_log.get_verbosity() == logging.INFO
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
        models.prepare_process()
        assert torch.get_num_threads() == 1
        assert transformers_log.get_verbosity() == logging.ERROR
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not sdpa_attention_forward
    finally:
        torch.set_num_threads(threads)
        transformers_log.set_verbosity(verbosity)


@pytest.mark.parametrize("verb", ["play", "consolidate", "evaluate", "learn", "knowledge score", "reproduce table2"])
def test_the_command_line_prepares_the_process(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        raise ModelError("prepared")

    monkeypatch.setattr(models, "prepare_process", stop)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    env = [] if verb.startswith("reproduce") else ["--env", "math"]
    monkeypatch.setattr(sys, "argv", ["agentopcd", *verb.split(), *env, "--work", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: prepared\n"


def test_attention_on_a_cpu_is_float32_under_autocast_and_once_wrapped_stays_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", sdpa_attention_forward)
    process.float32_attention()
    process.float32_attention()
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert attend.args == (sdpa_attention_forward,)
    query, key, value = torch.randn(3, 1, 2, 5, 4).bfloat16()
    mask = torch.zeros(1, 1, 5, 5, dtype=torch.bfloat16)
    expected = torch.nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), mask.float())
    with models.autocast(torch.device("cpu"), torch.bfloat16):
        found, _ = attend(torch.nn.Module(), query, key, value, mask)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-6, rtol=1e-6)
    bare, _ = attend(torch.nn.Module(), query, key, value, mask)
    assert bare.dtype == torch.bfloat16
