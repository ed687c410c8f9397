from __future__ import annotations

import builtins
import json
import random
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentopcd.core.errors import DependencyError, EnvError
from agentopcd.envs import DatasetEnv, check_env, make, task_key
from agentopcd.envs.questions.rows import QuestionRow, load_rows, rows_from


def solution(env: Any) -> list[str]:
    return env.unwrapped.solution()


def read(question: str) -> int:
    """Work out a question of this package, independently of how it was made."""
    expression = re.fullmatch(r"What is (.+)\?", question)
    assert expression and set(expression.group(1)) <= set("0123456789+-*() ")
    return eval(expression.group(1))


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_every_level_asks_what_its_gold_answers(level: int) -> None:
    env = make("math", level=level)
    for seed in range(200):
        _, info = env.reset(seed=seed)
        gold = str(read(dict(info["parts"])["state"]))
        assert solution(env) == [f"Answer: {gold}"]


def test_level_one_is_small_sums_and_the_default_has_thousands_of_questions() -> None:
    one = {make("math", level=1).reset(seed=seed)[1]["parts"][0][1] for seed in range(50)}
    assert all(re.fullmatch(r"What is (1?\d|20) [+-] (1?\d|20)\?", question) for question in one)
    assert all(0 <= read(question) <= 40 for question in one)
    env = make("math")
    assert len({task_key(*env.reset(seed=seed)) for seed in range(2000)}) > 1800


def test_ops_narrow_the_signs() -> None:
    env = make("math", level=3, ops="*")
    assert "+" not in env.reset(seed=1)[1]["parts"][0][1]
    for wrong in ("", "/", 3):
        with pytest.raises(EnvError, match="ops must be some of"):
            make("math", ops=wrong)
    for wrong in (0, 6, "two"):
        with pytest.raises(EnvError, match="level must be one of 1, 2, 3, 4, 5"):
            make("math", level=wrong)


def test_no_verdict_reaches_the_text_and_the_kinds_are_question_and_format() -> None:
    env = make("math")
    _, info = env.reset(seed=4)
    assert [kind for kind, _ in info["parts"]] == ["state", "actions"]
    right = solution(env)[0]
    obs, reward, terminated, _, info = env.step(right)
    assert (obs, reward, terminated, info["success"], info["parts"]) == ("", 1.0, True, True, [])
    env.reset(seed=4)
    obs, reward, _, _, info = env.step("I do not know")
    assert (obs, reward, info["success"], info["invalid"]) == ("", 0.0, False, True)
    assert info["metrics"] == {"no_answer": 1.0}
    with pytest.raises(EnvError, match=r"call reset\(\)"):
        env.step(right)


def test_a_bare_number_is_an_answer() -> None:
    env = make("math", level=1)
    env.reset(seed=2)
    gold = solution(env)[0].removeprefix("Answer: ")
    assert env.step(f"{gold}.")[1] == 1.0


def test_the_grader_for_tiny_models_asks_for_no_format_and_takes_the_last_number() -> None:
    env = make("math", level=1, grader="last-number")
    _, info = env.reset(seed=2)
    assert [kind for kind, _ in info["parts"]] == ["state"]
    gold = solution(env)[0].removeprefix("Answer: ")
    assert env.step(f"Let me see, 1 or 2, I say {gold} it is")[1] == 1.0


def test_the_question_depends_on_the_seed_alone() -> None:
    random.seed(1)
    first = make("math").reset(seed=8)
    random.seed(2)
    env = make("math")
    env.reset(seed=1)
    assert env.reset(seed=8) == first


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


DAPO = {
    "prompt": [{"role": "user", "content": "Solve it. The last line is Answer: $Answer.\n\nWhat is 6*7?"}],
    "reward_model": {"ground_truth": "42", "style": "rule"},
    "data_source": "math_dapo",
}
MEDMCQA = {"question": "Which?", "opa": "a1", "opb": "b1", "opc": "c1", "opd": "d1", "cop": 0}


