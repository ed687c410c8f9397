"""Teach a built-in model to call tools and to follow what its context says: ``python -m recipes.tools.train``.

The demonstrations are episodes of :class:`recipes.tools.desk.Desk` under tables of charges that are drawn anew, never
the desk's own. A context tells some of the charges; what it does not tell is guessed. The prompts are those that a
player is asked, rendered by the package's own code, and only the replies are learned, by cross-entropy.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from agentopcd import envs
from agentopcd.core.types import EMPTY, MARKER, Context, Episode, Message, Task, Tool, Turn
from agentopcd.knowledge.extract import extraction_messages
from agentopcd.knowledge.placebo import placebo
from agentopcd.models.load import load_model, save_model
from agentopcd.rollouts.chat import Chat, common_length
from agentopcd.rollouts.game import told
from recipes.tools.desk import CHARGES, Desk, replies

TABLES = [
    table
    for charges in itertools.product(range(4), repeat=len(CHARGES))
    if (table := dict(zip(CHARGES, charges, strict=True))) != CHARGES
]
"""All tables of charges but the desk's own."""

PLAYS, LESSONS = 8, 2
"""Demonstrations of a step: episodes, and lessons drawn from an episode."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """A conversation; all that its assistant says is learned."""

    messages: list[Message]
    reply: str
    charges: Mapping[str, int]
    """The table in force."""
    context: Context = EMPTY
    tools: Sequence[Tool] = ()


def lesson(place: str, charge: int) -> str:
    """The line that states one charge."""
    return f"What goes to the {place} costs {charge} more."


def lessons(stated: Mapping[str, int], rng: random.Random) -> Context:
    """A context that states these charges, in any order."""
    lines = [f"{MARKER} {lesson(place, charge)}" for place, charge in stated.items()]
    rng.shuffle(lines)
    return Context("\n".join(lines)) if lines else EMPTY


def played(charges: Mapping[str, int], believed: Mapping[str, int], seed: int) -> tuple[list[Tool], Episode]:
    """The tools, and an episode of a player who believes in a table of charges, which need not be that in force."""
    env = Desk(charges)
    obs, info = env.reset(seed=seed)
    tools, turns, seen = info["tools"], [], envs.parts_of(obs, info)
    for reply in replies(env.thing, env.listed, believed[env.place]):
        turns.append(
            Turn(
                parts=seen, messages=told(info, {}) or [], prompt_ids=(), response_ids=(), logprobs=(), reply=reply,
                finish_reason="stop", reward=0.0, invalid=False, tools=tools,
            )
        )  # fmt: skip
        obs, _, _, _, info = env.step(reply)
        seen = envs.parts_of(obs, info)
    won = bool(info["success"])
    return tools, Episode(
        env="", task=Task(seed, "desk"), rep=0, context_id="", turns=turns, outcome=seen, success=won,
        reward=float(won), stop_reason="solved" if won else "failed",
    )  # fmt: skip


def play(rng: random.Random) -> Demo:
    """An episode: by a context that tells some charges, by one that says nothing, or by none."""
    charges, guessed = rng.choice(TABLES), rng.choice(TABLES)
    stated = {place: charges[place] for place in rng.sample(list(charges), rng.choice((1, 2, 3, 4, 4, 4, 4)))}
    context, chance = lessons(stated, rng), rng.random()
    if chance < 0.3:  # the words of a lesson in another order say nothing, either
        stated, context = {}, placebo(context) if chance < 0.1 else EMPTY
    tools, episode = played(charges, {**guessed, **stated}, rng.randrange(10**9))
    last = episode.turns[-1]
    return Demo(last.messages, last.reply, charges, context, tools)


def learnt(rng: random.Random) -> Demo:
    """The lesson of an episode: the charge for its place, or nothing if that is known."""
    charges, guessed = rng.choice(TABLES), rng.choice(TABLES)
    _, episode = played(charges, guessed, rng.randrange(10**9))
    known = rng.sample(list(charges), rng.choice((0, 0, 1, 2, 3)))
    earlier = {place: guessed[place] if rng.random() < 0.1 else charges[place] for place in known}
    place = next(place for place in charges if f" {place} " in episode.turns[0].messages[-1]["content"])
    reply = "" if earlier.get(place) == charges[place] else f"{MARKER} {lesson(place, charges[place])}"
    messages = extraction_messages(episode, kind="game", earlier=lessons(earlier, rng))
    return Demo(messages, reply, charges)


def sequence(chat: Chat, made: Demo) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a conversation, and ``(index whose output predicts it, token id)`` of all its assistant says."""
    ids = [*chat.render(made.messages, made.context, made.tools), *chat.tokenizer(made.reply)["input_ids"], chat.end]
    opens, speaks, learned = chat.tokenizer.convert_tokens_to_ids("<|assistant|>"), False, []
    for place, token in enumerate(ids):
        if speaks:
            learned.append((place - 1, token))
        speaks = token == opens or (speaks and token != chat.end)
    return ids, learned


