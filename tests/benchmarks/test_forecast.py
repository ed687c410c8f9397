"""What the benchmark of the forecast reads from the paper's tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from agentopcd.cli.paper.verdicts import pack
from agentopcd.core.calibration import Calibration
from agentopcd.core.crossed import contrast
from benchmarks import forecast


def rate(wins: int, n: int = 100) -> dict[str, float]:
    return {"success": wins / n, "n": n}


def row(title: str, shown: int, **arms: int) -> dict[str, Any]:
    rates = {"base": rate(10), "in-context": rate(shown)} | {arm: rate(wins) for arm, wins in arms.items()}
    tokens = {arm: float(len(arm) == 0) for arm in rates}
    return {"title": f"{title}: more", "row": "R", "env": "e", "model": "m", "rates": rates, "reply_tokens": tokens,
            "curves": {arm: {} for arm in arms}}  # fmt: skip


def test_every_training_counts_once_under_whatever_name() -> None:
    rows = [row("T1", 60, opcd=55, seqkd=12), row("T2", 60, tail=55), row("T3", 11, opcd=12), row("T4", 60, placebo=50)]
    found = forecast.of_results(iter(rows))
    assert [one.name for one in found] == ["T1, R, opcd", "T1, R, seqkd", "T3, R, opcd"]
    assert [(one.advice, one.gained) for one in found] == [
        ("train", True), ("train", False), ("collect better notes", False),
    ]  # fmt: skip
    calibration = Calibration.of(found)
    assert (calibration.trained.wins, calibration.trained.n, calibration.other.wins) == (1, 2, 1)


def test_trainings_that_share_a_context_are_one_observation() -> None:
    rows = [row("T1", 60, opcd=55, seqkd=12), row("T2", 60, tail=70), row("T3", 60, opcd=50, more=65)]
    named = {"T1, R, ": ("notes", "e", "m"), "T2, R, ": ("notes", "e", "m"), "T3, R, ": ("other", "e", "m")}
    said = forecast.by_context(forecast.of_results(iter(rows)), named)
    assert "the 5 with the advice train come from 2 pairs" in said
    assert "in 1 of these every student became better (50% [9%, 91%])" in said  # Wilson's of 1 in 2
    # (45 + 2 + 60 + 40 + 55) / 250; the pairs are 14.2 from it, so 12.706 · √(2 · 2 · 14.2²) / 250 to each side.
    assert "gained 0.81 [-0.64, 2.25] times" in said
    assert "fewer than two" in forecast.by_context(forecast.of_results(iter(rows[:1])), named)


def test_every_training_of_the_tables_has_its_context() -> None:
    named = forecast.contexts()
    for one in forecast.of_results(forecast.results()):
        assert any(one.name.startswith(row) for row in named), one.name


def test_the_interval_of_two_independent_rates() -> None:
    """Newcombe 1998, Statist. Med. 17, 873, table II, method 10: 56/70 against 48/80."""
    found = forecast.apart(rate(56, 70), rate(48, 80))
    assert (found.diff, found.low, found.high) == (
        pytest.approx(0.2), pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5),
    )  # fmt: skip


def test_the_tables_of_this_repository_hold_enough_trainings() -> None:
    assert len(forecast.of_results(forecast.results())) >= 20


def test_pairs_are_used_where_a_file_has_them() -> None:
    wins = {"base": 10, "in-context": 60, "opcd": 55}
    games = {arm: {(0, f"t{i:03d}", 0): i < won for i in range(100)} for arm, won in wins.items()}
    (found,) = forecast.of_results(iter([row("T1", 60, opcd=55) | {"outcomes": pack(games)}]))
    pairs = contrast(games["opcd"], games["base"])
    assert (found.student.low, found.student.high) == (pairs.low, pairs.high)
    assert found.student.low > forecast.apart(rate(55), rate(10)).low  # narrower, as pairs are


def test_a_folder_without_a_store_is_refused_and_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        forecast.main([str(tmp_path / "none")])
    assert "is no workspace: it has no store.db" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_the_guide_says_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    forecast.main([])
    printed = capsys.readouterr().out.replace("%", " %")
    page = " ".join((forecast.FOUND.parent / "reading-results.md").read_text(encoding="utf-8").split())
    trained, advised, better, share = re.findall(
        r"on (\d+) earlier trainings: of (\d+) with the advice train, (\d+) students became better \(([^)]+)\)", printed
    )[0]
    gains = re.findall(r"gained ([\d.]+ \[[\d., ]+\])", printed)
    assert f"the {trained} trained arms" in page and f"{better} of {advised} students" in page
    assert f"({share})" in page and len(gains) == 2 and all(gain in page for gain in gains)
