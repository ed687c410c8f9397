"""Environments on an OpenEnv server: a small server of our own here, the real package in test_hub_real.py."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agentopcd import envs
from agentopcd.core.errors import EnvError, GameFault, OutOfTime
from agentopcd.core.types import Job, Sampling, Task
from agentopcd.envs.check import check_env
from agentopcd.envs.guard import Hang
from agentopcd.envs.hub import session
from agentopcd.envs.hub.mapping import ActionForm, result_of, words_of
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game as Played
from agentopcd.rollouts.player import Player, play
from tests.envs.openenv_server import Fake, Game, Refused, running
from tests.rollouts.scripted import Scripted


def env_of(fake: Fake, **options: Any) -> Any:
    return envs.make(f"openenv:{fake.url}", **options)


class Picks(Game):
    """Two players' colours; the hidden one is in the state only."""

    fields: ClassVar = {"colour": {"enum": ["red", "black"], "type": "string"}, "note": {"anyOf": [{"type": "string"}]}}
    required = ("colour", "note")

    def reset(self, seed: int, start: int = 10, **options: Any) -> Any:
        self.seed = seed
        return {"coins": start, "said": "Bet."}, None, False

    def step(self, action: dict[str, Any]) -> Any:
        if not isinstance(action["note"], str):
            raise Refused("VALIDATION_ERROR", "Invalid message", {"loc": ["note"], "msg": "not a string"})
        if action["note"] == "break":
            raise Refused("EXECUTION_ERROR", "the game broke")
        return {"coins": 0, "said": "Lost."}, True, True

    def state(self) -> dict[str, Any]:
        return {**super().state(), "hidden": getattr(self, "seed", 0) % 3}


class Tools(Game):
    """Tools only; the second one ends the episode."""

    fields: ClassVar = {
        "type": {"const": "call_tool"},
        "tool_name": {"type": "string"},
        "arguments": {"type": "object"},
    }
    required = ("tool_name",)
    tools = ({"name": "add", "description": "Adds.", "inputSchema": {"type": "object"}}, {"name": "end"})

    def step(self, action: dict[str, Any]) -> Any:
        assert action["type"] == "call_tool"
        if action["tool_name"] == "end":
            return {"tool_name": "end", "result": {"content": [{"type": "text", "text": "bye"}]}}, 1.0, True
        return {"tool_name": "add", "result": sum(action["arguments"].values())}, 0.25, False


def test_a_lone_text_field_takes_the_whole_reply() -> None:
    with running(Game) as fake:
        env = env_of(fake)
        obs, info = env.reset(seed=3)
        assert (obs, info["parts"]) == ("Say 3.", [("state", "Say 3.")])
        assert env.step("{no}")[:4] == ("Wrong.", 0.0, False, False)
        obs, reward, terminated, truncated, info = env.step("<think>4?</think>3")
        assert (obs, reward, terminated, truncated) == ("Right.", 1.0, True, False)
        env.close()


def test_the_seed_and_the_state_make_the_key() -> None:
    with running(Picks) as fake:
        env = env_of(fake)
        keys = [env.reset(seed=seed)[1]["task_key"] for seed in range(6)]
        assert keys[:3] == keys[3:] and len(set(keys)) == 3, "what the state hides counts, its episode_id does not"
        assert env_of(fake, start=11).reset(seed=0)[1]["task_key"] != keys[0], "options reach the server's reset"


def test_an_object_is_asked_for_where_there_are_several_fields() -> None:
    with running(Picks) as fake:
        env = env_of(fake)
        obs, _ = env.reset(seed=0)
        asks = 'Answer with a JSON object: {"colour": "red" or "black", "note": string}.'
        assert obs == f"coins: 10\nsaid: Bet.\n\n{asks}"
        for reply, said in (
            ("red", "No JSON object was found"), ('{"a":' * 99_999, "no whole"),
            ('{"colour": "red"}', '"note" is missing'), ('{"color": "red", "note": ""}', '"color" is no field'),
            ('{"colour": "red", "note": 1}', "Invalid message; note: not a string"),
        ):  # fmt: skip
            obs, reward, terminated, _, info = env.step(reply)
            assert said in obs and "coins: 10" in obs and (reward, terminated, info["invalid"]) == (0.0, False, True)
        obs, reward, terminated, _, info = env.step('I take {"colour": "red", "note": "x"}.')
        assert (obs, reward, terminated, info["invalid"]) == ("coins: 0\nsaid: Lost.", 1.0, True, False)


