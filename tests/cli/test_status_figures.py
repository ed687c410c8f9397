"""``agentopcd status``: whose test figures a student has, and what damaged settings leave to be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.config import EvaluateConfig
from agentopcd.knowledge import Store
from tests.cli.test_status import begun, look, trained


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "w"


@pytest.mark.parametrize("elsewhere", [{"env": "other"}, {"base": "d" * 64}])
def test_figures_from_elsewhere_or_beside_another_base_are_not_a_students(elsewhere: Any, work: Path) -> None:
    run_id = trained(work)
    again = begun(work, EvaluateConfig(env="rooms"), **{"student": "b" * 64, "base": "a" * 64} | elsewhere)
    rows = [{"label": "student", "success": rate, "low": 0.2, "high": 0.3, "n": 9} for rate in (0.25, 0.75)]
    with Store.open(work / "store.db") as store:
        store.finish(run_id, {"evaluation": {"rows": rows[:1]}})
        store.finish(again, {"rows": rows[1:]})
    assert look(work).students[0]["test"] == rows[:1]


@pytest.mark.parametrize("content", [None, "", "[]"])
def test_a_training_whose_settings_are_damaged_hides_nothing(content: str | None, work: Path) -> None:
    folder = work / "runs" / "consolidate-rooms-2"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 2}\n')
    if content is not None:
        (folder / "config.json").write_text(content)
    with Store.open(work / "store.db") as store:
        store.start("consolidate", {"env": "rooms", "round": 2, "folder": str(folder)}, 0)
    (job,) = look(work).jobs
    assert (job.state, job.progress, job.needs) == ("interrupted", "step 2", "")
