from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest

from agentopcd.core.errors import EnvError
from agentopcd.core.types import Task
from agentopcd.envs import build_splits, check_env, get_spec, make, task_key
from agentopcd.envs.floors import floors
from agentopcd.envs.games.solvers import MOVES, Lake

PAIRS = [("frozen-lake-4x4", "frozen-lake-4x4-swapped"), ("sokoban", "sokoban-swapped")]


def shown(info: Any, kind: str = "state") -> str:
    return dict(info["parts"])[kind]


def played(env: Any, seed: int, replies: list[str]) -> Iterator[Any]:
    env.reset(seed=seed)
    for reply in replies:
        told = env.step(reply)
        yield told
        if told[2] or told[3]:
            return


@pytest.mark.parametrize(
    ("ref", "kwargs"),
    [
        *(
            ("frozen-lake-4x4", {"hole": "Q", "goal": "B", "swap": swap})
            for swap in ("", "vertical", "horizontal", "both")
        ),
        *(("sokoban", {"box": "O", "target": "X", "swap": swap}) for swap in ("", "vertical", "horizontal", "both")),
        ("frozen-lake-4x4-swapped", {}),
        ("sokoban-swapped", {}),
    ],
)
def test_the_solution_wins_in_the_words_of_the_world(ref: str, kwargs: dict[str, Any]) -> None:
    env = make(ref, **kwargs).unwrapped
    for seed in range(12):
        env.reset(seed=seed)
        replies: Any = env.solution()  # pyright: ignore[reportAttributeAccessIssue]
        if replies is None:
            continue
        told = list(played(env, seed, replies))
        assert [step[4]["action"] for step in told] == replies  # what was said, not what it meant
        assert not any(step[4]["invalid"] for step in told) and len(told) == len(replies)
        assert told[-1][1:3] == (1.0, True) and told[-1][4]["success"] is True


@pytest.mark.parametrize(
    ("swap", "goes"),
    [
        ("", {"up": "up", "down": "down", "left": "left", "right": "right"}),
        ("vertical", {"up": "down", "down": "up", "left": "left", "right": "right"}),
        ("horizontal", {"up": "up", "down": "down", "left": "right", "right": "left"}),
        ("both", {"up": "down", "down": "up", "left": "right", "right": "left"}),
    ],
)
def test_a_reply_moves_as_the_swap_says_and_the_game_names_the_true_direction(swap: str, goes: dict[str, str]) -> None:
    env = make("frozen-lake-4x4", swap=swap).unwrapped
    (told,) = played(env, 3, [f"I go [{goes['down']}]"])  # the first step down is into a hole of this board
    assert "You moved down to position (1, 0)." in told[0] and "hole" in told[0]
    assert told[4]["action"] == f"[{goes['down']}]"
    (told,) = played(env, 3, ["[d]" if goes["right"] == "right" else "[a]"])
    assert "You moved right to position (0, 1)." in told[0]  # short names have the meaning of the long ones
    for word in ("up", "left"):  # the border, in true directions
        (told,) = played(env, 3, [f"[{goes[word]}]"])
        assert told[4]["invalid"] and f"You tried to move {word}" in told[0]


@pytest.mark.parametrize("swap", ["vertical", "both"])
def test_sokoban_moves_as_the_swap_says(swap: str) -> None:
    plain, other = make("sokoban").unwrapped, make("sokoban", swap=swap).unwrapped
    for move in MOVES:
        word = other.word_for(move)  # pyright: ignore[reportAttributeAccessIssue]
        assert (word == move) == (swap == "vertical" and move in ("left", "right"))
        (mine,) = played(plain, 0, [f"[{move}]"])
        (theirs,) = played(other, 0, [f"[{word}]"])
        assert (mine[0], mine[1:4]) == (theirs[0], theirs[1:4])


def test_the_lake_is_drawn_and_explained_in_its_letters() -> None:
    env = make("frozen-lake-4x4-swapped")
    _, plain = make("frozen-lake-4x4").reset(seed=3)
    _, info = env.reset(seed=3)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown(info).splitlines() if "|" in line]
    assert rows == [["P", "", "", "G"], ["G", "", "", ""], ["", "G", "G", ""], ["", "", "", "H"]]
    assert "'G' = Hole (fall in and lose!)" in shown(info, "rules")
    assert "'H' = Goal (reach this to win!)" in shown(info, "rules")
    assert "'P' = Your current position" in shown(info, "rules")
    exchanged = shown(plain).translate(str.maketrans("GH", "HG"))
    assert shown(info) == exchanged  # only letters changed places
    assert shown(info, "actions") == shown(plain, "actions")
    env.unwrapped.reset(seed=3)
    *_, last = played(env.unwrapped, 3, env.unwrapped.solution())  # pyright: ignore[reportAttributeAccessIssue]
    assert "| P/H |" in shown(last[4]) and "P/G" not in last[0]