def test_what_breaks_on_the_server_is_a_fault() -> None:
    with running(Picks) as fake:
        env = env_of(fake)
        env.reset(seed=0)
        with pytest.raises(GameFault, match="cannot step: the game broke"):
            env.step('{"colour": "red", "note": "break"}')
        assert env.reset(seed=0)[0].startswith("coins"), "the next episode has its chance"


def test_choices_are_listed() -> None:
    fields = {"message": {"$ref": "#/$defs/Colour"}}
    form = ActionForm.of({"properties": fields, "$defs": {"Colour": {"type": "string", "enum": ["a", "b"]}}})
    assert form.choices == ["a", "b"] and form.read(" a ") == {"message": "a"}
    with pytest.raises(ValueError, match=r"none of the choices. Answer with one of: a, b"):
        form.read("c")


def test_tools_are_listed_and_called() -> None:
    with running(Tools) as fake:
        env = env_of(fake)
        obs, info = env.reset(seed=3)
        assert obs == "Say 3.", "tools stand in info, not in the text"
        function = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
        assert info["tools"][0] == {"type": "function", "function": function}
        assert [tool["function"]["name"] for tool in info["tools"]] == ["add", "end"]
        call = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
        assert env.step(f"Adding.\n{call}")[:3] == ("3", 0.25, False)
        for reply, said in (
            ("hello", "No tool was called."), ("<tool_call>{</tool_call>", "the call is cut off"),
            ('<tool_call>{"name": 3}</tool_call>', "a call has no name"),
            ('<tool_call>{"name": "add", "arguments": 3}</tool_call>', "the arguments of add are no JSON object"),
        ):  # fmt: skip
            obs, reward, over, _, info = env.step(reply)
            assert said in obs and (reward, over, info["invalid"]) == (0.0, False, True)
        end = '<tool_call>{"name": "end"}</tool_call>'
        assert env.step(f"{call}\n{end}\n{call}")[:3] == ("3\nbye", 1.25, True), "calls after the end are not made"


def test_later_prompts_show_long_calls_whole() -> None:
    call = '<tool_call>{"name": "add", "arguments": {"a": %s}}</tool_call>'
    with running(Tools) as fake:
        env = env_of(fake)
        env.reset(seed=3)
        for reply in (call % ("1" * 500), "hello " * 100):
            assert env.step(f"<think>?</think>{reply}")[4]["action"] == reply.strip()


def test_observations_in_words() -> None:
    assert words_of({"text": "A", "metadata": {}, "extra": None, "none": []}) == "A"
    assert words_of({"n": 0, "text": "A\nB", "board": [[1], ["é"]]}) == 'n: 0\ntext: A\nB\nboard: [[1], ["é"]]'
    assert result_of({"error": {"message": "no"}}) == "Error: no"
    assert result_of({"result": {"a": 1}}) == '{"a": 1}' and result_of({"text": "A"}) == "A"


def test_it_passes_the_check() -> None:
    class Two(Game):
        def step(self, action: dict[str, Any]) -> Any:
            number = action["message"].strip("[]")
            right = number.isdecimal() and int(number) % 5 == self.seed % 5
            return {"text": "Over."}, float(right), True

    with running(Two) as fake:
        report = check_env(f"openenv:{fake.url}", 8)
        assert (report.errors, report.distinct) == ([], 8)
        for place in fake.sockets:
            place.close()
    assert fake.at_once < 10, "a session ends with its environment"


def test_a_server_that_ignores_the_seed_is_found() -> None:
    count = iter(range(10_000))

    class Forgets(Game):
        def reset(self, seed: int, **options: Any) -> Any:
            return super().reset(next(count))

    with running(Forgets) as fake:
        assert any("the same seed" in error for error in check_env(f"openenv:{fake.url}", 4).errors)
        with pytest.raises(EnvError, match="another task the second time"):
            envs.build_splits(f"openenv:{fake.url}", {}, seeds=4)


@pytest.mark.parametrize("ref", ["openenv:localhost:8000", "openenv:http://", "openenv:http://a:b", "openenv:ws://a"])
def test_what_is_no_address_is_refused(ref: str) -> None:
    with pytest.raises(EnvError, match=r"names no server; write it like openenv:http://localhost:8000"):
        envs.make(ref)


def test_nobody_there_is_one_line() -> None:
    with running(Game) as fake:
        url = fake.url
    with pytest.raises(EnvError, match=rf"^no OpenEnv server answers at {url} .*; start it, or correct the address$"):
        envs.make(f"openenv:{url}")


