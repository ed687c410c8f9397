"""The benchmark of few tasks finds what it is about, in small."""

from __future__ import annotations

from statistics import fmean

import pytest

from benchmarks.few_tasks import covered, leads, main


def test_the_normal_quantile_holds_the_truth_less_often() -> None:
    normal, student = covered(3, 500)
    assert normal < 0.87 and 0.92 < student < 0.98


def test_games_that_ranked_a_winner_flatter_it() -> None:
    found = [leads(seed, 12, 10) for seed in range(30)]
    ranked, new = (fmean(pair[place].diff for pair in found) for place in (0, 1))
    assert ranked > 0.08 and abs(new) < 0.06


def test_both_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--trials", "20", "--worlds", "2", "--contexts", "4", "--tasks", "5"])
    said = capsys.readouterr().out
    assert "tasks  normal  Student's" in said and "games of the same tasks, new: lead" in said
