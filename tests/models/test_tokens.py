"""Tokenizers and templates as they lie in model folders: read as they are, or refused before anything is played."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from agentopcd import models
from agentopcd.core.errors import ModelError
from agentopcd.models import tokens
from agentopcd.rollouts.chat import Chat
from tests import odd_tokenizers as odd
from tests import tiny

TEXT = "What is 3 + 4?\nGo  left.\n\n[up] a , b"
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it; a test that writes takes ``own``."""
    return odd.model(tmp_path_factory.mktemp("odd") / "model", odd.tokenizer())


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "own"))


def decoded(tokenizer: Any, text: str) -> str:
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])


# -- the tokenizer gives back what it is given ----------------------------------------------------------


@pytest.mark.parametrize(
    "named", ["LlamaTokenizerFast", "LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer", "GemmaTokenizer"]
)
def test_the_file_counts_and_not_the_class_that_is_named(named: str, own: Path) -> None:
    """transformers 5 puts the rules of the class over those of tokenizer.json: spaces vanish under LlamaTokenizer."""
    right = models.load_model(str(own)).tokenizer(TEXT)["input_ids"]
    odd.edit(own / "tokenizer_config.json", tokenizer_class=named, legacy=True)
    loaded = models.load_model(str(own))
    assert loaded.tokenizer(TEXT)["input_ids"] == right
    prompt = Chat(loaded.tokenizer).render([{"role": "user", "content": TEXT}])
    assert TEXT in loaded.tokenizer.decode(list(prompt))


def test_rules_of_the_file_that_a_class_forgets_are_kept(own: Path) -> None:
    """GPT2Tokenizer knows nothing of digits that are split one by one, as SmolLM and Granite do."""
    from tokenizers import Tokenizer, pre_tokenizers

    raw: Any = Tokenizer.from_file(str(own / "tokenizer.json"))
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    raw.pre_tokenizer = pre_tokenizers.Sequence(parts)
    raw.save(str(own / "tokenizer.json"))
    odd.edit(own / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    assert models.load_model(str(own)).tokenizer.tokenize("12345") == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("pre_tokenizer", {"type": "WhitespaceSplit"}),
        ("normalizer", {"type": "Lowercase"}),
        ("normalizer", {"type": "Replace", "pattern": {"String": "\n"}, "content": " "}),
        ("normalizer", {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}),
        ("decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True}),
    ],
)
def test_a_tokenizer_that_loses_text_is_refused(part: str, value: Any, own: Path) -> None:
    odd.edit(own / "tokenizer.json", **{part: value})
    with pytest.raises(ModelError, match=r"does not give text back: .* becomes"):
        models.load_model(str(own))


def test_a_tokenizer_that_cuts_long_texts_is_not_obeyed(own: Path) -> None:
    cut = {"direction": "Right", "max_length": 64, "strategy": "LongestFirst", "stride": 0}
    odd.edit(own / "tokenizer.json", truncation=cut)
    long = "go left. " * 200
    assert decoded(models.load_model(str(own)).tokenizer, long) == long


