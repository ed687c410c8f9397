"""The benchmark of lessons, with a player that is right where it is shown a certain lesson."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.stats import Rate
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.player import Player
from agentopcd.workspace.session import Session
from benchmarks import lessons
from tests import tiny


@pytest.fixture
def words(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def player_for(session: Session, loaded: Any, config: Any = None) -> Player:
        return Player(
            game=session.game, sampler=tiny.Clued(loaded.tokenizer), chat=Chat(loaded.tokenizer),
            sampling=session.config.sampling, seed=session.config.seed,
        )  # fmt: skip

    monkeypatch.setattr(Session, "player_for", player_for)
    rows = tiny.questions(tmp_path / "rows.jsonl")
    return [
        "--work",
        str(tmp_path / "w"),
        "--env",
        rows,
        "--model",
        str(tiny_model_dir),
        "--episodes",
        "4",
        "--tasks",
        "10",
    ]


def test_a_lesson_that_works_only_in_its_order_says_something(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # the second call reads what the first has stored
        lessons.main([*words, "--prompt", "question", "--json", str(tmp_path / "found.json")])
        said = capsys.readouterr().out
        assert f"1.000 against 0.000, p 0.000  {tiny.CLUE}" in said
        assert (
            "without a lesson: 0.000" in said and f"say something (p < 0.05 against the placebo): {Rate(1, 1)}" in said
        )
    (found,) = json.loads((tmp_path / "found.json").read_text())["lessons"]
    assert (found["text"], found["placebo"], found["difference"]) == (tiny.CLUE, "seven say", 1.0)


def test_a_lesson_and_a_placebo_that_do_the_same_say_nothing(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lessons, "placebo", lambda context, seed: context)
    lessons.main([*words, "--prompt", "question"])
    assert f"say something (p < 0.05 against the placebo): {Rate(0, 1)}" in capsys.readouterr().out


def test_an_unknown_prompt_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        lessons.main([*words, "--prompt", "qestion"])
    assert stop.value.code == 2 and "did you mean 'question'" in capsys.readouterr().err


def row(difference: float, p: float, low: float | None) -> lessons.Lesson:
    return lessons.Lesson("a", "b", 0.5 + difference, 0.5, difference, p, 0.0 if low is None else low, low, low)


def test_the_summary_counts_lessons() -> None:
    rows = [row(0.5, 0.01, 0.1), row(0.1, 0.2, -0.1), row(0.0, 0.5, None)]
    lines = "\n".join(lessons.summary(rows, Rate(1, 10)))
    assert f"say something (p < 0.05 against the placebo): {Rate(1, 3)}" in lines
    assert f"value above 0 among the others (95 % interval): {Rate(1, 2)}" in lines
    assert "difference +0.200 [-0.457, +0.857] (mean of 3 lessons)" in lines  # 4.303 · 0.2646 / √3
