from __future__ import annotations

import hashlib
import itertools
import re
from typing import Any

import pytest

from agentopcd.core.errors import EnvError
from agentopcd.envs import build_splits, check_env, make, task_key
from agentopcd.envs.questions.puzzles import DIGITS, FORMS, KINDS, LETTERS, WORDS, Conventions, Instructions


def asked(env: Any, seed: int) -> tuple[str, str]:
    """The question and its one right answer."""
    obs, info = env.reset(seed=seed)
    assert [kind for kind, _ in info["parts"]] == ["state"]
    (gold,) = env.unwrapped.solution()
    return obs, gold


def verdict(env: Any, seed: int, reply: str) -> tuple[bool, bool]:
    env.reset(seed=seed)
    obs, reward, terminated, _, info = env.step(reply)
    assert obs == "" and terminated and reward == float(info["success"])
    return info["success"], info["invalid"]


def follow(kind: str, prompt: str) -> str:
    """Follow an instruction by reading it, independently of how it was made."""
    order, _, listed = prompt.partition(": ")
    items = listed.split(" ")
    last_word = order.split(" ")[-1]
    if kind == "without":
        named = re.search(r"(?:without|out|but) (\S+)$", order)
        assert named and named.group(1) in items
        items.remove(named.group(1))
    if kind == "ending":
        assert last_word in WORDS and last_word not in items
    return {
        "repeat": listed,
        "reverse": " ".join(reversed(items)),
        "count": str(len(items)),
        "upper": listed.upper(),
        "ending": f"{listed} {last_word}",
        "first": items[0],
        "last": items[-1],
        "without": " ".join(items),
    }[kind]


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_takes_its_answer_and_no_other(kind: str) -> None:
    env = make("instructions", kinds=kind)
    wordings = set()
    for seed in range(120):
        prompt, gold = asked(env, seed)
        assert gold == follow(kind, prompt)
        assert verdict(env, seed, gold) == (True, False)
        assert verdict(env, seed, f"<think>{prompt}</think>\n {gold} \n") == (True, False)
        items = prompt.partition(": ")[2].split(" ")
        assert 2 <= len(items) <= 5 and len(set(items)) == len(items)
        for wrong in (f"{gold} {items[0]}", f"{gold}.", f"The answer is {gold}", prompt, f"{gold}\n{gold}"):
            assert verdict(env, seed, wrong) == (False, False), wrong
        if gold.swapcase() != gold:
            assert verdict(env, seed, gold.swapcase()) == (False, False)
        wordings.add(re.sub(r"\b(?:" + "|".join([*WORDS, *LETTERS, *DIGITS]) + r")\b", "", prompt.partition(":")[0]))
    assert len(wordings) == 3


def test_an_empty_reply_is_invalid() -> None:
    for ref, reply in itertools.product(("instructions", "conventions"), ("", "  \n", "<think>[1]</think>")):
        assert verdict(make(ref), 1, reply) == (False, True)


def test_all_kinds_are_asked_and_there_are_plenty_of_questions() -> None:
    env = Instructions()
    prompts = [env.draw(seed).prompt for seed in range(10_000)]
    assert len({prompt.casefold() for prompt in prompts}) > 9_000  # keys do not tell letter case apart
    alone = {kind: {p.split(" ")[0] for p in map(_prompts(kind), range(60))} for kind in KINDS}
    openings = {prompt.split(" ")[0] for prompt in prompts}
    assert openings == set().union(*alone.values())
    assert {item for prompt in prompts for item in prompt.partition(": ")[2].split(" ")} == {*LETTERS, *DIGITS, *WORDS}
    assert len(set(WORDS)) == 40


def _prompts(kind: str) -> Any:
    env = Instructions(kind)
    return lambda seed: env.draw(seed).prompt


def test_kinds_may_come_in_any_order_and_only_those_are_asked() -> None:
    some, other = Instructions("last, first"), Instructions("first,last,last")
    prompts = [some.draw(seed).prompt for seed in range(50)]
    assert prompts == [other.draw(seed).prompt for seed in range(50)]
    assert all("first" in prompt or "last" in prompt for prompt in prompts)
    assert Instructions("").draw(4) == Instructions(",".join(KINDS)).draw(4)


def test_bad_kinds_are_refused() -> None:
    with pytest.raises(EnvError, match=r"no kind of instruction 'revers'; did you mean 'reverse'\?"):
        make("instructions", kinds="repeat,revers")
    with pytest.raises(EnvError, match="names separated by commas, got 3"):
        make("instructions", kinds=3)


