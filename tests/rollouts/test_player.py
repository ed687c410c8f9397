"""Play: every turn is recorded in full, a broken environment is never a lost game, nothing depends on the order."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import envs, models
from agentopcd.core.config import PlayConfig
from agentopcd.core.errors import EnvError
from agentopcd.core.types import Completion, Job, Request, Sampling, Task
from agentopcd.envs import TextEnv
from agentopcd.rollouts import engine
from agentopcd.rollouts import fault_log as fault_logs
from agentopcd.rollouts.fault_log import Fault, fault_log
from agentopcd.rollouts.player import Player, play
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests import tiny
from tests.rollouts.scripted import WINNING, Scripted, Walk, by_turn, lake_job, one, player_of, walks


class Pays(TextEnv):
    """Pays 1 each turn and never ends: what the cut makes of it must not be a success."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.first(key="pays", state="go on")

    def step(self, action: str) -> Any:
        return self.turn(state="go on", reward=1.0)


@pytest.fixture(autouse=True)
def no_faults() -> None:
    Walk.faults.clear()
    Walk.opened.clear()


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


# -- a real game --------------------------------------------------------------------------------------


def test_a_won_game_is_recorded_in_full(tokenizer: Any) -> None:
    player = player_of(tokenizer, by_turn(WINNING), "frozen-lake")
    episode = one(player, lake_job())
    assert (episode.success, episode.stop_reason, episode.reward, episode.error) == (True, "solved", 1.0, None)
    assert [turn.reply for turn in episode.turns] == WINNING
    assert [turn.reward for turn in episode.turns] == [0, 0, 0, 1]
    for turn in episode.turns:
        answered = player.sampler._answer(Request(prompt_ids=turn.prompt_ids, seed=0))  # type: ignore[attr-defined]
        assert turn.prompt_ids == player.chat.render(turn.messages)
        assert (turn.response_ids, turn.logprobs) == (answered.token_ids, answered.logprobs)
        assert turn.finish_reason == "stop" and not turn.invalid
        assert "P" in dict(turn.parts)["state"]
    assert "goal" in dict(episode.outcome)["outcome"].lower()
    assert episode.output_tokens == sum(len(turn.response_ids) for turn in episode.turns)


def test_later_prompts_hold_the_game_so_far(tokenizer: Any) -> None:
    episode = one(player_of(tokenizer, by_turn(WINNING), "frozen-lake"), lake_job())
    last = episode.turns[-1].messages[0]["content"]
    for turn, move in zip(episode.turns[:-1], WINNING, strict=False):
        assert dict(turn.parts)["state"] in last
        assert f"You answered: {move}" in last


def test_too_few_replies_are_a_cut_and_not_a_win(tokenizer: Any) -> None:
    episode = one(player_of(tokenizer, by_turn(WINNING), "frozen-lake", max_steps=2), lake_job())
    assert (episode.success, episode.stop_reason, len(episode.turns)) == (False, "max_steps", 2)


def test_a_hole_is_a_lost_game(tokenizer: Any) -> None:
    for seed in range(20):
        env = envs.make("frozen-lake")
        env.reset(seed=seed)
        if (1, 0) in env.unwrapped.model().holes:  # type: ignore[attr-defined]
            break
    episode = one(player_of(tokenizer, lambda prompt: "[down]", "frozen-lake"), lake_job(seed))
    assert (episode.success, episode.stop_reason, episode.error) == (False, "failed", None)


# -- endings ------------------------------------------------------------------------------------------


def test_the_three_endings(tokenizer: Any) -> None:
    wins = one(player_of(tokenizer, lambda prompt: "go"), walks(1)[0])
    loses = one(player_of(tokenizer, lambda prompt: "lose"), walks(1)[0])
    cut = one(player_of(tokenizer, lambda prompt: "go", max_steps=2), walks(1)[0])
    assert [(e.stop_reason, e.success) for e in (wins, loses, cut)] == [
        ("solved", True), ("failed", False), ("max_steps", False)
    ]  # fmt: skip
    assert wins.metrics == {"steps": 3.0}
    assert wins.reward == 1.5
    assert wins.outcome == [("outcome", "You counted to three.")]


