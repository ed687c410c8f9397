"""`agentopcd store recordings`: what was kept, and what of one recording."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agentopcd.cli import app
from agentopcd.core.errors import ConfigError, StoreError
from tests.recording import MODEL, keep


def run(work: Path, *words: str) -> Any:
    result = CliRunner().invoke(app, ["store", "recordings", *words, "--work", str(work)])
    if result.exception:
        raise result.exception
    return result.stdout


def test_recordings_are_listed(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no knowledge store at .*; agentopcd serve --record NAME makes one"):
        run(tmp_path)
    keep(tmp_path, "a", "Sum?", "4", rating={"success": True})
    keep(tmp_path, "b", "Sum?", "4", recording="other")
    assert run(tmp_path) == (
        "other: 1 sessions, 0 of them rated, 1 requests\nshop: 1 sessions, 1 of them rated, 1 requests\n"
    )
    assert json.loads(run(tmp_path, "--json"))[1] == {"name": "shop", "sessions": 1, "rated": 1, "requests": 1}


def test_sessions_of_one_recording_are_listed_the_newest_last(tmp_path: Path) -> None:
    keep(tmp_path, "a", "Sum?", "4", "Sure?", "Yes.", task="T", rating={"success": False, "reward": 0.5})
    keep(tmp_path, "b", "Sum?", "4", arm="canary", rating={"metrics": {"stars": 4}})
    keep(tmp_path, "c", "Sum?", "4")
    keep(tmp_path, "d", "Sum?", "4", recording="other")
    first, second, third, last = run(tmp_path, "recorded:shop").splitlines()
    assert first.startswith("a  2 requests  failure, reward 0.5  task T  model mmmmmmmm  20")
    assert second.startswith("b  1 requests  stars 4  model mmmmmmmm (canary)  20")
    assert third.startswith("c  1 requests  not rated  model mmmmmmmm  20")
    assert last == "3 sessions of shop"
    assert run(tmp_path, "shop", "--limit", "1").splitlines()[-1] == "3 sessions of shop, the newest 1 shown"
    (one,) = json.loads(run(tmp_path, "shop", "--limit", "1", "--json"))
    assert (one["session"], one["task"], one["requests"], one["model"]) == ("c", None, 1, MODEL)
    rows = json.loads(run(tmp_path, "shop", "--json"))
    assert [row["rating"] for row in rows[:2]] == [
        {"success": False, "reward": 0.5, "metrics": {}}, {"success": None, "reward": None, "metrics": {"stars": 4}}
    ]  # fmt: skip
    assert rows[0]["started_at"] <= rows[1]["started_at"]
    with pytest.raises(ConfigError, match="--limit is for the sessions of one recording"):
        run(tmp_path, "--limit", "1")
    with pytest.raises(ConfigError, match=r"nothing is recorded under 'nowhere'.*recordings: other, shop"):
        run(tmp_path, "nowhere")