def test_another_server_is_one_line() -> None:
    with (
        running(Game) as fake,
        pytest.raises(EnvError, match=r"/elsewhere/schema names no action, so .* is no OpenEnv"),
    ):
        envs.make(f"openenv:{fake.url}/elsewhere")


def test_sessions_are_waited_for() -> None:
    with running(Game, sessions=2) as fake:
        taken = [env_of(fake), env_of(fake)]
        for env in taken:
            env.reset(seed=0)
        waiting, done = env_of(fake), threading.Event()

        def third() -> None:
            waiting.reset(seed=7)
            done.set()

        thread = threading.Thread(target=third)
        thread.start()
        assert not done.wait(1.2), "there is no seat"
        taken[0].close()
        thread.join(20)
        assert done.is_set() and fake.at_once == 2


def test_a_full_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SEAT_S", 0.1)
    monkeypatch.setattr(session, "_AGAIN_S", 0.05)
    with running(Game, sessions=1) as fake:
        env = env_of(fake)
        env.reset(seed=0)
        env.close()
        fake.most = 0  # others have them all; a session of our own that has ended is none to wait for
        with pytest.raises(GameFault, match="raise its max_concurrent_envs, or wait"):
            env_of(fake).reset(seed=0)


def test_a_wait_of_its_own_sessions_ends_with_the_step_limit() -> None:
    with running(Game, sessions=1) as fake:
        one, two = env_of(fake), env_of(fake)
        one.reset(seed=0)
        two.limit_s = 0.3
        with pytest.raises(GameFault, match=r"are taken; raise its max_concurrent_envs$"):
            two.reset(seed=1)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


def playing(fake: Fake, tokenizer: Any, seeds: int) -> Any:
    """Episodes of seeds 0 and up that answer with the number they are asked for."""
    jobs = []
    for seed in range(seeds):
        env = env_of(fake)
        jobs.append(Job(Task(seed, env.reset(seed=seed)[1]["task_key"])))
        env.close()
    sampler = Scripted(tokenizer, lambda prompt: prompt.rpartition("Say ")[2].partition(".")[0])
    player = Player(
        game=Played(ref=f"openenv:{fake.url}"), sampler=sampler, chat=Chat(tokenizer), sampling=Sampling(), retries=1
    )
    return play(player, jobs)


def test_many_sessions_step_at_the_same_time(tokenizer: Any) -> None:
    together = threading.Barrier(4)

    class Meets(Game):
        def step(self, action: dict[str, Any]) -> Any:
            together.wait(20)
            return super().step(action)

    with running(Meets) as fake:
        episodes = list(playing(fake, tokenizer, 4))
        assert [episode.stop_reason for episode in episodes] == ["solved"] * 4, [e.error for e in episodes]
        assert fake.served == 8, "one session for each episode, and one for each key"


def test_a_server_that_goes_costs_its_episodes_and_not_the_run(tokenizer: Any) -> None:
    class Dies(Game):
        def step(self, action: dict[str, Any]) -> Any:
            if self.seed == 2:
                fake.stop()
            return super().step(action)

    with running(Dies, sessions=1) as fake:
        episodes = list(playing(fake, tokenizer, 5))
    stops = {episode.task.seed: episode.stop_reason for episode in episodes}
    assert len(stops) == 5 and stops[2] == "env_error" and set(stops.values()) <= {"solved", "env_error"}
    assert all("is gone" in str(e.error) for e in episodes if e.stop_reason == "env_error")


def test_whoever_stops_early_ends_the_sessions(tokenizer: Any) -> None:
    first, stuck = threading.Event(), threading.Event()

    class Waits(Game):
        def step(self, action: dict[str, Any]) -> Any:
            if first.is_set():
                stuck.wait(20)
            first.set()
            return super().step(action)

    with running(Waits, sessions=2) as fake:
        episodes = playing(fake, tokenizer, 6)
        assert next(episodes).stop_reason == "solved"
        began = time.monotonic()
        episodes.close()  # two are stuck in a step, others wait for a seat
        assert time.monotonic() - began < 15, "it waited for the stuck ones"
        stuck.set()


def test_an_alarm_in_a_step_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(Game) as fake:
        env = env_of(fake)
        env.reset(seed=0)
        with monkeypatch.context() as patch:
            patch.setattr("agentopcd.envs.hub.openenv_env._answers", _rings)
            with pytest.raises(Hang):
                env.step("late")
        with pytest.raises(GameFault, match="the session on the OpenEnv server is over"):
            env.step("again")


def _rings(*_: Any) -> Any:
    raise OutOfTime