def test_a_cut_with_reward_is_no_success(tokenizer: Any) -> None:
    player = player_of(tokenizer, lambda prompt: "go", "tests.rollouts.test_player:Pays", max_steps=3)
    episode = one(player, Job(Task(0, "pays")))
    assert (episode.stop_reason, episode.success, episode.reward) == ("max_steps", False, 3.0)


def test_invalid_replies_are_marked(tokenizer: Any) -> None:
    episode = one(player_of(tokenizer, by_turn(["?", "go", "go"])), walks(1)[0])
    assert [turn.invalid for turn in episode.turns] == [True, False, False]


# -- broken environments ------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["reset", "step"])
def test_an_environment_that_breaks_now_and_then_is_started_afresh(tokenizer: Any, where: str) -> None:
    Walk.faults[where, 2] = 2
    episodes = {e.task.seed: e for e in play(player_of(tokenizer, lambda prompt: "go"), walks(1, 2, 3))}
    assert {seed: (e.stop_reason, e.error, len(e.turns)) for seed, e in episodes.items()} == dict.fromkeys(
        (1, 2, 3), ("solved", None, 3)
    )


@pytest.mark.parametrize("where", ["reset", "step"])
def test_an_environment_that_stays_broken_is_an_error_and_not_a_loss(tokenizer: Any, where: str) -> None:
    Walk.faults[where, 2] = 99
    episodes = {e.task.seed: e for e in play(player_of(tokenizer, lambda prompt: "go"), walks(1, 2, 3))}
    assert [episodes[seed].stop_reason for seed in (1, 2, 3)] == ["solved", "env_error", "solved"]
    assert f"RuntimeError: the {where} of 2 broke" in (episodes[2].error or "")
    assert "Traceback" in (episodes[2].error or "")
    assert not episodes[2].success
    assert 99 - Walk.faults[where, 2] == 3  # the first try and two retries


@pytest.mark.parametrize(("where", "turn"), [("reset", "turn 0, before any reply"), ("step", ", the reply was:")])
def test_what_breaks_is_written_down_in_full(tokenizer: Any, tmp_path: Path, where: str, turn: str) -> None:
    Walk.faults[where, 2] = 99
    log = fault_log(tmp_path, "My Walk {x}", "7")
    player = dataclasses.replace(player_of(tokenizer, lambda prompt: "go"), faults=log)
    list(play(player, walks(1, 2, 3)))
    assert log.file == tmp_path / "errors" / "my-walk-x-7.log"
    text = log.file.read_text()
    assert text.count("====") == 3 and all(f"attempt {number}\n" in text for number in (1, 2, 3))
    assert text.count("seed 2  task walk-2  repetition 0  context e3b0c44298fc") == 3 and "seed 1 " not in text
    assert text.count(turn) == 3 and ("reply was:\ngo\n" in text) == (where == "step")
    assert f"RuntimeError: the {where} of 2 broke" in text and "in guarded" in text  # down from our own frames


def test_the_file_of_faults_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_logs, "MOST_BYTES", 3000)
    monkeypatch.setattr(fault_logs, "LONGEST", 1000)
    log = fault_log(tmp_path, "walk", "1")
    for attempt in range(9):
        log.add(
            Fault(env="walk", job=walks(1)[0], turn=1, reply="\ud800x" * 5000, traceback="t" * 5000, attempt=attempt)
        )
    text = log.file.read_text()
    assert text.count("==== 2") == 1 and text.endswith("remove it to collect more\n")
    assert text.count("the file is full") == 1 and "[... 4000 characters ...]" in text and len(text) < 7000


def test_every_environment_that_was_opened_is_closed(tokenizer: Any) -> None:
    Walk.faults["step", 2] = 99
    list(play(player_of(tokenizer, lambda prompt: "go"), walks(1, 2, 3)))
    assert Walk.opened["closed"] == Walk.opened["all"]


