"""TextWorldExpress against a server of our own; against Java: pytest -m games (agentopcd[twx] and Java)."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from agentopcd.core.errors import DependencyError, EnvError, GameFault
from agentopcd.envs import check_env, get_spec, make, task_key
from agentopcd.envs.games import java, textworld

GAMES = ("cookingworld", "coin", "twc", "mapreader", "arithmetic", "sorting", "simonsays", "peckingorder")
ROOM = "You are in the kitchen.  You see a box that is closed. \nTo the North you see a corridor. "


class Room:
    def __init__(self, hides: str) -> None:
        self.hides = hides

    def toJSON(self) -> str:
        return json.dumps({"name": "kitchen", "contents": self.hides})


class Interface:
    """A game of two steps: open the box, take what is in it. The seed says what that is, the fold nothing."""

    made = 0

    def __init__(self) -> None:
        Interface.made += 1
        self.loaded, self.seed, self.open = "", 0, False
        self.did: list[str] = []

    def load(self, name: str, arguments: str) -> str:
        self.loaded = name
        if arguments.startswith("Rooms"):
            return "Unrecognized property name (Rooms).  Known properties: numRooms, includeDoors. "
        return "Number must be below 9 (specified value = 9). " if "numRooms=9" in arguments else ""

    def generateNewGameJSON(self, seed: int, fold: str, gold: bool) -> str:
        self.seed, self.open = seed, False
        return self._told(ROOM)

    def stepJSON(self, action: str) -> str:
        self.did.append(action)
        if action == "Open box":
            self.open = True
            return self._told("You open the box. ", score=0.5)
        if action == "look around":
            return self._told(ROOM, score=0.5 * self.open)
        won = self.seed % 2 == 0
        return self._told("You take it.", score=1.0 if won else -1.0, won=won, lost=not won)

    def _told(self, said: str, *, score: float = 0.0, won: bool = False, lost: bool = False) -> str:
        actions = ["look around", "take coin"] if self.open else ["Open box", "look around"]
        return json.dumps({
            "observation": said, "look": ROOM, "inventory": "", "validActions": actions[:: 1 if self.seed % 3 else -1],
            "score": score, "tasksuccess": won, "taskfailure": lost,
        })  # fmt: skip

    def getTaskDescription(self) -> str:
        return "Take  the coin."

    def getGenerationPropertiesJSON(self) -> str:
        return json.dumps({"seed": self.seed, "numRooms": 1, "includeDoors": 0})

    def game(self) -> Any:
        rooms = [Room("coin" if self.seed % 2 == 0 else "snake")]
        return SimpleNamespace(locations=lambda: rooms, agentInventory=lambda: Room(""))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package and its Java process, played by the classes above."""
    constants: Any = ModuleType("textworld_express.constants")
    constants.GAME_NAMES = list(GAMES)
    protocol: Any = ModuleType("py4j.protocol")
    protocol.Py4JError = type("Py4JError", (Exception,), {})
    protocol.Py4JJavaError = type("Py4JJavaError", (protocol.Py4JError,), {})
    for name in ("textworld_express", "py4j"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "textworld_express.constants", constants)
    monkeypatch.setitem(sys.modules, "py4j.protocol", protocol)
    package = SimpleNamespace(runtime=SimpleNamespace(PythonInterface=Interface))
    monkeypatch.setattr(java, "world", lambda: (package, None))


@pytest.mark.usefixtures("server")
def test_a_game_is_told_in_parts() -> None:
    env = make("twx:coin")
    obs, info = env.reset(seed=0)
    assert obs == (
        "Take the coin.\n\n"
        "You are in the kitchen. You see a box that is closed.\nTo the North you see a corridor.\n\n"
        "Answer with one action in brackets: [Open box], [look around]."
    )
    assert [kind for kind, _ in info["parts"]] == ["rules", "state", "actions"]
    assert info["choices"] == ["[Open box]", "[look around]"]
    obs, reward, terminated, _, info = env.step("I [look around] first, no: [open box]")
    assert obs == "You open the box.\n\nAnswer with one action in brackets: [look around], [take coin]."
    assert (reward, terminated, info["action"]) == (0.5, False, "[Open box]")
    assert info["choices"] == ["[look around]", "[take coin]"] and info["metrics"] == {"score": 0.5}
    assert [kind for kind, _ in env.step("look around")[4]["parts"]] == ["state", "actions"]
    obs, reward, terminated, truncated, info = env.step("[take coin]")
    assert (reward, terminated, truncated, info["success"]) == (0.5, True, False, True)
    assert obs == "You take it.\n\nYou solved the task." and info["metrics"] == {"score": 1.0}
    with pytest.raises(GameFault, match="the game is over"):
        env.step("[look around]")


