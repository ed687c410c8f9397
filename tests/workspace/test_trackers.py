"""Trackers: each with its own back end on this machine, killed and resumed; and what goes wrong in them."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ConfigError, DependencyError
from agentopcd.core.runs import Run
from agentopcd.workspace import trackers
from agentopcd.workspace.ledger import run_config
from tests.workspace import tracked_run

PROGRAM = Path(tracked_run.__file__)
LOSS = {step: 1 / (step + 1) for step in range(6)}


class Kept(trackers.Record):
    """A tracker in memory."""

    fails_at = 99
    has = -1
    begins = True

    def begin(self, settings: dict[str, Any]) -> Any:
        self.settings, self.rows, self.ended, self.held = settings, [], 0, self.has
        made.append(self)
        if not self.begins:
            self.started(SimpleNamespace(start=int, finish=self.end))
            raise OSError("it is away")
        return SimpleNamespace(finish=self.end)

    def end(self) -> None:
        self.ended += 1

    def log(self, values: Mapping[str, float], step: int) -> None:
        if step == self.fails_at:
            raise OSError("https://me:secret@host is away")
        self.rows.append((step, dict(values)))


made: list[Kept] = []


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> type[Kept]:
    made.clear()
    monkeypatch.setattr(Kept, "fails_at", 99)
    monkeypatch.setattr(trackers, "RECORDS", {"wandb": Kept})
    return Kept


def follow(run: Run, said: list[str], *steps: int, name: str = "wandb") -> None:
    with trackers.tracking(run, name, tracked_run.SETTINGS, said.append) as record:
        for step in steps:
            run.log({"step": step, "loss/value_nats": step / 2, "train/skipped": False, "loss/name": "x", "none": None})
        record.finish({"test/x": 1.0})


def test_a_tracker_gets_every_number_once_under_its_name(
    kept: type[Kept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = Run(tmp_path, "consolidate", {"env": "math"}), []
    run.log({"step": 0, "select/success": 0.5})  # as if begun without a tracker
    follow(run, said, 1, 2)
    assert [step for step, _ in made[0].rows] == [0, 1, 2, 2]
    assert made[0].rows[1][1] == {"loss/value_nats": 0.5, "train/skipped": 0.0}
    assert made[0].rows[-1][1] == {"test/x": 1.0} and said == []
    assert json.loads(made[0].settings["env_args"]) == {"at": "http://***@host"}
    assert run.follower is None and made[0].ended == 1
    monkeypatch.setattr(Kept, "has", 2)
    follow(run, said)  # finished: nothing is sent again
    assert made[1].rows == []
    monkeypatch.setattr(Kept, "has", 1)
    follow(run, said, 3)  # killed before: what is lacking is sent
    assert [step for step, _ in made[2].rows] == [2, 3] and said == []


def test_a_tracker_that_fails_is_told_once_and_ends_nothing(kept: type[Kept], tmp_path: Path) -> None:
    kept.fails_at = 2
    run, said = Run(tmp_path, "consolidate", {"env": "math"}), []
    follow(run, said, 1, 2, 3)
    assert [record["step"] for record in run.records()] == [1, 2, 3]
    assert len(said) == 1 and "wandb takes no more figures (https://***@host is away)" in said[0]
    assert made[0].ended == 1  # else the next training could begin no other record


def test_a_tracker_that_fails_as_it_begins_is_closed(
    kept: type[Kept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kept, "begins", False)
    said: list[str] = []
    follow(Run(tmp_path, "consolidate", {"env": "math"}), said, 1)
    assert len(said) == 1 and "it is away" in said[0] and made[0].ended == 1


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"pip install 'agentopcd\[mlflow\]'"):
        trackers.check_tracker("mlflow")
    trackers.check_tracker("")
    with pytest.raises(ConfigError, match="track is 'comet'"):
        ConsolidateConfig(env="math", track="comet")  # type: ignore[arg-type]


def test_a_tracker_is_no_part_of_a_run() -> None:
    plain = ConsolidateConfig(env="math")
    assert run_config(ConsolidateConfig(env="math", track="mlflow")) == run_config(plain)
    assert "save_dtype" not in run_config(plain)  # as older runs are known
    assert run_config(ConsolidateConfig(env="math", save_dtype="bfloat16"))["save_dtype"] == "bfloat16"


def test_the_summary_is_the_table_in_numbers() -> None:
    table: dict[str, Any] = {
        "rows": [{"label": "base", "success": 0.5, "low": None, "n": 4, "means": {"reward": {"mean": 1.5}}}],
        "differences": {"student - base": {"difference": 0.25, "test": "mid_p"}},
        "recovered": None, "floors": {"random": 0.125, "blind_moves": ["up"]},
        "distances": {"rows": [{"label": "base", "distance_nats": {"mean": 2.0}}], "closed": {"mean": 0.75}},
    }  # fmt: skip
    assert trackers.summary(table) == {
        "test/base/success": 0.5, "test/base/n": 4.0, "test/base/means/reward/mean": 1.5,
        "test/student - base/difference": 0.25, "test/floors/random": 0.125, "test/base/distance_nats/mean": 2.0,
        "test/distance_closed/mean": 0.75,
    }  # fmt: skip


# -- the real ones: killed at step 3, resumed from the checkpoint of step 2, asked once more when done --------


def played(name: str, tmp_path: Path) -> str:
    """Run the three parts and return what was printed."""
    pytest.importorskip(name)
    own = {
        "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    said = ""
    for part in ("first", "again", "done"):
        command = [sys.executable, str(PROGRAM), str(tmp_path / "work"), name, part]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | own, capture_output=True, text=True)
        assert done.returncode == (-signal.SIGKILL if part == "first" else 0), done.stderr
        said += done.stdout
    assert "warning" not in said
    assert "hush81x" not in "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    return said


@pytest.mark.trackers
def test_tensorboard(tmp_path: Path) -> None:
    played("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (tmp_path / "work" / "tensorboard").iterdir()
    found = EventAccumulator(str(folder))
    found.Reload()
    points = found.Scalars("loss/value_nats")
    assert [point.step for point in points] == list(LOSS)
    assert [point.value for point in points] == pytest.approx(list(LOSS.values()))
    assert [point.value for point in found.Scalars("test/student/success")] == [0.5]


@pytest.mark.trackers
@pytest.mark.timeout(900)  # it lays out a whole database first
def test_mlflow(tmp_path: Path) -> None:
    played("mlflow", tmp_path)
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("agentopcd")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    points = client.get_metric_history(run.info.run_id, "loss/value_nats")
    assert {point.step: point.value for point in points} == LOSS and len(points) == len(LOSS)
    assert len(client.get_metric_history(run.info.run_id, "test/student/success")) == 1
    assert run.data.params["env"] == "math" and run.data.metrics["odd__name"] == 2.0
    assert run.info.status == "FINISHED"


@pytest.mark.trackers
def test_trackio(tmp_path: Path) -> None:
    played("trackio", tmp_path)
    with sqlite3.connect(tmp_path / "trackio" / "agentopcd.db") as store:
        rows = store.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    found = [(step, json.loads(text)) for _, step, text in rows]  # text or bytes, as its version has it
    logged = [(step, one["loss/value_nats"]) for step, one in found if "loss/value_nats" in one]
    assert sorted(logged) == sorted(LOSS.items())
    assert sum("test/student/success" in one for _, one in found) == 1


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records in wandb's file, which is framed as LevelDB's log: blocks of 32 KiB, each piece of a record with its
    checksum (4 bytes), length (2) and kind (1: whole, 2: first, 3: middle, 4: last)."""
    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no room for a header: padding
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


@pytest.mark.trackers
def test_wandb(tmp_path: Path) -> None:
    """Offline, a process that goes on replaces the folder of the one before, which may lack what a kill has lost."""
    played("wandb", tmp_path)
    from wandb.proto import wandb_internal_pb2

    logged, ids, ends = [], set(), 0
    for file in sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb")):
        for data in wandb_records(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            ids |= {record.run.run_id} - {""}
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            if "loss/value_nats" in row:
                logged.append((row["_step"], row["loss/value_nats"]))
            ends += any(item.key == "test/student/success" for item in record.summary.update)
    assert len(ids) == 1 and ends
    assert logged == list(LOSS.items())