@pytest.mark.parametrize("at", ["request", "submit"])
def test_an_episode_whose_request_ends_the_run_is_closed(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise EnvError(f"{at} failed")

    player = player_of(tokenizer, lambda prompt: "go")
    seen: list[str] = []
    monkeypatch.setattr(player.chat if at == "request" else player.sampler, at, fails)
    monkeypatch.setattr(player.sampler, "drop", lambda tickets: seen.append("drop"))
    with pytest.raises(EnvError, match=f"{at} failed"):
        list(play(player, walks(1, 2)))
    assert Walk.opened["closed"] == Walk.opened["all"] == 1 and seen == ["drop"]


ALTERNATES = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + tiny.TEMPLATE
)
"""Takes no system message, either."""


def test_a_conversation_that_the_template_refuses_costs_its_own_episode(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usual, step = Walk.reset, Walk.step
    twice = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "user", "content": "Anybody?"}]}

    def reset(self: Walk, *, seed: int | None = None, options: Any = None) -> Any:
        obs, info = usual(self, seed=seed)
        return obs, info | (twice if seed == 2 else {})

    def later(self: Walk, action: str) -> Any:
        obs, *rest, info = step(self, action)
        return obs, *rest, info | (twice if self.seed_now == 3 else {})

    monkeypatch.setattr(Walk, "reset", reset)
    monkeypatch.setattr(Walk, "step", later)
    own = copy.deepcopy(tokenizer)
    own.chat_template = ALTERNATES
    log = fault_log(tmp_path, "walk", "1")
    player = dataclasses.replace(player_of(own, lambda prompt: "go"), faults=log)
    episodes = {e.task.seed: e for e in play(player, walks(1, 2, 3, 4))}
    assert [(episodes[seed].stop_reason, len(episodes[seed].turns)) for seed in (1, 2, 3, 4)] == [
        ("solved", 3), ("env_error", 0), ("env_error", 1), ("solved", 3)
    ]  # fmt: skip
    assert episodes[2].error == "TemplateError: the chat template failed: roles must alternate"
    assert Walk.opened["closed"] == Walk.opened["all"] == 4
    assert "seed 2  task walk-2" in log.file.read_text() and "roles must alternate" in log.file.read_text()


def test_a_close_that_fails_costs_nothing(tokenizer: Any) -> None:
    Walk.faults["close", 1] = 99
    assert one(player_of(tokenizer, lambda prompt: "go"), walks(1)[0]).success


def test_a_task_that_is_not_what_its_key_says_stops_everything(tokenizer: Any) -> None:
    with pytest.raises(EnvError, match="new splits"):
        one(player_of(tokenizer, lambda prompt: "go"), Job(Task(1, "walk-2")))


# -- many at once -------------------------------------------------------------------------------------


def test_at_most_so_many_are_in_flight_and_each_job_ends_once(tokenizer: Any) -> None:
    player = player_of(tokenizer, lambda prompt: "go", concurrency=3)
    episodes = list(play(player, walks(*range(8))))
    assert sorted(e.task.seed for e in episodes) == list(range(8))
    sizes = [len(requests) for requests in player.sampler.asked]  # type: ignore[attr-defined]
    assert sizes == [3, 3, 3, 3, 3, 3, 2, 2, 2]


def test_a_finished_episode_makes_room_at_once(tokenizer: Any) -> None:
    player = player_of(tokenizer, by_turn(["go", "lose"]), concurrency=2)
    player.sampler.reply = lambda prompt: "lose" if len(player.sampler.asked) == 1 else "go"  # type: ignore[attr-defined]
    assert len(list(play(player, walks(1, 2, 3)))) == 3
    assert [len(requests) for requests in player.sampler.asked] == [2, 1, 1, 1]  # type: ignore[attr-defined]


def seeds_of(player: Player, jobs: Sequence[Job]) -> dict[tuple[int, ...], set[int]]:
    list(play(player, jobs))
    found: dict[tuple[int, ...], set[int]] = {}
    for requests in player.sampler.asked:  # type: ignore[attr-defined]
        for request in requests:
            found.setdefault(request.prompt_ids, set()).add(request.seed)
    return found


