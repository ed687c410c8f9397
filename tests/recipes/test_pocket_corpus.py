"""The corpus of pocket: it asks what the games really ask, its replies are right, and it favours no rules."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentopcd import envs
from agentopcd.core.types import MARKER, Completion, Context, Episode, Job, Request, Sampling, Task
from agentopcd.envs.games.solvers import MOVES, Cell, Warehouse, shortest
from agentopcd.envs.questions.puzzles import FORMS, KINDS, Conventions, Instructions
from agentopcd.envs.questions.rows import QuestionRow
from agentopcd.knowledge.extract import extraction_messages
from agentopcd.knowledge.items import flags, parse
from agentopcd.models import find
from agentopcd.rollouts.chat import EXPERIENCE_FRAME, Chat, turn_messages
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling import InBatches
from recipes.pocket import corpus, wording, worlds
from recipes.pocket.worlds import Played, Rules

REAL = ("frozen-lake", "frozen-lake-4x4", "frozen-lake-4x4-swapped", "sokoban", "sokoban-swapped")

PROMPT_FORMAT = "6d40d595eaaf4e4f791dcfd83637c6d8"
"""sha256 of every prompt that ``fixed_prompts`` renders: the format the weights were trained on."""


def only(kind: str, stage: corpus.Stage = corpus.LAST) -> corpus.Stage:
    """The stage with samples of one kind, or of ``games``: lakes and rooms."""
    wanted = ("lake", "room") if kind == "games" else (kind,)
    return dataclasses.replace(stage, weights=tuple(float(k in wanted) for k in corpus.KINDS))


# ---- the real environments ----------------------------------------------------------------------


def is_lake(ref: str) -> bool:
    return "lake" in ref


def real_board(ref: str, env: Any) -> tuple[Rules, Any]:
    """The rules of a real environment and its board as the simulator has it, after ``reset``."""
    kwargs, model = envs.get_spec(ref).kwargs, env.unwrapped.model()
    vertical = kwargs.get("swap", "") == "vertical"
    if is_lake(ref):
        rules = Rules(kwargs.get("goal", "G"), kwargs.get("hole", "H"), vertical)
        cells = dict.fromkeys(model.holes, rules.second) | {model.goal: rules.first}
        return rules, worlds.LakeBoard(model.size, model.start, cells, goal_letter=rules.first)
    rules = Rules(kwargs.get("box", "X"), kwargs.get("target", "O"), vertical)
    height, width = kwargs["dim_room"]
    walls = frozenset((r, c) for r in range(height) for c in range(width)) - model.floor
    (box,), (target,) = model.boxes, model.goals
    assert box != target
    return rules, worlds.RoomBoard(height, width, walls, model.player, box, target, (rules.first, rules.second))


def simulate(ref: str, seed: int, slip: float = 0.4) -> Played:
    """A game of the simulator on the real board of ``seed``, by a player who believes something or other."""
    rng = random.Random(f"{ref}:{seed}")
    env = Game(ref=ref).make()
    env.reset(seed=seed)
    rules, board = real_board(ref, env)
    belief = rng.choice([rules, *worlds.hypotheses((rules.first, rules.second))])
    play = worlds.play_lake if is_lake(ref) else worlds.play_room
    return play(rng, board, rules, belief, Game(ref=ref).step_limit, slip)


@pytest.mark.parametrize("ref", REAL)
def test_the_simulators_write_what_the_real_games_write(ref: str) -> None:
    env, seen = Game(ref=ref).make(), Counter[str]()
    for seed in range(80):
        played = simulate(ref, seed)
        told = env.reset(seed=seed)
        over = cut = False
        for step in played.steps:
            assert not over and not cut, seed
            parts = dict(envs.parts_of(told[0], told[-1]))
            assert (step.feedback, step.state) == (parts.get("feedback", ""), parts["state"]), seed
            assert "outcome" not in parts
            told = env.step(f"I say {step.move}")
            over, cut = told[2:4]
        parts, info = dict(envs.parts_of(told[0], told[-1])), told[-1]
        wanted = (parts.get("feedback", ""), parts["state"], parts.get("outcome", ""))
        assert (played.feedback, played.state, played.outcome) == wanted, seed
        assert bool(played.outcome) == over and (over or cut), seed
        assert played.won == bool(info.get("success")) == (told[1] >= 1), seed
        assert played.two_invalid == ("Invalid Move" in wanted[2])
        assert played.fell == ("fell into a hole" in wanted[2])
        texts = [step.feedback for step in played.steps] + [played.feedback]
        assert played.pushed == any("pushed a box" in text for text in texts)
        seen.update(name for name in ("won", "fell", "pushed", "two_invalid") if getattr(played, name))
        seen.update(cut=not over, bumped=sum("attempted an invalid move" in text for text in texts))
    assert {name for name, n in seen.items() if n} >= {"won", "two_invalid", "bumped", "cut"}
    assert seen["fell" if is_lake(ref) else "pushed"]


# ---- prompts ------------------------------------------------------------------------------------


class Characters:
    """A tokenizer with one id per character and pocket's chat template."""

    def __init__(self) -> None:
        from jinja2 import Environment

        from recipes.pocket.tokenizer import SPECIAL, TEMPLATE

        self.all_special_tokens, self.added_tokens_decoder = list(SPECIAL), {}
        self._template = Environment(autoescape=False).from_string(TEMPLATE)

    def apply_chat_template(self, messages: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
        return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(char) for char in text]}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, ids))


