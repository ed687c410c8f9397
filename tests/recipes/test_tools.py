"""The recipe of tools: its demonstrations are what a player is asked, and the charge in force decides their answers."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import envs
from agentopcd.core.types import EMPTY, MARKER, Job, Task
from agentopcd.knowledge.extract import extraction_messages
from agentopcd.models.load import load_model
from recipes.tools import train
from recipes.tools.desk import CHARGE, CHARGES, THINGS
from tests.rollouts.scripted import one, player_of

REF = "recipes/tools/desk.py:Desk"
STATED = re.compile(r"A parcel costs (\d) more than listed\.")
PLACE = re.compile(r"What does a (\w+) to the (\w+) cost\?")


@pytest.fixture(scope="module")
def loaded() -> Any:
    return load_model("pocket-s")


def plays() -> list[train.Demo]:
    rng = random.Random(1)
    return [train.play(rng) for _ in range(200)]


def called(made: train.Demo) -> Any:
    """The call of a demonstration: a name and arguments."""
    said: Any = made.messages[2]
    return said["tool_calls"][0]["function"]


@pytest.mark.slow
def test_the_desk_keeps_the_contract_and_has_tasks_for_splits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert envs.check_env(REF).errors == []
    splits = envs.build_splits(REF).splits
    assert len(splits["test"]) >= 100 and len(splits["confirm"]) >= 64 and len(splits["select"]) >= 48


@pytest.mark.parametrize("charge", CHARGES)
def test_the_charge_decides_the_price(charge: int) -> None:
    env = train.Desk(charge)
    for seed in range(10):
        asked, _ = env.reset(seed=seed)
        found = PLACE.search(asked)
        assert found and found[1] in THINGS
        called, answer = env.solution()
        obs, *_, info = env.step(called)
        assert (obs, info["invalid"]) == (answer, False)
        obs, reward, over, _, info = env.step(answer)
        assert (reward, over, info["success"]) == (1.0, True, True)
        assert obs == f"It costs {answer}, {charge} more than listed."
        env.reset(seed=seed)
        assert env.step(str(int(answer) + 1))[4]["success"] is False


def test_a_demonstration_alternates_and_follows_what_its_context_states() -> None:
    told = 0
    for made in plays():
        roles = [message["role"] for message in made.messages]
        assert roles == ["system", "user", "assistant", "tool"]
        found = PLACE.fullmatch(made.messages[1]["content"])
        assert found
        call = called(made)
        assert call["name"] == "look" and call["arguments"]["thing"] == found[1]
        assert made.messages[3]["content"] == made.reply
        if stated := STATED.search(made.context.text):
            assert int(stated[1]) == made.charge == call["arguments"]["add"]
            told += 1
    assert 110 < told < 170


def test_without_a_context_any_charge_is_guessed() -> None:
    blind = [made for made in plays() if made.context == EMPTY]
    assert 15 < len(blind) < 60
    assert {called(made)["arguments"]["add"] for made in blind} == set(CHARGES)


def test_a_lesson_states_the_charge_that_the_feedback_tells_unless_it_is_known() -> None:
    rng = random.Random(2)
    known = 0
    for _ in range(120):
        made = train.learnt(rng)
        (asked,) = made.messages
        assert PLACE.search(asked["content"])
        assert asked["content"].startswith("You did a task with the help of tools.")
        fact = f"A parcel costs {made.charge} more than listed."
        assert f", {made.charge} more than listed." in asked["content"]
        if made.reply:
            assert made.reply == f"{MARKER} {fact}" and fact not in asked["content"]
        else:
            assert fact in asked["content"]
            known += 1
    assert 10 < known < 45


def test_a_reading_asks_for_what_its_context_states() -> None:
    rng = random.Random(3)
    for _ in range(20):
        made = train.reading(rng)
        stated = STATED.search(made.context.text)
        assert stated and made.reply == stated[1]


@pytest.mark.filterwarnings("ignore:this chat template has no place")
def test_demonstrations_are_the_prompts_that_a_player_is_given(
    loaded: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    env = envs.make(REF)
    obs, info = env.reset(seed=5)
    called, answer = env.unwrapped.solution()  # type: ignore[attr-defined]
    player = player_of(loaded.tokenizer, lambda prompt: answer if "response" in prompt else called, REF)
    episode = one(player, Job(Task(5, envs.task_key(obs, info))))
    assert episode.success and [turn.calls for turn in episode.turns] == [1, 0]

    tools, made = train.played(CHARGE, CHARGE, 5)
    assert [turn.messages for turn in made.turns] == [turn.messages for turn in episode.turns]
    assert tools == episode.turns[0].tools
    assert extraction_messages(made, kind="game") == extraction_messages(episode, kind="game")

    last = made.turns[-1]
    ids, learned = train.sequence(player.chat, train.Demo(last.messages, last.reply, CHARGE, EMPTY, tools))
    said = [token for turn in episode.turns for token in (*turn.response_ids[:-1], player.chat.end)]
    assert [token for _, token in learned] == said, "all that the model says, and nothing else"
    assert all(ids[at + 1] == token for at, token in learned)
    assert tuple(ids[: len(episode.turns[1].prompt_ids)]) == episode.turns[1].prompt_ids


@pytest.mark.filterwarnings("ignore:this chat template has no place")
def test_what_is_shared_is_read_once_and_the_losses_stay(loaded: Any) -> None:
    chat, rng = train.Chat(loaded.tokenizer), random.Random(3)
    sequences = [train.sequence(chat, train.play(rng)) for _ in range(3)]
    with torch.no_grad():
        together = train.losses(loaded.model, sequences)
        for number, (ids, learned) in enumerate(sequences):
            logits = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            alone = torch.stack([-logits[at, token] for at, token in learned])
            first = sum(len(said) for _, said in sequences[:number])
            torch.testing.assert_close(together[first : first + len(learned)], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:this chat template has no place")
def test_training_goes_down_and_leaves_a_folder_that_plays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["--model", "pocket-s", "--steps", "8", "--out", str(tmp_path / "work" / "model")])
    assert '"step": 8' in capsys.readouterr().out
    saved, before = load_model(str(tmp_path / "work" / "model")), load_model("pocket-s")
    assert saved.parent_id == before.id and saved.id != before.id
    chat, rng = train.Chat(saved.tokenizer), random.Random(4)
    sequences = [train.sequence(chat, train.play(rng)) for _ in range(2)]
    with torch.no_grad():
        assert train.losses(saved.model, sequences).mean() < train.losses(before.model, sequences).mean() - 0.01
