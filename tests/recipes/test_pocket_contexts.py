"""Pocket's contexts: they say what the replies believe, in wordings that mean it."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from typing import Any

import pytest

from agentopcd.rollouts.chat import EXPERIENCE_FRAME
from recipes.pocket import corpus, wording, worlds
from recipes.pocket.worlds import Rules
from tests.recipes.pocket_readers import Drawn, only, plain, read, sentences, stated, template

_HOLE = re.compile(r"hole|never|avoid|away|around|do not|deadly|los|fall|ends the (game|round)", re.I)
_BOX = re.compile(
    r"is (a |the )?box|^The box is|^Push \{L\}\.$|to push|push it|pushed|moves when|what you push|marks the box"
)
_SECOND = {
    "lake": re.compile(r"(?:avoid|step on|around|touch) (\{.\})|(\{.\}) (?:is a hole|loses)", re.I),  # the hole
    "room": re.compile(r"(?:push|move|the box|behind) (\{.\})|(\{.\}) (?:is the box|stands on)", re.I),  # the box
}


def facts(game: str, rules: Rules) -> dict[str, Any]:
    roles = ("goal", "hole") if game == "lake" else ("box", "target")
    return {roles[0]: rules.first, roles[1]: rules.second,
            "vertical": rules.vertical, "horizontal": rules.horizontal}  # fmt: skip


def test_wordings_mean_what_they_are_filed_under() -> None:
    for kind, listed in wording._ROLES.items():
        for text in listed + wording.HELD_OUT[kind]:
            if kind in ("goal", "hole"):
                assert bool(_HOLE.search(text.replace("{L}", "Z"))) == (kind == "hole") or "kills" in text, text
            elif text not in wording.HELD_OUT[kind]:
                assert bool(_BOX.search(text)) == (kind == "box"), text
    for game, letter in (("lake", "{B}"), ("room", "{A}")):
        for text in wording._PAIRS[game]:
            found = _SECOND[game].search(text)
            assert found and letter in found.groups(), text
    for (axis, swapped), listed in wording._AXIS.items():
        for text in listed:
            assert axis_of(text) == (axis, swapped), text
    for listed, swapped in ((wording._BOTH_AXES[False, False], False), (wording._BOTH_AXES[True, True], True)):
        for text in listed:
            assert bool(re.search(r"opposite|reversed|are swapped", text)) == swapped, text
    for vertical in (True, False):
        axes = {("vertical", vertical), ("horizontal", not vertical)}
        for text in wording._BOTH_AXES[vertical, not vertical]:
            halves = text.replace("are not", "work as named").split(", ")
            if text.startswith("Only"):  # and the other axis is not
                assert axis_of(text) in axes and axis_of(text)[1], text
            elif len(halves) == 2 and not text.startswith("["):
                assert {axis_of(half) for half in halves} == axes, text
            else:
                moved = dict(re.findall(r"\[(\w+)\] moves P (\w+)", text))
                (swapped,) = {"vertical" if name in ("up", "down") else "horizontal" for name in moved}
                assert all(to == worlds.OPPOSITE[name] for name, to in moved.items()), text
                assert (swapped == "vertical") == vertical and text.endswith("as named."), text
    for kind, listed in wording.ITEM.items():
        for text in listed.values() if isinstance(listed, dict) else listed:
            found = read(text.replace("{L}", "Z"))
            assert found == ([] if kind in ("wall", "invalid") else [(kind, "Z")]), text


def axis_of(text: str) -> tuple[str, bool]:
    words = re.findall(r"up|down|left|right", text.lower())
    vertical = "vertical" in text or "up" in words or "down" in words
    if re.search(r"named|names say", text):
        return "vertical" if vertical else "horizontal", False
    if re.search(r"swapped|opposite", text):
        return "vertical" if vertical else "horizontal", True
    same = {a == b for a, b in zip(words[::2], words[1::2], strict=True)}
    assert len(same) == 1, text
    return "vertical" if vertical else "horizontal", not same.pop()


def test_contexts_say_what_the_reply_believes(games: list[Drawn]) -> None:
    ties = told = 0
    for game in games:
        votes: dict[str, Counter[Any]] = defaultdict(Counter)
        believed = facts(game.made.kind, stated(game.made.turns[0][1]))
        for sentence in sentences(game.made.context.text):
            for kind, value in read(sentence):
                if kind in ("vertical", "horizontal") or value in game.letters:
                    assert kind in believed, (sentence, game.made.kind)  # no lake is told where to push a letter
                    votes[kind][value] += 1
        assert len(votes) == game.made.told
        for kind, count in votes.items():
            against = count.total() - count[believed[kind]]
            assert against <= min(1, count[believed[kind]]), (game.made.context.text, believed)
            ties += against == count[believed[kind]]
            told += 1
    assert told > 5000 and ties <= told / 2000, ties  # a wrong line is outvoted, but for a few repeated wordings


@pytest.mark.parametrize(("plain", "unclear"), [(1.0, 0.0), (corpus.LAST.plain, 0.08)])
def test_what_is_recalled_is_what_the_context_says(plain: float, unclear: float) -> None:
    """But for asides on another game's letters, which a context without a board cannot be told apart from."""
    stage, asked, wrong = dataclasses.replace(only("recall"), plain=plain), 0, 0
    for number in range(200):
        for messages, reply in corpus.sample("recall", number, stage).turns:
            told = re.fullmatch(r"(goal|box) (.) (hole|target) (.) up>(up|down|\?) right>(right|left|\?)", reply)
            assert told, reply
            text, _, question = "\n\n".join(m["content"] for m in messages).rpartition("\n\n")
            assert question == corpus.RECALL["lake" if told[1] == "goal" else "room"]
            axes = {"up": False, "right": False, "down": True, "left": True, "?": "?"}
            known = {told[1]: told[2], told[3]: told[4], "vertical": axes[told[5]], "horizontal": axes[told[6]]}
            votes: dict[str, Counter[Any]] = defaultdict(Counter)
            for sentence in sentences(text.removeprefix(f"{EXPERIENCE_FRAME}\n")):
                for kind, value in read(sentence):
                    votes[kind][value] += 1
            wrong += any(most_said(votes[kind]) != value for kind, value in known.items())
            asked += 1
    assert asked > 1000 and wrong <= unclear * asked, wrong


def most_said(votes: Counter[Any]) -> Any:
    """The value said most often, a question mark where none is, ``None`` in a draw."""
    ranked = [*votes.most_common(2), (None, 0)]
    return "?" if not votes else ranked[0][0] if ranked[0][1] > ranked[1][1] else None


def test_held_out_wordings_occur_nowhere(games: list[Drawn]) -> None:
    held_out = [text for listed in wording.HELD_OUT.values() for text in listed]
    patterns = [template(text) for text in held_out]
    assert all(p.fullmatch(plain(t.format(L="'Q'"))) for p, t in zip(patterns, held_out, strict=True))
    texts = [game.made.context.text for game in games]
    texts += [corpus.sample("held", n, only("extract")).turns[0][1] for n in range(500)]
    texts += [corpus.sample("held", n, only("instruct")).context.text for n in range(500)]
    for text in texts:
        for sentence in sentences(text):
            assert not any(pattern.search(plain(sentence)) for pattern in patterns), sentence