class Script(InBatches):
    """A sampler that gives fixed replies, one after the other."""

    engine = "script"

    def __init__(self, replies: Sequence[str]) -> None:
        super().__init__()
        self.replies = deque(replies)

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        ids = [tuple(map(ord, self.replies.popleft())) for _ in requests]
        return [Completion(token_ids=i, logprobs=(0.0,) * len(i), finish_reason="stop") for i in ids]


def rolled_out(game: Game, seed: int, replies: Sequence[str]) -> Episode:
    """The episode that the package itself records for these replies."""
    player = Player(game=game, sampler=Script(replies), chat=Chat(Characters()), sampling=Sampling())
    task = Task(seed, envs.task_key(*game.make().reset(seed=seed)))
    (episode,) = player.play([Job(task)])
    assert not episode.error, episode.error
    return episode


def thinking(move: str) -> str:
    return f"{corpus.THINK}so [left] it is not{corpus.END_THINK}{move}"


@pytest.mark.parametrize("ref", REAL)
def test_the_rules_and_actions_are_those_of_the_default_view(ref: str) -> None:
    game = Game(ref=ref)
    obs, info = game.make().reset(seed=0)
    parts = dict(envs.apply_view(envs.parts_of(obs, info), game.view))
    assert (parts["rules"], parts["actions"]) == (corpus.RULES, corpus.HOW_TO_MOVE)
    assert game.form == "transcript"  # as most samples have it


@pytest.mark.parametrize("ref", ["frozen-lake-4x4", "frozen-lake-4x4-swapped", "sokoban", "sokoban-swapped"])
@pytest.mark.parametrize(("view", "history"), [("hidden", "transcript"), ("hidden", "chat"), ("none", "transcript")])
def test_prompts_are_those_of_rollouts(ref: str, view: str, history: str, monkeypatch: pytest.MonkeyPatch) -> None:
    game, kind = Game(ref=ref, rules=view, history=history), "lake" if is_lake(ref) else "room"
    for seed in (1, 4):
        played = simulate(ref, seed, slip=0.1)
        assert len(played.steps) > 1
        monkeypatch.setattr(corpus, "_play", lambda *args, played=played: played)
        drawn = (corpus._game(random.Random(n), kind, corpus.LAST) for n in range(200))
        made = next(m for m in drawn if form_of(m) == (view, history))
        episode = rolled_out(game, seed, [thinking(step.move) for step in played.steps])
        wanted = [turn.messages for turn, step in zip(episode.turns, played.steps, strict=True) if step.think]
        assert [messages for messages, _ in made.turns] == wanted
        assert made.episode and [t.parts for t in made.episode.turns] == [t.parts for t in episode.turns]


def form_of(made: corpus.Sample) -> tuple[str, str]:
    messages = made.turns[-1][0]
    view = "hidden" if messages[0]["content"].startswith(corpus.RULES) else "none"
    return view, "chat" if len(messages) > 1 else "transcript"


