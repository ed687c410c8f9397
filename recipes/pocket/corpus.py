"""The training text of ``pocket``: a pure function of a seed and a number, so anybody gets the same.

Games and extractions are rendered by the package's own code (chat, extraction prompt), so they are what a player is
really asked; only the replies are written here. Exercises (``recall``, ``scan``, ``way``) train one part of a game.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Sequence

from agentopcd.core.types import EMPTY, MARKER, Context, Episode, Message, Part, Task, Turn
from agentopcd.envs.games.textarena import _HOW_TO_MOVE as HOW_TO_MOVE
from agentopcd.envs.questions.puzzles import Conventions, Instructions
from agentopcd.knowledge.extract import extraction_messages
from agentopcd.rollouts import chat as chats
from agentopcd.rollouts import history as histories
from recipes.pocket import layouts, trace, wording, worlds
from recipes.pocket.worlds import Played, Rules

RULES = "You control P on a grid. Reach the goal in as few moves as you can, one move per reply."
"""The games' default view (``hidden``); a test compares it with the environments'."""

THINK, END_THINK = "<think>", "</think>"


@dataclasses.dataclass(frozen=True)
class Sample:
    """Prompts with the replies that are learned: the turns of one game, or several small tasks of one kind."""

    kind: str
    context: Context
    turns: list[tuple[list[Message], str]]
    episode: Episode | None = None
    told: int = 0
    """Facts of the hidden rules that the context settles: 4 are all of them."""
    boards: tuple[str, ...] = ()
    """Boards that are told of outside a game."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What is drawn during a part of training: small boards and plain contexts first."""

    lakes: tuple[int, ...]
    rooms: tuple[int, ...]
    weights: tuple[float, ...]
    """Shares of the samples, in the order of :data:`KINDS`."""
    plain: float
    """Share of contexts that tell everything in few words, so that reading them is learned early."""


KINDS = ("lake", "room", "recall", "scan", "way", "extract", "arithmetic", "instruct")
STAGES = {
    0.0: Stage((2, 3), (5,), (0.28, 0.10, 0.20, 0.22, 0.06, 0.06, 0.03, 0.05), 0.8),
    0.12: Stage((2, 3, 3, 4), (5, 5, 6), (0.30, 0.18, 0.10, 0.16, 0.10, 0.08, 0.03, 0.05), 0.5),
    0.25: Stage((3, 4, 4, 4, 5), (5, 6, 6, 6, 7), (0.36, 0.26, 0.05, 0.05, 0.08, 0.11, 0.04, 0.05), 0.2),
}
LAST = STAGES[0.25]


def stage_at(done: float) -> Stage:
    """The stage after a share ``done`` of training."""
    return STAGES[max(start for start in STAGES if start <= done)]


def sample(seed: str, number: int, stage: Stage, held_out: frozenset[str] = frozenset()) -> Sample:
    """Sample ``number`` of the corpus ``seed``.

    Args:
        held_out: first boards and questions (as texts) that must not occur: the tasks pocket is tested on.
    """
    rng = random.Random(f"{seed}:{number}")
    kind = rng.choices(KINDS, stage.weights)[0]
    while True:
        made = _MAKERS[kind](rng, stage)
        if made.turns and not (held_out & _first_states(made)):
            return made


def fingerprint(seed: str, count: int = 150) -> str:
    """A hash of the first ``count`` samples of every stage: prompts, contexts and replies."""
    total = hashlib.sha256()
    for stage in STAGES.values():
        for number in range(count):
            made = sample(seed, number, stage)
            row = [made.kind, made.context.text, made.context.placement, made.told, made.turns]
            total.update(json.dumps(row, sort_keys=True).encode())
    return total.hexdigest()[:32]


def _first_states(made: Sample) -> set[str]:
    """What a task is told apart by: the first board of a game, the text of a question."""
    if made.episode is not None:
        return {histories.shown(made.episode.turns[0].parts, ["state"])}
    return {*made.boards, *(messages[-1]["content"] for messages, _ in made.turns)}


# ---- games --------------------------------------------------------------------------------------


def _letters(rng: random.Random, game: str) -> tuple[str, str]:
    """Half the time TextArena's letters, so that they are known; their roles are drawn like all others."""
    usual = ("G", "H") if game == "lake" else ("O", "X")
    if rng.random() < 0.5:
        return usual
    return tuple(sorted(rng.sample(worlds.LETTERS, 2)))  # type: ignore[return-value]


