from __future__ import annotations

import threading
import time

import pytest

from agentopcd.core.errors import EnvError
from agentopcd.envs.questions.grading import check_grader, find_answer, grade_choice, grade_math, last_number

TABLE = [
    ("Answer: 34", "34", True),
    ("**Answer:** 34", "34", True),
    ("**Answer**: 34", "34", True),
    ("Answer: $34$.", "34", True),
    ("Answer:\n34\n", "34", True),
    ("So the answer: 34", "34", True),
    (r"\boxed{1,000}", "1000", True),
    (r"\boxed{1 000}", "1000", True),
    (r"\boxed{1,000,000}", "1000000", True),
    (r"\boxed{\frac{1}{2}}", "1/2", True),
    (r"\boxed{\dfrac12}", "0.5", True),
    (r"\boxed{-\tfrac{1}{2}}", "-0.5", True),
    (r"\boxed{0.50}", "1/2", True),
    (r"\boxed{34\text{ }}", "34", True),
    ("\\boxed{12}\nAnswer: 13", "13", True),
    ("\\boxed{12}\nAnswer: 13", "12", False),
    ("Answer: 12, or rather \\boxed{13}", "13", True),
    (r"Answer: \boxed{13}", "13", True),
    (r"\boxed{2^{10}}", "1024", False),
    (r"\boxed{34}… no, \boxed{35}", "34", False),
    (r"\boxed{34}… no, \boxed{35}", "35", True),
    (r"\boxed{34} and \boxed{unfinished", "34", True),
    (r"\boxed{x = \{1\}}", r"x=\{1\}", True),
    ("I think 5", "5", False),
    ("5", "5", True),
    (" 5.\n", "5", True),
    ("<think>so 4 + 1</think>5", "5", True),
    ("−5", "-5", True),
    ("5 or 6", "5", False),
    ("", "5", False),
    (r"<think>\boxed{5}</think> \boxed{6}", "5", False),
    ("<think>Answer: 5</think> no idea", "5", False),
    (r"\boxed{9^{9^{9^{9}}}}", "5", False),
    (r"\boxed{1e999999999}", "5", False),
    (r"\boxed{\frac{1}{0}}", "5", False),
    (r"\boxed{2023-01-01}", "2021", False),
    (r"\boxed{}", "5", False),
    ("Answer: " + "9" * 5000, "5", False),
    ("\\boxed{" * 3000, "5", False),
    ("٥", "5", False),
]


@pytest.mark.parametrize(("reply", "gold", "right"), TABLE, ids=range(len(TABLE)))
def test_the_table_of_replies(reply: str, gold: str, right: bool) -> None:
    began = time.perf_counter()
    assert grade_math(reply, gold).right is right
    assert time.perf_counter() - began < 0.5


def test_no_answer_is_told_apart_from_a_wrong_one() -> None:
    assert grade_math("I think 5", "5").metrics == {"no_answer": 1.0}
    assert grade_math("Answer: 6", "5").metrics == {}
    assert grade_math("Answer: 6", "5").answer == "6"
    assert find_answer("I think") is None


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("I think 5", "5"),
        ("9 - 5 = 4.", "4"),
        ("9 -5", "5"),
        ("(9) - 5", "5"),
        ("it is -5", "-5"),
        ("1,234 or 5.50", "5.50"),
        ("about 1,234", "1,234"),
        ("<think>7</think> none", None),
        ("", None),
        ("7" * 5000, None),
    ],
)
def test_the_last_number(reply: str, number: str | None) -> None:
    assert last_number(reply) == number


def test_the_last_number_counts_only_when_no_answer_is_given() -> None:
    assert grade_math("I think 5", "5", "last-number").right
    assert not grade_math("Answer: 6, not 5", "5", "last-number").right
    assert not grade_math("I think 5", "5").right


@pytest.mark.parametrize(
    ("reply", "gold", "right"),
    [
        ("<answer>B</answer>", "B", True),
        ("<answer>A</answer> no <answer> b. </answer>", "B", True),
        ("<answer>Yes</answer>", "yes", True),
        ("B", "B", False),
        ("<answer>A or B</answer>", "A", False),
        ("<think><answer>B</answer></think>", "B", False),
    ],
)
def test_choices(reply: str, gold: str, right: bool) -> None:
    assert grade_choice(reply, gold).right is right


def test_an_unknown_grader_is_refused() -> None:
    with pytest.raises(EnvError, match=r"'plain', 'symbolic', 'last-number' or FILE\.py:FUNCTION, got 'grade.py'"):
        check_grader("grade.py")


def test_the_symbolic_grader_sees_equal_formulas_from_any_thread() -> None:
    pytest.importorskip("math_verify")
    assert check_grader("symbolic") == "symbolic"
    verdicts: list[bool] = []

    def ask() -> None:
        verdicts.append(grade_math(r"\boxed{2^{10}}", "1024", "symbolic").right)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert verdicts == [True]
    assert not grade_math(r"\boxed{2^{10}}", "1023", "symbolic").right
    assert not grade_math(r"\boxed{2023-01-01}", "2021", "symbolic").right
    assert not grade_math(r"\boxed{0.333}", "1/3", "symbolic").right
    assert grade_math(r"\boxed{(1,2)}", "(1, 2)", "symbolic").right


def test_a_hostile_formula_costs_one_wait_and_the_next_question_is_answered() -> None:
    pytest.importorskip("math_verify")
    from agentopcd.envs.questions import symbolic

    assert symbolic.equal("5", r"9^{9^{9^{9}}}", wait_s=0.3) is None
    assert symbolic.equal("5", "3+2") is True
    assert symbolic.equal("5", "3+3") is False
    assert not grade_math(r"\boxed{" + "1+" * 200 + "1}", "5", "symbolic").metrics  # too long to try
