"""What was wrong first in a lost game: one reply for each reason, and a store read as the command reads it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from agentopcd.core.config import EvaluateConfig
from agentopcd.core.types import Context, Turn
from agentopcd.workspace.evaluation.table import Contestant, evaluate
from agentopcd.workspace.session import Session
from recipes.pocket import corpus, lost
from recipes.pocket.worlds import LakeBoard, Rules

RULES = Rules("G", "H", vertical=True)
BOARD = LakeBoard(size=3, start=(0, 0), cells={(2, 2): "G", (0, 1): "H", (1, 2): "H"}, goal_letter="G")
RIGHT = "<think>goal G hole H up>down right>right P a1 G c3 H a2 b3 path b1 b2 c2 c3 go down</think>[up]"


def turn(reply: str) -> Turn:
    return dataclasses.replace(corpus._turn([("state", BOARD.draw((0, 0)))], [], ""), reply=reply)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("", "", ""),
        ("<think>", "", "form"),
        ("goal G hole H", "goal H hole G", "roles"),
        ("up>down", "up>up", "directions"),
        ("P a1", "P a2", "squares"),
        ("H a2 b3", "H a2", "squares"),
        ("path b1 b2 c2 c3", "path b1 b2 b3 c3", "path"),  # through a hole
        ("path b1 b2 c2 c3", "path b1 b2 c3", "path"),  # a step that is none
        ("path b1 b2 c2 c3", "path b1 b2 c2", "path"),  # not to the goal
        ("go down", "go right", "path"),
        ("[up]", "[down]", "move"),
    ],
)
def test_the_first_wrong_thing_is_named(before: str, after: str, reason: str) -> None:
    assert before in RIGHT
    assert lost.wrong(turn(RIGHT.replace(before, after)), RULES) == reason


def test_the_rules_of_an_environment() -> None:
    assert lost.rules_of("frozen-lake-4x4") == Rules("G", "H")
    assert lost.rules_of("frozen-lake-4x4-swapped") == Rules("H", "G", vertical=True)


def test_a_workspace_is_read_by_model_and_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = Context("H is the goal. Never step on G. All moves work as named.")
    config = EvaluateConfig(env="frozen-lake-4x4", model="pocket", sample_batch=32)
    with Session(config, tmp_path, say=lambda line: None) as session:
        who = [Contestant(label="misled", model=session.loaded, context=told)]
        evaluate(session, who, session.tasks("test", 16), run_id=session.ledger.begin("evaluate"))
    lost.main(["--work", str(tmp_path)])
    assert "H is the goal." in capsys.readouterr().out
    with lost.Store.open(tmp_path / "store.db") as store:
        (games,) = lost.count(store, "frozen-lake-4x4").values()
    assert games.total() == 16 and games["roles"] > 12


@pytest.mark.parametrize(("env", "error"), [("sokoban", "is no Frozen Lake"), ("frozen-lake-4x4", "play first")])
def test_bad_input_is_one_line(env: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lost.Store.open(tmp_path / "store.db"):
        pass
    with pytest.raises(SystemExit) as stopped:
        lost.main(["--work", str(tmp_path), "--env", env])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and error in line
