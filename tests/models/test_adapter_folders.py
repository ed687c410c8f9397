"""Adapters as others write them: with a tokenizer, a template or a vocabulary of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import ModelError
from agentopcd.models import find
from agentopcd.rollouts.chat import Chat
from tests import odd_tokenizers as odd
from tests import tiny

SAYS = tiny.TEMPLATE.replace("'\n' + message['content']", "' says: ' + message['content']")
HI: Any = [{"role": "user", "content": "hi"}]


def adapter(base: Path, folder: Path, made: Any = None, *, more: int = 0, template: str = "", **settings: Any) -> Path:
    """Write an adapter of ``base`` as TRL does: with ``made`` beside it, over a vocabulary of ``more`` tokens more."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net: Any = AutoModelForCausalLM.from_pretrained(base)
        if more:
            net.resize_token_embeddings(net.get_input_embeddings().weight.shape[0] + more)
        shape: Any = {"r": 2, "init_lora_weights": False, "task_type": "CAUSAL_LM", "target_modules": "all-linear"}
        lora = LoraConfig(**shape | settings)
        get_peft_model(net, lora).save_pretrained(str(folder))
    if made is not None:
        made.save_pretrained(folder)
    if template:
        (folder / "chat_template.jinja").write_text(template)
    odd.edit(folder / find.ADAPTER, base_model_name_or_path=str(base))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return odd.model(tmp_path_factory.mktemp("base") / "base", odd.tokenizer(), tie=False)


def shown(folder: Path) -> str:
    return Chat(models.load_model(str(folder)).tokenizer).text(HI)


def test_the_tokenizer_and_template_beside_an_adapter_are_taken(base: Path, tmp_path: Path) -> None:
    assert (
        shown(adapter(base, tmp_path / "a", odd.tokenizer(SAYS)))
        == "<|im_start|>user says: hi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_alone_beside_an_adapter_is_taken(base: Path, tmp_path: Path) -> None:
    assert "says: hi" in shown(adapter(base, tmp_path / "a", template=SAYS))


def test_an_adapter_without_these_files_takes_those_of_its_base(base: Path, tmp_path: Path) -> None:
    assert shown(adapter(base, tmp_path / "a")) == shown(base)


def test_a_base_without_a_template_or_a_tokenizer_does(base: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(base, tmp_path / "bare"))
    for file in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        (bare / file).unlink()
        assert "says: hi" in shown(adapter(bare, tmp_path / f"a-{file}", odd.tokenizer(SAYS)))


def test_a_tokenizer_without_a_template_takes_the_one_of_the_base_with_a_warning(base: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="has no chat template, so that of .*base is used"):
        assert shown(adapter(base, tmp_path / "a", odd.tokenizer(None))) == shown(base)


def test_an_adapter_of_an_adapter_takes_the_nearest_files(base: Path, tmp_path: Path) -> None:
    first = adapter(base, tmp_path / "first", odd.tokenizer(SAYS))
    second = tmp_path / "second"
    shutil.copytree(first, second)
    for file in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        (second / file).unlink()
    odd.edit(second / find.ADAPTER, base_model_name_or_path=str(first))
    assert "says: hi" in shown(second)
    one, two = models.load_model(str(first)), models.load_model(str(second))
    zero = models.load_model(str(base))
    name = "model.layers.0.mlp.up_proj.weight"
    step = one.model.get_parameter(name) - zero.model.get_parameter(name)
    torch.testing.assert_close(two.model.get_parameter(name) - one.model.get_parameter(name), step)


# -- resized vocabularies -------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_an_adapter_over_a_resized_vocabulary_loads_with_its_own_rows(tie: bool, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    made = odd.tokenizer()
    base = odd.model(tmp_path / "base", made, tie=tie)
    rows = len(made)
    made.add_tokens(["<box>", "<goal>"])
    loaded = models.load_model(str(adapter(base, tmp_path / "a", made, more=2)))
    assert loaded.model.get_input_embeddings().weight.shape[0] == rows + 2
    net = AutoModelForCausalLM.from_pretrained(base)
    net.resize_token_embeddings(rows + 2)
    ids = torch.tensor([[1, 40, 50, rows, rows + 1]])
    with torch.no_grad():
        expected = PeftModel.from_pretrained(net, tmp_path / "a")(ids).logits
        torch.testing.assert_close(loaded.model(ids).logits, expected, atol=1e-5, rtol=0)


def test_a_tokenizer_with_more_words_than_the_base_has_rows_is_refused(base: Path, tmp_path: Path) -> None:
    made = odd.tokenizer()
    made.add_tokens(["<box>"])
    with pytest.raises(ModelError, match=r"'<box>'.* have no row"):
        models.load_model(str(adapter(base, tmp_path / "a", made)))


def test_rows_for_one_end_alone_are_refused(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = adapter(base, tmp_path / "a", more=2)
    weights = load_file(folder / "adapter_model.safetensors")
    (head,) = [name for name in weights if "lm_head" in name]
    del weights[head]
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="both embeddings and output head"):
        models.load_model(str(folder))


# -- tied ends ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*(tie|tying):UserWarning")
@pytest.mark.parametrize("tying", [False, True], ids=["apart", "as one"])
@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"], ["up_proj"]])
def test_an_adapter_on_one_of_two_tied_ends_leaves_the_other(tying: bool, targets: list[str], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, ids = odd.model(tmp_path / "base", odd.tokenizer(), tie=True), torch.tensor([[1, 40, 50]])
    folder = adapter(base, tmp_path / "a", target_modules=targets, ensure_weight_tying=tying)
    loaded = models.load_model(str(folder))
    models.save_model(loaded, tmp_path / "student", parent_id="", facts={})
    with torch.no_grad():
        expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)(ids).logits
        for model in (loaded.model, AutoModelForCausalLM.from_pretrained(tmp_path / "student")):
            torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-3)
    assert loaded.model.config.tie_word_embeddings == (targets == ["up_proj"])