@pytest.mark.parametrize("ref", REAL)
def test_extraction_prompts_are_those_of_real_episodes(ref: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(8):
        played = simulate(ref, seed)
        episode = rolled_out(Game(ref=ref), seed, [thinking(step.move) for step in played.steps])
        monkeypatch.setattr(corpus, "_play", lambda *args, played=played: played)
        drawn = [corpus._extract(random.Random(n), corpus.LAST).turns[0][0] for n in range(30)]
        assert extraction_messages(episode, kind="game") in drawn, seed


@pytest.mark.parametrize("ref", ["frozen-lake-4x4", "sokoban"])
def test_mumbled_games_are_those_of_real_episodes(ref: str, monkeypatch: pytest.MonkeyPatch) -> None:
    played = simulate(ref, 3)
    monkeypatch.setattr(corpus, "_play", lambda *args: played)
    drawn = (corpus._extract(random.Random(n), corpus.LAST) for n in range(3000))
    reason = "Invalid action format" if is_lake(ref) else "does not follow the correct format"
    mumbled = [m for m in drawn if reason in m.turns[0][0][0]["content"]][:6]
    assert len(mumbled) == 6
    for made in mumbled:
        assert made.episode
        episode = rolled_out(Game(ref=ref), 3, [turn.reply for turn in made.episode.turns])
        assert made.turns[0][0] in (
            extraction_messages(episode, kind="game"),
            extraction_messages(episode, kind="game", earlier=earlier_of(made)),
        )


def earlier_of(made: corpus.Sample) -> Context:
    """The items that an extraction prompt shows as known."""
    prompt = made.turns[0][0][0]["content"]
    known = re.search(rf"so where it proves wrong:\n((?:{re.escape(MARKER)} .*\n)+)\n", prompt)
    return Context(known[1].rstrip("\n")) if known else Context()


class Asking(random.Random):
    """Draws like any other, but asks the question of one seed."""

    question = 0

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return self.question if start == 10**6 else super().randrange(start, stop, step)


@pytest.mark.parametrize(("ref", "make"), [("instructions", corpus._instruct), ("conventions", corpus._arithmetic)])
def test_questions_are_asked_as_rollouts_asks_them(ref: str, make: Any) -> None:
    for seed in range(40):
        (turn,) = rolled_out(Game(ref=ref), seed, ["?"]).turns
        rng = Asking(seed)
        rng.question = seed
        assert all(messages == turn.messages for messages, _ in make(rng, corpus.LAST).turns)


def fixed_prompts() -> Iterator[str]:
    """One prompt of every form, as the package renders it today."""
    from recipes.pocket.tokenizer import TEMPLATE

    chat = Chat(Characters())
    usual, other = Rules("G", "H"), Rules("G", "H", vertical=True)
    corridor = worlds.LakeBoard(3, (0, 0), {(2, 2): "G", (1, 0): "H", (1, 1): "H"}, goal_letter="G")
    trap = worlds.LakeBoard(3, (0, 0), {(2, 2): "G", (0, 2): "H"}, goal_letter="G")
    walls = frozenset((r, c) for r in range(3) for c in range(7) if r != 1 or c in (0, 6))
    room = worlds.RoomBoard(3, 7, walls, (1, 1), (1, 4), (1, 5), ("X", "O"))
    rng = random.Random(0)  # there is one shortest way on each of these boards, so nothing is left to chance
    games = [
        worlds.play_lake(rng, corridor, usual, usual, 9),
        worlds.play_lake(rng, corridor, usual, other, 9),
        worlds.play_lake(rng, trap, usual, Rules("H", "G"), 9),
        worlds.play_room(rng, room, Rules("X", "O"), Rules("X", "O"), 9),
    ]
    assert games[0].won and games[1].two_invalid and games[2].fell and games[3].won
    told = Context(f"{MARKER} G is the goal.\n{MARKER} [up] moves P down.")
    contexts = [Context(), told, dataclasses.replace(told, placement="system"), Context("G is the goal."),
                Context("G is the goal.", "system")]  # fmt: skip
    for game in games:
        shown = [corpus._parts(corpus.RULES, n, step.feedback, step.state) for n, step in enumerate(game.steps)]
        past = [(parts, step.move) for parts, step in zip(shown, game.steps, strict=True)]
        upto = min(2, len(shown) - 1)
        for history in ("transcript", "chat"):
            for context in contexts:
                yield chat.text(turn_messages(history, past[:upto], shown[upto]), context)
        turns = [corpus._turn(parts, [], thinking(move)) for parts, move in past]
        ending = [("feedback", game.feedback), ("state", game.state), ("outcome", game.outcome)]
        episode = corpus._episode(turns, [part for part in ending if part[1]])
        for earlier in (None, told):
            yield chat.text(extraction_messages(episode, kind="game", earlier=earlier))
    single = corpus._episode([corpus._turn([("state", "What is 3 + 4?")], [], "[0]")], [])
    yield chat.text(extraction_messages(single, kind="single"))
    yield from (EXPERIENCE_FRAME, MARKER, TEMPLATE, corpus.RULES, corpus.HOW_TO_MOVE)


def test_the_prompt_format_is_the_one_the_weights_were_trained_on() -> None:
    found = hashlib.sha256("\0".join(fixed_prompts()).encode()).hexdigest()[:32]
    assert found == PROMPT_FORMAT, (
        f"the prompts that pocket is shown changed (hash {found}, trained on {PROMPT_FORMAT}), so its weights no "
        "longer fit: undo the change of wording (agentopcd/chat.py, agentopcd/knowledge/extract.py, the games' view "
        "and texts, the template in recipes/pocket/tokenizer.py), or train pocket and pocket-s again "
        "(python -m recipes.pocket.train --size pocket, then --size pocket-s), put the new weights and figures into "
        "agentopcd/models/weights, and write the new hash here"
    )


@pytest.mark.parametrize("name", find.SHIPPED)
def test_the_corpus_is_the_one_the_weights_were_trained_on(name: str) -> None:
    from recipes.pocket import train

    trained_on = json.loads((find.WEIGHTS / name / "agentopcd.json").read_text())["corpus"]
    found = corpus.fingerprint(train.SEED)
    assert found == trained_on, (
        f"the corpus changed (hash {found}, {name} was trained on {trained_on}): retraining would no longer give the "
        "shipped weights. Undo the change in recipes/pocket or agentopcd/envs/puzzles.py, or train pocket and "
        "pocket-s again (python -m recipes.pocket.train), which writes the new hash beside the weights"
    )


# ---- what a sample says: readers that share no code with the corpus ------------------------------


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A game of the corpus, the rules of its world and what was believed."""

    made: corpus.Sample
    letters: tuple[str, str]
    world: Rules
    belief: Rules

    @property
    def usual(self) -> bool:
        return self.letters in (("G", "H"), ("O", "X"))

    @property
    def blind(self) -> bool:
        return self.made.told == 0


@pytest.fixture(scope="module")
def games() -> list[Drawn]:
    """Lakes and rooms in equal parts, 6,000 in all, and the worlds they were played in."""
    worlds_of: list[tuple[Any, ...]] = []
    play = corpus._play

    def spy(rng: Any, game: str, stage: Any, letters: Any, world: Rules, belief: Rules, *how: Any) -> Played:
        worlds_of.append((letters, world, belief))
        return play(rng, game, stage, letters, world, belief, *how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "_play", spy)
        return [Drawn(corpus.sample("games", n, only("games")), *worlds_of[-1]) for n in range(6000)]


STATED = re.compile(r"<think>(goal|box) ([A-Z]) (hole|target) ([A-Z]) up>(up|down) right>(right|left) (.*)")


def stated(reply: str) -> Rules:
    """The belief that a reply's thinking line states."""
    found = STATED.match(reply)
    assert found, reply
    assert (found[1], found[3]) in (("goal", "hole"), ("box", "target"))
    return Rules(found[2], found[4], found[5] == "down", found[6] == "left")


def facts(game: str, rules: Rules) -> dict[str, Any]:
    roles = ("goal", "hole") if game == "lake" else ("box", "target")
    return {roles[0]: rules.first, roles[1]: rules.second,
            "vertical": rules.vertical, "horizontal": rules.horizontal}  # fmt: skip


def test_every_reply_of_a_game_states_one_and_the_same_belief(games: list[Drawn]) -> None:
    for game in games:
        assert {stated(reply) for _, reply in game.made.turns} == {game.belief}


def chi_square(counts: Counter[Any], cells: Sequence[Any]) -> float:
    expected = sum(counts[cell] for cell in cells) / len(cells)
    assert expected > 20 and sum(counts.values()) == sum(counts[cell] for cell in cells), counts
    return sum((counts[cell] - expected) ** 2 / expected for cell in cells)


@pytest.mark.parametrize("letters", [("G", "H"), ("O", "X")])
@pytest.mark.parametrize("told", ["blind", "told"])
def test_textarenas_own_rules_are_as_frequent_as_any_other(
    letters: tuple[str, str], told: str, games: list[Drawn]
) -> None:
    mine = [g for g in games if g.letters == letters and g.made.kind == ("lake" if "G" in letters else "room")]
    beliefs = Counter(stated(g.made.turns[0][1]) for g in mine if g.blind == (told == "blind"))
    assert chi_square(beliefs, worlds.hypotheses(letters)) < 29.9  # 7 degrees of freedom: one chance in 10,000
    first = Counter(b.first for b in beliefs.elements())
    assert chi_square(first, letters) < 15.1  # one degree


def test_unusual_letters_take_each_role_equally_often(games: list[Drawn]) -> None:
    mine = [g for g in games if not g.usual]
    assert chi_square(Counter(g.belief.first == min(g.letters) for g in mine), (True, False)) < 15.1
    assert len({g.belief.first for g in mine}) == len({g.belief.second for g in mine}) == 25


def test_a_blind_guess_is_independent_of_the_world(games: list[Drawn]) -> None:
    def number(g: Drawn, rules: Rules) -> int:
        return worlds.hypotheses(g.letters).index(rules)

    pairs = Counter((number(g, g.world), number(g, g.belief)) for g in games if g.blind)
    assert chi_square(pairs, [(w, b) for w in range(8) for b in range(8)]) < 115  # 63 degrees: one in 10,000
    agree = Counter(world == belief for world, belief in pairs.elements())
    assert 0.08 < agree[True] / agree.total() < 0.17  # an eighth


def positions(state: str) -> dict[str, list[Cell]]:
    """What stands where on a board: letters, ``wall``, and all its cells, of which the walls are a part."""
    rows = state.removeprefix("Current Board:\n\n").split("\n")
    found: dict[str, list[Cell]] = defaultdict(list)
    if rows[0].startswith("+"):
        cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1::2]]
    else:
        wall = rows[0][0]
        cells = [["wall" if cell == wall else cell for cell in row.split(" ")] for row in rows]
    for r, row in enumerate(cells):
        for c, cell in enumerate(row):
            found["all"].append((r, c))
            for glyph in cell.split("/"):
                found[glyph].append((r, c))
    return found


