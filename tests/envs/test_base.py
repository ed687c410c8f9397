from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentopcd.core.errors import EnvError
from agentopcd.envs import (
    AnyText,
    TextEnv,
    after_thinking,
    apply_view,
    join_parts,
    last_bracket,
    parts_of,
    task_key,
)


@pytest.mark.parametrize(
    ("reply", "word"),
    [
        ("[right]", "right"),
        ("I weigh [down], so [right]", "right"),
        ("[ RIGHT ]", "right"),
        ("[[right]]", "right"),
        ("<think>[down]</think> [up]", "up"),
        ("<think>[down]</think> nothing", None),
        ("<think>[down] and never ends", None),
        ("</think>[up]</think>[left]", "left"),
        ("right", None),
        ("", None),
        ("[", None),
    ],
)
def test_last_bracket(reply: str, word: str | None) -> None:
    assert last_bracket(reply) == word


def test_last_bracket_passes_over_words_that_are_no_names() -> None:
    assert last_bracket("[up] as in [1]", ["up", "Down"]) == "up"
    assert last_bracket("[DOWN]", ["up", "Down"]) == "down"
    assert last_bracket("[1]", ["up"]) is None


def test_after_think_is_the_whole_text_without_a_mark() -> None:
    assert after_thinking("plain") == "plain"
    assert after_thinking("a</think>b</think>c") == "c"
    assert after_thinking("a</think>b<think>c") == ""  # it thinks again, and has not come out of it


def test_any_text_takes_spaces_newlines_and_unicode() -> None:
    space = AnyText(20)
    assert "a b\n√" in space and "" in space
    assert "x" * 21 not in space and 5 not in space
    assert space.sample().isascii()


class One(TextEnv):
    pass


def test_first_orders_the_parts_and_leaves_out_empty_ones() -> None:
    obs, info = One().first(actions="go", state="board", rules="", key=7)
    assert obs == "board\n\ngo"
    assert info == {"parts": [("state", "board"), ("actions", "go")], "task_key": "7"}


def test_turn_goes_on_wins_and_loses() -> None:
    env = One()
    obs, reward, terminated, truncated, info = env.turn(feedback="ok")
    assert (obs, reward, terminated, truncated) == ("ok", 0.0, False, False)
    assert info["invalid"] is False and "success" not in info
    assert env.turn(success=True)[1:3] == (1.0, True)
    assert env.turn(success=False)[1:3] == (0.0, True)
    won = env.turn(success=True, reward=0.3, invalid=True, metrics={"a": 2})
    assert won[1] == 0.3 and won[4]["success"] is True and won[4]["metrics"] == {"a": 2.0}
    assert won[4]["invalid"] is True


def test_an_unknown_or_wrong_part_is_refused() -> None:
    with pytest.raises(EnvError, match="did you mean 'state'"):
        One().first(stat="x")
    with pytest.raises(EnvError, match="must be text, got int"):
        One().turn(state=3)  # type: ignore[arg-type]


PARTS = [("rules", "long"), ("state", "board"), ("actions", "go")]


def test_views_replace_drop_and_never_add() -> None:
    assert apply_view(PARTS, {}) == PARTS
    assert apply_view(PARTS, {"rules": None}) == PARTS[1:]
    assert apply_view(PARTS, {"rules": "short"})[0] == ("rules", "short")
    assert apply_view(PARTS[1:], {"rules": "short"}) == PARTS[1:]
    assert apply_view([("state", "a"), ("state", "b")], {"state": "c"}) == [("state", "c")]


def test_parts_of_reads_both_forms_and_refuses_unknown_kinds() -> None:
    assert parts_of("text", {}) == [("state", "text")]
    assert parts_of("", {}) == []
    assert parts_of("x", {"parts": [["state", "x"]]}) == [("state", "x")]  # lists, as JSON gives them
    with pytest.raises(EnvError, match="unknown part kind 'board'"):
        parts_of("x", {"parts": [("board", "x")]})
    with pytest.raises(EnvError, match="pairs"):
        parts_of("x", {"parts": ["x"]})
    assert join_parts(PARTS) == "long\n\nboard\n\ngo"


def test_the_key_sees_only_the_state() -> None:
    shown = task_key("x", {"parts": PARTS})
    assert shown == task_key("y", {"parts": [("rules", "other words"), ("state", "board")]})
    assert shown != task_key("x", {"parts": [("state", "another board")]})
    assert task_key("x", {"parts": PARTS, "task_key": "mine"}) == "mine"
    assert len(shown) == 16
    assert task_key("a", {}) != task_key("b", {})


def test_importing_the_package_is_light_and_only_under_its_own_name() -> None:
    code = (
        "import sys, agentopcd.envs as e; e.get_spec('sokoban'); e.list_envs();"
        "print([m for m in ('textarena', 'gymnasium', 'numpy', 'torch') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    other = [sys.executable, "-c", "import envs"]
    done = subprocess.run(other, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "import this package as agentopcd.envs" in done.stderr
