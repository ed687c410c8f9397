"""Free text that has to pass checks: each check alone, and rows that ask for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentopcd import envs
from agentopcd.core.errors import EnvError
from agentopcd.envs.questions.text_checks import CHECKS, grade_checks, known_checks, sentences
from tests.conftest import ROOT, load_file


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), ("One", 1), ("One.", 1), ("One. Two", 2), ("Pi is 3.14. Yes!", 2), ("What?! No...", 2)]
)
def test_sentences_are_counted(text: str, count: int) -> None:
    assert sentences(text) == count


CASES: list[tuple[str, Any, str, str]] = [
    ("max_words", 3, "one two three", "one two three four"),
    ("min_words", 2, "one two", "one"),
    ("max_sentences", 1, "It rains.", "It rains. It pours."),
    ("case", "lower", "all low", "Not low"),
    ("case", "upper", "ALL UP", "Not up"),
    ("starts_with", "Dear", "Dear you", "Hello dear"),
    ("ends_with", "Amen.", "So be it. Amen.", "Amen. So be it."),
    ("contains", ["red", "blue"], "Red and blue", "only red"),
    ("contains", "red", "reddish", "blue"),
    ("excludes", ["red", "blue"], "green", "a blue one"),
]


@pytest.mark.parametrize(("name", "value", "good", "bad"), CASES)
def test_each_check_passes_and_fails(name: str, value: Any, good: str, bad: str) -> None:
    assert grade_checks(f"<think>{bad}</think>\n {good} ", {name: value}).right
    found = grade_checks(bad, {name: value})
    assert not found.right and found.metrics == {f"failed_{name}": 1.0}


def test_every_check_is_tested() -> None:
    assert {case[0] for case in CASES} == set(CHECKS)


def test_nothing_passes_no_check() -> None:
    found = grade_checks("<think>hm</think>", {"max_words": 3})
    assert not found.right and found.answer is None


@pytest.mark.parametrize(
    ("checks", "says"),
    [
        ({}, "must be an object"), ("max_words", "must be an object"), ({"max_word": 3}, "did you mean 'max_words'"),
        ({"max_words": "ten"}, "cannot have the value 'ten'"), ({"max_words": True}, "cannot have"),
        ({"case": "title"}, "cannot have"), ({"contains": []}, "cannot have"), ({"contains": 7}, "cannot have"),
        ({"excludes": ["a", 7]}, "cannot have"), ({"ends_with": ""}, "cannot have"),
    ],
)  # fmt: skip
def test_checks_that_make_no_sense_are_refused(checks: Any, says: str) -> None:
    with pytest.raises(EnvError, match=says):
        known_checks(checks)


def rows(path: Path, *found: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


def test_rows_are_played_by_their_checks_and_those_of_all(tmp_path: Path) -> None:
    file = rows(tmp_path / "q.jsonl", {"prompt": "Hi?"}, {"prompt": "Ho?", "checks": {"case": "lower"}})
    env = envs.make(file, checks={"max_words": 2})
    obs, info = env.reset(seed=0)
    assert obs == "Hi?"  # nothing is said about how to answer
    assert env.step("Two Words")[4]["success"]
    env.reset(seed=0)
    assert not env.step("Three whole Words")[4]["success"]
    env.reset(seed=1)
    _, _, _, _, info = env.step("Two words")
    assert not info["success"] and info["metrics"] == {"failed_case": 1.0}
    own = envs.make(rows(tmp_path / "own.jsonl", {"prompt": "Hi?", "checks": {"max_words": 1}}))
    own.reset(seed=0)
    assert own.step("Yes")[4]["success"]


def test_without_checks_an_answer_is_needed(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="answer"):
        envs.make(rows(tmp_path / "q.jsonl", {"prompt": "Hi?"}))


def test_the_shipped_questions_are_what_their_script_writes() -> None:
    script = load_file(ROOT / "recipes" / "paper" / "questions.py")
    assert script.FILE.read_text() == script.text()
    assert len(set(script.text().splitlines())) == len(script.ASKED) * len(script.ABOUT)