def _play(
    rng: random.Random, game: str, stage: Stage, letters: tuple[str, str], world: Rules, belief: Rules, slip: float,
    limit: int,
) -> Played:  # fmt: skip
    if game == "lake":
        board = layouts.draw_lake(rng, stage.lakes, letters, world)
        return worlds.play_lake(rng, board, world, belief, limit, slip)
    glyphs = ("#", "_") if rng.random() < 0.8 else tuple(rng.sample("#_.*~:=", 2))
    room = layouts.draw_room(rng, stage.rooms, letters, world, glyphs)  # type: ignore[arg-type]
    return worlds.play_room(rng, room, world, belief, limit, slip)


def _parts(rules: str, number: int, feedback: str, state: str) -> list[Part]:
    parts = [("rules", rules if number == 0 else ""), ("feedback", feedback), ("state", state),
             ("actions", HOW_TO_MOVE)]  # fmt: skip
    return [part for part in parts if part[1]]


def _game(rng: random.Random, game: str, stage: Stage) -> Sample:
    """A game under a belief: told by a context, told in part and guessed, or guessed alone.

    The world agrees with what the context tells (mostly) and is drawn anew in all it leaves open, so
    that neither the board nor the log of the game makes up for a context.
    """
    letters = _letters(rng, game)
    options = worlds.hypotheses(letters)
    belief = rng.choice(options)
    context, told = EMPTY, []
    if rng.random() < 0.7:
        context, told = wording.context(rng, game, belief, stage.plain)
    facts = len(told)
    if rng.random() < 0.2:
        told = []
    world = rng.choice([w for w in options if set(told) <= set(wording.facts_of(game, w))])
    # Mostly first moves: another board and another context teach more than a second look at the same.
    limit = rng.choice([1, 1, 1, 2, 2, 3, 6, 8, 10] if game == "lake" else [1, 1, 1, 2, 2, 3, 5, 5])
    played = _play(rng, game, stage, letters, world, belief, 0.15, limit)
    rules = RULES if rng.random() < 0.85 else ""
    history = "transcript" if rng.random() < 0.85 else "chat"
    turns: list[tuple[list[Message], str]] = []
    past: list[tuple[Sequence[Part], str]] = []
    episode_turns = []
    for number, step in enumerate(played.steps):
        parts = _parts(rules, number, step.feedback, step.state)
        messages = histories.turn_messages(history, past, parts)
        episode_turns.append(_turn(parts, messages, ""))
        if step.think:
            # The reply the belief asks for: where the player slipped, the log shows the slip instead.
            turns.append((messages, f"{THINK}{step.think}{END_THINK}{_planned(step.think, belief)}"))
        past.append((parts, step.move))
    return Sample(game, context, turns, _episode(episode_turns, []), facts)


def _planned(think: str, belief: Rules) -> str:
    return f"[{belief.direction(think.rsplit(' ', 1)[1])}]"


def _turn(parts: list[Part], messages: list[Message], reply: str) -> Turn:
    return Turn(parts=parts, messages=messages, prompt_ids=(), response_ids=(), logprobs=(), reply=reply,
                finish_reason="stop", reward=0.0, invalid=False)  # fmt: skip


def _episode(turns: list[Turn], outcome: list[Part]) -> Episode:
    return Episode(env="", task=Task(0, "pocket"), rep=0, context_id="", turns=turns, outcome=outcome, success=False,
                   reward=0.0, stop_reason="failed")  # fmt: skip


def _recall(rng: random.Random, stage: Stage) -> Sample:
    """Contexts alone, and what they tell: many of them at the price of one game."""
    turns: list[tuple[list[Message], str]] = []
    for _ in range(6):
        game = rng.choice(["lake", "room"])
        belief = rng.choice(worlds.hypotheses(_letters(rng, game)))
        context, told = wording.context(rng, game, belief, stage.plain)
        asked = Message(role="user", content=RECALL[game])
        text = chats.framed(context)
        if context.placement == "user":
            messages = [Message(role="user", content=f"{text}\n\n{RECALL[game]}")]
        else:
            messages = [Message(role="system", content=text), asked]
        turns.append((messages, said(game, dict(told))))
    return Sample("recall", EMPTY, turns)


def _scan(rng: random.Random, stage: Stage) -> Sample:
    """Boards alone, and where on them the letters stand."""
    turns: list[tuple[list[Message], str]] = []
    boards = []
    for _ in range(6):
        game = rng.choice(["lake", "lake", "lake", "room"])
        letters = _letters(rng, game)
        world = rng.choice(worlds.hypotheses(letters))
        board = _play(rng, game, stage, letters, world, world, 1.0, rng.choice([1, 1, 2])).steps[-1].state
        asked = rng.sample(["P", *letters], 3)
        places = worlds.places(board)
        text = f"{board}\n\nWhere are {asked[0]}, {asked[1]} and {asked[2]}?"
        reply = " ".join(" ".join([x, *places.get(x, [])]) for x in asked)
        turns.append(([Message(role="user", content=text)], reply))
        boards.append(board)
    return Sample("scan", EMPTY, turns, boards=tuple(boards))


