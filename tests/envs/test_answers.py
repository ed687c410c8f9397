"""Two answers are the same whatever stands around them, and not when they differ."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.errors import EnvError
from agentopcd.envs import DatasetEnv, make
from agentopcd.envs.questions.answers import normalise, same, same_choice
from agentopcd.envs.questions.grading import find_answer, grade_choice, grade_math

RIGHT = [
    (r"Answer: $34$", "34"),
    (r"Answer: \(34\)", "34"),
    (r"Answer: \[34\]", "34"),
    ("Answer:\n\\[\n34\n\\]", "34"),
    ("Answer: $$34$$", "34"),
    ("Answer: `34`", "34"),
    ("Answer: “34”", "34"),
    ('Answer: "34".', "34"),
    ("**Answer：** 34。", "34"),
    (r"\boxed{\$18}", "18"),
    ("Answer: $18", "18"),
    (r"\boxed{1{,}000}", "1000"),
    (r"\boxed{1\,000}", "1000"),
    (r"\boxed{1\ 000\ 000}", "1,000,000"),
    ("Answer: 12 345.5", "12345.5"),
    (r"The result is \boxed 7.", "7"),
    (r"so \boxed -7", "-7"),
    (r"(thus \boxed 7)", "7"),
    (r"\boxed A.", "A"),
    (r"\fbox{7}", "7"),
    (r"\boxed{\boxed{7}}", "7"),
    (r"\boxed{\mathbf{7}}", "7"),
    (r"\boxed{\displaystyle 7}", "7"),
    ("Answer: –7", "-7"),
    ("Answer: −7", "-7"),
    ("Answer: ‐7", "-7"),
    (r"\boxed{50\%}", "50%"),
    (r"\boxed{50\%}", "50.0%"),
    (r"\boxed{90^\circ}", "90"),
    (r"\boxed{90^{\circ}}", "90°"),
    (r"\boxed{2 \cdot x}", r"2\cdot x"),
    ("Answer: 2 * x", "2x"),
    ("<answer>7</answer>", "7"),
    ("<answer>Answer: 7</answer>", "7"),
    ("<answer>\n\\boxed{7}\n</answer>", "7"),
    ("Answer: <answer>7</answer>", "7"),
    ("I put it in a \\boxed answer.\nAnswer: 7", "7"),
    ("Answer: Yes.", "yes"),
    ("I shall end with Answer:\n**Answer:** yes", "yes"),
    ("Answer: Answer: yes", "yes"),
    ("Answer: **True**", "yes"),
    ("<answer>NO</answer>", "no"),
    ("Answer: A. Aspirin", "A"),
    ("Answer: **A**", "A"),
    (r"\boxed{\text{(A)}}", "A"),
    ("Answer: A", "A. Aspirin"),
    ("Answer: aspirin", "A. Aspirin"),
    ("Answer: caf\u00e9", "cafe\u0301"),
    ("Answer: １２", "12"),
    (r"\boxed{(\frac{1,200}{7}, 2)}", r"(\frac{1,200}{7},2)"),
    (r"\boxed{\frac{1,200}{7}}", r"\frac{1200}{7}"),
    ("Answer: (a) 1,200", "(a)1200"),
]
WRONG = [
    ("Answer: 2*3", "23"),
    ("Answer: 2 * 3", "23"),
    ("Answer: 2 3", "23"),
    (r"\boxed{2\,3}", "23"),
    ("Answer: $2$ $3$", "23"),
    ("Answer: 1 1/2", "11/2"),
    (r"\boxed{50\%}", "50"),
    ("Answer: 7-", "-7"),
    ("Answer: —7", "-7"),
    ("I put it in \\boxed format", "format"),
    ("Answer: B. Aspirin", "A. Aspirin"),
    ("Answer: A. Ibuprofen", "A. Aspirin"),
    ("Answer: A or B", "A"),
    ("Answer: A) and B)", "A"),
    ("Answer: A. B.", "A"),
    ("Answer: a", "A"),
    ("Answer: no way", "no"),
    ("Answer: yes or no", "yes"),
    ("Answer: (1200)", "(1,200)"),
    ("Answer: [1200,5]", "[1,200,5]"),
    (r"\boxed{\{1200\}}", r"\{1,200\}"),
    ("Answer: {1200}", "{1,200}"),
    ("Answer: 102", "10²"),
    ("<think>Answer: 7", "7"),
    ("<think>\nIt may be \\boxed{7}, or", "7"),
    ("<answer>7", "7"),
]


@pytest.mark.parametrize(("reply", "gold"), RIGHT)
def test_decorations_come_off(reply: str, gold: str) -> None:
    assert grade_math(reply, gold).right


@pytest.mark.parametrize(("reply", "gold"), WRONG)
def test_what_differs_is_wrong(reply: str, gold: str) -> None:
    assert not grade_math(reply, gold).right


def test_the_latest_of_box_tag_and_line_counts() -> None:
    assert find_answer("\\boxed{1} <answer>2</answer>\nAnswer: 3") == "3"
    assert find_answer("Answer: 3\n<answer>2</answer> \\boxed{1}") == "1"
    assert find_answer("\\boxed{1}\nAnswer: 3\n<answer>2</answer>") == "2"


def test_a_grader_of_one_s_own_hears_no_thoughts() -> None:
    env = DatasetEnv([{"question": "2+3?", "answer": "5"}], grade=lambda reply, gold: gold in reply)
    for reply, right in (("<think>4</think>It is 5", True), ("<think>5</think>It is 4", False), ("<think>5", False)):
        env.reset(seed=0)
        assert env.step(reply)[4]["success"] is right


def test_any_right_answer_will_do() -> None:
    assert grade_math("Answer: seven", "7", also=("seven",)).right
    assert not grade_math("Answer: six", "7", also=("seven",)).right
    assert grade_choice("<answer>maybe</answer>", "yes", ("maybe",)).right


CHOICES = [
    ("<answer>A. Aspirin</answer>", "A", True),
    ("<answer>A) Aspirin</answer>", "A", True),
    ("<answer>(A) Aspirin</answer>", "A", True),
    ("<answer>A: Aspirin</answer>", "A", True),
    ("<answer>A - Aspirin</answer>", "A", True),
    ("<answer>a. aspirin</answer>", "A", True),
    ("<answer>Option A</answer>", "A", True),
    ("<answer>**A**</answer>", "A", True),
    ("<answer>`A`</answer>", "A", True),
    ("<answer>$A$</answer>", "A", True),
    (r"<answer>\text{A}</answer>", "A", True),
    (r"<answer>\boxed{A}</answer>", "A", True),
    ("<answer>[A]</answer>", "A", True),
    ("<answer>A. Vitamin A and C</answer>", "A", True),
    (r"\boxed{A}", "A", True),
    ("Answer: **A**", "A", True),
    ("<answer>**Yes.**</answer>", "yes", True),
    ("<answer>YES!</answer>", "yes", True),
    ("<answer>false</answer>", "no", True),
    ("<answer>A and B</answer>", "A", False),
    ("<answer>A. and B.</answer>", "A", False),
    ("<answer>A, B</answer>", "A", False),
    ("<answer>A/B</answer>", "A", False),
    ("<answer>AB</answer>", "A", False),
    ("<answer>A good one</answer>", "A", False),
    ("<answer>B. Aspirin</answer>", "A", False),
    ("<answer>yes, or no</answer>", "yes", False),
    ("<answer>not yes</answer>", "yes", False),
    ("<answer></answer>", "A", False),
    ("A", "A", False),
    ("<think><answer>A</answer>", "A", False),
]


@pytest.mark.parametrize(("reply", "gold", "right"), CHOICES)
def test_choices_by_letter(reply: str, gold: str, right: bool) -> None:
    assert grade_choice(reply, gold).right is right


@pytest.mark.parametrize(
    ("reply", "gold", "right"),
    [
        ("It is −5 then.", "-5", True),
        ("It is –5 then.", "-5", True),
        ("from 3–5", "5", True),
        ("It is 1{,}000 then.", "1000", True),
        (r"It is 1\,000 then.", "1000", True),
        (r"It is 50\% then.", "50%", True),
        ("It is 50 then.", r"50\%", True),
        ("It is 5 then.", "-5", False),
        ("<think>It is 5", "5", False),
    ],
)
def test_the_last_number_comes_without_decorations(reply: str, gold: str, right: bool) -> None:
    assert grade_math(reply, gold, "last-number").right is right


def test_the_symbolic_grader_sees_through_what_stands_around_a_formula() -> None:
    pytest.importorskip("math_verify")
    for reply in (r"Answer: \(2^{10}\)", r"Answer: **$2^{10}$**", r"Answer: `2^{10}`.", r"<answer>\[2^{10}\]</answer>"):
        assert grade_math(reply, "1024", "symbolic").right, reply


@pytest.mark.parametrize(
    "form", ["Answer: {}", "Answer: **{}**", r"Answer: \({}\)", "Answer: `{}`", "<answer>{}</answer>"]
)
def test_reasoning_gym_gets_answers_without_decorations(form: str) -> None:
    pytest.importorskip("reasoning_gym")
    env = make("rg:chain_sum")
    env.reset(seed=3)
    gold = (env.unwrapped.solution() or [""])[0].removeprefix("Answer: ")  # type: ignore[attr-defined]
    assert env.step(form.format(gold))[4]["success"]
    env.reset(seed=3)
    assert not env.step(form.format(int(gold) + 1))[4]["success"]


def test_the_same_answer_is_the_same_both_ways() -> None:
    for one, other in [("7", "7.0"), ("1/2", "0.5"), ("1,000", "1 000"), ("yes", "True"), (r"\frac{1}{2}", "0.5")]:
        assert same(one, other) and same(other, one)
    assert not same("", "") and not same_choice("", "")
    assert normalise("2 * 3") == normalise("2*3") != normalise("23")


@pytest.mark.parametrize(
    "reply",
    [
        "Answer:" + "\n" * 100_000, "Answer: \\[" * 20_000, "answer" + "*" * 100_000, "Answer: 1" + " " * 100_000 + "x",
        "Answer: " + "1 " * 50_000, "Answer: " + "1*" * 50_000, "<answer>" * 20_000, "\\boxed " * 20_000,
        "Answer: " + "9" * 100_000, "Answer: " + "1,000" * 20_000, "Answer: " + "\\text{" * 20_000,
        "Answer: \\[\n" + "\n" * 100_000, "Answer: " + "(" * 100_000, "<think>" * 20_000,
    ],
    ids=range(14),
)  # fmt: skip
def test_no_reply_makes_the_grader_slow(reply: str) -> None:
    began = time.perf_counter()
    grade_math(reply, "5", "last-number")
    grade_choice(reply, "A")
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    ("said", "right", "metrics"),
    [
        ({"success": False, "words": 1}, False, {"words": 1.0}),
        (0.4, False, {"score": 0.4}),
        (1, True, {"score": 1.0}),
        (True, True, {}),
    ],
)
def test_a_function_from_python_is_read_as_one_from_a_file(said: Any, right: bool, metrics: dict[str, float]) -> None:
    env = DatasetEnv([{"question": "q", "answer": "1"}], grade=lambda reply, gold: said)
    env.reset(seed=0)
    _, reward, _, _, info = env.step("x")
    assert (reward, info["success"], info.get("metrics", {})) == (float(right), right, metrics)


def test_a_function_that_returns_something_else_is_told() -> None:
    env = DatasetEnv([{"question": "q", "answer": "1"}], grade=lambda reply, gold: "wrong")
    env.reset(seed=0)
    with pytest.raises(EnvError, match="grade returned 'wrong'; wanted True or False"):
        env.step("x")


@pytest.mark.parametrize(
    "given", [{"grader": "grade.py:legs"}, {"checks": {"max_words": 3}}, {"grader": "last-number"}, {}]
)
def test_given_words_stand_below_every_question(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grade.py").write_text("def legs(row, reply):\n    return True\n")
    monkeypatch.chdir(tmp_path)
    for question in ("How many?", "How many? End with Answer: N"):
        env = DatasetEnv([{"question": question, "answer": "1"}], actions="One word.", **given)
        assert env.reset(seed=0)[0] == f"{question}\n\nOne word."
