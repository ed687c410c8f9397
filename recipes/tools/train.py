"""Teach a built-in model to call tools and to follow what its context says: ``python -m recipes.tools.train``.

The demonstrations are episodes of :class:`recipes.tools.desk.Desk` with charges that are drawn anew. Where a context
tells the charge, the player calls with it; where none does, it guesses. The prompts are those that a player is asked,
rendered by the package's own code, and only the replies are learned, by cross-entropy.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from collections.abc import Sequence
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

PLAYS, LESSONS, READINGS = 8, 2, 16
"""Demonstrations of a step: episodes, lessons drawn from an episode, and questions about a context alone."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """A conversation; all that its assistant says is learned."""

    messages: list[Message]
    reply: str
    charge: int
    """The charge in force."""
    context: Context = EMPTY
    tools: Sequence[Tool] = ()


def lesson(charge: int) -> str:
    """The line that states a charge."""
    return f"A parcel costs {charge} more than listed."


def told_by(charge: int) -> Context:
    """A context that states a charge."""
    return Context(f"{MARKER} {lesson(charge)}")


def played(charge: int, believed: int, seed: int) -> tuple[list[Tool], Episode]:
    """The tools, and an episode of a player who believes in a charge, which need not be that in force."""
    env = Desk(charge)
    obs, info = env.reset(seed=seed)
    tools, turns, seen = info["tools"], [], envs.parts_of(obs, info)
    for reply in replies(env.thing, env.listed, believed):
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
    """An episode: with a context that tells the charge, with one that says nothing, or with none."""
    charge, believed = rng.choice(CHARGES), rng.choice(CHARGES)
    context, chance = told_by(charge), rng.random()
    if chance < 0.7:
        believed = charge
    else:  # the words of a lesson in another order say nothing, either
        context = placebo(context) if chance < 0.85 else EMPTY
    tools, episode = played(charge, believed, rng.randrange(10**9))
    last = episode.turns[-1]
    return Demo(last.messages, last.reply, charge, context, tools)


def learnt(rng: random.Random) -> Demo:
    """The lesson of an episode: the charge, or nothing if that is known."""
    charge, guessed = rng.choice(CHARGES), rng.choice(CHARGES)
    _, episode = played(charge, guessed, rng.randrange(10**9))
    earlier = told_by(charge) if rng.random() < 0.2 else EMPTY
    reply = "" if earlier.text else f"{MARKER} {lesson(charge)}"
    return Demo(extraction_messages(episode, kind="game", earlier=earlier), reply, charge)


def reading(rng: random.Random) -> Demo:
    """A question about the charge, which the context answers: what an episode asks beside all else."""
    charge = rng.choice(CHARGES)
    asked = Message(role="user", content="How much more than listed does a parcel cost?")
    return Demo([asked], str(charge), charge, told_by(charge))


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

    def learn(self, step: int) -> dict[str, float]:
        """Take step ``step``, from 1; return the loss on each kind of demonstration, in nats a token.

        The first quarter of the steps reads alone: short sequences, from which a model learns to look a charge up.
        """
        model = self.loaded.model
        kinds = {"reading": (reading, READINGS), "plays": (play, PLAYS), "lessons": (learnt, LESSONS)}
        if step <= self.steps // 4:
            kinds = {"reading": (reading, 4 * READINGS)}
        parts = {
            kind: losses(model, [sequence(self.chat, made(self.rng)) for _ in range(n)])
            for kind, (made, n) in kinds.items()
        }
        torch.cat(list(parts.values())).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.param_groups[0]["lr"] = self.rate * rate_at(step, self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {kind: part.mean().item() for kind, part in parts.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket", choices=("pocket", "pocket-s"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("tools-work/model"))
    args = parser.parse_args(arguments)
    course = Course(args.model, steps=args.steps, rate=args.rate, seed=args.seed)
    since: list[dict[str, float]] = []
    for step in range(1, args.steps + 1):
        since.append(course.learn(step))
        if step % 20 == 0 or step == args.steps:
            means = {kind: sum(one[kind] for one in since) / len(since) for kind in since[-1] if kind in since[0]}
            print(json.dumps({"step": step, **{f"{k}_nats": round(v, 4) for k, v in means.items()}}), flush=True)
            since.clear()
    note = "taught by recipes/tools to call one tool; it knows nothing else"
    loaded = dataclasses.replace(course.loaded, note=note)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_model(loaded, args.out, parent_id=loaded.id, facts={})


if __name__ == "__main__":
    main()