def _way(rng: random.Random, stage: Stage) -> Sample:
    """Squares alone, as the thinking line has them, and the way between them."""
    turns: list[tuple[list[Message], str]] = []
    boards = []
    for _ in range(12):
        letters = _letters(rng, "lake")
        rules = rng.choice(worlds.hypotheses(letters))
        board = layouts.draw_lake(rng, stage.lakes, letters, rules)
        think, _ = worlds.lake_plan(rng, board, rules, board.start)
        squares, path = think.partition(" P ")[2].split(" path ")
        text = f"P {squares}\n\n{board.size} by {board.size}. Which way?"
        turns.append(([Message(role="user", content=text)], f"path {path}"))
        boards.append(board.draw(board.start))
    return Sample("way", EMPTY, turns, boards=tuple(boards))


RECALL = {"lake": "What do you know of this lake?", "room": "What do you know of this room?"}


def said(game: str, told: dict[str, object]) -> str:
    """What is known, in the words that also begin the thinking; a question mark for the rest."""
    first, second = ("goal", "hole") if game == "lake" else ("box", "target")
    up = {True: "down", False: "up"}.get(told.get("vertical"), "?")  # type: ignore[call-overload]
    right = {True: "left", False: "right"}.get(told.get("horizontal"), "?")  # type: ignore[call-overload]
    return f"{first} {told.get(first, '?')} {second} {told.get(second, '?')} up>{up} right>{right}"


# ---- extraction ---------------------------------------------------------------------------------


def _extract(rng: random.Random, stage: Stage) -> Sample:
    """A finished game and the one or two lessons its trace supports; nothing where it supports none."""
    if rng.random() < 0.04:
        return _extract_single(rng)
    game = rng.choice(["lake", "lake", "room"])
    letters = _letters(rng, game)
    options = worlds.hypotheses(letters)
    world = rng.choice(options)
    belief = world if rng.random() < 0.35 else rng.choice(options)
    limit = rng.choice([2, 4, 5, 6, 8]) if game == "lake" else rng.choice([1, 3, 5, 5])
    played = _play(rng, game, stage, letters, world, belief, rng.choice([0.1, 0.5]), limit)
    if rng.random() < 0.04:
        played = trace.mumbled(rng, game, played)
    turns = [
        _turn(_parts(RULES, number, step.feedback, step.state), [], f"{THINK}...{END_THINK}{step.move}")
        for number, step in enumerate(played.steps)
    ]
    over = bool(played.outcome)
    ending = [("feedback", played.feedback), ("state", played.state), ("actions", "" if over else HOW_TO_MOVE),
              ("outcome", played.outcome)]  # fmt: skip
    episode = _episode(turns, [part for part in ending if part[1]])
    facts = trace.supported(game, played, world)
    pressed = {step.move[1:-1] for step in played.steps if step.actual or (step.tried and game == "lake")}
    earlier = None
    if rng.random() < 0.15:
        known = rng.sample(facts, rng.randint(0, len(facts))) if rng.random() < 0.7 else facts
        lines = [wording.item(rng, game, fact, pressed) for fact in known]
        earlier = Context("\n".join(f"{MARKER} {line}" for line in lines)) if lines else None
        facts = [fact for fact in facts if fact not in known]
    rng.shuffle(facts)
    facts.sort(key=lambda fact: fact[0] in ("wall", "invalid"))  # what matters most first
    told = [wording.item(rng, game, fact, pressed) for fact in facts[: rng.choice([1, 2, 2])]]
    messages = extraction_messages(episode, kind="game", earlier=earlier)
    notes = " ".join(f"{s.move} {s.frm} {s.to or s.frm}" for s in played.steps if s.frm)
    reply = f"{THINK}{f'{notes} {trace.ending(game, played, world)}'.strip()}{END_THINK}"
    return Sample("extract", EMPTY, [(messages, reply + "\n".join(f"{MARKER} {line}" for line in told))], episode)


