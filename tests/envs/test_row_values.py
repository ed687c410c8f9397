"""Cells that are no plain text: read where their form is common, refused with the row where it is not."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

import pytest

from agentopcd.core.errors import EnvError, TaskLeak
from agentopcd.envs import DatasetEnv, build_splits
from agentopcd.envs.questions.rows import QuestionRow, load_rows, rows_from


def one(**row: Any) -> QuestionRow:
    (found,) = rows_from([row])
    return found


def wins(row: QuestionRow | Mapping[str, Any], reply: str) -> bool:
    env = DatasetEnv([row])  # type: ignore[list-item]
    env.reset(seed=0)
    return bool(env.step(reply)[4]["success"])


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


USER = said("user", "2+5?")


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ([said("user", [{"type": "text", "text": "2+5?"}])], "2+5?"),
        ([said("user", [{"type": "text", "text": "2+"}, {"type": "text", "text": "5?", "image_url": None}])], "2+5?"),
        ([said("user", ["2+", "5?"])], "2+5?"),
        ([USER, said("assistant", None)], "2+5?"),
        ([USER, said("assistant", "")], "2+5?"),
        ([said("system", "Be brief."), USER], "System: Be brief.\n\nUser: 2+5?"),
        ([USER, said("assistant", "7"), said("user", "And 3+4?")], "User: 2+5?\n\nAssistant: 7\n\nUser: And 3+4?"),
        ([USER, said("user", "And 3+4?")], "2+5?\n\nAnd 3+4?"),
        ([{"from": "human", "value": "2+5?"}], "2+5?"),
        ('[{"role": "user", "content": "2+5?"}]', "2+5?"),
        ("[1, 2] has how many parts?", "[1, 2] has how many parts?"),
    ],
)
def test_chat_messages_become_the_question(prompt: Any, shown: str) -> None:
    assert one(prompt=prompt, answer="7").prompt == shown


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([said("user", None)], "a message of the user must be text, got None"),
        ([said("user", [{"type": "image_url", "image_url": "x"}])], "a part of type 'image_url'; only text"),
        ([USER, said("assistant", "7")], "the last message is the assistant's"),
        ([said("tool", "7"), USER], "a message is by 'tool'"),
        ([said("assistant", "") | {"tool_calls": [{"name": "f"}]}, USER], "a message calls a tool"),
        ("[{'role': 'user', 'content': '2+5?'}]", r"written by str\(\)"),
        (["2+5?"], "must be text or chat messages"),
        ({"stem": "2+5?"}, "must be text or chat messages"),
        (7, "must be text or chat messages"),
        (b"2+5?", "must be text or chat messages"),
    ],
)
def test_other_questions_are_refused_with_their_row(prompt: Any, says: str) -> None:
    with pytest.raises(EnvError, match=rf"^row 2: .*{says}"):
        rows_from([{"prompt": "1+1?", "answer": "2"}, {"prompt": prompt, "answer": "7"}])


@pytest.mark.parametrize(
    ("answer", "golds"),
    [
        (7, ("7",)),
        (7.5, ("7.5",)),
        (1e22, ("10000000000000000000000",)),
        (1e-7, ("0.0000001",)),
        (True, ("yes",)),
        (["7"], ("7",)),
        (["7", "seven", "7"], ("7", "seven")),
        ({"target": ["7", "seven"]}, ("7", "seven")),
        ({"value": 4}, ("4",)),
        ({"value": "7", "aliases": ["seven"]}, ("7", "seven")),
        ({"text": ["7"], "answer_start": [3]}, ("7",)),
        ("so\n#### 7", ("7",)),
        (' ["7", "seven"]', ("7", "seven", '["7", "seven"]')),  # as a table holds a list; it may be the answer itself
        ('["7"]', ("7", '["7"]')),
        ('["so #### 7", "seven"]', ("7", "seven")),
        ('["so \\\\boxed{7}"]', ("7",)),
        ({"target": '["7", "seven"]'}, ("7", "seven", '["7", "seven"]')),
        ("[7, 8]", ("[7, 8]",)),
        ("[7", ("[7",)),
        ("[]", ("[]",)),
        (["['7', 'seven']"], ("['7', 'seven']",)),
    ],
)
def test_right_answers_of_other_forms(answer: Any, golds: tuple[str, ...]) -> None:
    row = one(question="2+5?", answer=answer)
    assert (row.gold, *row.also) == golds
    for gold in golds:
        assert wins({"question": "2+5?", "answer": answer}, f"Answer: {gold}")
    assert not wins({"question": "2+5?", "answer": answer}, "Answer: 8")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "no answer in a row"),
        (math.nan, "no answer in a row"),
        (math.inf, "is inf"),
        ([], "has an empty answer"),
        (["7", ""], "has an empty answer"),
        ([7, 8], "whether it is one answer or several"),
        ("['7', 'seven']", r"a list that was written by str\(\): .*write several as JSON"),
        ("['7', \"seven's\"]", "a list that was written by str"),
        ('["7", ""]', "has an empty answer"),
        ({"which": "7"}, "an object with the keys which; name one"),
        (datetime.date(2026, 1, 1), "must be text or a number"),
        (b"7", "must be text or a number"),
        ("", "has an empty answer"),
    ],
)
def test_other_answers_are_refused_with_their_row(answer: Any, says: str) -> None:
    with pytest.raises(EnvError, match=rf"^row 1: .*{says}"):
        one(question="2+5?", answer=answer)


def test_rows_of_a_data_frame_hold_arrays_and_numbers_of_their_own() -> None:
    pandas = pytest.importorskip("pandas")
    numpy = pytest.importorskip("numpy")
    messages = numpy.array([USER], dtype=object)
    rows = [
        {"prompt": messages, "reward_model": {"ground_truth": numpy.array(["7", "seven"])}, "answer": pandas.NA},
        {"prompt": "2+6?", "answer": numpy.int64(8), "split": pandas.NaT},
        {"question": "2+7?", "choices": numpy.array(["8", "9"]), "answer": "9"},
    ]
    assert [(row.prompt, row.gold) for row in rows_from(pandas.DataFrame(rows[:2]).to_dict("records"))] == [
        ("2+5?", "7"), ("2+6?", "8")
    ]  # fmt: skip
    assert [(row.gold, row.also) for row in rows_from(rows)] == [("7", ("seven",)), ("8", ()), ("B", ())]
    assert rows_from(rows)[0].source is rows[0]  # graders of one's own see the row as it was given
    with pytest.raises(EnvError, match="row 1 must be a mapping"):
        rows_from(["2+5?"])  # type: ignore[list-item]


def test_an_empty_answer_gives_way_to_the_next_column() -> None:
    assert one(question="2+5?", answer=math.nan, solution=r"\boxed{7}").gold == "7"
    assert one(prompt="", question="2+5?", answer="", target="7") == QuestionRow("2+5?", "7")


def test_what_belongs_to_the_question_stands_before_it() -> None:
    assert one(instruction="Add them.", input="2 5", answer="7").prompt == "Add them.\n\n2 5"
    assert one(instruction="Add 2 and 5.", input="", answer="7").prompt == "Add 2 and 5."
    assert one(instruction="Add.", question="2 5", answer="7").prompt == "Add.\n\n2 5"
    assert one(instruction="Add.", prompt="Add. 2 5", answer="7").prompt == "Add. 2 5"  # it is in there already
    row = one(question="is the sky blue", passage="The sky is blue.", answer=True)
    assert (row.prompt, row.gold) == ("The sky is blue.\n\nis the sky blue", "yes")
    assert one(prompt="2+5?", context="other", answer="7").prompt == "2+5?"  # of a question only
    with pytest.raises(EnvError, match="name it with --env-arg prompt_key=KEY"):
        one(stem="2+5?", answer="7")


def test_two_questions_in_a_row_are_one_too_many() -> None:
    assert one(prompt="Solve this: 2+5?", problem="2+5?", answer="7").prompt == "Solve this: 2+5?"
    assert one(prompt="2+5?", question="Q: 2+5?", answer="7").prompt == "2+5?"
    assert one(prompt="2+5?", input={"id": 3}, answer="7").prompt == "2+5?"
    with pytest.raises(EnvError, match="row 1: has two questions, the second in 'question'; name the right one with"):
        one(prompt="1+1?", question="2+5?", answer="7")
    (row,) = rows_from([{"prompt": "1+1?", "question": "2+5?", "answer": "7"}], "question")
    assert row.prompt == "2+5?"


# -- choices -------------------------------------------------------------------------------------------

FOUR = "2+5?\nA. 6\nB. 7\nC. 8\nD. 9"


@pytest.mark.parametrize(
    "row",
    [
        {"choices": ["6", "7", "8", "9"], "answer": "B"},
        {"choices": ["6", "7", "8", "9"], "answer": "7"},
        {"choices": [6, 7, 8, 9], "answer": 7},
        {"choices": ["6", "7", "8", "9"], "answer": "B. 7"},
        {"options": ["6", "7", "8", "9"], "answer": "(B)"},
        {"options": {"A": "6", "B": "7", "C": "8", "D": "9", "E": None}, "answer_idx": "B", "answer": "7"},
        {"choices": {"text": ["6", "7", "8", "9"], "label": ["A", "B", "C", "D"]}, "answerKey": "B"},
        {"choices": {"text": ["6", "7", "8", "9"], "label": ["1", "2", "3", "4"]}, "answerKey": "2"},
        {"choices": [{"label": x, "text": t} for x, t in zip("ABCD", "6789", strict=True)], "answerKey": "B"},
        {"choices": '["6", "7", "8", "9"]', "answer": "B"},
        {"A": "6", "B": "7", "C": "8", "D": "9", "answer": "B"},
        {"option_a": "6", "option_b": "7", "option_c": "8", "option_d": "9", "answer": "b"},
        {"opa": "6", "opb": "7", "opc": "8", "opd": "9", "answer": "B"},
        {"choices": ["6", "7", "8", "9"], "reward_model": {"ground_truth": ["B"]}},
    ],
)
def test_choices_are_shown_and_the_right_one_has_a_letter(row: dict[str, Any]) -> None:
    row = {"question": "2+5?", **row}
    found = one(**row)
    assert (found.prompt, found.gold, found.kind) == (FOUR, "B", "choice")
    assert wins(row, "<answer>B</answer>") and not wins(row, "<answer>C</answer>")


def test_numbers_of_choices_count_from_what_the_whole_file_says() -> None:
    def row(n: int) -> dict[str, Any]:
        return {"question": f"q{n}", "choices": ["x", "y", "z"], "answer": n}

    assert [found.gold for found in rows_from([row(0), row(2)])] == ["A", "C"]
    assert [found.gold for found in rows_from([row(3), row(1)])] == ["C", "A"]
    with pytest.raises(EnvError, match="row 1: cannot tell whether 1 counts the choices from 0 or from 1"):
        rows_from([row(1), row(2)])
    with pytest.raises(EnvError, match="cannot tell"):
        rows_from([row(0), row(3)])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"choices": ["6", "7"], "answer": 1}, "from 0 or from 1; write the letter"),
        ({"choices": ["6", "7"], "answer": "C"}, "is none of the choices 6, 7"),
        ({"choices": ["6", "7"], "answer": ["A", "B"]}, "is none of the choices"),
        ({"choices": ["6", "7"]}, "no right choice in a row"),
        ({"choices": ["6"], "answer": "A"}, "has 2 to 26 choices, got 1"),
        ({"choices": ["6", None], "answer": "A"}, "choice B must be text, got None"),
        ({"choices": "6 or 7", "answer": "A"}, "choices must be a list of texts"),
        ({"A": "6", "B": "7", "C": "", "D": "9", "answer": "A"}, "choice C must be text"),
    ],
)
def test_choices_that_do_not_tell_are_refused_with_their_row(row: dict[str, Any], says: str) -> None:
    with pytest.raises(EnvError, match=rf"^row 1: .*{says}"):
        one(question="2+5?", **row)


def test_named_columns_keep_their_choices() -> None:
    row = {"stem": "2+5?", "choices": ["6", "7"], "key": "B"}
    (found,) = rows_from([row], "stem", "key")
    assert (found.prompt, found.gold, found.kind) == ("2+5?\nA. 6\nB. 7", "B", "choice")
    (found,) = rows_from([{**row, "stem": "Is 2+5 6 or 7?", "key": "7"}], "stem", "key")  # it shows them itself
    assert (found.prompt, found.gold, found.kind) == ("Is 2+5 6 or 7?", "7", "math")
    numbered = [{"stem": f"q{n}", "choices": ["x", "y"], "key": n, "answer": "A"} for n in (0, 1)]
    assert [found.gold for found in rows_from(numbered, "stem", "key")] == ["A", "B"]


def test_choices_are_shown_where_checks_or_a_grader_decide() -> None:
    row = {"question": "2+5?", "choices": ["6", "7"], "answer": 1}
    shown = "2+5?\nA. 6\nB. 7"
    (found,) = rows_from([row], free=True)
    assert (found.prompt, found.gold, found.kind) == (shown, "", "checks")
    assert one(**row, checks={"max_words": 1}).prompt == shown
    (found,) = rows_from([{**row, "question": shown}], free=True)
    assert found.prompt == shown
    (found,) = rows_from([{"question": "2+5?", "options": {"temperature": 0}}], free=True)  # no choices
    assert found.prompt == "2+5?"


def test_choices_that_the_question_lists_are_not_listed_twice() -> None:
    text = "2+5?\n(A) 6\n(B) 7"
    assert one(question=text, choices=["6", "7"], answer="B").prompt == text


# -- several layouts in one file -----------------------------------------------------------------------

TWEET = {"text": "you fool", "label": 1}
HATE = {"test_case": "go home", "label_gold": "hateful"}
ETHOS = {"comment": "hm, well", "isHate": 0.2}
FIGURE_13 = {"prompt": "Is this hateful? Reply with <answer>yes</answer> or <answer>no</answer>.\nhi", "answer": "no"}


def test_a_file_may_mix_layouts() -> None:
    rows = rows_from([TWEET, HATE, ETHOS, FIGURE_13, {"question": "2+5?", "answer": "7"}])
    assert [(row.gold, row.kind) for row in rows] == [
        ("yes", "choice"), ("yes", "choice"), ("no", "choice"), ("no", "math"), ("7", "math")
    ]  # fmt: skip
    assert [row.actions.partition("?")[0] for row in rows[:3]] == [
        "Is this text offensive", "Is this text hateful", "Is this text hateful"
    ]  # fmt: skip


def test_a_text_with_a_label_may_have_a_question_of_its_own() -> None:
    review = {"question": "Is this review positive? 1 or 0.", "text": "Great film", "label": 1}
    mine, tweet = rows_from([review, TWEET])
    assert (mine.prompt, mine.gold) == ("Great film\n\nIs this review positive? 1 or 0.", "1")
    assert tweet.actions.startswith("Is this text offensive?")
    whole = {"prompt": "Say yes or no: Great film?", "text": "Great film", "label": True}
    assert [(row.prompt, row.gold) for row in rows_from([whole])] == [(whole["prompt"], "yes")]
    listed = {**review, "question": "Is it good?", "choices": ["no", "yes"], "answer": "B"}
    assert one(**listed).prompt == "Great film\n\nIs it good?\nA. no\nB. yes"


def test_a_table_of_mixed_layouts_has_empty_cells() -> None:
    columns = dict.fromkeys((*TWEET, *HATE, *ETHOS, "question", "answer", "checks", "cop", "opa"))
    mixed = [columns | row for row in (TWEET, HATE, ETHOS, {"question": "2+5?", "answer": "7"})]
    assert [row.gold for row in rows_from(mixed)] == ["yes", "yes", "no", "7"]
    blank = [{name: "" if value is None else str(value) for name, value in row.items()} for row in mixed]
    assert [row.gold for row in rows_from(blank)] == ["yes", "yes", "no", "7"]  # as CSV has it


def test_the_wording_of_the_paper_s_safety_prompt_is_graded_as_it_asks() -> None:
    assert wins(FIGURE_13, "<answer>no</answer>") and wins(FIGURE_13, "So: <answer> No. </answer>")
    assert not wins(FIGURE_13, "<answer>yes</answer>") and not wins(FIGURE_13, "no")
    assert wins(FIGURE_13, "Answer: no")
    env = DatasetEnv([FIGURE_13])
    assert [kind for kind, _ in env.reset(seed=0)[1]["parts"]] == ["state"]  # it says itself how to answer


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"comment": "b", "isHate": "no"}, "isHate must be a share from 0 to 1, got 'no'"),
        ({"comment": "b", "isHate": math.nan}, "isHate must be a share"),
        ({"comment": "b", "isHate": 10**400}, "isHate must be a share"),
        ({"test_case": "b"}, "label_gold must be hateful or non-hateful, got None"),
        ({"text": "b", "label": 3}, "no question in a row"),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": 5}}, "labels of choices must be a list, got 5"),
        ({"question": "q", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": ""}, "cop must be a whole number"),
        ({"question": "q", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": "B"}, "cop must be a whole number"),
        (
            {"question": "q", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": 10**400},
            "cop must be a whole number",
        ),
    ],
)
def test_a_bad_label_is_refused_with_its_row(row: dict[str, Any], says: str) -> None:
    with pytest.raises(EnvError, match=rf"^row 2: .*{says}"):
        rows_from([ETHOS, row])


def test_nulls_of_parquet_are_no_checks(tmp_path: Any) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows: list[dict[str, Any]] = [
        {"question": "Say a.", "checks": {"max_words": 1, "case": None}, "answer": None},
        {"question": "Say B.", "checks": {"case": "upper"}},
    ]
    table = pytest.importorskip("pyarrow").Table.from_pylist([*rows, {"question": "2+5?", "answer": ["7", "seven"]}])
    parquet.write_table(table, tmp_path / "a.parquet")
    found = load_rows(str(tmp_path / "a.parquet"))
    assert [dict(row.checks) for row in found] == [{"max_words": 1}, {"case": "upper"}, {}]
    assert (found[2].gold, found[2].also) == ("7", ("seven",))


# -- splits --------------------------------------------------------------------------------------------


def test_a_question_without_a_split_takes_that_of_its_repeat() -> None:
    rows = [{"question": "q?", "answer": "1"}, {"question": "Q?", "answer": "1", "split": "test"}]
    assert [row.split for row in rows_from(rows)] == [row.split for row in rows_from(rows[::-1])] == ["test"]
    with pytest.raises(TaskLeak, match="row 2 puts a question of 'train' in 'test'"):
        rows_from([rows[0] | {"split": "train"}, rows[1]])


@pytest.mark.filterwarnings("ignore:.*names a split")
def test_rows_without_a_split_do_not_vanish(tmp_path: Any) -> None:
    def sizes(total: int, **named: range) -> dict[str, int]:
        split = {n: name for name, numbers in named.items() for n in numbers}
        lines = (f"q{n}?,{n},{split.get(n, '')}" for n in range(total))
        (tmp_path / "rows.csv").write_text("\n".join(["question,answer,split", *lines]))
        manifest = build_splits(str(tmp_path / "rows.csv"))
        keys = [task.key for tasks in manifest.splits.values() for task in tasks]
        assert len(keys) == len(set(keys)) == manifest.distinct == total
        return {name: len(tasks) for name, tasks in manifest.splits.items() if tasks}

    # 190 rows without a split: what the file does not name is cut from them, by the usual shares
    assert sizes(200, test=range(10)) == {"test": 10, "confirm": 32, "select": 30, "extract": 15, "train": 113}
    # train and test are named, but nothing to choose on: that is cut from train
    assert sizes(400, test=range(200), train=range(200, 400)) == {
        "test": 200, "confirm": 34, "select": 32, "extract": 16, "train": 118
    }  # fmt: skip
    # select is named: test is cut from the rows without a split, never from train
    assert sizes(300, select=range(50), train=range(50, 200)) == {
        "test": 65, "confirm": 42, "select": 50, "extract": 20, "train": 123
    }  # fmt: skip
    assert sizes(12, test=range(2)) == {"test": 2, "train": 10}  # too few to cut
    assert sizes(120, test=range(120)) == {"test": 120}
    assert sizes(60, train=range(60)) == {"train": 60}


def test_a_split_of_another_name_is_refused(tmp_path: Any) -> None:
    (tmp_path / "named.py").write_text(
        """from agentopcd.envs import TextEnv


class Named(TextEnv):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        obs, info = self.first(key=seed, state=f"Room {seed}.")
        return obs, info | {"split": "validation" if seed % 2 else "train"}
"""
    )
    with pytest.raises(EnvError, match=r"info\['split'\] of seed 1 is 'validation'; splits are test, confirm"):
        build_splits(f"{tmp_path / 'named.py'}:Named", seeds=8)
    with pytest.warns(UserWarning, match="names a split for 1 of 2 tasks; the others are train"):
        (tmp_path / "rows.csv").write_text("question,answer,split\nq1?,1,test\nq2?,2,\n")
        build_splits(str(tmp_path / "rows.csv"))
    with pytest.raises(EnvError, match="say which are 'test', so its size cannot be given"):
        build_splits(str(tmp_path / "rows.csv"), sizes={"test": 1})