def work_out(question: str, modulus: int, order: str) -> int:
    """Work out a sum by reading it, independently of how it was made."""
    expression = re.fullmatch(r"What is ([0-9+* ]+)\?", question)
    assert expression
    text = expression.group(1)
    value = eval(text)
    if order == "left-to-right" and "*" in text:
        value = eval(f"({text.replace(' *', ') *')}")
    return value % modulus if modulus else value


@pytest.mark.parametrize("order", ["usual", "left-to-right"])
@pytest.mark.parametrize("modulus", [0, 2, 7, 20])
def test_every_convention_has_its_answer(modulus: int, order: str) -> None:
    written = {"plain": "{}", "answer": "Answer: {}", "bracket": "[{}]", "equals": "= {}"}
    assert set(FORMS) == set(written)
    for form, how in written.items():
        env = make("conventions", form=form, modulus=modulus, order=order)
        for seed in range(40):
            question, gold = asked(env, seed)
            value = work_out(question, modulus, order)
            assert gold == how.format(value)
            assert verdict(env, seed, f"<think>{value + 1}</think>So be it.\n{gold}\n\n") == (True, False)
            wrong = [how.format(value + 1), f"{gold} or so", f"{gold}\nDone."]
            wrong += [other.format(value) for name, other in written.items() if name != form]
            assert not any(verdict(env, seed, reply)[0] for reply in wrong)
            assert not verdict(env, seed, f"<think>\n{gold}\n</think>I do not know")[0]


def test_the_question_does_not_tell_the_convention() -> None:
    allowed = Conventions.conventions()
    assert allowed["modulus"] == (0, *range(2, 21))
    assert allowed["form"] == ("plain", "answer", "bracket", "equals")
    assert allowed["order"] == ("usual", "left-to-right")
    plain = Conventions()
    every: Any = itertools.product(*allowed.values())
    for form, modulus, order in every:
        env = Conventions(form=form, modulus=modulus, order=order)
        for seed in range(10):
            assert env.draw(seed).prompt == plain.draw(seed).prompt
    first, second = make("conventions", form="plain"), make("conventions", form="equals", modulus=3)
    assert first.reset(seed=5)[0] == second.reset(seed=5)[0]
    assert task_key(*first.reset(seed=5)) == task_key(*second.reset(seed=5))


def test_the_order_of_operations_always_shows_and_the_numbers_keep_their_range() -> None:
    usual, other = Conventions(), Conventions(order="left-to-right")
    products = 0
    for seed in range(2000):
        row = usual.draw(seed)
        numbers = [int(number) for number in re.findall(r"\d+", row.prompt)]
        if "*" in row.prompt:
            products += 1
            assert row.gold != other.draw(seed).gold
            assert len(numbers) == 3 and all(1 <= number <= 9 for number in numbers)
        else:
            assert row.gold == other.draw(seed).gold
            assert len(numbers) == 2 and all(0 <= number <= 20 for number in numbers)
    assert 900 < products < 1100


def test_bad_conventions_are_refused() -> None:
    with pytest.raises(EnvError, match="form must be one of plain, answer, bracket, equals, got 'box'"):
        make("conventions", form="box")
    with pytest.raises(EnvError, match="form must be one of"):
        make("conventions", form=["plain"])
    wrong: list[Any] = [1, 21, -2, True, "7", 7.0]
    for modulus in wrong:
        with pytest.raises(EnvError, match=r"modulus must be 0 \(none\) or 2 to 20, got"):
            make("conventions", modulus=modulus)
    with pytest.raises(EnvError, match="order must be one of usual, left-to-right, got 'reverse'"):
        make("conventions", order="reverse")


@pytest.mark.parametrize("ref", ["instructions", "conventions"])
def test_the_puzzles_keep_the_contract_and_have_tasks_to_hold_out(ref: str) -> None:
    assert check_env(lambda: make(ref), n=8).errors == []
    manifest = build_splits(ref)
    assert not manifest.shared and manifest.distinct > 1000 and len(manifest.tasks("test")) >= 128


def test_what_a_seed_asks_never_changes() -> None:
    rows = [env.draw(seed) for env in (Instructions(), Conventions("bracket", 7)) for seed in range(500)]
    text = "\n".join(f"{row.prompt}\t{row.gold}" for row in rows)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "88224f31e944a60e", "weights are trained on these"
