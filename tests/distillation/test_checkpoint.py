"""A run that was killed goes on from its checkpoint and ends bit-equal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.runs import Run
from agentopcd.distillation import checkpoint
from tests import tiny
from tests.training import Killed, Trained, train


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("untied") / "model", tie=False, hearing=4.0)


@pytest.fixture(scope="module")
def whole(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """An uninterrupted run; read it, do not change it."""
    return train(model_dir, tmp_path_factory.mktemp("whole"))


def timeless(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in r.items() if not name.startswith("time/")} for r in records]


def test_two_runs_are_bit_equal(whole: Trained, model_dir: Path, tmp_path: Path) -> None:
    assert train(model_dir, tmp_path).weights == whole.weights


@pytest.mark.parametrize("line", [4, 5, 7])
def test_killed_at_any_line_and_continued_ends_bit_equal(
    line: int, whole: Trained, model_dir: Path, tmp_path: Path
) -> None:
    """Lines: before training, steps 1 to 4, and the evaluations after steps 2 and 4. The first checkpoint is written
    after line 4, so all kills before that are one; line 4 leaves the most behind, a best student included."""
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
