"""The extractor's prompts: a built-in one for each kind of episode, or a person's own.

They show what the player saw and what the environment said to it, never a label and never the environment's rules,
which the extractor has to infer. What an environment says after the only reply of an episode is shown if it is a
``feedback`` part, which is how an environment declares something as meant for the player. Its ``outcome`` is not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from agentopcd.core.errors import ConfigError, did_you_mean
from agentopcd.core.text import after_thinking
from agentopcd.core.types import MARKER, Context, Episode, Message, Part

Kind = Literal["game", "single"]
"""How an environment is played: in several turns, or with a single reply."""
KINDS: tuple[Kind, ...] = ("game", "single")
PromptKind = Literal["game", "question", "feedback", "tools", "conversation"]
"""What an episode holds, and so which prompt asks for its lessons; see :func:`prompt_kind`."""

EXTRACTION_VERSION = 2
"""Version of the prompts: raised whenever a word below changes, and kept in the run's config."""

_GAME = """\
You played one round of a game whose rules nobody told you. This is what you saw and what you answered.

{trace}

{earlier}The next round will start from another position. Write 1 or 2 short lessons that will help you there: \
what a symbol or a move does, what wins, what loses. Say when to do it. General rules only, no list of \
the moves you made and no positions.
Write one line per lesson. Begin each line with "{marker}" and then the lesson. Write nothing else."""

_QUESTION = """\
{trace}

{earlier}Give 1 or 2 short rules for answering other questions of this kind correctly: a method that works, or \
a mistake to avoid. General rules, not the answer to this question. Write one line per rule, and begin each line with \
"{marker}"."""

_FEEDBACK = """\
{trace}

{earlier}Give 1 or 2 short rules for answering other questions of this kind, so that they earn better feedback: what \
to do differently, or what to keep. General rules, not the answer to this question. Write one line per rule, and begin \
each line with "{marker}"."""

_TOOLS = """\
You did a task with the help of tools. This is what you were given and what you answered.

{trace}

{earlier}The next task will be another one with the same tools. Write 1 or 2 short lessons that will help you there: \
which tool to call when, how to call it, what to check in its result. General rules only, nothing that holds for this \
task alone.
Write one line per lesson. Begin each line with "{marker}" and then the lesson. Write nothing else."""

_CONVERSATION = """\
You had a conversation. This is what you were told and what you answered.

{trace}

{earlier}The next conversation will be with somebody else. Write 1 or 2 short lessons that will help you there: what \
to ask or to say, what to avoid, when to stop. General rules only, nothing about this person.
Write one line per lesson. Begin each line with "{marker}" and then the lesson. Write nothing else."""

TEMPLATES: dict[PromptKind, str] = {
    "game": _GAME, "question": _QUESTION, "feedback": _FEEDBACK, "tools": _TOOLS, "conversation": _CONVERSATION,
}  # fmt: skip
PLACES = ("trace", "earlier", "marker")
"""What a template may name in braces: the episode, the items found before, and the words that begin an item's line."""

_PLACE = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")
"""A place, or a word in doubled braces, which is that word in braces."""


def prompt_kind(episode: Episode, kind: Kind) -> PromptKind:
    """Which built-in prompt asks for the lessons of an episode.

    Args:
        kind: how its environment is played.
    """
    if kind == "single":
        return "feedback" if _shown(_feedback(episode)) else "question"
    roles = {str(message["role"]) for turn in episode.turns for message in turn.messages}
    if "tool" in roles:
        return "tools"
    acts = any(part == "actions" for turn in episode.turns for part, _ in turn.parts)
    return "conversation" if "assistant" in roles and not acts else "game"


def extraction_messages(
    episode: Episode, *, kind: Kind, earlier: Context | None = None, template: str = ""
) -> list[Message]:
    """The chat messages that ask for the lessons of one finished episode.

    Args:
        kind: ``game`` shows every turn, the environment's feedback and the outcome; ``single`` shows the
            problem, the reply and the feedback on it.
        earlier: the items found so far, so that they need not be repeated.
        template: a person's own prompt, which :func:`check_template` accepts; '': the built-in one.

    Raises:
        ConfigError: an unknown kind, or an episode without a turn.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind {kind!r}{did_you_mean(kind, KINDS)}")
    if not episode.turns:
        raise ConfigError(f"the episode of task {episode.task.key[:12]} has no turn, there is nothing to extract")
    trace = game_trace(episode) if kind == "game" else single_trace(episode)
    pieces = {"marker": MARKER, "earlier": _earlier(earlier), "trace": trace}
    # In one pass and without str.format: traces and items may contain braces of their own.
    prompt = _PLACE.sub(
        lambda found: f"{{{found[1]}}}" if found[1] else pieces[found[2]],
        template or TEMPLATES[prompt_kind(episode, kind)],
    )
    return [{"role": "user", "content": prompt}]


def places_of(template: str) -> list[str]:
    """The places that a template names."""
    return [found[2] for found in _PLACE.finditer(template) if found[2]]


def check_template(text: str, name: str) -> str:
    """Return a person's own prompt without the space around it.

    Args:
        name: what the message calls it.

    Raises:
        ConfigError: it does not show the episode, or names a place that there is not.
    """
    places = places_of(text)
    for place in places:
        if place not in PLACES:
            plain = f"{{{{{place}}}}} stands for plain braces"
            raise ConfigError(f"{name} has an unknown place {{{place}}} ({plain}){did_you_mean(place, PLACES)}")
    if "trace" not in places:
        raise ConfigError(f"{name} has no {{trace}}; write it where the episode is to stand")
    return text.strip()


def game_trace(episode: Episode) -> str:
    """Every turn without the rules, then what the environment said at the end."""
    pieces = []
    for number, turn in enumerate(episode.turns, 1):
        pieces.append(f"Turn {number}. You saw:\n{_shown(turn.parts)}\nYou answered: {_spoken(turn.reply)}")
    ending = _shown(episode.outcome)
    if ending:
        pieces.append(f"End of the round:\n{ending}")
    return "\n\n".join(pieces)


def single_trace(episode: Episode) -> str:
    """The problem, the model's own reply, and the feedback on it. The outcome is left out: it could be the label."""
    turn = episode.turns[0]
    problem = _shown([part for part in turn.parts if part[0] in ("state", "actions")])
    said = _shown(_feedback(episode))
    return f"Question: {problem}\nYour answer: {_spoken(turn.reply)}" + (f"\nFeedback: {said}" if said else "")


def _feedback(episode: Episode) -> list[Part]:
    """What the environment said to the player after its last reply."""
    return [part for part in episode.outcome if part[0] == "feedback"]


def _shown(parts: Sequence[Part]) -> str:
    return "\n".join(text.strip() for kind, text in parts if kind != "rules" and text.strip())


def _spoken(reply: str) -> str:
    """The reply without its reasoning, which is long and which the environment ignores."""
    return after_thinking(reply).strip() or "(nothing)"


def _earlier(context: Context | None) -> str:
    if context is None or not context.text:
        return ""
    known = "What you know already; do not repeat it, but say so where it proves wrong:"
    return f"{known}\n{context.text}\n\n"