@pytest.mark.usefixtures("server")
def test_a_lost_game_pays_the_fall_of_the_score() -> None:
    env = make("twx:coin")
    env.reset(seed=1)
    env.step("[open box]")
    _, reward, terminated, _, info = env.step("[take coin]")
    assert (reward, terminated, info["success"]) == (-1.5, True, False)
    assert "You failed the task." in dict(info["parts"])["outcome"]
    assert env.reset(seed=1) and env.step("[open box]")[1] == 0.5  # the score begins anew


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("reply", ["", "[take coin]", "open", "<think>[open box]"])
def test_only_possible_actions_reach_the_game(reply: str) -> None:
    env = make("twx:coin")
    env.reset(seed=0)
    _, reward, _, _, info = env.step(reply)
    assert info["invalid"] and reward == 0 and "action" not in info
    assert info["choices"] == ["[Open box]", "[look around]"]
    assert "names no action" in dict(info["parts"])["feedback"]


@pytest.mark.usefixtures("server")
def test_the_key_is_the_whole_state_and_not_the_seed() -> None:
    env = make("twx:coin")
    found = [task_key(*env.reset(seed=seed)) for seed in range(6)]
    assert found[0] == found[2] == found[4] != found[1] == found[3] == found[5]  # alike at first, another thing inside


@pytest.mark.usefixtures("server")
def test_a_task_that_differs_from_game_to_game_is_no_rule() -> None:
    _, info = make("twx:mapreader").reset(seed=0)
    parts = dict(info["parts"])
    assert parts["state"].startswith("Take the coin.\n\nYou are in") and "rules" not in parts


@pytest.mark.usefixtures("server")
def test_episodes_side_by_side_have_a_game_each() -> None:
    envs = [make("twx:coin") for _ in range(3)]
    before = Interface.made
    for env in envs:
        env.reset(seed=0)
    assert Interface.made == before + 3
    envs[0].step("[open box]")
    assert envs[1].step("[take coin]")[4]["invalid"] and not envs[0].step("[take coin]")[4]["invalid"]


