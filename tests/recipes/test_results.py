"""docs/RESULTS.md: what it says of a row, and that no claim is counted twice or kept without its seeds."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agentopcd.cli.paper.verdicts import judged
from tests.conftest import load_file

CD = "opcd > context-distillation"


@pytest.fixture(scope="module")
def script(root: Path) -> ModuleType:
    return load_file(root / "recipes" / "paper" / "results.py")


def row_of(title: str, verdict: str = "reproduced", **changes: Any) -> dict[str, Any]:
    found = {"claim": CD, "verdict": verdict, "difference": 0.1, "low": 0.05, "high": 0.2, "n": 36, "tasks": 9,
             "seeds": 4, "chains": None, "wins": 5, "losses": 1, "p": 0.01}  # fmt: skip
    row = {
        "title": title, "row": "R", "env": "e", "model": "m", "tasks": 9, "seeds": [0, 1, 2, 3], "chains": None,
        "paper": {"opcd": 12.5, "context-distillation": 10.0}, "compute": "float32", "outcomes": {},
        "rates": {"opcd": {"success": 0.5, "low": 0.4, "high": 0.6, "n": 36}}, "reply_tokens": {"opcd": 3.0},
        "probe": {"opcd": {"success": 0.25, "low": 0.1, "high": 0.4, "n": 36}}, "probe_env": "math", "floors": "none",
        "probe_findings": [{**found, "verdict": "undecided at this size", "difference": 0.01}],
        "note": "small", "drift": {"opcd": {"entropy_nats": 0.5, "kl_nats": 1.25}},
        "curves": {"opcd": {"success": [0.1, 0.2]}},
        "chosen_on_test": {"opcd": {"best": 0.75, "best_three": 0.625, "checkpoints": 4}}, "findings": [found],
    }  # fmt: skip
    return copy.deepcopy({**row, **changes})


def test_the_page_is_what_the_files_say(script: ModuleType) -> None:
    assert script.PAGE.read_text() == script.page(script.found(), json.loads(script.BEFORE.read_text()))


def test_a_row_is_shown_with_what_its_intervals_are_over(script: ModuleType) -> None:
    text = script.page([row_of("Table 9: x"), row_of("Table 9: x", row="Q", env="f")], [])
    assert text.count("## Table 9: x\n") == 1 and "### R\n" in text and "### Q\n" in text
    assert "| opcd | 0.500 | [0.400, 0.600] | 36 | 0.125 | 3.0 | 0.500 | 1.250 | 0.250 |" in text
    assert f"| Table 9, R | {CD} | reproduced | +0.100 [+0.050, +0.200] | 4 seeds, 9 tasks |" in text
    assert f"| Table 9, R | on math, not taught: {CD} | undecided at this size |" in text
    assert "`e`, `m`, 9 test tasks, 4 training seeds, float32." in text
    assert "best 0.750, mean of the best three 0.625, of 4" in text
    assert f"{CD}: **reproduced**, +0.100 [+0.050, +0.200] (won 5, lost 1 of 36 games; 4 seeds, 9 tasks)" in text


def test_the_same_games_are_counted_once(script: ModuleType) -> None:
    rows = [row_of("Table 2: x"), row_of("Table 6: y"), row_of("A variant: z", "refuted", env="other")]
    found = script.claims(rows)
    assert [one["same"] for one in found] == ["", "", "Table 2, R", "Table 2, R", "", ""]
    text = script.page(rows, found)
    assert f"| {'OPCD > CD, on the task that was taught'} | 1 | 1 | 0 | 1 | 1 | 0 |" in text
    assert "| claims of the paper | 1 | 0 | 1 | 1 | 0 | 1 |" in text
    assert "| claims of our own | 0 | 1 | 1 | 0 | 1 | 1 |" in text
    assert f"- Table 6, R: {CD} is that of Table 2, R" in text
    assert "- Table 6, R: the figures of opcd are those of Table 2, R" in text
    assert text.count(f"| Table 6, R | {CD} |") == 0


def played(**signs: str) -> dict[str, Any]:
    """Outcomes of two seeds on two tasks, the first of which is played twice."""
    by_seed = {arm: dict(zip("01", both.split(), strict=False)) for arm, both in signs.items()}
    return {"tasks": ["a", "a", "b"], "arms": by_seed}


def test_part_of_the_same_games_is_found_game_by_game(script: ModuleType) -> None:
    one, cd = "opcd", "context-distillation"
    first = row_of("Placebo: x", outcomes=played(**{one: "110", cd: "100"}))
    both = row_of("Table 2: y", outcomes=played(**{one: "110 011", cd: "100 001"}))
    for row in (first, both):
        row["rates"][cd], row["reply_tokens"][cd] = row["rates"][one], 2.0
        row["probe_findings"] = []
    first["findings"][0] |= {"difference": 0.3, "n": 3}  # other figures, though they are among the same games
    assert [found["same"] for found in script.claims([first, both])] == ["Table 2, R", ""]
    assert [found["same"] for found in script.claims([both, first])] == ["", "Table 2, R"]
    text = script.twice([first, both], script.claims([first, both]))
    assert "- Placebo, R: the figures of opcd, context-distillation are those of Table 2, R" in text
    # Equal figures, and other games: the second seed of one of them won another task.
    other: dict[str, Any] = {**copy.deepcopy(both), "title": "Table 6: z"}
    other["outcomes"]["arms"][cd]["1"] = "010"
    assert [found["same"] for found in script.claims([both, other])] == ["", ""]


def test_figures_alone_are_the_same_only_with_those_of_both_arms(script: ModuleType) -> None:
    rows = [
        row_of("Table 2: x"),
        row_of("Table 6: y", rates={"opcd": {"success": 0.6, "low": 0.4, "high": 0.7, "n": 36}}),
    ]
    assert not any(found["same"] for found in script.claims(rows))


def test_a_first_seed_that_was_played_again_is_no_second_sample(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "PLAYED_AGAIN", {"Placebo, R": "Table 2, R"})
    short, long = row_of("Placebo: x", seeds=[0]), row_of("Table 2: y")
    short["findings"][0]["difference"] = short["rates"]["opcd"]["success"] = 0.3
    assert not any(found["same"] for found in script.claims([short, long])), "it has outcomes, and they say otherwise"
    del short["outcomes"]
    assert script.claims([short, long])[0]["same"] == "Table 2, R"
    assert "- Placebo, R: opcd are the first seed of Table 2, R, played again" in script.twice([short, long], [])


def test_seeds_of_untrained_arms_are_repetitions(script: ModuleType) -> None:
    row = row_of("Table 2: x")
    found = row["findings"][0]
    assert script.over(found, row) == "4 seeds, 9 tasks"
    assert script.over(found | {"claim": "in-context > base"}, row) == "4 repetitions, 9 tasks"
    assert script.over(found | {"claim": "in-context > base", "seeds": 1}, row) == "1 repetition, 9 tasks"
    assert script.over(found | {"claim": "in-context > base", "chains": 8}, row) == "8 chains, 9 tasks"


def test_an_arm_that_the_paper_has_no_figure_of_is_our_own(script: ModuleType) -> None:
    (one, _) = script.claims([row_of("Table 5: x", paper={"what": "w", "opcd": 12.5})])
    assert not one["paper"]
    (one, _) = script.claims([row_of("Table 5: x", paper={"what": "w"})])
    assert one["paper"]


def test_a_verdict_without_its_seeds_falls_and_is_told(script: ModuleType) -> None:
    old = row_of("Table 2: x", seeds=[0, 1])
    before = script.claims([old, row_of("Table 7: gone")])
    del old["outcomes"]
    text = script.page([judged(old)], before)
    assert f"| Table 2, R | {CD} | reproduced, +0.100 [+0.050, +0.200] | undecided: too few seeds |" in text
    assert f"| Table 7, R | {CD} | reproduced, +0.100 [+0.050, +0.200] | withdrawn |" not in text  # the same games
    assert f"| Table 2, R | {CD} | undecided: too few seeds | +0.100 [+0.050, +0.200] † | 2 seeds, 9 tasks |" in text
    assert "Intervals are over tasks alone (†)." in text
    text = script.page([row_of("Table 2: x")], script.claims([row_of("Table 7: gone")]))
    assert f"| Table 7, R | {CD} | reproduced, +0.100 [+0.050, +0.200] | withdrawn |" in text
    assert script.fell(script.claims([row_of("Table 2: x")]), script.claims([row_of("Table 2: x")])).count("| R") == 0


def test_the_readme_gives_the_tally(script: ModuleType, root: Path) -> None:
    rows = [line.strip("| ").split(" | ") for line in script.PAGE.read_text().splitlines()]
    taught, other = (" / ".join(cells[1:4]) for cells in rows if cells[0].startswith("OPCD > CD, on "))
    readme = " ".join((root / "README.md").read_text().split())
    assert f"OPCD > CD is reproduced / refuted / undecided {taught} times on the task that was taught" in readme
    assert f"and {other} on one that nobody taught" in readme