def test_two_ends_whose_config_says_that_they_are_one_are_saved_as_two(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    own, ids = Path(shutil.copytree(base, tmp_path / "own")), torch.tensor([[1, 40, 50]])
    odd.edit(own / "config.json", tie_word_embeddings=True)
    loaded = models.load_model(str(own))
    models.save_model(loaded, tmp_path / "student", parent_id="", facts={})
    assert loaded.model.config.tie_word_embeddings is False
    with torch.no_grad():
        expected = models.load_model(str(base)).model(ids).logits
        for model in (loaded.model, AutoModelForCausalLM.from_pretrained(tmp_path / "student")):
            torch.testing.assert_close(model(ids).logits, expected)


# -- which model is meant -------------------------------------------------------------------------------


def test_a_left_over_adapter_file_is_not_followed(base: Path, tmp_path: Path) -> None:
    """transformers would load the base that it names and pass over the weights beside it."""
    whole = odd.model(tmp_path / "whole", odd.tokenizer(), seed=5)
    made = adapter(base, tmp_path / "a")
    for file in (find.ADAPTER, "adapter_model.safetensors"):
        shutil.copy(made / file, whole)
        with pytest.raises(ModelError, match=r"a whole model \(model\.safetensors\) and an adapter"):
            models.load_model(str(whole))


def test_the_base_that_an_adapter_names_is_taken_and_no_other_in_its_place(base: Path, tmp_path: Path) -> None:
    """Anybody's experiments lie in a folder called runs; and a workspace may be copied and go on."""
    named, near = tmp_path / "p1/runs/a/student", tmp_path / "p2/runs/a/student"
    shutil.copytree(base, named)
    odd.model(near, odd.tokenizer(), tie=False, seed=5)
    folder = adapter(named, tmp_path / "p2/runs/b/student")
    assert find.folders_of(str(folder)) == [folder, named]
    for parent in (named, near):
        (folder / "agentopcd.json").write_text(json.dumps({"parent_id": find.fingerprint(parent)}))
        assert find.folders_of(str(folder)) == [folder, parent]
    shutil.rmtree(named)
    assert find.folders_of(str(folder)) == [folder, near]
    (near / "config.json").write_text((near / "config.json").read_text() + " ")
    for facts in ('{"parent_id": "another"}', "{}"):
        (folder / "agentopcd.json").write_text(facts)
        with pytest.raises(ModelError, match=rf"^the base of adapter '{folder}' \(base_model_.*no model '{named}'"):
            find.folders_of(str(folder))


def test_a_base_lies_where_its_adapter_says_seen_from_the_adapter_s_folder(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "a")
    shutil.copytree(base, tmp_path / "llama")
    for name in ("../llama", "./llama", "models/llama"):
        place = folder / name
        if not place.exists():
            shutil.copytree(base, place)
        odd.edit(folder / find.ADAPTER, base_model_name_or_path=name)
        assert find.folders_of(str(folder)) == [folder, place.resolve()]


@pytest.mark.parametrize("look", [models.load_model, models.check_files, lambda name: find.fingerprint(Path(name))])
def test_an_error_about_a_base_says_whose_base_it_is(look: Any, base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "a")
    odd.edit(folder / find.ADAPTER, base_model_name_or_path="./llama")
    with pytest.raises(ModelError, match=rf"^the base of adapter '{folder}' .*: no model './llama'"):
        look(str(folder))


def test_an_adapter_of_others_is_merged(base: Path, tmp_path: Path) -> None:
    folder, ids = adapter(base, tmp_path / "a"), torch.tensor([[1, 40, 50]])
    expected = models.load_model(str(folder)).model(ids).logits
    models.merge(folder, tmp_path / "whole")
    whole = models.load_model(str(tmp_path / "whole"))
    assert whole.parent_id == find.fingerprint(base)
    torch.testing.assert_close(whole.model(ids).logits, expected)
    with pytest.raises(ModelError, match="holds no adapter"):
        models.merge(base, tmp_path / "other")


def test_an_adapter_of_itself_is_refused(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "a")
    odd.edit(folder / find.ADAPTER, base_model_name_or_path=str(folder))
    with pytest.raises(ModelError, match="adapter of itself"):
        models.load_model(str(folder))


def test_an_adapter_of_a_larger_base_is_refused(base: Path, tmp_path: Path) -> None:
    """PEFT would merge the layers that it finds and leave the others out."""
    deep = odd.model(tmp_path / "deep", odd.tokenizer(), tie=False, num_hidden_layers=3)
    folder = adapter(deep, tmp_path / "a")
    odd.edit(folder / find.ADAPTER, base_model_name_or_path=str(base))
    with pytest.raises(ModelError, match=r"14 weights that its base has no place for .*layers\.2"):
        models.load_model(str(folder))


def test_an_adapter_that_is_no_lora_is_refused_in_one_line(base: Path, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(net, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).save_pretrained(
        str(tmp_path / "a")
    )  # type: ignore[arg-type]
    odd.edit(tmp_path / "a" / find.ADAPTER, base_model_name_or_path=str(base))
    with pytest.raises(ModelError, match="cannot put adapter"):
        models.load_model(str(tmp_path / "a"))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"base_model_name_or_path": 3}', "\xff"])
def test_a_damaged_adapter_config_is_one_line(content: str, base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "a")
    (folder / find.ADAPTER).write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        models.load_model(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("chat_template.json", b"{", r"cannot read .*chat_template\.json"),
        ("chat_template.json", b"[]", r"chat_template\.json holds no JSON object"),
        ("chat_template.json", b'{"chat_template": []}', r"chat_template in .* is no text"),
        ("chat_template.jinja", b"\xff", r"cannot read .*chat_template\.jinja"),
        ("agentopcd.json", b'{"learning_rate": "high"}', "learning_rate 'high'; wanted a number above 0"),
        ("agentopcd.json", b'{"learning_rate": true}', "learning_rate True; wanted a number above 0"),
        ("agentopcd.json", b'{"note": ["x"]}', r"note \['x'\]; wanted text"),
    ],
)
def test_an_odd_small_file_beside_an_adapter_is_one_line(
    file: str, content: bytes, says: str, base: Path, tmp_path: Path
) -> None:
    folder = adapter(base, tmp_path / "a")
    (folder / file).write_bytes(content)
    with pytest.raises(ModelError, match=says):
        models.load_model(str(folder))
