"""What an extractor is asked: which prompt for which episode, what it is shown, and prompts of a person's own."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from agentopcd.core.errors import ConfigError
from agentopcd.core.types import MARKER, Job, Task
from agentopcd.knowledge import extraction_messages
from agentopcd.knowledge.extract import TEMPLATES, check_template, prompt_kind, single_trace

STATE, ACTIONS = ("state", "P.\n.G"), ("actions", "[up] [down]")


def answered(kit: Any, outcome: list[tuple[str, str]]) -> Any:
    turn = kit.turn([("rules", "SECRET"), ("feedback", "label 42"), ("state", "What is 6 · 7?")], "It is 41.")
    return dataclasses.replace(kit.episode(Job(Task(1, "k")), False, turns=[turn]), outcome=outcome)


def talk(kit: Any, *roles: str, parts: Any = (STATE,)) -> Any:
    turn = kit.turn(list(parts), "Hello.")
    messages = [{"role": role, "content": "x"} for role in roles]
    turns = [turn, dataclasses.replace(turn, messages=messages)]
    return kit.episode(Job(Task(1, "k")), True, turns=turns)


def test_feedback_on_the_only_reply_is_shown_and_the_outcome_is_not(kit: Any) -> None:
    episode = answered(kit, [("feedback", "Too long: a number was wanted."), ("outcome", "The answer was 42.")])
    prompt = extraction_messages(episode, kind="single")[0]["content"]
    assert prompt.startswith(
        "Question: What is 6 · 7?\nYour answer: It is 41.\nFeedback: Too long: a number was wanted."
    )
    assert "better feedback" in prompt
    for hidden in ("42", "SECRET", "label"):
        assert hidden not in prompt


def test_without_feedback_nothing_is_said_of_it(kit: Any) -> None:
    episode = answered(kit, [("outcome", "The answer was 42.")])
    prompt = extraction_messages(episode, kind="single")[0]["content"]
    assert single_trace(episode) == "Question: What is 6 · 7?\nYour answer: It is 41."
    assert "eedback" not in prompt and "42" not in prompt


@pytest.mark.parametrize(
    ("roles", "parts", "wanted"),
    [
        (("user",), (STATE,), "game"),
        (("user",), (STATE, ACTIONS), "game"),
        (("user", "assistant", "user"), (STATE, ACTIONS), "game"),  # a game that is shown as a chat
        (("user", "assistant", "user"), (STATE,), "conversation"),
        (("user", "assistant", "tool"), (STATE, ACTIONS), "tools"),
    ],
)
def test_what_an_episode_holds_decides_its_prompt(kit: Any, roles: Any, parts: Any, wanted: Any) -> None:
    episode = talk(kit, *roles, parts=parts)
    assert prompt_kind(episode, "game") == wanted
    prompt = extraction_messages(episode, kind="game")[0]["content"]
    assert prompt.partition("\n")[0] == TEMPLATES[wanted].partition("\n")[0]
    assert "P.\n.G" in prompt and "Hello." in prompt


def test_an_episode_with_one_reply_is_a_question_or_has_feedback(kit: Any) -> None:
    assert prompt_kind(answered(kit, []), "single") == "question"
    assert prompt_kind(answered(kit, [("feedback", "  ")]), "single") == "question"
    assert prompt_kind(answered(kit, [("feedback", "Good.")]), "single") == "feedback"


def test_every_built_in_prompt_is_one_that_a_person_could_give() -> None:
    for name, template in TEMPLATES.items():
        assert check_template(template, name) == template
        assert all(place in template for place in ("{trace}", "{earlier}", "{marker}"))


def test_a_persons_own_prompt_is_asked_word_for_word(kit: Any) -> None:
    own = check_template("\n{trace}\n--\nSay it like {{json}}, with {marker} {marker}.\n", "mine.txt")
    prompt = extraction_messages(answered(kit, []), kind="single", template=own)[0]["content"]
    trace = "Question: What is 6 · 7?\nYour answer: It is 41."
    assert prompt == f"{trace}\n--\nSay it like {{json}}, with {MARKER} {MARKER}."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Write down a lesson.", r"mine.txt has no \{trace\}"),
        ("", r"mine.txt has no \{trace\}"),
        ("{{trace}}", r"mine.txt has no \{trace\}"),
        ("{trace} {trcae}", r"mine.txt has an unknown place \{trcae\}.*; did you mean 'trace'\?"),
        ("{trace} {label}", r"unknown place \{label\} \(\{\{label\}\} stands .*; known: earlier, marker, trace"),
    ],
)
def test_a_prompt_without_the_episode_or_with_an_unknown_place_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_template(text, "mine.txt")
