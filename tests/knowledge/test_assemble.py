"""Contexts: assembled under a budget, and the prompts that ask for new items."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentopcd.core.errors import ConfigError
from agentopcd.core.types import EMPTY, MARKER, Context, Job, Task
from agentopcd.knowledge import assemble, assemble_by_value, extraction_messages, identify


def words(text: str) -> int:
    """A tokenizer whose counts do not add up across joins: it also counts line ends."""
    return len(text.split()) + text.count("\n")


def shown(context: Context) -> list[str]:
    return context.lines


def test_a_chain_appends_and_drops_the_oldest_whole_items() -> None:
    rules = ["one", "two", "three", "four"]
    full = assemble(rules, budget=100, count_tokens=words)
    assert full.text == "\n".join(f"{MARKER} {rule}" for rule in rules)
    # Every line has 4 words; two lines and one line end are 9.
    assert shown(assemble(rules, budget=9, count_tokens=words)) == ["three", "four"]
    assert shown(assemble(rules, budget=8, count_tokens=words)) == ["four"]


def test_an_item_over_budget_raises_and_is_never_cut() -> None:
    with pytest.raises(ConfigError, match="one item alone has 5 tokens, the budget is 4"):
        assemble(["short", "too long"], budget=4, count_tokens=words)
    assert shown(assemble(["much too long", "short"], budget=4, count_tokens=words)) == ["short"]


def test_a_step_that_adds_nothing_is_the_same_context() -> None:
    first = assemble(["one", "two"], budget=100, count_tokens=words)
    again = assemble([*first.lines, "one"], budget=100, count_tokens=words)
    assert again == first and again.id == first.id
    assert assemble([], budget=100, count_tokens=words) == EMPTY
    assert assemble(["x"], budget=9, count_tokens=words, placement="system").placement == "system"


@given(st.lists(st.text("ab ", min_size=1).filter(str.strip)), st.integers(0, 60))
def test_every_context_fits_or_raises(rules: list[str], budget: int) -> None:
    try:
        context = assemble(rules, budget=budget, count_tokens=len)
    except ConfigError:
        assert any(len(f"{MARKER} {rule.strip()}") > budget for rule in rules)
        return
    assert len(context.text) <= budget
    kept = [identify(line) for line in context.lines]
    distinct = list(dict.fromkeys(identify(rule) for rule in rules))
    assert kept == distinct[len(distinct) - len(kept) :]


def test_by_value_takes_pinned_items_then_the_best_bound_a_token() -> None:
    # Lines of 4, 5, 6 and 4 words; bounds a word .05, .06, .02 and below 0.
    bounds = {"one": 0.2, "two words": 0.3, "three words here": 0.12, "four": -0.01}
    full = assemble_by_value(["pin"], bounds, budget=100, count_tokens=words)
    assert shown(full) == ["pin", "two words", "one", "three words here", "four"]
    # With "pin" 4, "two words" 10; "one" would make 15; then "four" would, too.
    assert shown(assemble_by_value(["pin"], bounds, budget=10, count_tokens=words)) == ["pin", "two words"]
    # "two words" (10 with the pin) is passed over for "one" (9), never cut.
    assert shown(assemble_by_value(["pin"], bounds, budget=9, count_tokens=words)) == ["pin", "one"]
    assert assemble_by_value([], {}, budget=9, count_tokens=words) == EMPTY
    assert assemble_by_value([], bounds, budget=3, count_tokens=words) == EMPTY
    assert assemble_by_value(["x"], {}, budget=9, count_tokens=words, placement="system").placement == "system"


def test_a_bound_below_0_does_not_favour_long_items() -> None:
    bounds = {"short": -0.1, "very much longer than that": -0.19}  # -.025 and -.024 a word
    assert shown(assemble_by_value([], bounds, budget=100, count_tokens=words))[0] == "short"


def test_pinned_items_over_budget_raise() -> None:
    with pytest.raises(ConfigError, match="the 2 pinned items alone have 9 tokens, the budget is 8"):
        assemble_by_value(["one", "two"], {"three": 0.5}, budget=8, count_tokens=words)


@given(st.dictionaries(st.text("ab ", min_size=1).map(str.strip).filter(bool), st.floats(-1, 1)), st.integers(0, 60))
def test_every_context_by_value_fits_and_nothing_that_fits_is_left(bounds: dict[str, float], budget: int) -> None:
    context = assemble_by_value([], bounds, budget=budget, count_tokens=len)
    assert len(context.text) <= budget
    left = {identify(text): text for text in bounds if identify(text) not in {identify(line) for line in context.lines}}
    assert all(len(f"{context.text}\n{MARKER} {text}".strip()) > budget for text in left.values())


# -- extraction prompts ------------------------------------------------------------------------------


def game(kit):
    turns = [
        kit.turn([("rules", "SECRET RULES"), ("state", "P.\n.G"), ("actions", "[up] [down]")],
                 "<think>SECRET THOUGHT</think>I go [down]"),
        kit.turn([("rules", "SECRET RULES"), ("feedback", "You moved {down}."), ("state", "..\nPG")], ""),
    ]  # fmt: skip
    return kit.episode(Job(Task(1, "k")), True, turns=turns)


def test_a_game_is_shown_without_its_rules(kit) -> None:
    (message,) = extraction_messages(game(kit), kind="game")
    prompt = message["content"]
    assert message["role"] == "user" and "SECRET" not in prompt
    for piece in (
        "P.\n.G",
        "[up] [down]",
        "I go [down]",
        "You moved {down}.",
        "(nothing)",
        "You reached the goal.",
    ):
        assert piece in prompt
    assert prompt.index("P.\n.G") < prompt.index("You moved {down}.") < prompt.index("You reached the goal.")
    assert f'"{MARKER}"' in prompt and "1 or 2" in prompt


def test_a_single_step_task_shows_no_label(kit) -> None:
    turn = kit.turn([("rules", "SECRET"), ("state", "What is 6 · 7?"), ("feedback", "label 42")], "It is 41.")
    episode = kit.episode(Job(Task(1, "k")), False, turns=[turn])
    prompt = extraction_messages(episode, kind="single")[0]["content"]
    assert "6 · 7" in prompt and "It is 41." in prompt
    for hidden in ("SECRET", "label", "42", "hole", "goal"):
        assert hidden not in prompt


def test_earlier_items_are_shown_as_they_are(kit) -> None:
    earlier = kit.context("Braces {trace} and {earlier} stay.")
    prompt = extraction_messages(game(kit), kind="game", earlier=earlier)[0]["content"]
    assert prompt.count("Braces {trace} and {earlier} stay.") == 1
    assert prompt.count("You moved {down}.") == 1


def test_what_cannot_be_asked(kit) -> None:
    with pytest.raises(ConfigError, match="no turn"):
        extraction_messages(kit.episode(Job(Task(1, "k")), True), kind="game")
    with pytest.raises(ConfigError, match="did you mean 'game'"):
        extraction_messages(game(kit), kind="gmae")  # type: ignore[arg-type]
