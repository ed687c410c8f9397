"""Pocket's sums and instructions: the answers are right under the convention that they state."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from agentopcd.core.types import MARKER
from agentopcd.envs.questions.puzzles import FORMS, KINDS, Conventions, Instructions
from agentopcd.envs.questions.rows import QuestionRow
from recipes.pocket import corpus
from tests.recipes.pocket_readers import only


def convention(lines: Sequence[str]) -> dict[str, Any]:
    """What a context says of how to answer, read by its key words."""
    told: dict[str, Any] = {}
    for line in lines:
        number = re.search(r"modulo (\d+)|division by (\d+)", line)
        if number:
            told["modulus"] = int(number[1] or number[2])
        elif re.search("remainders|whole result|no modulus", line):
            told["modulus"] = 0
        elif re.search("left to right|in the order written", line):
            told["order"] = "left-to-right"
        elif re.search("Products come|Multiply before|usual order", line):
            told["order"] = "usual"
        else:
            named = [name for name, key in (("answer", "Answer:"), ("bracket", r"bracket|\[4"), ("equals", "=|equals"),
                     ("plain", "only the number|bare|alone")) if re.search(key, line)]  # fmt: skip
            assert len(named) == 1, line
            told["form"] = named[0]
    return told


def test_sums_follow_the_convention_that_they_state() -> None:
    counts = Counter[int]()
    for number in range(600):
        made = corpus.sample("sums", number, only("arithmetic"))
        told = convention(split_rules(made.context.text))
        used = [worked_out(messages, reply) for messages, reply in made.turns]
        assert all(told.items() <= one.items() for one in used), (made.context.text, made.turns)
        assert all(one == used[0] for one in used)  # a guess is kept
        counts[len(told)] += 1
    assert all(counts[n] > 50 for n in range(4)), counts


def worked_out(messages: Sequence[Any], reply: str) -> dict[str, Any]:
    """The convention that a reply states; its sums and its answer must be right under it."""
    (message,) = messages
    said = re.match(r"<think>modulus (none|\d+) order (usual|left) (.*)</think>(.*)", reply)
    asked = re.fullmatch(r"What is (\d+) \+ (\d+)(?: \* (\d+))?\?", message["content"])
    assert said and asked, reply
    modulus = 0 if said[1] == "none" else int(said[1])
    order = "usual" if said[2] == "usual" else "left-to-right"
    a, b, c = (int(x or 1) for x in asked.groups())
    whole = a + b * c if order == "usual" else (a + b) * c
    value = whole % modulus if modulus else whole
    (form,) = [name for name, pattern in FORMS.items() if said[4] == pattern.format(value)]
    work, _, remainder = said[3].partition(" mod ")
    assert message["content"] == f"What is {work.split(' = ')[0]}?"
    assert all(in_order(step, order) == whole for step in work.split(" = ")), reply
    assert work.split(" = ")[-1] == str(whole) and remainder == (f"{modulus} = {value}" if modulus else ""), reply
    env = Conventions(form=form, modulus=modulus, order=order)
    assert env.grade(reply, QuestionRow(message["content"], gold=said[4])).right
    return {"form": form, "modulus": modulus, "order": order}


def split_rules(text: str) -> list[str]:
    rules = [rule for listed in (*corpus._FORMS.values(), *corpus._ORDER.values()) for rule in listed]
    rules += [*corpus._NO_MODULUS, *(rule.format(m=m) for rule in corpus._MODULUS for m in set(corpus.MODULI))]
    found = [rule for rule in rules if rule in text]
    assert len(text) - sum(map(len, found)) <= 3 * (len(MARKER) + 2), text  # nothing else is said
    return found


def in_order(sums: str, order: str) -> int:
    words = sums.split()
    if order == "usual":
        return sum(int(np.prod([int(x) for x in part.split(" * ")])) for part in sums.split(" + "))
    value = int(words[0])
    for sign, word in zip(words[1::2], words[2::2], strict=True):
        value = value + int(word) if sign == "+" else value * int(word)
    return value


def follow(prompt: str) -> str:
    """The answer to an instruction, worked out from its words."""
    asked, _, listed = prompt.rpartition(": ")
    items = listed.split()
    for kind, wordings in KINDS.items():
        for text in wordings:
            found = re.fullmatch(re.escape(text).replace(r"\{one\}", r"(\S+)"), asked)
            if not found:
                continue
            match kind:
                case "repeat":
                    return listed
                case "reverse":
                    return " ".join(reversed(items))
                case "count":
                    return str(len(items))
                case "upper":
                    return listed.upper()
                case "ending":
                    return f"{listed} {found[1]}"
                case "first":
                    return items[0]
                case "last":
                    return items[-1]
                case "without":
                    return " ".join(item for item in items if item != found[1])
    raise AssertionError(prompt)


def test_instructions_are_followed() -> None:
    with_context, kinds = 0, set()
    for number in range(400):
        made = corpus.sample("follow", number, only("instruct"))
        with_context += bool(made.context.text)
        for (message,), reply in made.turns:
            kinds.add(message["content"].split()[0])
            assert reply == follow(message["content"])
            assert Instructions().grade(reply, QuestionRow(message["content"], gold=reply)).right
    assert 0.1 < with_context / 400 < 0.2 and len(kinds) > 8
