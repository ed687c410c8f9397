"""The recipe of short answers: its questions, its reviewer, and its placebos."""

from __future__ import annotations

import json
import re
from collections import Counter
from types import ModuleType

import pytest

from agentopcd import envs
from agentopcd.core.types import MARKER, Context
from tests.conftest import ROOT, load_file

FOLDER = ROOT / "recipes" / "short-answers"
ROWS = str(FOLDER / "rows.jsonl")


@pytest.fixture(scope="module")
def placebos() -> ModuleType:
    return load_file(FOLDER / "placebos.py")


def notes() -> Context:
    return Context((FOLDER / "notes.txt").read_text().strip())


def test_the_file_of_rows_is_what_its_script_writes() -> None:
    make = load_file(FOLDER / "make_rows.py")
    written = [json.loads(line) for line in (FOLDER / "rows.jsonl").read_text().splitlines()]
    assert written == make.rows(0)
    assert [row["question"] for row in make.rows(0, silent=True)] == [row["question"] for row in written]
    assert not any("feedback" in row for row in make.rows(0, silent=True))
    assert make.rows(1) != written and sorted(map(str, make.rows(1))) == sorted(map(str, written))


def test_the_rows_are_distinct_tasks_and_enough_to_be_split() -> None:
    env = envs.make(ROWS)
    keys = {env.reset(seed=seed)[1]["task_key"] for seed in range(640)}
    assert len(keys) == 640


@pytest.mark.parametrize(
    ("reply", "right", "said"),
    [
        ("It shows the north.", True, "Good: one short sentence."),
        ("It shows the north. Sailors use it.", False, "Too long: one short sentence was wanted."),
        ("It shows " + "very " * 20 + "well.", False, "Too long: one short sentence was wanted."),
        ("", False, "Too long: one short sentence was wanted."),
    ],
)
def test_one_short_sentence_counts_and_the_reviewer_says_so(reply: str, right: bool, said: str) -> None:
    env = envs.make(ROWS)
    env.reset(seed=0)
    obs, _, _, _, info = env.step(reply)
    assert (info["success"], obs) == (right, said)


def words(context: Context) -> list[str]:
    return re.findall(r"\w+", " ".join(context.lines))


def test_a_permuted_context_has_the_same_words_elsewhere(placebos: ModuleType) -> None:
    one, twin = notes(), placebos.permuted(notes(), 0)
    assert Counter(word.lower() for word in words(one)) == Counter(word.lower() for word in words(twin))
    assert one.text != twin.text and placebos.permuted(one, 0) == twin != placebos.permuted(one, 1)
    for here, there in zip(words(one), words(twin), strict=True):
        assert here[0].isupper() == there[0].isupper()
        if here.lower() in placebos.FUNCTION_WORDS:
            assert here == there


def test_a_context_of_another_topic_keeps_the_length_of_each_word(placebos: ModuleType) -> None:
    one, twin = notes(), placebos.neutral(notes(), 0)
    assert list(map(len, words(one))) == list(map(len, words(twin)))
    changed = {there.lower() for here, there in zip(words(one), words(twin), strict=True) if here != there}
    assert changed and changed <= set(placebos.NEUTRAL)
    longest = max(map(len, placebos.NEUTRAL))
    assert {len(word) for word in placebos.NEUTRAL} == set(range(3, longest + 1))  # a word for every length


def test_unrelated_lines_are_as_many_and_about_as_long(placebos: ModuleType) -> None:
    one, twin = notes(), placebos.unrelated(notes(), 0)
    assert len(twin.lines) == len(one.lines) == len(set(twin.lines))
    assert all(line.startswith(f"{MARKER} ") for line in twin.text.splitlines())
    assert all(abs(len(a) - len(b)) < 25 for a, b in zip(one.lines, twin.lines, strict=True))