@pytest.mark.usefixtures("server")
def test_a_game_whose_things_were_taken_is_played_again_up_to_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textworld, "_WITH_ROOMS", {"sorting"})  # the game of this file has rooms
    env, other = make("twx:sorting"), make("twx:sorting")
    env.reset(seed=0)
    env.step("[open box]")
    mine = env.unwrapped._game  # type: ignore[attr-defined]
    assert not env.step("[look around]")[4]["invalid"] and env.unwrapped._game is mine  # type: ignore[attr-defined]
    other.reset(seed=0)
    _, _, terminated, _, info = env.step("[take coin]")
    again = env.unwrapped._game  # type: ignore[attr-defined]
    assert again is not mine and again.did == ["Open box", "look around", "take coin"]
    assert terminated and info["success"]


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("ref", "arguments", "said"),
    [
        ("twx:coinn", {}, "TextWorldExpress has no game 'coinn'; did you mean 'coin'"),
        ("twx:zz", {}, "known: arithmetic, coin, cookingworld"),
        ("twx:", {}, "names no environment"),
        ("twx:coin", {"fold": "tst"}, "fold is 'tst'; did you mean 'test'"),
        ("twx:coin", {"numRooms": "x"}, "numRooms must be a whole number, got 'x'"),
        ("twx:coin", {"numRooms": 9}, r"twx:coin: Number must be below 9 \(specified value = 9\)"),
        ("twx:coin", {"Rooms": 2}, "twx:coin takes no argument 'Rooms'; did you mean 'numRooms'"),
        ("twx:coin", {"includeDoors": 7}, "includeDoors=7 was read as 0"),
    ],
)
def test_wrong_names_and_arguments(ref: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(EnvError, match=said):
        make(ref, **arguments)


@pytest.mark.usefixtures("server")
def test_limits() -> None:
    assert get_spec("twx:coin").step_limit == 50 and get_spec("twx:cookingworld").step_limit == 100
    assert get_spec("twx:coin").play_format == "[{}]"
    with pytest.raises(GameFault, match="seeds up to 2,147,483,647, got 2,147,483,648"):
        make("twx:coin").reset(seed=2**31)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textworld_express.constants", None)
    with pytest.raises(DependencyError, match="twx: needs textworld-express; run: pip install textworld-express"):
        make("twx:coin")
    monkeypatch.setitem(sys.modules, "py4j.java_gateway", None)
    monkeypatch.setattr(java, "_GATEWAYS", {})
    with pytest.raises(DependencyError, match="needs textworld-express"):
        java.world()


@pytest.mark.games
@pytest.mark.parametrize("game", GAMES)
def test_every_game_keeps_the_contract(game: str) -> None:
    report = check_env(f"twx:{game}", 6)
    assert report.ok, report.errors
    assert report.distinct == 6


@pytest.mark.games
@pytest.mark.parametrize("game", GAMES)
def test_the_packages_own_player_wins_the_same_way_twice(game: str) -> None:
    ways = []
    for _ in range(2):
        env = make(f"twx:{game}")
        env.reset(seed=3)
        ways.append(env.unwrapped.solution())  # type: ignore[attr-defined]
    assert ways[0] == ways[1]
    rewards = []
    for reply in ways[0]:
        _, reward, terminated, _, info = env.step(reply)
        rewards.append(reward)
    assert terminated and info["success"] and sum(rewards) == pytest.approx(1)


@pytest.mark.games
@pytest.mark.parametrize("game", GAMES)
def test_games_side_by_side_go_as_they_do_alone(game: str) -> None:
    """The same seed twice, and another: the package shares some of its objects between games."""
    seeds = (4, 4, 5)
    alone = [list(_played(game, seed)) for seed in seeds]
    walks = [_played(game, seed) for seed in seeds]
    beside: list[list[Any]] = [[] for _ in seeds]
    for turns in itertools.zip_longest(*walks):
        for told, turn in zip(beside, turns, strict=True):
            told += [] if turn is None else [turn]
    assert beside == alone


def _played(game: str, seed: int) -> Iterator[tuple[Any, ...]]:
    env, rng = make(f"twx:{game}"), random.Random(seed)
    obs, info = env.reset(seed=seed)
    yield (obs,)
    for _ in range(20):
        obs, reward, terminated, _, info = env.step(rng.choice(info["choices"]))
        yield obs, reward, terminated
        if terminated:
            return


@pytest.mark.games
def test_games_that_look_alike_have_keys_of_their_own() -> None:
    env = make("twx:coin", numLocations=3, includeDoors=0)
    seen: dict[str, set[str]] = {}
    for seed in range(60):
        obs, info = env.reset(seed=seed)
        seen.setdefault(obs, set()).add(info["task_key"])
    assert sum(map(len, seen.values())) < 60  # two seeds that make one game are one task
    assert max(map(len, seen.values())) > 1  # and one first text is not always one game


@pytest.mark.games
def test_many_games_run_in_one_process_that_is_started_again_if_it_dies() -> None:
    envs = [make("twx:simonsays") for _ in range(64)]
    first = [env.reset(seed=seed)[0] for seed, env in enumerate(envs)]
    running = java._GATEWAYS[os.getpid()].java_process
    alone = make("twx:simonsays")
    assert [alone.reset(seed=seed)[0] for seed in range(64)] == first
    assert len(java._GATEWAYS) == 1 and java._GATEWAYS[os.getpid()].java_process is running
    os.kill(running.pid, signal.SIGKILL)
    with pytest.raises(GameFault, match=r"the Java process ended \(exit code -9\); the next game starts another"):
        envs[0].step(envs[0].unwrapped._listed()["choices"][0])  # type: ignore[attr-defined]
    assert make("twx:simonsays").reset(seed=5)[0] == first[5]
    assert envs[1].reset(seed=1)[0] == first[1]  # an environment of before goes on with its next episode


@pytest.mark.games
def test_a_missing_java_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "_GATEWAYS", {})
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with pytest.raises(DependencyError, match="twx: needs Java, and there is no /nowhere/bin/java; install"):
        make("twx:coin")