def state_of(messages: Sequence[Any]) -> str:
    """The board that a prompt asks about: the last one in it."""
    text = "Current Board:" + messages[-1]["content"].rpartition("Current Board:")[2]
    return text.removesuffix(f"\n\n{corpus.HOW_TO_MOVE}")


@pytest.mark.parametrize("kind", ["lake", "room"])
def test_no_board_gives_the_guess_away(kind: str, games: list[Drawn]) -> None:
    """Which letter is alone, nearest, in the corner, ... tells nothing of the guess; nor does the first move."""
    agree: dict[str, Counter[bool]] = defaultdict(Counter)
    for g in games:
        if g.made.kind != kind or not g.blind:
            continue
        on = positions(state_of(g.made.turns[0][0]))
        (player,) = on["P"]
        first, second = (on[letter] for letter in (g.belief.first, g.belief.second))
        for name, a, b in (
            ("fewer", len(first), len(second)),
            ("nearer", *(min(abs(c[0] - player[0]) + abs(c[1] - player[1]) for c in x) for x in (first, second))),
            ("higher", min(first), min(second)),
            ("lower", max(first), max(second)),
            ("at a wall", *(sum((c[0] + d, c[1] + e) in on["wall"] for c in x for d, e in MOVES.values())
                            for x in (first, second))),
            ("corner", max(on["all"]) in first, max(on["all"]) in second),
        ):  # fmt: skip
            if a != b:
                agree[name][a < b] += 1  # type: ignore[operator]  # both of one type
    assert len(agree) >= 3
    for name, counts in agree.items():
        if counts.total() > 40:
            assert chi_square(counts, (True, False)) < 15.1, (name, counts)


