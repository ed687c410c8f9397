"""What a game shows, how it is named, and replies that are held to its legal actions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from agentopcd import envs
from agentopcd.core.errors import ConfigError, EnvError
from agentopcd.core.types import Context, Job, Sampling, Task
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import MAX_REPLY_IN_LOG, play
from tests import tiny
from tests.rollouts.scripted import WALK, WINNING, Walk, by_turn, lake_job, one, player_of, walks


@pytest.fixture(autouse=True)
def no_faults() -> None:
    Walk.faults.clear()
    Walk.opened.clear()


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


# -- what is shown ------------------------------------------------------------------------------------


def test_the_view_decides_about_the_rules(tokenizer: Any) -> None:
    for rules, shown in [("", True), ("full", True), ("hidden", False), ("none", False)]:
        episode = one(player_of(tokenizer, lambda prompt: "go", rules=rules), walks(1)[0])
        assert ("Secret rules." in episode.turns[-1].messages[0]["content"]) is shown
        assert ("rules" in dict(episode.turns[0].parts)) is shown


def test_the_lake_hides_its_rules_behind_neutral_words(tokenizer: Any) -> None:
    episode = one(player_of(tokenizer, by_turn(WINNING), "frozen-lake"), lake_job())
    full = one(player_of(tokenizer, by_turn(WINNING), "frozen-lake", rules="full"), lake_job())
    assert "hole" not in episode.turns[0].messages[0]["content"].lower()
    assert "hole" in full.turns[0].messages[0]["content"].lower()


@pytest.mark.parametrize("history", ["transcript", "chat"])
def test_thinking_is_hidden_from_later_prompts(tokenizer: Any, history: str) -> None:
    player = player_of(tokenizer, lambda prompt: "<think>secret plan</think> go", history=history)
    episode = one(player, walks(1)[0])
    assert len(episode.turns) == 3
    assert all("secret plan" in turn.reply for turn in episode.turns)
    assert not any("secret plan" in message["content"] for turn in episode.turns for message in turn.messages)


def test_a_long_reply_is_cut_in_later_prompts_and_an_empty_one_is_said(tokenizer: Any) -> None:
    long = one(player_of(tokenizer, lambda prompt: "x" * 1000), walks(1)[0])
    empty = one(player_of(tokenizer, lambda prompt: ""), walks(1)[0])
    assert "x" * MAX_REPLY_IN_LOG in long.turns[1].messages[0]["content"]
    assert "x" * (MAX_REPLY_IN_LOG + 1) not in long.turns[1].messages[0]["content"]
    assert "You answered: (nothing)" in empty.turns[1].messages[0]["content"]


def test_a_context_is_in_the_prompt_and_not_in_the_messages(tokenizer: Any) -> None:
    context = Context("count to three")
    episode = one(player_of(tokenizer, lambda prompt: "go"), Job(walks(1)[0].task, context))
    assert episode.context_id == context.id
    for turn in episode.turns:
        assert tokenizer.decode(list(turn.prompt_ids)).count("count to three") == 1
        assert not any("count to three" in message["content"] for message in turn.messages)


# -- names --------------------------------------------------------------------------------------------


def test_arguments_that_change_tasks_are_part_of_the_name() -> None:
    assert Game(ref="math").label == "math"
    assert Game(ref="math", kwargs={"ops": "+ -", "level": 2}).label == "math,level=2,ops=+-"


def test_an_unknown_view_fails_before_anything_is_loaded() -> None:
    with pytest.raises(EnvError, match="hidden"):
        Game(ref="math", rules="hiden")


def test_a_setup_names_all_that_changes_play(tokenizer: Any) -> None:
    base = player_of(tokenizer, lambda prompt: "go")
    changed = [
        dataclasses.replace(base, seed=1),
        dataclasses.replace(base, sampling=Sampling(temperature=0.1)),
        dataclasses.replace(base, game=Game(ref=WALK, rules="none")),
        dataclasses.replace(base, game=Game(ref=WALK, max_steps=3)),
        dataclasses.replace(base, game=Game(ref=WALK, history="chat")),
        dataclasses.replace(base, chat=Chat(tokenizer, {"enable_thinking": False})),
    ]
    setups = [base.setup(), *(player.setup() for player in changed)]
    assert all(a != b for i, a in enumerate(setups) for b in setups[:i])
    assert dataclasses.replace(base, concurrency=1).setup() == base.setup()


# -- replies held to a list ---------------------------------------------------------------------------


def test_legal_actions_go_with_the_request_and_stay_with_the_turn(tokenizer: Any) -> None:
    player = player_of(tokenizer, by_turn(WINNING), "frozen-lake")
    held = dataclasses.replace(player, game=dataclasses.replace(player.game, constrain=True))
    episode = one(held, lake_job())
    wanted = {(*tokenizer(f"[{move}]", add_special_tokens=False)["input_ids"], tiny.END)
              for move in ("up", "down", "left", "right")}  # fmt: skip
    (first,), *_ = held.sampler.asked  # type: ignore[attr-defined]
    assert set(first.choices) == wanted == set(episode.turns[-1].choices)
    assert all(turn.response_ids in wanted for turn in episode.turns)
    assert held.setup() != player.setup()
    assert not one(player, lake_job()).turns[0].choices


def test_the_actions_that_a_bridge_lists_hold_replies_too(tokenizer: Any) -> None:
    env = envs.make("gym:FrozenLake-v1")
    job = Job(Task(0, envs.task_key(*env.reset(seed=0))))
    player = player_of(tokenizer, lambda prompt: "[down]", "gym:FrozenLake-v1", max_steps=2)
    held = dataclasses.replace(player, game=dataclasses.replace(player.game, constrain=True))
    episode = one(held, job)
    wanted = held.chat.choices(["[left]", "[down]", "[right]", "[up]"])
    assert episode.error is None and [turn.choices for turn in episode.turns] == [wanted, wanted]


def test_an_environment_that_lists_no_actions_cannot_hold_replies_to_them(tokenizer: Any) -> None:
    player = player_of(tokenizer, lambda prompt: "go")
    player = dataclasses.replace(player, game=dataclasses.replace(player.game, constrain=True))
    with pytest.raises(EnvError, match=r"lists no legal actions .* leave --constrain out"):
        list(play(player, walks(1)))


def test_a_later_state_that_lists_no_actions_costs_its_own_episode(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, step = Walk.reset, Walk.step

    def reset(self: Walk, *, seed: int | None = None, options: Any = None) -> Any:
        obs, info = usual(self, seed=seed)
        return obs, info | {"choices": ["go"]}

    def later(self: Walk, action: str) -> Any:
        obs, *rest, info = step(self, action)
        return obs, *rest, info | ({} if self.seed_now == 1 else {"choices": ["go"]})

    monkeypatch.setattr(Walk, "reset", reset)
    monkeypatch.setattr(Walk, "step", later)
    player = player_of(tokenizer, lambda prompt: "go")
    held = dataclasses.replace(player, game=dataclasses.replace(player.game, constrain=True))
    none, two = sorted(play(held, walks(1, 2)), key=lambda episode: episode.task.seed)
    assert (none.stop_reason, len(none.turns)) == ("env_error", 1) and two.success
    assert "lists no legal actions to hold replies to" in str(none.error)


def test_listed_replies_that_would_be_cut_end_the_run_or_where_they_come_later_the_episode(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, step = Walk.reset, Walk.step
    long = "go on and on and on"

    def reset(self: Walk, *, seed: int | None = None, options: Any = None) -> Any:
        obs, info = usual(self, seed=seed)
        return obs, info | {"choices": [long if seed == 3 else "go", "stay"]}

    def later(self: Walk, action: str) -> Any:
        obs, *rest, info = step(self, action)
        return obs, *rest, info | {"choices": [long if self.seed_now == 1 else "go"]}

    monkeypatch.setattr(Walk, "reset", reset)
    monkeypatch.setattr(Walk, "step", later)
    player = player_of(tokenizer, lambda prompt: "go")
    needs = max(map(len, player.chat.choices([long])))
    held = dataclasses.replace(player, game=dataclasses.replace(player.game, constrain=True))
    assert all(episode.success for episode in play(held, walks(1, 2, 3)))  # there is room
    held = dataclasses.replace(held, sampling=dataclasses.replace(held.sampling, max_tokens=needs - 1))
    told = f"has {needs} tokens with its end, and a reply may have {needs - 1}; raise --max-tokens to {needs}"
    one_, two = sorted(play(held, walks(1, 2)), key=lambda episode: episode.task.seed)
    assert (one_.stop_reason, len(one_.turns)) == ("env_error", 1) and told in str(one_.error)
    assert two.success
    with pytest.raises(ConfigError, match=told):
        list(play(held, walks(3)))


def test_a_state_can_list_its_own_actions(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Walk.reset

    def reset(self: Walk, *, seed: int | None = None, options: Any = None) -> Any:
        obs, info = usual(self, seed=seed)
        return obs, info | {"choices": ["go", "stay"]}

    monkeypatch.setattr(Walk, "reset", reset)
    monkeypatch.setattr(Walk, "step", lambda self, action: self.turn(success=True))
    player = player_of(tokenizer, lambda prompt: "go")
    player = dataclasses.replace(player, game=dataclasses.replace(player.game, constrain=True))
    (turn,) = one(player, walks(1)[0]).turns
    assert turn.choices == player.chat.choices(["go", "stay"])
