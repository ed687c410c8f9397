"""The extractor's prompts: a short one for games and one for single-step tasks.

The prompts leave out the environment's rules, so that the extractor has to infer them. They show what the
environment said, never a label: for a single-step task, only the problem and the model's own reply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from agentopcd.core.errors import ConfigError, did_you_mean
from agentopcd.core.text import after_thinking
from agentopcd.core.types import MARKER, Context, Episode, Message, Part

Kind = Literal["game", "single"]
KINDS: tuple[Kind, ...] = ("game", "single")

EXTRACTION_VERSION = 1
"""Version of the prompts: raised whenever a word below changes, and kept in the run's config."""

_GAME = """\
You played one round of a game whose rules nobody told you. This is what you saw and what you answered.

{trace}

{earlier}The next round will start from another position. Write 1 or 2 short lessons that will help you there: \
what a symbol or a move does, what wins, what loses. Say when to do it. General rules only, no list of \
the moves you made and no positions.
Write one line per lesson. Begin each line with "{marker}" and then the lesson. Write nothing else."""

_SINGLE = """\
{trace}

{earlier}Give 1 or 2 short rules for answering other questions of this kind correctly: a method that works, or \
a mistake to avoid. General rules, not the answer to this question. Write one line per rule, and begin each line with \
"{marker}"."""

_TEMPLATES: dict[Kind, str] = {"game": _GAME, "single": _SINGLE}


def extraction_messages(episode: Episode, *, kind: Kind, earlier: Context | None = None) -> list[Message]:
    """The chat messages that ask for the lessons of one finished episode.

    Args:
        kind: ``game`` shows every turn, the environment's feedback and the outcome; ``single`` shows the
            problem and the reply alone.
        earlier: the items found so far, so that they need not be repeated.

    Raises:
        ConfigError: an unknown kind, or an episode without a turn.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind {kind!r}{did_you_mean(kind, KINDS)}")
    if not episode.turns:
        raise ConfigError(f"the episode of task {episode.task.key[:12]} has no turn, there is nothing to extract")
    trace = game_trace(episode) if kind == "game" else single_trace(episode)
    pieces = {"{marker}": MARKER, "{earlier}": _earlier(earlier), "{trace}": trace}
    # In one pass and without str.format: traces and items may contain braces of their own.
    prompt = re.sub(r"\{(?:marker|earlier|trace)\}", lambda found: pieces[found[0]], _TEMPLATES[kind])
    return [{"role": "user", "content": prompt}]


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
    """The problem and the model's own reply. Feedback and outcome are left out, because they could reveal the label."""
    turn = episode.turns[0]
    problem = _shown([part for part in turn.parts if part[0] in ("state", "actions")])
    return f"Question: {problem}\nYour answer: {_spoken(turn.reply)}"


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