def test_texts_that_only_try_a_tokenizer_warn_of_no_length(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(
        transformers.tokenization_utils_base.logger, "warning", lambda text, *args, **kwargs: heard.append(text)
    )
    odd.edit(own / "tokenizer_config.json", model_max_length=16)
    loaded = models.load_model(str(own))
    assert loaded.tokenizer.model_max_length == 16 and not [text for text in heard if "longer than" in text]


def test_a_vocabulary_without_one_byte_is_seen(own: Path) -> None:
    """Every byte of a letter has a piece of its own; a text of some letters may never need the one that is gone."""
    model = json.loads((own / "tokenizer.json").read_text())["model"]
    model["vocab"]["gone"] = model["vocab"].pop("¯")  # byte 0xaf, as in ï
    odd.edit(own / "tokenizer.json", model=model)
    with pytest.warns(UserWarning, match="does not give back 'À"):
        models.load_model(str(own))


def test_a_tokenizer_that_loses_rare_signs_is_used_with_a_warning(tmp_path: Path) -> None:
    from tokenizers import normalizers

    made = odd.tokenizer(sentencepiece=True)
    made.backend_tokenizer.normalizer = normalizers.Replace("é", "e")
    with pytest.warns(UserWarning, match="does not give back 'é ü ñ'"):
        models.load_model(str(odd.model(tmp_path / "m", made)))


def test_a_sentencepiece_tokenizer_loads(tmp_path: Path) -> None:
    loaded = models.load_model(str(odd.model(tmp_path / "m", odd.tokenizer(sentencepiece=True))))
    assert decoded(loaded.tokenizer, TEXT) == TEXT


def test_marks_that_are_read_as_words_are_refused(own: Path) -> None:
    odd.edit(own / "tokenizer_config.json", split_special_tokens=True)
    with pytest.raises(ModelError, match=r"reads '<\|im_start\|>'.*as plain words"):
        models.load_model(str(own))


def test_a_warning_of_the_library_is_not_swallowed(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line silences transformers; what it says about a model while it is loaded is heard all the same."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    usual = AutoTokenizer.from_pretrained

    def warned(*args: Any, **kwargs: Any) -> Any:
        logging.get_logger("transformers.tokenization_utils").warning("an unusual\nset of rules")
        return usual(*args, **kwargs)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", warned)
    models.prepare_process()
    with pytest.warns(UserWarning, match="^an unusual set of rules$"):
        models.load_model(str(own))
    assert logging.get_verbosity() == 40


# -- the template ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["", "{% raw %}", "{# nothing #}", "{{ messages }}", "{{ messages | tojson }}"])
def test_an_empty_template_is_refused(body: str, own: Path) -> None:
    (own / "chat_template.jinja").write_text(body)
    with pytest.raises(ModelError, match=r"leaves out what the user says|without a chat template"):
        models.load_model(str(own))


@pytest.mark.parametrize("said", ["''", "m['content'][:3]", "m['content'][:1000]", "'hello'"])
def test_a_template_that_drops_or_cuts_the_message_is_refused(said: str, own: Path) -> None:
    (own / "chat_template.jinja").write_text(
        tiny.TEMPLATE.replace("message['content']", said.replace("m[", "message["))
    )
    with pytest.raises(ModelError, match="leaves out what the user says"):
        models.load_model(str(own))


@pytest.mark.parametrize(
    ("template", "last"),
    [(tiny.TEMPLATE, "<|im_end|>"), (ZEPHYR, "<|eos|>"), (ZEPHYR.replace("eos_token", "'<|eot|>'"), "<|eot|>"),
     (ZEPHYR.replace(" + eos_token", ""), None)],
)  # fmt: skip
def test_the_end_of_a_turn_is_read_from_the_template(template: str, last: str | None) -> None:
    made = odd.tokenizer(template, eos="<|eos|>", special=["<|eos|>"], plain=["<|eot|>"])
    found = tokens.end_of_turn(made)
    assert (None if found is None else made.convert_ids_to_tokens(found)) == last


def test_a_template_that_ends_a_turn_by_an_unknown_end_token_says_so(own: Path) -> None:
    odd.edit(own / "tokenizer_config.json", eos_token="<|endoftext|>")
    odd.edit(own / "config.json", eos_token_id=0)
    odd.edit(own / "generation_config.json", eos_token_id=0)
    with pytest.warns(UserWarning, match=r"ends a turn with '<\|im_end\|>'"):
        loaded = models.load_model(str(own))
    assert loaded.end_ids == (0, tiny.END)
    assert Chat(loaded.tokenizer).choices(["[up]"])[0][-1] == tiny.END


# -- tokens without a row -------------------------------------------------------------------------------


def test_a_pad_token_without_a_row_becomes_an_end_token(folder: Path, tmp_path: Path) -> None:
    made = odd.tokenizer()
    rows = len(made)
    made.add_special_tokens({"pad_token": "<|pad|>"})
    assert made.pad_token_id == rows
    loaded = models.load_model(str(odd.model(tmp_path / "m", made, rows=rows, pad_token_id=None)))
    assert loaded.tokenizer.pad_token_id == tiny.END


def test_a_word_without_a_row_is_refused(tmp_path: Path) -> None:
    made = odd.tokenizer(plain=["<box>"])
    with pytest.raises(ModelError, match=f"'<box>'.*have no row .* which have {len(made) - 1}"):
        models.load_model(str(odd.model(tmp_path / "m", made, rows=len(made) - 1)))


def test_a_special_token_without_a_row_does_no_harm_where_nothing_writes_it(tmp_path: Path) -> None:
    """Gemma 3 1B: the token of an image has no row in the text model."""
    from tokenizers import AddedToken

    made = odd.tokenizer()
    made.add_tokens([AddedToken("<image>", special=True)])
    loaded = models.load_model(str(odd.model(tmp_path / "m", made, rows=len(made) - 1)))
    prompt = Chat(loaded.tokenizer).render([{"role": "user", "content": "an <image> here"}])
    assert max(prompt) < len(made) - 1 and "an <image> here" in loaded.tokenizer.decode(list(prompt))


# -- the model's other files ----------------------------------------------------------------------------


def test_weights_that_the_config_has_no_place_for_are_refused(own: Path) -> None:
    odd.edit(own / "config.json", num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"has 9 weights that its config\.json has no place for \(model\.layers\.1"):
        models.load_model(str(own))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a": ', "\x00\x01", "[" * 100_000])
def test_a_damaged_file_is_one_line(file: str, content: str, own: Path) -> None:
    (own / file).write_text(content)
    try:
        models.load_model(str(own))
    except ModelError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("ends", [[[2]], ["2"], {"a": 1}, 2.5, [None, [None]]])
def test_end_tokens_that_are_no_numbers_are_one_line(ends: Any, own: Path) -> None:
    odd.edit(own / "generation_config.json", eos_token_id=ends)
    with pytest.raises(ModelError, match=r"as an end token|cannot load model"):
        models.load_model(str(own))


def test_an_end_token_without_a_row_ends_nothing_and_is_told(own: Path) -> None:
    odd.edit(own / "tokenizer_config.json", eos_token="<|new|>")
    with pytest.warns(UserWarning, match="has no row in its .* embeddings and ends nothing"):
        assert models.load_model(str(own)).end_ids == (tiny.END,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float, own: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(own / "model.safetensors")
    weights["model.norm.weight"][3] = bad
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"not finite in model\.norm\.weight"):
        models.load_model(str(own))


@pytest.mark.parametrize("word", ["righ", "<|endoftext|>", "7"])
def test_two_words_of_one_number_are_refused(word: str, own: Path) -> None:
    settings = json.loads((own / "tokenizer.json").read_text())
    words = settings["model"]["vocab"]
    words[word] = words["5"]
    (own / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"two words .* have one number"):
        models.load_model(str(own))


def test_a_damaged_sidecar_is_one_line(own: Path) -> None:
    (own / "agentopcd.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot read .*agentopcd\.json"):
        models.load_model(str(own))


def test_a_generation_config_that_could_not_be_saved_is_mended(own: Path, tmp_path: Path) -> None:
    odd.edit(own / "generation_config.json", temperature=0.6, top_p=0.9)
    loaded = models.load_model(str(own))
    models.check_savable(loaded)
    models.save_model(loaded, tmp_path / "out", parent_id=loaded.id, facts={})
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (saved["do_sample"], saved["temperature"], saved["top_p"]) == (True, 0.6, 0.9)


def test_what_cannot_be_saved_is_told_before_training(own: Path) -> None:
    loaded = models.load_model(str(own))
    loaded.model.generation_config.num_return_sequences = 4
    loaded.model.generation_config.do_sample = False
    with pytest.raises(ModelError, match="can be loaded, but not saved"):
        models.check_savable(loaded)
