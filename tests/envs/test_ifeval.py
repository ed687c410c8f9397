"""IF-Eval through the checker library: rows written for this project in the published layout, and what is refused."""

from __future__ import annotations

import json
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from agentopcd import envs
from agentopcd.core.errors import DependencyError, EnvError
from agentopcd.envs.questions import ifeval
from agentopcd.envs.splits import build_splits

ROWS: list[dict[str, Any]] = [
    {"key": 1, "prompt": "Tell me about rivers, without any comma.", "instruction_id_list": ["punctuation:no_comma"],
     "kwargs": [{}]},
    {"key": 2, "prompt": "Praise tea in lower case, in at least four words, and say leaf twice.",
     "instruction_id_list": ["change_case:english_lowercase", "length_constraints:number_words", "keywords:frequency"],
     "kwargs": [{}, {"relation": "at least", "num_words": 4, "num_bullets": None},
                {"keyword": "leaf", "relation": "at least", "frequency": 2}]},
    {"key": 3, "prompt": "Explain rain in fewer than three sentences.",
     "instruction_id_list": ["length_constraints:number_sentences"],
     "kwargs": [{"relation": "less than", "num_sentences": 3}]},
]  # fmt: skip


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(file)


def played(file: str, seed: int, reply: str) -> tuple[bool, dict[str, float]]:
    env = envs.make("ifeval", file=file)
    obs, info = env.reset(seed=seed)
    assert obs == ROWS[seed]["prompt"] and info["split"] == "test"  # nothing is added to the published prompt
    _, reward, terminated, _, info = env.step(reply)
    assert terminated and reward == float(info["success"])
    return bool(info["success"]), info.get("metrics", {})


def test_a_reply_must_follow_every_instruction(tmp_path: Path) -> None:
    file = written(tmp_path, ROWS[:2])
    assert played(file, 0, "Rivers run to the sea.") == (True, {})
    assert played(file, 0, "Rivers, of course, run.") == (False, {"failed_no_comma": 1.0})
    assert played(file, 1, "leaf by leaf it steeps")[0]
    assert played(file, 1, "Leaf by leaf it steeps") == (False, {"failed_english_lowercase": 1.0})
    won, failed = played(file, 1, "this is tea")
    assert not won and set(failed) == {"failed_number_words", "failed_frequency"}
    assert not played(file, 0, "  ")[0]
    assert played(file, 0, "<think>well, well</think>Rivers run.")[0]


def only(folder: Path, id_: str, settings: dict[str, Any]) -> Any:
    """An environment of two prompts: a sound one, and one with this check."""
    row = {"key": 9, "prompt": "Say it.", "instruction_id_list": [id_], "kwargs": [settings]}
    return envs.make("ifeval", file=written(folder, [ROWS[0], row]))


def right(env: Any, seed: int, reply: str) -> bool:
    env.reset(seed=seed)
    return bool(env.step(reply)[4]["success"])


@pytest.mark.parametrize("character", ["#", "!", "é", "Q"])
def test_the_frequency_of_any_character_is_counted(tmp_path: Path, character: str) -> None:
    """The package draws a letter by chance in place of one that is not in a to z."""
    env = only(
        tmp_path, "keywords:letter_frequency", {"letter": character, "let_frequency": 3, "let_relation": "at least"}
    )
    three, two = f"{character} and {character.lower()}{character}", f"{character}{character}"
    everything = "abcdefghijklmnoprstuvwxyz" * 5
    assert {right(env, 1, f"{three} {everything}") for _ in range(20)} == {True}
    assert {right(env, 1, f"{two} {everything}") for _ in range(20)} == {False}


@pytest.mark.parametrize(
    ("id_", "settings"),
    [
        ("length_constraints:number_words", {"relation": "at least"}),
        ("length_constraints:number_words", {"relation": "at least", "num_words": -1}),
        ("keywords:frequency", {"keyword": "leaf", "frequency": 2}),
        ("keywords:letter_frequency", {"letter": "ab", "let_frequency": 2, "let_relation": "at least"}),
        ("keywords:existence", {}),
        ("detectable_format:multiple_sections", {"section_spliter": "Part"}),
    ],
)
def test_a_prompt_whose_check_would_be_drawn_by_chance_is_left_out(
    tmp_path: Path, id_: str, settings: dict[str, Any]
) -> None:
    with pytest.warns(UserWarning, match="1 of 2 prompts are left out: a check of theirs lacks a setting"):
        env = only(tmp_path, id_, settings)
    assert prompts_of(env) == 1
    check = [(id_, settings)]
    before = random.getstate()
    assert len({ifeval.grade_instructions("w leaf " * n, "p", check).right for n in (60,) for _ in range(20)}) == 1
    assert random.getstate() == before


def test_a_setting_that_a_check_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match=r"the prompt 'Say it\.': instruction 'keywords:frequency' cannot have"):
        only(tmp_path, "keywords:frequency", {"keyword": "leaf", "relation": "about", "frequency": 2})
    with pytest.raises(EnvError, match="cannot have"):
        only(tmp_path, "punctuation:no_comma", {"commas": 2})


def prompts_of(env: Any) -> int:
    return env.unwrapped.num_tasks


def test_what_nltk_lacks_data_for_is_left_out_and_told(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        env = envs.make("ifeval", file=written(tmp_path, ROWS))
    left_out = [str(one.message) for one in said if "punkt" in str(one.message)]
    if prompts_of(env) == 3:
        assert not left_out  # somebody has fetched it
    else:
        assert prompts_of(env) == 2 and left_out[0].startswith("1 of 3 prompts are left out")


def test_it_is_only_for_testing(tmp_path: Path) -> None:
    manifest = build_splits("ifeval", {"file": written(tmp_path, ROWS[:2])})
    assert {name: len(tasks) for name, tasks in manifest.splits.items() if tasks} == {"test": 2}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"instruction_id_list": ["punctuation:no_coma"]}, "did you mean 'punctuation:no_comma'"),
        ({"kwargs": []}, "lists of one length"),
        ({"instruction_id_list": "punctuation:no_comma"}, "lists of one length"),
    ],
)
def test_rows_that_make_no_sense_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(EnvError, match=says):
        envs.make("ifeval", file=written(tmp_path, [ROWS[0] | change]))


def test_other_rows_and_other_doors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="lacks the columns"):
        envs.make("ifeval", file=written(tmp_path, [{"question": "What is 1 + 1?", "answer": "2"}]))
    with pytest.raises(EnvError, match="--env ifeval --env-arg file="):
        envs.make(written(tmp_path, ROWS[:2]))


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifeval.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="--env-arg file="):
        envs.make("ifeval")
    ifeval._library.cache_clear()
    monkeypatch.setitem(sys.modules, "if_verifiable.common", None)
    with pytest.raises(DependencyError, match=r"agentopcd\[ifeval\]"):
        envs.make("ifeval", file=written(tmp_path, ROWS[:1]))


def test_the_prompts_of_an_installed_package_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "eval_framework" / "tasks" / "ifeval" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "eval_framework" / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    (folder / "input_data.jsonl").write_text(json.dumps(ROWS[0]))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert prompts_of(envs.make("ifeval")) == 1