@pytest.mark.parametrize(
    ("rows", "prompt", "gold", "kind"),
    [
        ([DAPO], "Solve it.", "42", "math"),
        ([{"question": "2+2?", "answer": "two and two\n#### 1,004"}], "2+2?", "1,004", "math"),
        ([{"problem": "p", "solution": r"so \boxed{\frac{1}{2}} it is"}], "p", r"\frac{1}{2}", "math"),
        ([MEDMCQA, {**MEDMCQA, "question": "B?", "cop": 3}], "Which?\nA. a1", "A", "choice"),
        ([{**MEDMCQA, "cop": 4}, {**MEDMCQA, "question": "B?", "cop": 1}], "Which?", "D", "choice"),
        ([{"text": "you fool", "label": 1}, {"text": "hi", "label": 0}], "you fool", "yes", "choice"),
        ([{"test_case": "hi", "label_gold": "non-hateful"}], "hi", "no", "choice"),
        ([{"comment": "hm", "isHate": "0.5"}], "hm", "yes", "choice"),
        ([{"input": "1+1", "target": 2}], "1+1", "2", "math"),
    ],
)
def test_the_common_layouts(rows: list[dict], prompt: str, gold: str, kind: str) -> None:
    row = rows_from(rows)[0]
    assert row.prompt.startswith(prompt) and (row.gold, row.kind) == (gold, kind)
    env = DatasetEnv(rows)
    obs, _ = env.reset(seed=0)
    assert obs.startswith(prompt)
    assert env.step((env.solution() or [""])[0])[1] == 1.0


def test_no_second_format_instruction() -> None:
    assert [kind for kind, _ in DatasetEnv([DAPO]).reset(seed=0)[1]["parts"]] == ["state"]
    parts = DatasetEnv([MEDMCQA, {**MEDMCQA, "question": "x", "cop": 3}]).reset(seed=0)[1]["parts"]
    assert "<answer>" in parts[1][1]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no rows"),
        ([{"question": "q", "answer": ""}], "empty answer"),
        ([{"question": " ", "answer": "1"}], "empty question"),
        ([{"q": "q", "a": "1"}], "no question in a row with the keys q, a; .*--env-arg prompt_key=KEY"),
        ([{"question": "q", "gold": "1"}], "no answer in a row with the keys question, gold"),
        (
            [{"prompt": "Where is it?"}],
            "--grader FILE.py:FUNCTION; where nothing is right or wrong, write the",
        ),
        (
            [{"body": {"messages": [{"role": "user", "content": "q"}]}}],
            "a conversation is in body.messages: write",
        ),
        ([{"data": [{"prompt": "q"}]}], "the rows are in data: write that list alone into the file"),
        ([{"question": "q", "answer": "$ $"}], "would not accept its own answer"),
        ([{**MEDMCQA, "cop": 2}], "cannot tell whether it counts from 0"),
        ([{**MEDMCQA, "cop": -1}], "a test file without answers"),
        ([{"question": 5, "answer": "1"}], "text or chat messages"),
        ([{"question": "q", "answer": "1", "split": "dev"}], "splits are test, confirm"),
    ],
)
def test_rows_that_cannot_be_right_are_refused(rows: list[dict], words: str) -> None:
    with pytest.raises(EnvError, match=words):
        rows_from(rows)


def test_files_of_every_kind(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n}+0?", "answer": str(n)} for n in range(3)]
    jsonl = write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.csv").write_text("question,answer\n" + "".join(f"What is {n}+0?,{n}\n" for n in range(3)))
    (tmp_path / "b.csv").write_text("comment;isHate\nhm, well;0.2\n")
    assert load_rows(jsonl) == load_rows(str(tmp_path / "a.csv"))
    assert load_rows(str(tmp_path / "b.csv"))[0].gold == "no"
    assert make(jsonl).reset(seed=4)[0].startswith("What is 1+0?")
    assert isinstance(inner := make(jsonl).unwrapped, DatasetEnv) and inner.num_tasks == 3
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist([DAPO, DAPO])
    parquet.write_table(table, tmp_path / "a.parquet")
    assert [row.gold for row in load_rows(str(tmp_path / "a.parquet"))] == ["42"]


def test_own_columns_and_dotted_paths(tmp_path: Path) -> None:
    file = write(tmp_path / "own.jsonl", [{"meta": {"ask": "q"}, "key": {"a": 7}}])
    assert load_rows(file, "meta.ask", "key.a") == [QuestionRow(prompt="q", gold="7")]
    with pytest.raises(EnvError, match=r"own.jsonl: row 1: no question"):
        load_rows(file)


