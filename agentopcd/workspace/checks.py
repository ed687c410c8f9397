"""What a training would fail of after hours, refused before anything is played."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

from agentopcd import models
from agentopcd.core.config import ConsolidateConfig, TrainConfig
from agentopcd.core.errors import ConfigError, ModelError
from agentopcd.core.text import counted
from agentopcd.core.types import MARKER, Context, Message, Mixture
from agentopcd.distillation.distance import DISTANCE
from agentopcd.models.merged import peft
from agentopcd.rollouts.chat import Chat
from agentopcd.workspace.session import Session
from agentopcd.workspace.trackers import check_tracker

LOOKED_AT = 256
"""How many stored prompts are looked at for the context."""
TELLING = 20
"""The words of a context that has to be that long, for a part of it in a prompt to be no chance."""


def check_before(
    session: Session, config: ConsolidateConfig, context: Context | Mixture, student: models.LoadedModel,
    teacher: models.LoadedModel,
) -> None:  # fmt: skip
    """Refuse, before anything is played, what could not be scored or saved after hours of play.

    Raises:
        ModelError: the teacher cannot score the student's tokens, or the student cannot be saved.
        ConfigError: the prompts hold the context already, the teacher's prompt, with the context, and a reply do not
            fit into the teacher's positions, or items are to be chosen for each turn and the context has none.
    """
    if student.model is None:
        return  # behind an API, which is refused later
    for part in context.parts if config.turn_items else ():
        if not part.lines:
            raise ConfigError(
                f"context {part.id[:12]} holds no items (lines that begin with {MARKER!r}), so none can be chosen for "
                "a turn; leave out --turn-items"
            )
    models.check_pair(student, teacher)
    models.check_savable(student, config.save_dtype)
    chat, room = Chat(teacher.tokenizer, config.template_args), models.positions(teacher.model)
    task = next(iter(session.tasks("train")), None)
    messages, tools = (session.game.opening(task.seed) if task else None) or ([Message(role="user", content="")], [])
    check_unseen(session, context.parts)
    longest = max(len(chat.render(messages, part, tools)) for part in context.parts)
    if room and longest + config.max_tokens > room:
        raise ConfigError(
            f"with the context, the first prompt has {longest} tokens; with a reply of {config.max_tokens} that is "
            f"more than the {room} positions of {teacher.name}; shorten the context, or lower --max-tokens"
        )


def check_unseen(session: Session, parts: Sequence[Context], *, refuse: bool = True) -> None:
    """Refuse a context that most prompts hold already, and tell a person where some do, or hold most of it.

    The student would see it there, too, so that base and student would both be the prompted model.

    Args:
        refuse: False: it is told in each case.

    Raises:
        ConfigError: more than half of the prompts hold it.
    """
    found = [_held(words, parts) for words in _first_prompts(session)]
    held, nearly = found.count("whole"), found.count("near")
    if not (held or nearly):
        return
    out = "leave it out of them (--env-arg system=drop, where it is the system message of a file of conversations)"
    those = f"{held} of {counted(len(found), 'prompt')} {'holds' if held == 1 else 'hold'} the context already"
    if refuse and 2 * held > len(found):
        raise ConfigError(f"{those}, so the student would see it, too; {out}")
    if held:
        session.say_once(f"warning: {those}, so what is measured on them is not what the context does; {out}")
    if nearly:
        those = f"{nearly} of {counted(len(found), 'prompt')} {'holds' if nearly == 1 else 'hold'} most of the context"
        session.say_once(f"warning: {those} in its words, which the student sees, too; if that is not meant, {out}")


def _first_prompts(session: Session) -> list[str]:
    """The words of first prompts that may hold a context: of a game the system message, which is one for all tasks; of
    stored prompts all that was said to the model, in as many of them as are read in a moment."""
    known = (session.tasks(split) for split in ("train", "select", "test"))
    tasks, logged = next((tasks for tasks in known if tasks), []), session.game.spec.logged
    roles = ("system", "user") if logged else ("system",)
    openings = (session.game.opening(task.seed) for task in tasks[: LOOKED_AT if logged else 1])
    said = ([one["content"] for one in opening[0] if one["role"] in roles] for opening in openings if opening)
    return [" ".join(words) for words in said]


def _held(prompt: str, parts: Sequence[Context]) -> Literal["whole", "near", "no"]:
    """How much of a context a prompt holds, whatever spaces and line ends stand in either: all of it, or ``near``: more
    than half of its runs of four words, which a changed word leaves in place."""
    shown = _words(prompt)
    texts = [words for part in parts if (words := _words(part.text))]
    if any(re.search(rf"(?<!\w){re.escape(' '.join(words))}(?!\w)", " ".join(shown)) for words in texts):
        return "whole"
    seen = _runs(shown)
    long = [_runs(words) for words in texts if len(words) >= TELLING]
    return "near" if any(2 * len(runs & seen) > len(runs) for runs in long) else "no"


def _words(text: str) -> list[str]:
    return unicodedata.normalize("NFKC", text).split()


def _runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + 4]) for at in range(len(words) - 3)}


def check_launch(config: TrainConfig, processes: int) -> None:
    """Refuse settings of training that do not fit the number of processes or the installed packages.

    Raises:
        ConfigError: they do not fit.
    """
    if processes > 1 and config.device != "auto":
        raise ConfigError(f"device is {config.device!r} with {processes} processes; leave it out")
    if config.shard and processes == 1:
        raise ConfigError("there is one process to shard over; launch several with torchrun, or leave out --shard")
    if config.lora_rank:
        peft()
    check_tracker(config.track)


def check_teacher(session: Session, config: TrainConfig) -> None:
    """Refuse to choose checkpoints by their distance to a teacher that moves: each would have another yardstick.

    Raises:
        ConfigError: the settings ask for that.
    """
    if config.teacher_kind != "frozen" and session.by == DISTANCE:
        why = "" if session.game.graded else ", as they are where nothing says what is right"
        raise ConfigError(
            f"checkpoints are chosen by their distance to the teacher{why}, and --teacher-kind {config.teacher_kind} "
            f"moves it; leave out --teacher-kind{', or --by distance' if session.game.graded else ''}"
        )


def check_method(session: Session, config: ConsolidateConfig) -> ConsolidateConfig:
    """The settings of :func:`with_method`; a person is told of another method."""
    allowed = with_method(session, config)
    if allowed.method != config.method:
        session.say(f"method: {allowed.method}, because the prompts of this environment are stored")
    return allowed


def with_method(session: Session, config: ConsolidateConfig) -> ConsolidateConfig:
    """The settings with the method that this environment allows: stored prompts are answered, not played.

    Raises:
        ConfigError: a setting is of no use here.
    """
    check_teacher(session, config)
    if session.game.spec.logged and config.method == "opcd":
        config = dataclasses.replace(config, method="prefix-replay")
    if session.game.spec.logged and config.by_both:
        raise ConfigError(
            "--method mixed plays games, and the prompts of this environment are stored; "
            "take --method prefix-replay or context-distillation"
        )
    if config.turn_decay and not config.replays:
        raise ConfigError(
            "--turn-decay is for stored turns: a file of conversations, or --method prefix-replay; leave it out"
        )
    return config


def check_trainable(session: Session, config: ConsolidateConfig, loaded: models.LoadedModel) -> None:
    """Refuse, before anything is played, a model that cannot be trained or teach.

    Raises:
        ModelError: its logits cannot be recomputed from its hidden states, or it has no gradient checkpointing.
    """
    if loaded.model is None:
        return  # behind an API
    with models.autocast(session.device, session.compute):
        models.check_head(loaded.model)
        models.check_backward(loaded.model)
    if config.gradient_checkpointing and not loaded.model.supports_gradient_checkpointing:
        raise ModelError(f"{type(loaded.model).__name__} has no gradient checkpointing; leave it out")