_LETTER = re.compile(r"""\b[Tt]he letter ([A-Z])\b|['"(]([A-Z])['")]""")


def plain(sentence: str) -> str:
    """The sentence with bare letters."""
    return _LETTER.sub(lambda found: found[1] or found[2], sentence)


def template(text: str) -> re.Pattern[str]:
    text = re.escape(text).replace(r"\{L\}", r"(?P<L>[A-Z])")
    return re.compile(text.replace(r"\{A\}", "(?P<A>[A-Z])").replace(r"\{B\}", "(?P<B>[A-Z])"))


ROLES = [(template(t), kind) for kind, listed in wording._ROLES.items() for t in listed]
PAIRS = [(template(t), ("goal", "hole") if game == "lake" else ("box", "target"))
         for game, listed in wording._PAIRS.items() for t in listed]  # fmt: skip
ASIDES = [template(t) for t in wording._ASIDES + wording._OTHER_TASKS]


def read(sentence: str) -> list[tuple[str, Any]]:
    """The facts that a sentence states; a sentence that nobody wrote is an error."""
    text = plain(sentence)
    for both, listed in wording._BOTH_AXES.items():
        if text in listed:
            return [("vertical", both[0]), ("horizontal", both[1])]
    axis = [fact for fact, listed in wording._AXIS.items() if text in listed]
    roles = [(kind, m["L"]) for pattern, kind in ROLES if (m := pattern.fullmatch(text))]
    pairs = [f for p, (a, b) in PAIRS if (m := p.fullmatch(text)) for f in ((a, m["A"]), (b, m["B"]))]
    found = axis + roles + pairs
    assert len(set(found)) == (2 if pairs else 1) or any(p.fullmatch(text) for p in ASIDES), sentence
    return found


def sentences(text: str) -> list[str]:
    lines = [re.sub(rf"^(?:{re.escape(MARKER)} |- )", "", line) for line in text.splitlines()]
    return [sentence for line in lines for sentence in re.split(r"(?<=\.) ", line) if sentence]


_HOLE = re.compile(r"hole|never|avoid|away|around|do not|deadly|los|fall|ends the (game|round)", re.I)
_BOX = re.compile(
    r"is (a |the )?box|^The box is|^Push \{L\}\.$|to push|push it|pushed|moves when|what you push|marks the box"
)


_SECOND = {
    "lake": re.compile(r"(?:avoid|step on|around|touch) (\{.\})|(\{.\}) (?:is a hole|loses)", re.I),  # the hole
    "room": re.compile(r"(?:push|move|the box|behind) (\{.\})|(\{.\}) (?:is the box|stands on)", re.I),  # the box
}


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


def test_scanned_letters_stand_where_the_reply_says() -> None:
    for number in range(150):
        for messages, reply in corpus.sample("scan", number, only("scan")).turns:
            board, _, question = messages[0]["content"].rpartition("\n\n")
            asked = re.findall(r"[A-Z]", question.removeprefix("Where"))
            on = positions(board)
            said = {part[0]: cells_of(part[1:]) for part in re.findall(r"[A-Z](?: [a-h]\d)*", reply)}
            assert list(said) == asked
            assert all(sorted(said[letter]) == sorted(on.get(letter, [])) for letter in asked), (board, reply)