def losses(model: Any, sequences: Sequence[tuple[list[int], list[tuple[int, int]]]]) -> torch.Tensor:
    """Cross-entropy in nats of every learned token [N], of all sequences one after the other.

    What all sequences begin with (the tools, and how to call them) is read once and without a gradient: it is
    most of a prompt, and the same in all of them.
    """
    first, learned = sequences[0]
    shared = min([learned[0][0], *(common_length(first, ids) for ids, _ in sequences[1:])])
    rest = pad_sequence([torch.tensor(ids[shared:]) for ids, _ in sequences], batch_first=True)
    cache = None
    if shared:
        with torch.no_grad():
            cache = model.model(torch.tensor([first[:shared]]), use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(sequences))
    hidden = model.model(rest, past_key_values=cache, use_cache=bool(shared)).last_hidden_state
    rows = [number for number, (_, said) in enumerate(sequences) for _ in said]
    places = [place - shared for _, said in sequences for place, _ in said]
    targets = torch.tensor([token for _, said in sequences for _, token in said])
    return F.cross_entropy(model.lm_head(hidden[rows, places]), targets, reduction="none")


def rate_at(step: int, steps: int) -> float:
    """Share of the learning rate: a short warm-up, constant, then straight to zero over the last half."""
    return min(1.0, step / 10, (steps - step + 1) / (0.5 * steps))


class Course:
    """A model, and the demonstrations that it is trained on."""

    def __init__(self, model: str, *, steps: int, rate: float, seed: int) -> None:
        self.loaded = load_model(model)
        self.chat, self.rng = Chat(self.loaded.tokenizer), random.Random(f"tools/{seed}")
        self.optimizer = torch.optim.AdamW(self.loaded.model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
        self.rate, self.steps = rate, steps

    def learn(self, step: int) -> tuple[float, float]:
        """Take step ``step``, from 1; return the loss on episodes and on lessons, in nats a token."""
        model = self.loaded.model
        plays = losses(model, [sequence(self.chat, play(self.rng)) for _ in range(PLAYS)])
        written = losses(model, [sequence(self.chat, learnt(self.rng)) for _ in range(LESSONS)])
        torch.cat([plays, written]).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.param_groups[0]["lr"] = self.rate * rate_at(step, self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return plays.mean().item(), written.mean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket-s", choices=("pocket", "pocket-s"))
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("tools-work/model"))
    args = parser.parse_args(arguments)
    course = Course(args.model, steps=args.steps, rate=args.rate, seed=args.seed)
    since: list[tuple[float, float]] = []
    for step in range(1, args.steps + 1):
        since.append(course.learn(step))
        if step % 20 == 0 or step == args.steps:
            plays, written = (round(sum(nats) / len(since), 4) for nats in zip(*since, strict=True))
            print(json.dumps({"step": step, "plays_nats": plays, "lessons_nats": written}), flush=True)
            since.clear()
    note = "taught by recipes/tools to call one tool; it knows nothing else"
    loaded = dataclasses.replace(course.loaded, note=note)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_model(loaded, args.out, parent_id=loaded.id, facts={})


if __name__ == "__main__":
    main()
