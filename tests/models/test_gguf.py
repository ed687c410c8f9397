"""Models in ``.gguf`` files: converted once, and only if every weight is there, in numbers that can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import ModelError
from agentopcd.models import find, gguf
from tests import gguf_files, tiny


@pytest.mark.parametrize("content", [b"not a gguf file", b"GGUF", b"GGUF\3\0\0\0" + b"\xff" * 40, b""])
def test_a_file_that_is_no_gguf_is_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTOPCD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"^cannot convert bad\.gguf: .+$"):
        models.load_model(str(tmp_path / "bad.gguf"))
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("tie", [True, False])
def test_a_gguf_file_is_converted_once_if_it_is_whole(
    tie: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTOPCD_CACHE", str(tmp_path / "cache"))
    made = tiny.build(tmp_path / "made", tie=tie)
    cut = gguf_files.write(made, tmp_path / "cut.gguf", without=["blk.0.ffn_up.weight"])
    with pytest.raises(ModelError, match=r"^cannot convert cut\.gguf: it lacks 1 weights \(model\.layers\.0\.mlp\.up_"):
        models.load_model(str(cut))
    assert list((tmp_path / "cache").iterdir()) == []
    whole = str(gguf_files.write(made, tmp_path / "whole.GGUF"))
    assert models.check_files(whole) == (
        f"{whole} is not converted yet, so it was not looked at; it is converted on first use"
    )
    loaded = models.load_model(whole)
    assert models.check_files(whole) == ""
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(loaded.model.get_parameter(name), models.load_model(str(made)).model.get_parameter(name))
    monkeypatch.setattr(find, "convert", None)
    assert models.load_model(whole).id == loaded.id


def test_weights_that_stay_quantised_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers loads some .gguf files where the package `kernels` is installed."""
    import transformers

    monkeypatch.setenv("AGENTOPCD_CACHE", str(tmp_path / "cache"))
    file = gguf_files.write(tiny.build(tmp_path / "made"), tmp_path / "x.gguf")
    real = transformers.AutoModelForCausalLM.from_pretrained

    def packed(*words: Any, **settings: Any) -> Any:
        found: Any = real(*words, **settings)
        model = found[0] if isinstance(found, tuple) else found
        up = model.model.layers[0].mlp.up_proj
        up.weight = torch.nn.Parameter(up.weight.to(torch.uint8), requires_grad=False)
        return found

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", packed)
    with pytest.raises(ModelError, match=r"left 1 weights quantised .*up_proj"):
        models.load_model(str(file))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_two_processes_convert_is_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the faster one may be in use."""
    monkeypatch.setenv("AGENTOPCD_CACHE", str(tmp_path / "cache"))
    file, target = gguf_files.write(tiny.build(tmp_path / "made"), tmp_path / "x.gguf"), tmp_path / "cache" / "place"
    gguf.convert(file, target, "first")
    before = {path: path.stat().st_ino for path in (target, *target.iterdir())}
    gguf.convert(file, target, "second")
    assert {path: path.stat().st_ino for path in (target, *target.iterdir())} == before
    assert list(target.parent.iterdir()) == [target]
    (target / "config.json").unlink()
    with pytest.raises(ModelError, match=r"cannot convert x\.gguf: .*place is there and holds no config\.json"):
        gguf.convert(file, target, "third")
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"AGENTOPCD_CACHE": "~/mine"}, "mine"), ({"XDG_CACHE_HOME": "~/x"}, "x/agentopcd"),
        ({"XDG_CACHE_HOME": ""}, ".cache/agentopcd"), ({}, ".cache/agentopcd"),
    ],
)  # fmt: skip
def test_the_cache_lies_where_the_variables_say(
    variables: dict[str, str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AGENTOPCD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find.cache_dir() == tmp_path / place


def test_a_user_without_a_home_is_told_to_name_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("AGENTOPCD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find.cache_dir() == tmp_path / "agentopcd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(ModelError, match=r"no home folder .*; set AGENTOPCD_CACHE to a folder"):
        find.cache_dir()
