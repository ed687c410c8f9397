"""A run folder that was damaged goes on from what is whole, with a line, or stops with one; nothing is read over."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import Run, read_json
from agentopcd.distillation import best, checkpoint
from agentopcd.models import find
from tests import tiny
from tests.training import Killed, Trained, train


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("untied") / "model", tie=False, hearing=4.0)


@pytest.fixture(scope="module")
def whole(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(model_dir, tmp_path_factory.mktemp("whole"), save_every=1)


@pytest.fixture(scope="module")
def killed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which a run was killed in step 4: checkpoints of steps 3 and 2, the best student of step 2."""
    work = tmp_path_factory.mktemp("killed")
    with pytest.raises(Killed):
        train(model_dir, work, save_every=1, kill_at=6)
    return work


def damaged(killed: Path, tmp_path: Path, damage: Callable[[Path], object]) -> Path:
    shutil.copytree(killed, tmp_path / "w")
    (folder,) = (tmp_path / "w" / "runs").iterdir()
    damage(folder)
    return tmp_path / "w"


def flip(file: Path, at: int = -1) -> None:
    """Change one bit of a byte; by default of the last one."""
    body = bytearray(file.read_bytes())
    body[at] ^= 1
    file.write_bytes(body)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": lambda folder: flip(folder / "tensors.safetensors"),
    "cut": lambda folder: cut(folder / "tensors.safetensors"),
    "state-cut": lambda folder: cut(folder / "state.json"),
    "state-flipped": lambda folder: flip(folder / "state.json", 60),
    "state-other": lambda folder: (folder / "state.json").write_text("[]"),
    "state-no-text": lambda folder: (folder / "state.json").write_bytes(b"\xff"),
    "state-gone": lambda folder: (folder / "state.json").unlink(),
    "tensors-gone": lambda folder: (folder / "tensors.safetensors").unlink(),
    "a-file": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
}


def saved(folder: Path, *steps: int) -> tuple[dict[str, torch.Tensor], torch.optim.Optimizer]:
    """Checkpoints of a net whose weights are all equal to the step; return what :func:`checkpoint.load` restores."""
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    for step in steps:
        for parameter in parameters.values():
            parameter.fill_(step)
        checkpoint.save(folder, parameters, optimizer, {"step": step})
    return parameters, optimizer


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_is_read_with_a_line(damage: str, tmp_path: Path) -> None:
    said: list[str] = []
    parameters, optimizer = saved(tmp_path, 1, 2)
    DAMAGES[damage](tmp_path / "checkpoint")
    assert checkpoint.load(tmp_path, parameters, optimizer, say=said.append) == {"step": 1}
    assert {float(value) for tensor in parameters.values() for value in tensor.flatten()} == {1.0}
    assert len(said) == 1 and said[0].startswith("warning: checkpoint is damaged (")
    assert said[0].endswith("so the training goes on from checkpoint.old") and "\n" not in said[0]
    checkpoint.tidy(tmp_path, 1)
    assert checkpoint.load(tmp_path, parameters, optimizer, say=said.append) == {"step": 1}
    assert len(said) == 1 and not (tmp_path / "checkpoint.old").exists()


@pytest.mark.parametrize("damage", ["flipped", "state-cut"])
def test_the_checkpoint_before_takes_over(
    damage: str, killed: Path, whole: Trained, model_dir: Path, tmp_path: Path
) -> None:
    work = damaged(killed, tmp_path, lambda folder: DAMAGES[damage](folder / "checkpoint"))
    again = train(model_dir, work, save_every=1)
    assert again.lines[0].startswith("warning: checkpoint is damaged (")
    assert again.lines[1] == "resumed after step 2"
    assert again.weights == whole.weights and again.result.select == whole.result.select


def test_two_damaged_checkpoints_stop_the_run_and_stay(killed: Path, model_dir: Path, tmp_path: Path) -> None:
    def damage(folder: Path) -> None:
        flip(folder / "checkpoint" / "tensors.safetensors")
        cut(folder / "checkpoint.old" / "state.json")

    work = damaged(killed, tmp_path, damage)
    with pytest.raises(ConfigError, match=r"checkpoint is damaged .*; checkpoint\.old is damaged") as error:
        train(model_dir, work, save_every=1)
    assert "\n" not in str(error.value) and "train again from the start" in str(error.value)
    (folder,) = (work / "runs").iterdir()
    assert (folder / "checkpoint" / "tensors.safetensors").is_file() and (folder / "best").is_dir()


def test_checkpoints_of_version_0_1_have_no_hashes(
    killed: Path, whole: Trained, model_dir: Path, tmp_path: Path
) -> None:
    def older(folder: Path) -> None:
        file = folder / "checkpoint" / "state.json"
        state = json.loads(file.read_text())
        for name in ("files", "sha256", "best_id"):
            del state[name]
        file.write_text(json.dumps(state))

    again = train(model_dir, damaged(killed, tmp_path, older), save_every=1)
    assert again.lines[0] == "resumed after step 3"
    assert again.weights == whole.weights


@pytest.mark.parametrize(
    "damage", [shutil.rmtree, lambda best: flip(best / "model.safetensors")], ids=["gone", "flipped"]
)
def test_a_lost_best_student_is_told(
    damage: Callable[[Path], object], killed: Path, model_dir: Path, tmp_path: Path
) -> None:
    """Step 3 was not evaluated, so the student of step 4 is the only one that is left."""
    again = train(model_dir, damaged(killed, tmp_path, lambda folder: damage(folder / "best")), save_every=1)
    assert "the best student so far, that of step 2, is gone or damaged" in again.lines[0]
    assert again.lines[0].endswith("a later one is chosen")
    assert again.result.best_step == 4


