"""A workspace of version 0.1.0 is opened, reported and gone on with as that version did: see tests/fixtures."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from agentopcd.cli import main
from agentopcd.core.runs import unsealed
from agentopcd.knowledge import Store

FIXTURE = Path(__file__).resolve().parent.parent / "fixtures" / "workspace-0.1.0"
EXPECTED: dict[str, Any] = json.loads((FIXTURE / "expected.json").read_text())
WORDS = """consolidate --env rows.jsonl --model model --context context.txt --steps 4 --batch-size 3 --max-tokens 4
    --temperature 1 --learning-rate 0.001 --select-every 2 --save-every 2 --select-tasks 4 --test-tasks 6
    --compute float32 --work work"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FIXTURE, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["agentopcd", *WORDS.split(), *more])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    return capsys.readouterr().out.splitlines()


def rows(table: str) -> list[dict[str, Any]]:
    with Store.open(Path("work/store.db")) as store:
        return store.table(table, "1, 2")


def test_a_finished_run_is_reported_and_nothing_is_played(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {table: rows(table) for table in ("run", "episode", "model", "task")}
    said = call(monkeypatch, capsys)
    assert f"already done: work/runs/{EXPECTED['finished']}" in said
    known = [line for line in said if not line.startswith("no_answer: ")]  # version 0.1 showed no metric
    assert known[known.index(EXPECTED["table"][0]) :][: len(EXPECTED["table"])] == EXPECTED["table"]
    assert {table: rows(table) for table in before} == before
    assert len(list(Path("work/runs").iterdir())) == 2


def test_a_killed_run_goes_on_in_its_folder_and_its_row(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, setups = rows("run"), {row["setup"] for row in rows("episode")}
    said = call(monkeypatch, capsys, "--seed", "1")
    assert "resuming consolidate run 3" in said and "resumed after step 2" in said
    assert len(list(Path("work/runs").iterdir())) == 2  # equal settings still have an equal identity
    folder = Path("work/runs") / EXPECTED["killed"]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4]
    for record, wanted in zip(records, EXPECTED["steps"], strict=True):
        timeless = {name for name in record if not name.startswith("time/") and name != "loss/definition"}
        assert timeless == set(wanted)
        for name in timeless:
            rounded = pytest.approx(wanted[name], rel=1e-3, abs=1e-5) if isinstance(wanted[name], float) else None
            assert record[name] == (wanted[name] if rounded is None else rounded), (record["step"], name)
    result = unsealed(json.loads((folder / "result.json").read_text()))
    assert result["evaluation"].pop("seen") == {"tasks": 6, "runs": [2]}  # which version 0.1 did not say
    named = result["evaluation"].pop("compared")  # nor this
    assert list(named) == ["base", "in-context", "student"] and named["student"]["model"] == result["model"]
    assert named["in-context"]["context"]["file"] == "context.txt" and named["student"]["parent"] == result["parent"]
    assert [row.pop("means")["reward"]["n"] for row in result["evaluation"]["rows"]] == [6, 6, 6]
    promotion = result.pop("promotion")  # no student had a gate then; a result of what was killed has one now
    assert promotion["verdict"] == "not better" and promotion["env"] == "rows.jsonl"
    assert result | {"model": None} == EXPECTED["result"] | {"model": None, "steps": 4, "skipped": 0}
    after = rows("run")
    assert [row["id"] for row in after] == [row["id"] for row in runs]
    assert [row["config"] for row in after] == [row["config"] for row in runs]
    assert [row["status"] for row in after] == ["done"] * 3
    assert {row["setup"] for row in rows("episode")} == setups


def test_what_was_played_before_counts_as_played(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tested() -> int:
        with Store.open(Path("work/store.db")) as store:
            return len(store.episodes(split="test"))

    before = tested()
    call(monkeypatch, capsys, "--seed", "1")
    played = tested() - before
    assert played == 6, "the student's test episodes alone: those of the base were there"
    assert before > played