def test_the_room_is_drawn_and_explained_in_its_letters() -> None:
    _, info = make("sokoban-swapped").reset(seed=3)
    assert shown(info).splitlines()[4] == "# P O X _ #"
    assert "Boxes are marked as 'O'" in shown(info, "rules")
    assert "Empty goals are shown with a 'X'" in shown(info, "rules")
    env = make("sokoban", box="B", target="C")
    _, info = env.reset(seed=3)
    assert shown(info).splitlines()[0] == "Current Board:" and shown(info).splitlines()[4] == "# P B C _ #"
    told = env.step("[right]")
    assert shown(told[4]).splitlines()[4] == "# _ P √ _ #"


@pytest.mark.parametrize(("plain", "swapped"), PAIRS)
def test_a_board_has_one_key_and_one_rules_hash_in_every_world(plain: str, swapped: str) -> None:
    mine, theirs = make(plain), make(swapped)
    for seed in range(10):
        first, second = mine.reset(seed=seed), theirs.reset(seed=seed)
        assert first[0] != second[0]
        assert task_key(*first) == task_key(*second)
        assert first[1]["rules_sha256"] == second[1]["rules_sha256"]


def test_what_is_held_out_in_one_lake_is_held_out_in_the_other() -> None:
    mine, theirs = build_splits("frozen-lake-4x4", seeds=1200), build_splits("frozen-lake-4x4-swapped", seeds=1200)
    assert mine.splits == theirs.splits and not mine.shared


@pytest.mark.parametrize(("plain", "swapped"), PAIRS)
def test_floors_are_those_of_the_plain_game_and_the_blind_moves_are_spoken(plain: str, swapped: str) -> None:
    tasks = [Task(seed, "") for seed in range(24)]
    mine, theirs = floors(plain, {}, tasks), floors(swapped, {}, tasks)
    shares = [(f.random, f.blind, f.solvable, f.n) for f in (mine, theirs)]
    assert shares[0] == shares[1] and mine.blind
    exchange = {"up": "down", "down": "up"}
    assert theirs.blind_moves == tuple(exchange.get(move, move) for move in mine.blind_moves) != mine.blind_moves
    env = make(swapped)
    wins = sum(
        any(step[4].get("success") for step in played(env, task.seed, [f"[{m}]" for m in theirs.blind_moves]))
        for task in tasks
    )
    assert wins / len(tasks) == theirs.blind


def test_the_model_stays_in_true_directions() -> None:
    mine: Any = make("frozen-lake-4x4").unwrapped
    theirs: Any = make("frozen-lake-4x4-swapped").unwrapped
    mine.reset(seed=5)
    theirs.reset(seed=5)
    assert isinstance(theirs.model(), Lake) and mine.model() == theirs.model()
    assert theirs.model().holes and theirs.model().goal == (3, 3)


@pytest.mark.parametrize("ref", [swapped for _, swapped in PAIRS])
def test_the_new_worlds_keep_the_contract(ref: str) -> None:
    assert check_env(lambda: make(ref), n=8).errors == []


@pytest.mark.parametrize(("plain", "swapped"), PAIRS)
def test_the_specs_differ_in_the_world_alone(plain: str, swapped: str) -> None:
    mine, theirs = get_spec(plain), get_spec(swapped)
    for field in ("entry_point", "max_steps", "views", "seeds", "split_sizes", "history", "play_format"):
        assert getattr(mine, field) == getattr(theirs, field), field
    assert mine.kwargs.items() < theirs.kwargs.items()
    assert "against what is usual" in theirs.summary


@pytest.mark.parametrize("ref", ["frozen-lake", "sokoban"])
def test_the_hidden_view_tells_nothing_about_letters_and_moves(ref: str) -> None:
    text = str(get_spec(ref).view("hidden")["rules"])
    assert not re.search(r"\b[A-OQ-Z]\b|up|down|left|right", text.removeprefix("You control P"))


def test_bad_worlds_are_refused_in_one_line() -> None:
    roles = {"frozen-lake": ("hole", "goal"), "sokoban": ("box", "target")}
    wrong: list[Any] = ["P", "h", "", "HH", "1", "É", 7, None]
    for (ref, pair), letter in itertools.product(roles.items(), wrong):
        for role in pair:
            with pytest.raises(EnvError, match=rf"^{role} must be one upper-case letter A to Z other than P") as caught:
                make(ref, **{role: letter})
            assert repr(letter) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(EnvError, match="hole and goal must be different letters, got 'G' twice"):
        make("frozen-lake", hole="G")
    with pytest.raises(EnvError, match="box and target must be different letters"):
        make("sokoban", box="Z", target="Z")
    for swap in ("up", None, ["vertical"]):
        with pytest.raises(EnvError, match="swap must be one of '', 'vertical', 'horizontal', 'both', got"):
            make("frozen-lake", swap=swap)