def test_ways_are_shortest_and_reach_the_goal_past_the_holes() -> None:
    for number in range(150):
        for messages, reply in corpus.sample("way", number, only("way")).turns:
            found = re.fullmatch(
                r"P (\S+) [A-Z]((?: \S+)+) [A-Z]((?: \S+)*)\n\n(\d) by \4\. Which way\?", messages[0]["content"]
            )
            assert found, messages
            (start,), goals, holes = (cells_of(found[n]) for n in (1, 2, 3))
            told = re.fullmatch(r"path ((?:\S+ )+)go (\w+)", reply)
            assert told, reply
            path, size = cells_of(told[1]), range(int(found[4]))
            steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise([start, *path])]
            assert all(step in MOVES.values() for step in steps), (messages, reply)
            assert steps[0] == MOVES[told[2]] and path[-1] in goals and not set(path) & set(holes)
            assert len(path) == way(set(itertools.product(size, size)), start, set(goals), set(holes))


def test_what_figures_are_made_on_is_held_out_under_both_roles_of_its_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.pocket import train

    assert {f"{name}-swapped" for name in ("frozen-lake-4x4", "sokoban")} < set(train.TESTED)
    monkeypatch.setattr(train, "TESTED", ("frozen-lake-4x4", "frozen-lake-4x4-swapped"))
    held_out = train.held_out()
    assert len(held_out) == 2 * (256 + 127 + 64)
    exchange = str.maketrans("GH", "HG")
    assert {text.translate(exchange) for text in held_out} == held_out
    lakes = dataclasses.replace(only("lake"), lakes=(4,))

    def first_boards(forbidden: frozenset[str]) -> set[str]:
        made = [corpus.sample("hold", number, lakes, forbidden) for number in range(400)]
        return {text for one in made for text in corpus._first_states(one)}

    assert first_boards(frozenset()) & held_out  # else the texts are not written as training writes them
    assert not first_boards(held_out) & held_out


@pytest.mark.parametrize("kind", ["scan", "way"])
def test_held_out_boards_are_not_told_of_outside_a_game_either(kind: str) -> None:
    shown = [board for number in range(300) for board in corpus.sample("out", number, only(kind)).boards]
    assert len(shown) == 300 * {"scan": 6, "way": 12}[kind] and all(text.startswith("Current Board") for text in shown)
    for number in range(20):
        made = corpus.sample("out", number, only(kind))
        held_out = frozenset(made.boards[:1])
        assert not held_out & set(corpus.sample("out", number, only(kind), held_out).boards)


def test_worlds_agree_with_what_their_context_tells_mostly(games: list[Drawn]) -> None:
    full = [game for game in games if game.made.told == 4]
    true = sum(game.world == game.belief for game in full) / len(full)
    assert 0.77 < true < 0.88  # 80 %, and an eighth of the rest


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


# ---- the replies --------------------------------------------------------------------------------


def cells_of(words: str) -> list[Cell]:
    """Squares as the thinking line writes them: row a, b, ... and column 1, 2, ..."""
    return [("abcdefgh".index(word[0]), int(word[1:]) - 1) for word in words.split()]


def way(size: set[Cell], start: Cell, goals: set[Cell], holes: set[Cell]) -> int | None:
    """Length of a shortest way over ``size`` (all cells), or ``None``."""
    seen, queue = {start}, deque([(start, 0)])
    while queue:
        (r, c), length = queue.popleft()
        if (r, c) in goals:
            return length
        for d, e in MOVES.values():
            near = (r + d, c + e)
            if near in size and near not in seen and near not in holes:
                seen.add(near)
                queue.append((near, length + 1))
    return None


def first_step(here: Cell, there: Cell) -> str:
    (name,) = [n for n, (d, e) in MOVES.items() if (here[0] + d, here[1] + e) == there]
    return name


def split_reply(reply: str) -> tuple[Rules, str, str, str]:
    """Belief, what stands where, path and bracketed move; the direction must be the path's own."""
    found = re.fullmatch(r"<think>(?:\S+ ){6}(.*) path (.*) go (up|down|left|right)</think>\[(\w+)\]", reply)
    assert found, reply
    belief = stated(reply)
    flipped = belief.vertical if found[3] in ("up", "down") else belief.horizontal
    opposite = {"up": "down", "down": "up", "left": "right", "right": "left"}
    assert found[4] == (opposite[found[3]] if flipped else found[3]), reply  # the name that goes there
    return belief, found[1], found[2], found[3]


