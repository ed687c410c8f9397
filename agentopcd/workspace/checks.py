"""What a training would fail of after hours, refused before anything is played."""

from __future__ import annotations

import dataclasses

from agentopcd import models
from agentopcd.core.config import ConsolidateConfig, TrainConfig
from agentopcd.core.errors import ConfigError, ModelError
from agentopcd.core.types import MARKER, Context, Message, Mixture
from agentopcd.distillation.distance import DISTANCE
from agentopcd.models.merged import peft
from agentopcd.rollouts.chat import Chat
from agentopcd.workspace.session import Session
from agentopcd.workspace.trackers import check_tracker


def check_before(
    session: Session, config: ConsolidateConfig, context: Context | Mixture, student: models.LoadedModel,
    teacher: models.LoadedModel,
) -> None:  # fmt: skip
    """Refuse, before anything is played, what could not be scored or saved after hours of play.

    Raises:
        ModelError: the teacher cannot score the student's tokens, or the student cannot be saved.
        ConfigError: the teacher's prompt, with the context, and a reply do not fit into the teacher's positions, or
            items are to be chosen for each turn and the context has none.
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
    shown = messages[0]["content"] if messages[0]["role"] == "system" else ""
    if shown and any(part.text.strip() in shown for part in context.parts):
        raise ConfigError(
            "the system message of the first prompt holds the context already, so the student would see it, too; leave "
            "it out of the prompts (--env-arg system=drop, for a file of conversations)"
        )
    longest = max(len(chat.render(messages, part, tools)) for part in context.parts)
    if room and longest + config.max_tokens > room:
        raise ConfigError(
            f"with the context, the first prompt has {longest} tokens; with a reply of {config.max_tokens} that is "
            f"more than the {room} positions of {teacher.name}; shorten the context, or lower --max-tokens"
        )


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
