"""Pocket's prompts: the simulators, the extraction and the questions are those of the real games."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from agentopcd import envs
from agentopcd.core.types import MARKER, Completion, Context, Episode, Job, Request, Sampling, Task
from agentopcd.knowledge.extract import extraction_messages
from agentopcd.rollouts.chat import EXPERIENCE_FRAME, Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.history import turn_messages
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling import InBatches
from recipes.pocket import corpus, worlds
from recipes.pocket.worlds import Played, Rules
from tests.recipes.pocket_readers import earlier_of

REAL = ("frozen-lake", "frozen-lake-4x4", "frozen-lake-4x4-swapped", "sokoban", "sokoban-swapped")
PROMPT_FORMAT = "6d40d595eaaf4e4f791dcfd83637c6d8"
"""sha256 of every prompt that ``fixed_prompts`` renders: the format the weights were trained on."""


# ---- the real environments -----------------------------------------------------------------------


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


# ---- prompts -------------------------------------------------------------------------------------


class Characters:
    """A tokenizer with one id per character and pocket's chat template."""

    eos_token_id = None

    def __init__(self) -> None:
        from jinja2 import Environment

        from recipes.pocket.tokenizer import SPECIAL, TEMPLATE

        self.all_special_tokens, self.added_tokens_decoder, self.is_fast = list(SPECIAL), {}, False
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
