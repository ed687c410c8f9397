"""Run folders: found again by their settings, and never left half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from agentopcd.core.errors import ConfigError
from agentopcd.core.launch import launched
from agentopcd.core.runs import Run, workspace, write_text
from agentopcd.distillation import checkpoint
from agentopcd.distillation.metrics import console_line


def net_and_optimizer(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    net = torch.nn.Linear(3, 2)
    return net, torch.optim.AdamW(net.parameters(), lr=0.1)


def step(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()


def test_equal_settings_open_one_folder_and_others_another(tmp_path: Path) -> None:
    first = Run(tmp_path, "consolidate", {"env": "gym:FrozenLake-v1", "steps": 3})
    same = Run(tmp_path, "consolidate", {"steps": 3, "env": "gym:FrozenLake-v1"})
    other = Run(tmp_path, "consolidate", {"env": "gym:FrozenLake-v1", "steps": 4})
    assert first.folder == same.folder != other.folder
    assert first.folder.name.startswith("consolidate-gym-frozenlake-v1-")
    assert json.loads((first.folder / "config.json").read_text())["steps"] == 3


def test_the_workspace_is_the_flag_then_the_variable_then_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGENTOPCD_WORK", raising=False)
    assert workspace() == Path("agentopcd-work")
    monkeypatch.setenv("AGENTOPCD_WORK", str(tmp_path / "variable"))
    assert workspace() == tmp_path / "variable"
    assert workspace(tmp_path / "flag") == tmp_path / "flag"
    assert (tmp_path / "flag").is_dir()


def test_a_workspace_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--work"):
        workspace(tmp_path / "file" / "work")


def test_a_line_that_a_kill_cut_is_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path, "x", {})
    run.log({"step": 1})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 2, "loss"')
    assert run.records() == [{"step": 1}]


def test_rewinding_forgets_later_steps_and_cut_lines(tmp_path: Path) -> None:
    run = Run(tmp_path, "x", {})
    for number in range(4):
        run.log({"step": number})
    with run.metrics_file.open("a") as file:
        file.write('{"st')
    run.rewind(2)
    run.log({"step": 3, "again": True})
    assert [record["step"] for record in run.records()] == [0, 1, 2, 3]
    assert run.records()[-1]["again"]
    run.rewind(-1)
    assert run.records() == []


def test_a_run_is_unfinished_until_it_says_what_came_of_it(tmp_path: Path) -> None:
    run = Run(tmp_path, "x", {})
    (run.folder / "checkpoint").mkdir()
    assert run.result is None
    run.finish({"best": 1})
    assert Run(tmp_path, "x", {}).result == {"best": 1}
    assert not (run.folder / "checkpoint").exists()


def test_a_checkpoint_brings_back_weights_moments_noise_and_place(tmp_path: Path) -> None:
    run = Run(tmp_path, "x", {})
    net, optimizer = net_and_optimizer(0)
    step(net, optimizer)
    checkpoint.save(run.folder, dict(net.named_parameters()), optimizer, {"step": 1})
    step(net, optimizer)
    fresh, fresh_optimizer = net_and_optimizer(1)
    assert checkpoint.load(run.folder, dict(fresh.named_parameters()), fresh_optimizer) == {"step": 1}
    step(fresh, fresh_optimizer)
    for a, b in zip(net.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


def test_there_may_be_nothing_to_load(tmp_path: Path) -> None:
    net, optimizer = net_and_optimizer(0)
    assert checkpoint.load(Run(tmp_path, "x", {}).folder, dict(net.named_parameters()), optimizer) is None


def test_checkpoints_hold_no_pickle(tmp_path: Path) -> None:
    run = Run(tmp_path, "x", {})
    net, optimizer = net_and_optimizer(0)
    step(net, optimizer)
    checkpoint.save(run.folder, dict(net.named_parameters()), optimizer, {"step": 1})
    assert {file.name for file in (run.folder / "checkpoint").iterdir()} == {
        "tensors.safetensors", "state.json",
    }  # fmt: skip


def test_one_kill_after_another_still_leaves_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first kill comes between the two renames, the second one just before the new checkpoint gets its name."""
    run = Run(tmp_path, "x", {})
    net, optimizer = net_and_optimizer(0)
    step(net, optimizer)
    checkpoint.save(run.folder, dict(net.named_parameters()), optimizer, {"step": 1})
    (run.folder / "checkpoint").rename(run.folder / "checkpoint.old")
    rename = Path.rename

    def dies(self: Path, target: Path) -> Path:
        if self.name == "checkpoint.tmp":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", dies)
        checkpoint.save(run.folder, dict(net.named_parameters()), optimizer, {"step": 2})
    assert checkpoint.load(run.folder, dict(net.named_parameters()), optimizer) == {"step": 1}
    checkpoint.save(run.folder, dict(net.named_parameters()), optimizer, {"step": 2})
    assert checkpoint.load(run.folder, dict(net.named_parameters()), optimizer) == {"step": 2}
    (run.folder / "checkpoint" / "state.json").unlink()  # the one before is kept
    assert checkpoint.load(run.folder, dict(net.named_parameters()), optimizer) == {"step": 1}


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    write_text(tmp_path / "a", "new")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "new"


def test_the_console_line_fits_a_screen() -> None:
    record = {
        "step": 12, "loss/name": "kl_topk256_tail", "loss/value_nats": 0.0841, "rollout/response_tokens_mean": 212.4,
        "rollout/success": 0.41, "rollout/episodes": 64, "train/grad_norm": 0.93, "time/step_s": 18.2,
        "time/rollout_s": 11.0, "time/teacher_s": 3.9, "time/update_s": 3.3,
    }  # fmt: skip
    assert console_line(record, 50, 690.0) == (
        "step 012/050 | kl_topk256_tail 0.0841 nats/tok | response 212 tok | success 0.41 (64 ep) | grad 0.93"
        " | 18.2 s (roll 11.0 score 3.9 train 3.3) | eta 11.5 min"
    )


def test_a_folder_of_a_version_that_wrote_whole_numbers_without_a_point_is_found(tmp_path: Path) -> None:
    older = Run(tmp_path, "consolidate", {"env": "math", "temperature": 1, "env_args": {"n": 1}})
    found = Run(tmp_path, "consolidate", {"env": "math", "temperature": 1.0, "env_args": {"n": 1}})
    assert found.folder == older.folder
    for other in ({"temperature": 1.5, "env_args": {"n": 1}}, {"temperature": 1.0, "env_args": {"n": True}}):
        assert Run(tmp_path, "consolidate", {"env": "math"} | other).folder != older.folder


def test_a_person_s_own_file_beside_it_stays(tmp_path: Path) -> None:
    (tmp_path / "best.txt.tmp").write_text("mine")
    write_text(tmp_path / "best.txt", "new")
    with pytest.raises(ZeroDivisionError):
        write_text(tmp_path / "best.txt", (str(1 // n) for n in (1, 0)))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"best.txt.tmp": "mine", "best.txt": "new"}
    (tmp_path / "other").touch()
    assert (tmp_path / "best.txt").stat().st_mode == (tmp_path / "other").stat().st_mode
    write_text(tmp_path / ("é" * 120), "a long name")


@pytest.mark.parametrize("text", ["abc", "0", "-1", "1.5"])
def test_a_number_of_processes_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is '.*torchrun"):
        launched()
    monkeypatch.setenv("WORLD_SIZE", "")
    assert launched() == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched() == 2
