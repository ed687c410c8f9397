"""Conversations from files: which places are answered, what is shown there, and what is refused with its row."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from agentopcd import envs
from agentopcd.core.errors import EnvError, GameFault, TaskLeak
from agentopcd.envs import ConversationEnv
from agentopcd.envs.splits import build_splits

SYSTEM = {"role": "system", "content": "Be brief."}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


TALK = [SYSTEM, user("Hi."), said("LOGGED ONE"), user("And then?"), said("LOGGED TWO")]
TOOLS = [{"name": "f", "description": "Does f.", "parameters": {"type": "object", "properties": {"x": {}}}}]


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompts(env: ConversationEnv, seed: int = 0) -> list[list[dict[str, Any]]]:
    _, info = env.reset(seed=seed)
    shown = [info["messages"]]
    over = False
    while not over:
        _, _, terminated, truncated, info = env.step("whatever")
        over = terminated or truncated
        shown += [] if over else [info["messages"]]
    return shown


def test_every_answer_is_a_place_and_what_stands_before_it_is_the_prompt() -> None:
    assert prompts(ConversationEnv([{"messages": TALK}])) == [TALK[:2], TALK[:4]]
    assert prompts(ConversationEnv([{"messages": TALK}], turns="last")) == [TALK[:4]]
    assert prompts(ConversationEnv([{"messages": TALK}], system="drop")) == [TALK[1:2], TALK[1:4]]
    assert prompts(ConversationEnv([{"messages": TALK[:4]}])) == [TALK[:2], TALK[:4]]  # nobody has answered yet


def test_the_logged_answer_is_never_shown_at_its_place() -> None:
    env = ConversationEnv([{"messages": TALK}])
    obs, info = env.reset(seed=0)
    assert "LOGGED" not in obs + json.dumps(info)
    obs, _, _, _, info = env.step("mine")
    assert "LOGGED ONE" in obs and "LOGGED TWO" not in obs + json.dumps(info["messages"])
    assert "mine" not in json.dumps(info["messages"])
    obs, _, terminated, truncated, info = env.step("mine")
    assert (obs, terminated, truncated) == ("", False, True) and "success" not in info


def test_the_log_is_what_is_played() -> None:
    env = ConversationEnv([{"messages": TALK, "tools": TOOLS}])
    log = env.log(0)
    assert [messages for messages, _, _ in log] == prompts(env)
    assert [tools[0]["function"]["name"] for _, tools, _ in log] == ["f", "f"]
    assert "".join(text for _, _, parts in log for _, text in parts).count("Hi.") == 1


def test_tool_turns_are_places_too() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}  # fmt: skip
    result = {"role": "tool", "tool_call_id": "a", "content": "2"}
    shown = prompts(
        ConversationEnv([{"messages": [user("Hi."), call, result, said("Two.")], "tools": json.dumps(TOOLS)}])
    )
    assert [one[-1]["role"] for one in shown] == ["user", "tool"]
    assert shown[1][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK},
        {"messages": json.dumps(TALK)},
        {"conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]},
        {"prompt": TALK[:2], "completion": TALK[2:3]},
        {"prompt": TALK[:2]},
    ],
)
def test_layouts_are_told_from_questions_by_what_they_hold(tmp_path: Path, row: dict[str, Any]) -> None:
    spec = envs.get_spec(write(tmp_path / "rows.jsonl", row))
    assert spec.logged and not spec.graded and spec.history == "chat"
    assert envs.make(spec.id).reset(seed=0)[1]["messages"][-1]["role"] == "user"


def test_all_places_of_a_long_prompt_are_played(tmp_path: Path) -> None:
    env = envs.make(write(tmp_path / "rows.jsonl", {"prompt": [*TALK[1:], user("So?")], "completion": [said("Yes.")]}))
    env.reset(seed=0)
    assert [env.step("x")[3] for _ in range(3)] == [False, False, True]


def test_the_cells_of_a_pair_may_be_text_in_a_file_of_conversations(tmp_path: Path) -> None:
    rows = [{"prompt": TALK[:2], "completion": "Ho."}, {"prompt": "Say hi.", "completion": "Hello."},
            {"prompt": "Why?", "completion": [said("So.")]}]  # fmt: skip
    env = envs.make(write(tmp_path / "rows.jsonl", *rows)).unwrapped
    read = [row.messages for row in env.rows]  # type: ignore[attr-defined]
    assert read == [
        [*TALK[:2], said("Ho.")], [user("Say hi."), said("Hello.")], [user("Why?"), said("So.")]
    ]  # fmt: skip
    for row, says in (({"prompt": TALK[:2], "completion": 3}, "completion must be text or a list of messages, got 3"),
                      ({"prompt": "Hi."}, "has no messages; its keys are prompt")):  # fmt: skip
        with pytest.raises(EnvError, match=f"row 2: {says}"):
            envs.make(write(tmp_path / "rows.jsonl", rows[0], row))
    with pytest.raises(EnvError, match=r"no answer in a row .* as messages, not as text"):
        envs.make(write(tmp_path / "rows.jsonl", rows[1]))
    asked = envs.make(write(tmp_path / "rows.jsonl", rows[1]), answer_key="completion")
    assert asked.reset(seed=0)[0].startswith("Say hi.")


@pytest.mark.parametrize("told", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
def test_a_system_column_stands_first(told: Any) -> None:
    shared = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "LOGGED ONE"}]
    assert prompts(ConversationEnv([{"conversations": shared, "system": told}])) == [TALK[:2]]
    assert prompts(ConversationEnv([{"messages": TALK[:3], "system": told}])) == [TALK[:2]]
    assert prompts(ConversationEnv([{"conversations": shared, "system": told}], system="drop")) == [TALK[1:2]]
    for nothing in ("", " ", None, 3, []):
        assert prompts(ConversationEnv([{"conversations": shared, "system": nothing}])) == [TALK[1:2]]
    with pytest.raises(EnvError, match="row 1: has a column 'system' and a message by the system that says"):
        ConversationEnv([{"messages": TALK, "system": "Be long."}])


@pytest.mark.parametrize("row", [{"prompt": TALK[:2], "answer": "34"}, {"question": "2+2?", "answer": "4"}])
def test_questions_stay_questions(tmp_path: Path, row: dict[str, Any]) -> None:
    assert not envs.get_spec(write(tmp_path / "rows.jsonl", row)).logged


def test_an_array_and_parquet(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"messages": TALK}, {"messages": [user("Other."), said("Yes.")]}]))
    assert envs.make(str(file)).unwrapped.num_tasks == 2  # type: ignore[attr-defined]
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"messages": TALK}, {"messages": [user("Other."), {"role": "assistant", "content": None, "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "a", "content": "2"}, said("Two.")]}]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    env = envs.make(str(tmp_path / "rows.parquet")).unwrapped
    assert [row.places for row in env.rows] == [(2, 4), (1, 3)]  # type: ignore[attr-defined]


def test_one_conversation_is_one_task_though_a_log_has_a_row_for_every_turn() -> None:
    other = [SYSTEM, user("Hi."), said("ANOTHER ANSWER"), user("Why?"), said("So.")]
    rows = [{"messages": TALK[:3]}, {"messages": TALK}, {"messages": TALK}, {"messages": other}, {"messages": TALK[:2]}]
    with pytest.warns(UserWarning, match="3 of 5 rows repeat another conversation or its beginning"):
        env = ConversationEnv(rows)
    assert [row.messages for row in env.rows] == [TALK, other]


@pytest.mark.parametrize("turns", ["all", "last"])
def test_conversations_that_show_the_same_are_one_task_whatever_the_log_answered_last(turns: str) -> None:
    rows = [{"prompt": TALK[:2], "completion": [said(text)]} for text in ("One.", "Two.", "Three.")]
    with pytest.warns(UserWarning, match="2 of 3 rows repeat another conversation"):
        env = ConversationEnv(rows, turns=turns)
    assert [row.messages[-1] for row in env.rows] == [said("One.")]
    longer = {"messages": [*TALK[:2], said("Four."), *TALK[3:]]}
    other = {"messages": [*TALK[:2], said("Five."), *TALK[3:]]}
    with pytest.warns(UserWarning, match="rows repeat another conversation"):
        env = ConversationEnv([*rows, longer, other], turns=turns)
    kept = [row.messages for row in env.rows]
    assert kept[-2:] == [longer["messages"], other["messages"]]
    assert len(kept) == (2 if turns == "all" else 3), "where only the last place is asked, the first is no other's"


def test_what_a_conversation_shows_is_in_one_split() -> None:
    for one, two in (
        ({"messages": TALK[:2]}, {"messages": TALK}), ({"messages": TALK}, {"messages": TALK[:2]}),
        ({"messages": TALK[:3]}, {"messages": [*TALK[:2], said("Other.")]}),
        ({"messages": TALK[:3]}, {"messages": [*TALK[:2], said("Other."), *TALK[3:]]}),
    ):  # fmt: skip
        with pytest.raises(TaskLeak, match=r"puts a conversation of '\w+' \(row \d\) in '\w+': it is in both"):
            ConversationEnv([one | {"split": "train"}, two | {"split": "test"}])
        with pytest.warns(UserWarning, match="1 of 2 rows"):
            env = ConversationEnv([one | {"split": "test"}, two])
        assert [row.split for row in env.rows] == ["test"]


def test_turns_of_a_conversation_never_sit_in_two_splits(tmp_path: Path) -> None:
    rows = [{"messages": [user(f"Question {i}"), said("a"), user("More?"), said("b")][: 2 + 2 * (i % 2)]}
            for i in range(120)]  # fmt: skip
    rows += [{"messages": rows[i]["messages"][:2]} for i in range(1, 120, 2)]
    file = write(tmp_path / "rows.jsonl", *rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        manifest = build_splits(file)
    env = envs.make(file).unwrapped
    opened = {name: {env.rows[task.seed].messages[0]["content"] for task in tasks}  # type: ignore[attr-defined]
              for name, tasks in manifest.splits.items()}  # fmt: skip
    assert sum(map(len, opened.values())) == 120 == len(set.union(*opened.values()))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": [said("Hello."), SYSTEM]}, "row 2: there is no place to answer"),
        ({"messages": [user([{"type": "image_url"}])]}, "row 2: message 1 has a part of type 'image_url'"),  # type: ignore[arg-type]
        ({"messages": TALK, "tools": [{"x": 1}]}, "row 2: tool 1 has no name"),
        ({"messages": TALK, "tools": "{"}, "row 2: the tools are no JSON"),
        ({"messages": TALK, "split": "valid"}, "row 2: is in split 'valid'"),
        ({"messages": TALK, "checks": {"words": 3}}, "row 2: no check is called 'words'"),
        ({"text": "What?"}, "row 2: has no messages; its keys are text"),
    ],
)
def test_what_is_refused_names_its_row(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(EnvError, match=says):
        envs.make(write(tmp_path / "rows.jsonl", {"messages": [user("Hi."), said("Ho.")]}, row))


def test_checks_and_graders_say_what_is_right(tmp_path: Path) -> None:
    (tmp_path / "grade.py").write_text(
        "def short(row, reply):\n    return {'success': len(reply) < 9, 'letters': len(reply), 'turn': row['turn']}\n"
        "def half(row, reply):\n    return 0.5\n"
        "def raises(row, reply):\n    return row['nothing']\n"
        "def words(row, reply):\n    return 'good'\n"
    )
    file = write(tmp_path / "rows.jsonl", {"messages": TALK, "weight": 3})
    env = envs.make(file, grader=f"{tmp_path}/grade.py:short")
    env.reset(seed=0)
    assert env.step("short")[1] == 1.0
    _, reward, terminated, _, info = env.step("much too long for it")
    assert (reward, terminated, info["success"]) == (0.0, True, False)
    assert info["metrics"] == {"replies_passed": 0.5, "letters": 12.5, "turn": 0.5}
    env = envs.make(file, grader=f"{tmp_path}/grade.py:half", turns="last")
    env.reset(seed=0)
    *_, info = env.step("x")
    assert info["success"] is False and info["metrics"]["score"] == 0.5
    env = envs.make(file, checks={"max_words": 2}, turns="last")
    env.reset(seed=0)
    assert env.step("two words")[-1]["success"] is True
    for name, says in (("raises", "KeyError"), ("words", "returned 'good'; wanted True or False")):
        env = envs.make(file, grader=f"{tmp_path}/grade.py:{name}")
        env.reset(seed=0)
        with pytest.raises(GameFault, match=says):
            env.step("x")


def test_arguments_are_checked(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"messages": TALK, "checks": {"max_words": 3}}, {"messages": TALK[1:]})
    with pytest.raises(EnvError, match=r"row 2 has no checks, and other rows have"):
        envs.make(file)
    for given, says in (
        ({"turns": "first"}, "turns must be one of all, last"), ({"system": True}, "system must be one of keep, drop"),
        ({"grader": "grade"}, "wanted FILE.py:FUNCTION"), ({"grader": "json:nothing"}, "has no 'nothing'"),
        ({"grader": "json:__name__"}, "is a str; wanted a function"),
    ):  # fmt: skip
        with pytest.raises(EnvError, match=says):
            ConversationEnv([{"messages": TALK}], **given)  # type: ignore[arg-type]


def test_a_grader_for_rows_with_one_question(tmp_path: Path) -> None:
    (tmp_path / "grade.py").write_text("def same(row, reply):\n    return reply == row['wanted']\n")
    file = write(tmp_path / "rows.jsonl", {"question": "Say a colour.", "wanted": "red"})
    env = envs.make(file, grader=f"{tmp_path}/grade.py:same")
    obs, _ = env.reset(seed=0)
    assert obs == "Say a colour."
    assert env.step("red")[-1]["success"] is True


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    rows = [{"messages": [user(f"Question {i}"), *TALK[2:]]} for i in range(40)]
    report = envs.check_env(write(tmp_path / "rows.jsonl", *rows))
    assert (report.errors, report.warnings) == ([], [])


def test_conversations_of_one_message_are_fine(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"Where is parcel {n}?"}]} for n in range(40)]
    report = envs.check_env(write(tmp_path / "rows.jsonl", *rows))
    assert report.errors == []


@pytest.mark.parametrize(("rows", "says"), [([], "there are no rows"), ([5], "row 1 must be a mapping .* got int")])
def test_rows_that_are_none_are_refused(rows: Any, says: str) -> None:
    with pytest.raises(EnvError, match=says):
        ConversationEnv(rows)


def test_tools_of_older_files_stand_under_functions(tmp_path: Path) -> None:
    tool = {"name": "price", "parameters": {"type": "object", "properties": {}}}
    file = tmp_path / "old.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}], "functions": [tool]}) + "\n")
    ((_, tools, _),) = ConversationEnv(str(file)).log(0)
    assert [one["function"]["name"] for one in tools] == ["price"]


def test_right_answers_beside_conversations_are_told(tmp_path: Path) -> None:
    row = {"problem": "1+1?", "answer": "2", "messages": [{"role": "user", "content": "1+1?"}]}
    file = tmp_path / "both.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.warns(UserWarning, match=r"right answers \(answer\) beside them; .* nothing grades"):
        assert envs.get_spec(str(file)).logged
    rated = tmp_path / "rated.jsonl"  # a label of a conversation is no right answer
    rated.write_text(json.dumps({"label": "good", "messages": row["messages"]}) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert envs.get_spec(str(rated)).logged


@pytest.mark.parametrize("end", [".gz", ".xz", ".bz2", ".ZST"])
def test_packed_files_are_named_as_such(end: str, tmp_path: Path) -> None:
    first = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ", ".bz2": b"BZh", ".ZST": b"\x28\xb5\x2f\xfd"}[end]
    file = tmp_path / f"rows.jsonl{end}"
    file.write_bytes(first + b"...")
    with pytest.raises(EnvError, match="unpack it first"):
        envs.make(str(file)).reset(seed=0)