def test_lake_replies_are_shortest_ways(games: list[Drawn]) -> None:
    through = checked = 0
    for game in [g for g in games if g.made.kind == "lake"][:2000]:
        for messages, reply in game.made.turns:
            on = positions(state_of(messages))
            belief, where, path, go = split_reply(reply)
            named = re.fullmatch(rf"P (\S+) {belief.first} (.*) {belief.second} (.*)", where)
            assert named, reply
            assert [cells_of(x) for x in named.groups()] == [on[x] for x in ("P", belief.first, belief.second)]
            (player,), goals, holes = on["P"], set(on[belief.first]), set(on[belief.second])
            length = way(set(on["all"]), player, goals, holes)
            if length is None:  # no way under this belief: straight through
                length, holes = way(set(on["all"]), player, goals, set()), set()
                through += 1
            steps = cells_of(path)
            assert len(steps) == length and steps[-1] in goals and not holes & set(steps), reply
            assert all(first_step(a, b) for a, b in itertools.pairwise([player, *steps]))  # neighbours
            assert set(steps) <= set(on["all"]) and go == first_step(player, steps[0]), reply
            checked += 1
    assert checked > 2500 and through < checked / 5


def test_room_replies_are_shortest_plans(games: list[Drawn]) -> None:
    seen = Counter[str]()
    for game in [g for g in games if g.made.kind == "room"][:500]:
        for messages, reply in game.made.turns:
            on = positions(state_of(messages))
            belief, where, path, go = split_reply(reply)
            named = re.fullmatch(rf"P (\S+) {belief.first} (\S+) {belief.second} (\S+)", where)
            assert named, reply
            ((player,), (box,), (target,)) = (cells_of(x) for x in named.groups())
            assert ([player], [box], [target]) == tuple(on[x] for x in ("P", belief.first, belief.second))
            floor = frozenset(on["all"]) - frozenset(on["wall"])
            best = shortest(Warehouse(floor=floor, goals=frozenset({target}), player=player, boxes=frozenset({box})))
            if path == "none":
                assert best is None or len(best) > 16, reply
                seen["none"] += 1
                continue
            assert best and go == first_step(player, cells_of(path.removeprefix("push ")[:2])[0])
            count = 0
            for push, to, after in re.findall(r"(push )?(\w\d)(?(1) (\w\d))(?: |$)", path):
                (cell,), count = cells_of(to), count + 1
                move = first_step(player, cell)  # a neighbour, or this fails
                assert cell in floor and (cell == box) == bool(push), reply
                if push:
                    beyond = (cell[0] + MOVES[move][0], cell[1] + MOVES[move][1])
                    assert cells_of(after) == [beyond] and beyond in floor, reply
                    box = beyond
                player = cell
                assert (box == target) == (count == len(best)), reply
            assert count == min(len(best), worlds.SHOWN_STEPS), reply
            rest = shortest(Warehouse(floor=floor, goals=frozenset({target}), player=player, boxes=frozenset({box})))
            assert box == target or (rest and count + len(rest) == len(best)), reply
            seen["cut" if len(best) > count else "whole"] += 1
    assert seen["whole"] > 300 and seen["cut"] > 20 and seen["none"], seen


# ---- extraction ---------------------------------------------------------------------------------


def told_by_trace(prompt: str) -> tuple[set[tuple[str, Any]], list[tuple[str, Cell]]]:
    """The facts that the text of a trace shows, and each answer with where P stood; read from the text alone."""
    trace = prompt.partition("This is what you saw and what you answered.\n\n")[2]
    turns = re.findall(r"Turn \d+\. You saw:\n(.*?)\nYou answered: (.*?)(?=\n\n(?:Turn|End))", trace, re.S)
    end = re.search(r"\n\nEnd of the round:\n(.*?)\n\n(?:What you know|The next round)", trace, re.S)
    assert turns and end
    shown = [text for text, _ in turns] + [end[1]]
    found: set[tuple[str, Any]] = set()
    boards = [positions(board_in(text)) for text in shown]
    for (_, answer), before, after, on, then in zip(turns, shown, shown[1:], boards, boards[1:], strict=False):
        move = answer.strip("[]")
        went = re.search(r"You moved (\w+) to|moved \[(\w+)\]\.|You tried to move (\w+) but", after)
        if went:
            actual = next(x for x in went.groups() if x)
            axis = {"up": "vertical", "down": "vertical", "left": "horizontal", "right": "horizontal"}[actual]
            assert answer == f"[{move}]" and before
            found.add((axis, move != actual))
        stood = [letter for letter in on if len(letter) == 1 and letter != "P" and then["P"][0] in on[letter]]
        if "fell into a hole" in after:
            found.add(("hole", *stood))  # type: ignore[arg-type]
        if "reached the goal" in after:
            found.add(("goal", *stood))  # type: ignore[arg-type]
        if "pushed a box" in after:
            found.add(("box", *stood))  # type: ignore[arg-type]
        if "solved the Sokoban" in after:
            (spot,) = then["√"]
            found.add(("target", *(x for x in on if len(x) == 1 and spot in on[x])))  # type: ignore[arg-type]
        if "hit a wall" in after or "cannot move into a wall" in after:
            found.add(("wall", None))
            if after is shown[-1] and "Invalid Move:" in after:
                found.add(("invalid", None))
    return found, [(answer, on["P"][0]) for (_, answer), on in zip(turns, boards, strict=False)]


