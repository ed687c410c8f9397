"""What a file of questions says after a reply."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentopcd import envs
from agentopcd.core.errors import EnvError
from agentopcd.envs.questions.rows import rows_from

NOTE = {"right": "Short and clear.", "wrong": "Too long: one word was wanted."}


def env_of(folder: Path, **row: Any) -> Any:
    file = folder / "q.jsonl"
    file.write_text(json.dumps({"question": "Hi?", **row}) + "\n")
    return envs.make(str(file))


@pytest.mark.parametrize(
    ("feedback", "reply", "said"),
    [
        (NOTE, "Hello", "Short and clear."),
        (NOTE, "Hello to you", "Too long: one word was wanted."),
        ({"wrong": "Too long."}, "Hello", ""),
        ({"right": "Good.", "wrong": None}, "Hello to you", ""),
        (None, "Hello to you", ""),
        ("", "Hello to you", ""),
    ],
)
def test_the_row_says_what_follows_a_right_and_a_wrong_reply(
    tmp_path: Path, feedback: Any, reply: str, said: str
) -> None:
    env = env_of(tmp_path, checks={"max_words": 1}, feedback=feedback)
    obs, info = env.reset(seed=0)
    assert obs == "Hi?" and "Too long" not in str(info)
    obs, _, terminated, _, info = env.step(reply)
    assert (obs, terminated) == (said, True)
    assert info["parts"] == ([("feedback", said)] if said else [])


def test_a_grader_of_ones_own_decides_which_is_said() -> None:
    env = envs.DatasetEnv(
        [{"question": "Hi?", "answer": "x", "feedback": NOTE}], grade=lambda reply, gold: len(reply) < 3
    )
    for reply, said in (("Hm", NOTE["right"]), ("Hello", NOTE["wrong"])):
        env.reset(seed=0)
        assert env.step(reply)[0] == said


@pytest.mark.parametrize(
    "feedback", ["Too long.", ["Too long."], {"wrong": 3}, {"worng": "Too long."}, {"wrong": {"text": "Too long."}}]
)
def test_feedback_that_is_none_is_refused_with_its_row(feedback: Any) -> None:
    good = {"question": "Ho?", "answer": "7"}
    with pytest.raises(EnvError, match="row 2: feedback must be an object such as"):
        rows_from([good, {"question": "Hi?", "answer": "7", "feedback": feedback}])


@pytest.mark.parametrize(
    ("row", "feedback"),
    [
        ({"answer": "42"}, "It is 42, not that."),
        ({"answer": ["Paris", "Lutetia"]}, "No: lutetia."),
        ({"choices": ["red", "blue"], "answer": "A"}, "The answer: A"),
        ({"choices": ["red", "blue"], "answer": "A"}, "<answer>A</answer> was wanted."),
    ],
)
def test_feedback_that_tells_the_right_answer_is_refused(row: dict[str, Any], feedback: str) -> None:
    with pytest.raises(EnvError, match=r"row 1: its feedback .* tells the right answer"):
        rows_from([{"question": "Which?", **row, "feedback": {"wrong": feedback}}])


def test_a_word_that_is_a_choice_or_holds_the_answer_by_chance_tells_nothing() -> None:
    choice = {
        "question": "Which?",
        "choices": ["red", "blue"],
        "answer": "A",
        "feedback": {"wrong": "A letter, please."},
    }
    number = {"question": "3+4?", "answer": "7", "feedback": {"wrong": "Not within 17 years."}}
    assert [row.feedback[0] for row in rows_from([choice, number])] == ["A letter, please.", "Not within 17 years."]


def test_half_a_character_is_refused() -> None:
    with pytest.raises(EnvError, match="its feedback holds half a surrogate pair"):
        rows_from([{"question": "Hi?", "answer": "7", "feedback": {"wrong": "\ud800"}}])