def test_bad_files_give_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\nnot json\n')
    with pytest.raises(EnvError, match="line 2 is not JSON"):
        load_rows(str(tmp_path / "bad.jsonl"))
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(EnvError, match="must be an object, got list"):
        load_rows(str(tmp_path / "list.jsonl"))
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(EnvError, match=r"a\.txt: there are no rows"):
        load_rows(str(tmp_path / "a.txt"))
    with pytest.raises(EnvError, match="no file"):
        load_rows(str(tmp_path / "none.jsonl"))
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(EnvError, match="cannot be read as parquet"):
        load_rows(str(tmp_path / "a.parquet"))
    real = builtins.__import__

    def without_pyarrow(name: str, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(DependencyError, match="pip install pyarrow"):
        load_rows(str(tmp_path / "a.parquet"))


def test_repeated_questions_count_once_and_conflicts_are_told() -> None:
    same = [{"question": "A  b?", "answer": "1"}, {"question": "a B?", "answer": "1"}]
    assert len(rows_from(same)) == 1
    with pytest.warns(UserWarning, match="1 repeated questions have another answer"):
        rows_from([*same, {"question": "A  b?", "answer": "2"}])
    with pytest.warns(UserWarning, match="2 of 3 rows repeat"):
        rows_from([*same, same[0]])


def test_questions_that_differ_in_capitals_only_are_told_apart_from_repeats() -> None:
    asked = [{"question": f"ASCII code of {letter}?", "answer": code} for letter, code in (("a", "97"), ("A", "65"))]
    with pytest.warns(UserWarning) as warned:
        assert [row.gold for row in rows_from(asked)] == ["97"]
    (said,) = [str(warning.message) for warning in warned]
    assert said.startswith("1 questions with another answer (the first: row 2) differ from an earlier one only in cap")
    with pytest.warns(UserWarning) as warned:
        rows_from([*asked, asked[0] | {"answer": "1"}])
    assert sorted(str(warning.message)[:20] for warning in warned) == ["1 questions with ano", "1 repeated questions"]


def test_rows_ask_for_a_form_with_every_grader_and_for_none_with_empty_actions() -> None:
    rows = [{"question": "q", "answer": "42"}]
    asked = [DatasetEnv(rows, grader="last-number", actions=how).reset(seed=0)[0] for how in (None, "")]
    assert "Answer:" in asked[0] and asked[1] == "q"


@pytest.mark.parametrize(
    ("one", "two", "free", "says"),
    [
        ({"answer": ["1", "2"]}, {"answer": ["1", "3"]}, False, "1 repeated questions have another answer"),
        ({"checks": {"max_words": 1}}, {"checks": {"max_words": 9}}, False, "have another 'checks'; the first row"),
        ({"wanted": "red"}, {"wanted": "blue"}, True, "have another 'wanted'; the first row"),
        ({"answer": ["1", "2"]}, {"answer": ["2", "1"]}, False, ""),
        ({"wanted": None, "split": "train"}, {"wanted": "", "split": ""}, True, ""),
    ],
)
def test_repeated_questions_that_ask_for_something_else_are_told(one: Any, two: Any, free: bool, says: str) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert len(rows_from([{"question": "A  b?", **one}, {"question": "A  b?", **two}], free=free)) == 1
    assert [says in str(warning.message) for warning in told] == ([True] if says else [])


def test_an_own_grader_and_own_words() -> None:
    env = DatasetEnv([{"question": "q", "answer": "1"}], grade=lambda reply, gold: gold in reply, actions="Say it.")
    obs, _ = env.reset(seed=0)
    assert obs == "q\n\nSay it." and env.step("it is 1, yes")[1] == 1.0


def test_an_own_grader_sees_the_row_and_passes_the_checker() -> None:
    rows = [{"question": f"q{n}", "answer": str(n), "level": n} for n in range(3)]
    seen: list[int] = []

    def by_level(reply: str, gold: str, row: Mapping[str, Any]) -> bool:
        seen.append(row["level"])
        return reply == f"{gold} at {row['level']}"

    env = DatasetEnv(rows, grade=by_level)
    env.reset(seed=2)
    assert env.step("2 at 2")[1] == 1.0 and seen == [2]
    env.reset(seed=1)
    assert env.solution() is None  # what this grader takes is not known
    exact = DatasetEnv(rows, grade=lambda reply, gold, strict=True: strict and reply == gold)
    exact.reset(seed=1)
    assert exact.solution() == ["1"] and exact.step("1")[1] == 1.0
    for grade in (
        by_level,
        lambda reply, gold: reply == gold,
        lambda reply, gold, *, row: row["level"] == 1,
        lambda reply, gold, entry: reply == entry["answer"],
    ):
        report = check_env(lambda grade=grade: DatasetEnv(rows, grade=grade), n=3)
        assert report.errors == [], report


def test_a_solution_that_does_not_solve_is_one_error() -> None:
    class Wrong(DatasetEnv):
        def solution(self) -> list[str]:
            return ["Answer: 99"]

    report = check_env(lambda: Wrong([{"question": f"q{n}", "answer": str(n)} for n in range(8)]), n=8)
    assert report.errors == ["solution() of seed 0 does not solve it (8 of 8 seeds)"]


def test_reasoning_gym_questions() -> None:
    pytest.importorskip("reasoning_gym")
    env = make("rg:chain_sum")
    before = random.getstate()
    obs, _ = env.reset(seed=3)
    assert env.reset(seed=3)[0] == obs != env.reset(seed=4)[0]
    assert random.getstate() == before
    env.reset(seed=3)
    right = solution(env)[0]
    assert env.step(right)[1] == 1.0
    env.reset(seed=3)
    assert env.step("The answer is near " + right.removeprefix("Answer: "))[1] == 0.0
    with pytest.raises(EnvError, match="no task 'chain_sun'; did you mean 'chain_sum'"):
        make("rg:chain_sun")
    env = make("rg:prime_factorization")
    env.reset(seed=0)
    assert env.step("Answer: no numbers at all")[4]["success"] is False


def test_a_warning_is_one_line_on_the_command_line(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": "1 + 1?", "answer": answer}) + "\n" for answer in ("2", "3")))
    words = [sys.executable, "-m", "agentopcd", "envs", "splits", str(rows)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == "warning: 1 repeated questions have another answer; the first counts\n"


@pytest.mark.parametrize("task", ["list_functions", "pool_matrix"])
def test_tasks_that_use_the_global_generators_are_held_to_their_seed(task: str) -> None:
    pytest.importorskip("reasoning_gym")
    env = make(f"rg:{task}")
    random.seed(1)
    before = random.getstate(), str(np.random.get_state())
    first = [env.reset(seed=seed)[0] for seed in (1, 2, 3)]
    assert (random.getstate(), str(np.random.get_state())) == before
    random.seed(2)
    assert [make(f"rg:{task}").reset(seed=seed)[0] for seed in (1, 2, 3)] == first


def test_a_column_whose_name_holds_a_dot_is_found_by_that_name() -> None:
    flat = {"question.text": "2+5?", "answer.value": "7"}  # as pandas writes a table of objects
    (row,) = rows_from([flat], "question.text", "answer.value")
    assert (row.prompt, row.gold) == ("2+5?", "7")
    (row,) = rows_from([{"question": "2+5?", "reward_model.ground_truth": "7"}])
    assert row.gold == "7"
    (row,) = rows_from([{"question": "2+5?", "choices": ["6", "7"], "key.letter": "B"}], None, "key.letter")
    assert row.gold == "B"


@pytest.mark.parametrize(
    ("question", "label", "named"),
    [("Is it positive or negative?", "positive", None), ("How many stars?", "4", None), ("Stars?", 4, "label")],
)
def test_a_question_keeps_its_text_whatever_the_label_is(question: str, label: Any, named: str | None) -> None:
    films = ["Great film", "A waste of an evening"]
    rows = rows_from([{"text": film, "label": label, "question": question} for film in films], answer_key=named)
    assert [(row.prompt, row.gold) for row in rows] == [(f"{film}\n\n{question}", str(label)) for film in films]


def test_a_question_with_checks_or_choices_keeps_its_text() -> None:
    task = {"instruction": "Sum it up.", "text": "Zebras are striped.", "checks": {"max_words": 3}}
    assert rows_from([task])[0].prompt == "Zebras are striped.\n\nSum it up."
    listed = {"text": "Notable, yes", "question": "Good?", "choices": ["no", "yes"], "mine": "yes"}
    assert rows_from([listed], answer_key="mine")[0].prompt == "Notable, yes\n\nGood?\nA. no\nB. yes"
    assert rows_from([listed], prompt_key="question", answer_key="mine")[0].prompt == "Good?\nA. no\nB. yes"


def test_a_text_that_is_the_whole_example_is_not_shown() -> None:
    """Files for fine-tuning have such a column beside the parts; it tells the answer."""
    example = {"question": "What is 2+5?", "answer": "7", "text": "### Q: What is 2+5?\n### A: 7"}
    assert rows_from([example])[0].prompt == "What is 2+5?"
    listed = {**example, "choices": ["6", "7"], "answer": "B"}
    assert rows_from([listed])[0].prompt == "What is 2+5?\nA. 6\nB. 7"
    cut = {**example, "text": "Zoe counts. What is 2+5?"}
    assert rows_from([cut])[0].prompt == "Zoe counts. What is 2+5?\n\nWhat is 2+5?"