def board_in(text: str) -> str:
    """The first board in a text."""
    rows = text[text.index("Current Board:") :].split("\n")
    until = next((i for i, row in enumerate(rows[2:], 2) if not re.match(r"[+|]|\S( \S)+$", row)), len(rows))
    return "\n".join(rows[:until])


SAID = {"Leaving the board is an invalid move.": ("wall", None), "A wall cannot be entered.": ("wall", None),
        "Two invalid moves in a row end the game.": ("invalid", None)}  # fmt: skip


def test_extraction_says_only_what_the_trace_shows() -> None:
    seen, mumbled, single = Counter[str](), 0, 0
    for number in range(2500):
        made = corpus.sample("extract", number, only("extract"))
        ((messages, reply),) = made.turns
        prompt = messages[0]["content"]
        think, _, said = reply.partition(corpus.END_THINK)
        items = parse(reply)
        assert said == "\n".join(f"{MARKER} {item.text}" for item in items) == "\n".join(i.raw for i in items)
        assert len(items) <= 2
        assert not any(flags(item.text) for item in items), said
        if prompt.startswith("Question: "):
            assert reply == f"{corpus.THINK}open{corpus.END_THINK}"
            single += 1
            continue
        if "[w], [a], [s], [d]" in prompt:
            assert reply == f"{corpus.THINK}open{corpus.END_THINK}"
            mumbled += 1
            continue
        shown, moves = told_by_trace(prompt)
        known = {fact for line in earlier_of(made).lines for fact in read(line) or [SAID[line]]}
        told = [fact for item in items for fact in read(item.text) or [SAID[item.text]]]
        assert known <= shown and not known & set(told) and set(told) <= shown, (prompt, reply)
        assert len(told) == len(items) == len(set(told))
        assert bool(told) == bool(shown - known), (prompt, reply)  # and says something wherever there is something
        named = {move for item in items for move in re.findall(r"\[(up|down|left|right)\]", item.text)}
        assert named <= {answer.strip("[]") for answer, _ in moves}, (prompt, reply)
        notes = re.findall(r"(\[\w+\]) (\w\d) (\w\d)", think)
        assert [(move, *cells_of(a)) for move, a, _ in notes] == moves, reply
        seen.update(kind for kind, _ in told)
    assert mumbled > 30 and single > 30
    kinds = ("goal", "hole", "box", "target", "vertical", "horizontal", "wall", "invalid")
    assert all(seen[kind] > 20 for kind in kinds), seen


# ---- sums and instructions ----------------------------------------------------------------------


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


# ---- the corpus as a function -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lake", "room", "extract", "instruct"])
def test_what_is_held_out_never_comes_first(kind: str) -> None:
    small = dataclasses.replace(only(kind), lakes=(2, 3), rooms=(5,))
    before = [corpus.sample("held", n, small) for n in range(400)]
    states = Counter(state for made in before for state in sorted(first_shown(made)))
    common = frozenset(state for state, _ in states.most_common(60))
    after = [corpus.sample("held", n, small, common) for n in range(400)]
    assert sum(bool(common & first_shown(made)) for made in before) >= 15
    assert not any(common & first_shown(made) for made in after)
    assert all(a == b for a, b in zip(after, before, strict=True) if not common & first_shown(b))


def first_shown(made: corpus.Sample) -> set[str]:
    """The first board of a game, or the questions of a sample without one, from the prompts alone."""
    text = made.turns[0][0][0]["content"]
    if made.kind == "instruct":
        return {messages[-1]["content"] for messages, _ in made.turns}
    if text.startswith("Question: "):
        return {text.partition("Question: ")[2].partition("\nYour answer:")[0]}
    return {board_in(text)}


def test_a_sample_depends_on_seed_and_number_alone() -> None:
    for stage in corpus.STAGES.values():
        random.seed(1)
        np.random.seed(1)
        state, other = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
        first = [corpus.sample("pure", n, stage) for n in range(60)]
        assert random.getstate() == state and (np.random.get_state()[1] == other).all()  # type: ignore[union-attr]
        random.seed(2)
        np.random.seed(2)
        again = [corpus.sample("pure", n, stage) for n in reversed(range(60))][::-1]
        assert first == again
    assert corpus.sample("pure", 0, stage) != corpus.sample("other", 0, stage)
    assert {corpus.sample("pure", n, corpus.LAST).kind for n in range(300)} == set(corpus.KINDS)


def test_a_sample_does_not_depend_on_the_hash_seed(root: Path) -> None:
    code = "from recipes.pocket import corpus as c; print([c.sample('h', n, c.LAST) for n in range(150)])"
    out = [
        subprocess.run([sys.executable, "-c", code], cwd=root, env=os.environ | {"PYTHONHASHSEED": seed},
                       capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert out[0] == out[1] and len(out[0]) > 10_000