def test_noise_depends_on_run_task_repetition_and_turn_but_not_on_the_order(tokenizer: Any) -> None:
    jobs = [Job(job.task, rep=rep) for job in walks(1, 2) for rep in range(2)]
    wide = seeds_of(player_of(tokenizer, lambda prompt: "go"), jobs)
    narrow = seeds_of(player_of(tokenizer, lambda prompt: "go", concurrency=1), jobs[::-1])
    other = seeds_of(player_of(tokenizer, lambda prompt: "go", seed=1), jobs)
    assert wide == narrow
    assert len(set.union(*wide.values())) == 12
    assert not set.union(*wide.values()) & set.union(*other.values())


def test_a_retry_plays_the_same_noise(tokenizer: Any) -> None:
    Walk.faults["step", 1] = 1
    broken = seeds_of(player_of(tokenizer, lambda prompt: "go"), walks(1))
    assert broken == seeds_of(player_of(tokenizer, lambda prompt: "go"), walks(1))


# -- an engine that answers one by one ----------------------------------------------------------------


class OneByOne(Scripted):
    """Answers the newest request first, so that the oldest episode waits for all others."""

    def __init__(self, tokenizer: Any, reply: Callable[[str], str]) -> None:
        super().__init__(tokenizer, reply)
        self.waiting: dict[int, Request] = {}
        self.most = self.count = 0

    def submit(self, request: Request, sampling: Sampling) -> int:
        self.count += 1
        self.waiting[self.count] = request
        self.most = max(self.most, len(self.waiting))
        return self.count

    def collect(self) -> list[tuple[int, Completion]]:
        ticket, request = self.waiting.popitem()
        return [(ticket, self._answer(request))]

    def drop(self, tickets: Any) -> None:
        for ticket in tickets:
            del self.waiting[ticket]


def test_no_episode_waits_for_another_and_all_get_what_they_get_in_batches(tokenizer: Any) -> None:
    in_batches = player_of(tokenizer, by_turn(["1", "2", "3"]))
    one_by_one = dataclasses.replace(in_batches, sampler=OneByOne(tokenizer, by_turn(["1", "2", "3"])), concurrency=3)
    usual, free = list(play(in_batches, walks(*range(6)))), list(play(one_by_one, walks(*range(6))))
    assert [e.task.seed for e in free] != [e.task.seed for e in usual] == list(range(6))
    assert free[0].task.seed == 2 and free[-1].task.seed == 0  # the newest of three first; the first one waits
    assert sorted(free, key=lambda e: e.task.seed) == usual
    assert one_by_one.sampler.most == 3  # type: ignore[attr-defined]
    assert not one_by_one.sampler.waiting  # type: ignore[attr-defined]


def test_whoever_stops_early_leaves_no_request_behind(tokenizer: Any) -> None:
    player = player_of(tokenizer, by_turn(["1", "2", "3"]))
    player = dataclasses.replace(player, sampler=OneByOne(tokenizer, by_turn(["1", "2", "3"])))
    episodes = play(player, walks(*range(6)))
    next(episodes)
    assert len(player.sampler.waiting) == 5  # type: ignore[attr-defined]
    episodes.close()  # type: ignore[attr-defined]
    assert not player.sampler.waiting  # type: ignore[attr-defined]


def test_as_many_episodes_play_at_once_as_the_engine_can_answer(tiny_model_dir: Path) -> None:
    loaded = models.load_model(str(tiny_model_dir))

    def at_once(**settings: Any) -> int:
        config = PlayConfig(env="frozen-lake", compute="float32", **settings)
        return engine.player_of(config, loaded, torch.float32).concurrency

    assert (at_once(), at_once(sample_batch=8)) == (128, 128)
    assert at_once(sample_batch=64) == 256 == TransformersSampler(loaded, compute=torch.float32, batch_size=64).rows
