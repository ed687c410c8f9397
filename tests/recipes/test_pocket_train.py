"""Training pocket: a killed run goes on as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from agentopcd.models import find
from recipes.pocket import train

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "num_attention_heads": 2}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped tokenizer, nothing held out, small batches: only the loop is under test."""
    tokenizer = train.Tokenizer.from_pretrained(find.WEIGHTS / "pocket")
    monkeypatch.setattr(train, "make_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(train, "held_out", frozenset)
    monkeypatch.setattr(train, "ROWS", 1)
    monkeypatch.setattr(train, "EXAMINED", 4)
    monkeypatch.setitem(train.SIZES, "pocket", TINY)


def finished(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, object]]]:
    state = torch.load(folder / "pocket" / "state.pt", weights_only=True)
    lines = [json.loads(line) for line in (folder / "pocket" / "log.jsonl").read_text().splitlines()]
    flat = dict(state["model"])
    for number, optimizer in enumerate(state["optimizers"]):
        for parameter, values in optimizer["state"].items():
            flat |= {f"{number}.{parameter}.{k}": v for k, v in values.items() if isinstance(v, torch.Tensor)}
    return flat, [{k: line[k] for k in ("step", "corpus", "samples", "right")} for line in lines]


def test_a_killed_run_goes_on_bit_equal(tiny: None, tmp_path: Path) -> None:
    train.main(["--steps", "8", "--out", str(tmp_path / "whole")])
    train.main(["--steps", "8", "--out", str(tmp_path / "killed"), "--stop", "3"])
    assert torch.load(tmp_path / "killed" / "pocket" / "state.pt", weights_only=True)["step"] == 3
    (tmp_path / "killed" / "pocket" / "log.jsonl").write_text(json.dumps({"step": 5}) + "\n")  # later than the state
    train.main(["--steps", "8", "--out", str(tmp_path / "killed")])
    whole, whole_log = finished(tmp_path / "whole")
    resumed, resumed_log = finished(tmp_path / "killed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole_log == resumed_log


def test_what_is_saved_is_what_was_trained(tiny: None, tmp_path: Path) -> None:
    train.main(["--steps", "2", "--out", str(tmp_path)])
    state = torch.load(tmp_path / "pocket" / "state.pt", weights_only=True)["model"]
    loaded = train.LlamaForCausalLM.from_pretrained(tmp_path / "pocket" / "model", dtype=torch.bfloat16)
    saved = loaded.state_dict()
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[name], state[name].to(torch.bfloat16)) for name in state)


@pytest.mark.parametrize("change", ["--steps 5", "--rate 0.01", "corpus"])
def test_a_run_does_not_go_on_with_other_settings(
    change: str, tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(["--steps", "4", "--out", str(tmp_path), "--stop", "2"])
    if change == "corpus":
        monkeypatch.setattr(train, "SEED", "another")
    with pytest.raises(SystemExit) as stopped:
        train.main(["--steps", "4", "--out", str(tmp_path), *(change.split() if change != "corpus" else ())])
    assert stopped.value.code == 2
    assert "was begun" in capsys.readouterr().err
