from __future__ import annotations

import random
import threading
import time
from typing import Any

import numpy as np
import pytest

from agentopcd.core.errors import EnvError
from agentopcd.envs import apply_view, get_spec, join_parts, make, parts_of, task_key


def play(env: Any, seed: int, replies: list[str]) -> list[Any]:
    told: list[Any] = [env.reset(seed=seed)]
    for reply in replies:
        told.append(env.step(reply))
        if told[-1][2] or told[-1][3]:
            break
    return told


def _numpy_state() -> list[int]:
    state: Any = np.random.get_state()
    return state[1].tolist()


@pytest.mark.parametrize(
    ("ref", "moves"), [("frozen-lake", ["right", "right", "down", "down"]), ("sokoban", ["up", "up"])]
)
def test_the_known_episodes_are_won(ref: str, moves: list[str]) -> None:
    last = play(make(ref), 0, [f"I go [{move}]" for move in moves])[-1]
    assert last[1:4] == (1.0, True, False)
    assert last[4]["success"] is True and last[4]["metrics"] == {"game_reward": 1.0}
    kinds = [kind for kind, _ in last[4]["parts"]]
    assert kinds == ["feedback", "state", "outcome"]
    assert "Congratulations" in last[4]["parts"][-1][1]


def test_the_first_observation_has_rules_board_and_how_to_answer() -> None:
    obs, info = make("sokoban").reset(seed=0)
    assert [kind for kind, _ in info["parts"]] == ["rules", "state", "actions"]
    assert "Available" not in obs and join_parts(info["parts"]) == obs
    assert info["rules_sha256"] == "884e23df29033da3"
    hidden = join_parts(apply_view(parts_of(obs, info), get_spec("sokoban").view()))
    assert "solving the Sokoban" not in hidden and "Reach the goal" in hidden and "[up]" in hidden
    assert make("frozen-lake").reset(seed=0)[1]["rules_sha256"] == "aa4dbd78be9a7a9b"


def test_the_last_bracket_after_the_thinking_acts() -> None:
    env = make("frozen-lake")
    told = play(env, 0, ["<think>[left] or [down]</think> not [down], [ D ] no, [RIGHT]", "[s]"])
    assert told[1][4]["action"] == "[right]" and "You moved right" in told[1][0]
    assert told[2][4]["success"] is False and told[2][4]["action"] == "[down]"
    assert told[2][4]["metrics"]["game_reward"] > 0 and told[2][1] == 0.0  # a hole pays nothing here
    assert "hole" in told[2][0]


@pytest.mark.parametrize("ref", ["frozen-lake", "sokoban"])
def test_two_unusable_replies_end_the_game_and_one_shows_the_board_again(ref: str) -> None:
    told = play(make(ref), 0, ["right.", "\\boxed{up}"])
    first_board = dict(told[0][1]["parts"])["state"]
    assert told[1][4]["invalid"] and dict(told[1][4]["parts"])["state"] == first_board
    assert "action" not in told[1][4]
    assert told[2][2] and told[2][4]["invalid"] and told[2][4]["success"] is False


def test_walking_off_the_map_is_invalid_and_a_good_move_forgives() -> None:
    told = play(make("frozen-lake"), 0, ["[up]", "[right]", "[up]", "[up]"])
    assert [step[4]["invalid"] for step in told[1:]] == [True, False, True, True]
    assert told[-1][2]


def test_every_reply_counts_towards_the_limit() -> None:
    told = play(make("frozen-lake", max_steps=3), 0, ["junk", "[right]", "[left]", "[right]"])
    assert len(told) == 4 and told[-1][2:4] == (False, True)


def test_stepping_after_the_end_or_before_the_start_is_refused() -> None:
    env = make("frozen-lake")
    with pytest.raises(EnvError, match=r"call reset\(\)"):
        env.unwrapped.step("[up]")
    play(env, 0, ["a", "b"])
    with pytest.raises(EnvError, match="the game is over"):
        env.step("[up]")


@pytest.mark.parametrize("ref", ["frozen-lake", "sokoban"])
def test_the_global_generators_are_left_alone(ref: str) -> None:
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), _numpy_state()
    env = make(ref)
    first = play(env, 3, ["[up]", "[down]"])
    env.reset()
    assert (random.getstate(), _numpy_state()) == before
    random.seed(6)
    again = play(make(ref), 3, ["[up]", "[down]"])
    assert [step[0] for step in first] == [step[0] for step in again]


def test_no_seed_draws_one_from_the_generator_of_the_environment() -> None:
    def keys():
        env = make("sokoban")
        env.reset(seed=9)
        return [task_key(*env.reset()) for _ in range(3)]

    assert keys() == keys() and len(set(keys())) == 3


def test_threads_get_the_boards_of_their_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    seed_now = random.seed

    def seed_and_give_way(seed: int) -> None:
        seed_now(seed)
        time.sleep(0.0005)  # where another thread would come in between seed and board

    monkeypatch.setattr(random, "seed", seed_and_give_way)
    want = {seed: task_key(*make("frozen-lake-4x4").reset(seed=seed)) for seed in range(40)}
    wrong: list[int] = []

    def work() -> None:
        env = make("frozen-lake-4x4")
        wrong.extend(seed for seed in want if task_key(*env.reset(seed=seed)) != want[seed])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_moves_may_have_capitals() -> None:
    env = make("textarena:FrozenLake-v0", moves={"Go Right": "right"})
    env.reset(seed=0)
    assert env.step("[go right]")[4]["action"] == "[right]"
    with pytest.raises(EnvError, match=r"two actions are read as \[go\]"):
        make("textarena:FrozenLake-v0", moves={"Go": "right", "go": "left"})


def test_any_other_game_takes_the_reply_as_it_stands() -> None:
    env = make("textarena:GuessTheNumber-v0")
    obs, info = env.reset(seed=0)
    assert "legal_actions" not in info and obs
    obs, _, _, _, info = env.step("<think>[1]</think>[2]")
    assert "higher" in obs and "action" not in info


def test_a_changed_rules_text_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    from agentopcd.envs.games import textarena

    monkeypatch.setitem(textarena._RULES_SHA256, "FrozenLake-v0", "0" * 16)
    with pytest.warns(UserWarning, match="rules of FrozenLake-v0 changed"):
        make("frozen-lake").reset(seed=0)


def test_a_game_that_draws_while_it_runs_keeps_its_own_generator() -> None:
    def told(salt: int) -> list[str]:
        env = make("textarena:2048-v0")
        texts = [env.reset(seed=4)[0]]
        for move in ("[left]", "[up]", "[right]", "[down]"):
            random.seed(salt)
            texts.append(env.step(move)[0])
        return texts

    assert told(1) == told(2)


def test_a_solved_fifteen_puzzle_is_won() -> None:
    env = make("textarena:FifteenPuzzle-v0")
    env.reset(seed=0)
    game = env.unwrapped._game  # type: ignore[attr-defined]
    game.board[:] = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, None, 15]]
    _, reward, terminated, _, info = env.step("[left]")
    assert (reward, terminated, info["success"]) == (1.0, True, True)


def test_an_invalid_end_whose_reward_is_a_reason_is_lost() -> None:
    env = make("textarena:ThreeCardMonte-v0")
    env.reset(seed=0)
    env.step("nonsense")
    _, reward, terminated, _, info = env.step("nonsense")
    assert (reward, terminated, info["success"], info["invalid"]) == (0.0, True, False, True)
