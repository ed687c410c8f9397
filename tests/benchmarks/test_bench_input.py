"""What benchmarks refuse in one line: a number that plays nothing, and a folder of another call."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import null_rounds
from benchmarks.kills import kills


def test_real_null_rounds_come_in_tens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["null_rounds", "--real", "5"])
    with pytest.raises(SystemExit):
        null_rounds.main()
    assert "--real must be a multiple of 10" in capsys.readouterr().err


def test_the_kills_of_another_call_are_not_gone_on_with(tmp_path: Path) -> None:
    assert kills(tmp_path, 0, 0, "pocket-s", ["play"]) == [] == kills(tmp_path, 0, 0, "pocket-s", ["play"])
    for other in ((1, "pocket-s", ["play"]), (0, "pocket", ["play"]), (0, "pocket-s", ["learn"])):
        with pytest.raises(SystemExit, match="is of another call"):
            kills(tmp_path, 0, *other)
    (tmp_path / "call.json").unlink()
    (tmp_path / "straight-play").mkdir()
    with pytest.raises(SystemExit, match="does not say which"):
        kills(tmp_path, 0, 0, "pocket-s", ["play"])