def test_a_kill_while_the_best_student_is_removed_changes_nothing(
    whole: Trained, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recast copy is whole by then, so the training is done."""
    rmtree, how = shutil.rmtree, {"save_every": 1, "save_dtype": "bfloat16"}

    def killed_in(folder: Path, ignore_errors: bool = False) -> None:
        if folder.name.startswith("best") and (folder / "model.safetensors").is_file() and folder.name != "best.old":
            (folder / "model.safetensors").unlink()
            raise Killed
        rmtree(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(best.shutil, "rmtree", killed_in)
    with pytest.raises(Killed):
        train(model_dir, tmp_path, **how)
    monkeypatch.undo()
    again = train(model_dir, tmp_path, **how)
    assert not any("gone or damaged" in line for line in again.lines)
    assert again.result.best_step == whole.result.best_step
    assert find.sidecar(again.result.folder)["step"] == whole.result.best_step
    assert not [path.name for path in again.run.folder.iterdir() if path.name.startswith("best")]


def test_a_lost_best_student_is_written_again_from_its_checkpoint(
    killed: Path, whole: Trained, model_dir: Path, tmp_path: Path
) -> None:
    def damage(folder: Path) -> None:
        shutil.rmtree(folder / "checkpoint")
        (folder / "checkpoint.old").rename(folder / "checkpoint")
        shutil.rmtree(folder / "best")

    again = train(model_dir, damaged(killed, tmp_path, damage), save_every=1)
    assert again.lines[0].endswith("that of step 2 takes its place")
    assert again.weights == whole.weights and again.result.best_step == whole.result.best_step


def test_a_best_student_without_its_checkpoint_gives_way_to_the_one_before(
    killed: Path, whole: Trained, model_dir: Path, tmp_path: Path
) -> None:
    """A kill came after a better student was saved, and before the checkpoint that names it."""

    def damage(folder: Path) -> None:
        shutil.copytree(folder / "best", folder / "best.old")
        flip(folder / "best" / "model.safetensors")

    again = train(model_dir, damaged(killed, tmp_path, damage), save_every=1)
    assert again.lines[0] == "resumed after step 3"
    assert again.weights == whole.weights
    assert not (again.run.folder / "best.old").exists()


def test_damaged_lines_of_the_log_are_left_out_with_a_word(
    killed: Path, whole: Trained, model_dir: Path, tmp_path: Path
) -> None:
    def damage(folder: Path) -> None:
        lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")
        lines[2:2] = [b"\xff\xfe", b"[1]", b'{"step": "two"}', b'{"st', b"[" * 100_000]
        (folder / "metrics.jsonl").write_bytes(b"\n".join(lines))

    again = train(model_dir, damaged(killed, tmp_path, damage), save_every=1)
    assert again.lines[0] == "warning: 5 damaged lines of metrics.jsonl are left out"
    assert again.weights == whole.weights
    assert [record["step"] for record in again.run.records()] == [0, 1, 2, 3, 4]


def test_a_reader_of_a_damaged_log_is_told_the_line(tmp_path: Path) -> None:
    run = Run(tmp_path, "x", {})
    run.log({"step": 1})
    run.metrics_file.write_bytes(run.metrics_file.read_bytes() + b"nonsense\n")
    with pytest.raises(ConfigError, match="line 2 is damaged"):
        run.records()


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_result_is_one_line(tmp_path: Path, body: bytes) -> None:
    run = Run(tmp_path, "x", {"a": 1})
    (run.folder / "result.json").write_bytes(body)
    with pytest.raises(ConfigError, match=r"result\.json cannot be read .*remove .* to run it again") as error:
        _ = run.result
    assert "\n" not in str(error.value)
    (run.folder / "config.json").write_bytes(b"\xff")
    assert read_json(Run(tmp_path, "x", {"a": 1}).folder / "config.json", "") == {"a": 1}


@pytest.mark.parametrize("change", [{"model": "b"}, {"folder": None}, {"more": 1}, {"select": {"2": [1, 3]}}])
def test_a_changed_result_is_not_reported(tmp_path: Path, change: dict[str, Any]) -> None:
    run, result = Run(tmp_path, "x", {"a": 1}), {"model": "a", "folder": "f", "select": {2: (1, 2), 10: (2, 2)}}
    run.finish(result)
    assert run.result == {"model": "a", "folder": "f", "select": {"2": [1, 2], "10": [2, 2]}}
    file = run.folder / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConfigError, match=r"result\.json was changed after it was written; remove .* to run it again"):
        _ = run.result
    file.write_text(json.dumps(result))  # version 0.1 wrote no hash
    assert run.result is not None and run.result["model"] == "a"


def test_a_full_disk_is_one_line_and_the_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, "x", {})
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    checkpoint.save(run.folder, dict(net.named_parameters()), optimizer, {"step": 1})

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(ConfigError, match=r"No space left on device.*make room"):
        patch.setattr(checkpoint, "save_file", full)
        checkpoint.save(run.folder, dict(net.named_parameters()), optimizer, {"step": 2})
    assert not (run.folder / "checkpoint.tmp").exists()
    assert checkpoint.load(run.folder, dict(net.named_parameters()), optimizer) == {"step": 1}
    run.metrics_file.symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl \(No space left on device\); make room"):
        run.log({"step": 1})
    shutil.rmtree(run.folder)
    with pytest.raises(ConfigError, match="removed while the command ran"):
        checkpoint.save(run.folder, dict(net.named_parameters()), optimizer, {"step": 3})