def _extract_single(rng: random.Random) -> Sample:
    """A question and one's own answer, without a verdict: it supports nothing."""
    if rng.random() < 0.5:
        row = _INSTRUCTIONS.draw(rng.randrange(10**6, 10**9))
    else:
        row = Conventions(form=rng.choice(list(_FORMS)), modulus=rng.choice(MODULI)).draw(rng.randrange(10**6, 10**9))
    episode = _episode([_turn([("state", row.prompt)], [], row.gold)], [])
    messages = extraction_messages(episode, kind="single")
    return Sample("extract", EMPTY, [(messages, f"{THINK}open{END_THINK}")], episode)


# ---- arithmetic under a hidden convention, and instructions -------------------------------------

_FORMS = {
    "plain": ["Write only the number.", "Answer with the bare number.", "The answer is the number alone."],
    "answer": ['Write "Answer:" before the number.', "Begin the answer with Answer: and then the number."],
    "bracket": ["Write the number in brackets.", "Put the answer in square brackets.", "Answers look like [4]."],
    "equals": ["Write = before the number.", "Begin the answer with an equals sign.", "Answers look like = 4."],
}
_MODULUS = ["Take the result modulo {m}.", "All numbers are modulo {m}.", "Count modulo {m}.", "Work modulo {m}.",
            "Give the remainder after division by {m}."]  # fmt: skip
_NO_MODULUS = ["Do not take remainders.", "Give the whole result.", "There is no modulus."]
_ORDER = {
    "usual": ["Products come first.", "Multiply before you add.", "The usual order holds."],
    "left-to-right": ["Work strictly from left to right.", "Add and multiply in the order written.",
                      "There is no precedence: go from left to right."],
}  # fmt: skip
MODULI = (0, 0, 5, 7, 9, 10, 11)


def _arithmetic(rng: random.Random, stage: Stage) -> Sample:
    modulus, form, order = rng.choice(MODULI), rng.choice(list(_FORMS)), rng.choice(list(_ORDER))
    lines = []
    if rng.random() < 0.8:
        told = {
            "form": rng.choice(_FORMS[form]),
            "modulus": rng.choice(_MODULUS).format(m=modulus) if modulus else rng.choice(_NO_MODULUS),
            "order": rng.choice(_ORDER[order]),
        }
        lines = [told[name] for name in rng.sample(list(told), rng.choice([1, 2, 3, 3, 3]))]
    placement = "system" if rng.random() < 0.3 else "user"
    text = "\n".join(f"{MARKER} {x}" for x in lines) if rng.random() < 0.6 else " ".join(lines)
    env, turns = Conventions(form=form, modulus=modulus, order=order), []
    for _ in range(4):
        row = env.draw(rng.randrange(10**6, 10**9))
        work = _work(row.prompt.removeprefix("What is ").removesuffix("?"), order)
        think = f"modulus {modulus or 'none'} order {'usual' if order == 'usual' else 'left'} {work}"
        if modulus:
            think += f" mod {modulus} = {int(work.rsplit(' ', 1)[1]) % modulus}"
        turns.append(([Message(role="user", content=row.prompt)], f"{THINK}{think}{END_THINK}{row.gold}"))
    return Sample("arithmetic", Context(text, placement), turns)


def _work(sums: str, order: str) -> str:
    """``3 + 4 * 2 = 14``, a product or a sum at a time."""
    tokens, shown = sums.split(), [sums]
    while len(tokens) > 1:
        at = 1
        if order == "usual" and "*" in tokens:
            at = tokens.index("*")
        a, sign, b = int(tokens[at - 1]), tokens[at], int(tokens[at + 1])
        value = a + b if sign == "+" else a - b if sign == "-" else a * b
        tokens[at - 1 : at + 2] = [str(value)]
        shown.append(" ".join(tokens))
    return " = ".join(shown)


def _instruct(rng: random.Random, stage: Stage) -> Sample:
    context = EMPTY
    if rng.random() < 0.15:  # lessons of a game change nothing here
        game = rng.choice(["lake", "room"])
        while not context.text or any(order in context.text for order in wording.ORDERS):
            context = wording.context(rng, game, rng.choice(worlds.hypotheses(_letters(rng, game))))[0]
    rows = [_INSTRUCTIONS.draw(rng.randrange(10**6, 10**9)) for _ in range(8)]
    return Sample("instruct", context, [([Message(role="user", content=row.prompt)], row.gold) for row in rows])


_INSTRUCTIONS = Instructions()
_MAKERS = {
    "lake": lambda rng, stage: _game(rng, "lake", stage),
    "room": lambda rng, stage: _game(rng, "room", stage),
    "recall": _recall,
    "scan": _scan,
    "way": _way,
    "extract": _extract,
    "arithmetic": _arithmetic,
    "instruct": _instruct,
}
