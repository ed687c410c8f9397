"""Loops with the ratchet and without it: one as long as nothing is refused, and what the figures say."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ratchet as loops

TASKS = [f"t{n:03d}" for n in range(40)]


def round_(seed: int, loop: str, number: int, lake: int, **more: Any) -> dict[str, Any]:
    """A record in which so many of forty boards of the lake are won, and half of Sokoban's."""
    won = {"frozen-lake-4x4": lake, "sokoban": 20}
    test = {env: {key: n < won[env] for n, key in enumerate(TASKS)} for env in loops.ENVS}
    return {"seed": seed, "loop": loop, "round": number, "model": f"{loop}-{number}", "test": test} | more


@pytest.fixture
def given(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(work=tmp_path, rounds=3, tasks=40, compute="float32", sample_batch=32)


def test_both_loops_are_one_until_a_student_is_refused(
    given: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int, str, str]] = []

    def played(seed: int, loop: str, number: int, model: str, given: argparse.Namespace) -> dict[str, Any]:
        folder = given.work / f"{loop}-{seed}"
        folder.mkdir(exist_ok=True)
        before = (folder / "state").read_text() if (folder / "state").is_file() else ""
        asked.append((loop, number, model, before))
        (folder / "state").write_text(f"{before}{loop[0]}{number}")
        (folder / f"round-{number}.json").write_text("{}")
        promoted = loop == "ratchet" and number != 2
        return round_(seed, loop, number, 3 * number, promoted=promoted, tried=["opcd"])

    monkeypatch.setattr(loops, "played", played)
    theirs = list(loops.ratchet(0, given))
    assert [(loop, number) for loop, number, *_ in asked] == [("ratchet", n) for n in range(4)]
    assert sorted(path.name for path in given.work.iterdir()) == ["before-2-0", "ratchet-0"]  # of the refused round
    asked.clear()
    mine = list(loops.plain(0, given, theirs))
    # Rounds 0 and 1 are those of the ratchet. Round 2 begins with its workspace before that round, and its model.
    assert asked == [("plain", 2, "ratchet-1", "r0r1"), ("plain", 3, "plain-2", "r0r1p2")]
    assert [(record["loop"], record["round"]) for record in mine] == [("plain", n) for n in range(4)]


def test_a_result_says_what_was_lost_and_comes_out_of_its_file_again(capsys: pytest.CaptureFixture[str]) -> None:
    records = [round_(seed, "plain", n, won) for seed in range(4) for n, won in enumerate((2, 36, 20))]
    assert loops.unpacked(loops.packed(records)) == [
        {name: value for name, value in record.items() if name != "model"} for record in records
    ]
    loops.rates(records)
    said = capsys.readouterr().out
    assert "plain    frozen-lake-4x4  round 1: 0.900" in said and "over 4 seeds" in said
    (line,) = [line for line in said.splitlines() if "frozen-lake-4x4  last against best" in line]
    assert "-0.400" in line and line.endswith("may be inferior by 0.1")
    assert "sokoban          the last round is the best" in said  # all rounds are alike


def test_what_is_not_there_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(SystemExit):
            loops.main(["--read", str(missing)])
        assert "no folder in which the loops have run" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
