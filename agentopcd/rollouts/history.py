"""How earlier turns are shown: the messages of a prompt, from the parts of observations and what the model did."""

from __future__ import annotations

from collections.abc import Sequence

from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Message, Part


def shown(parts: Sequence[Part], kinds: Sequence[str] | None = None) -> str:
    """The texts of ``parts``, or of those of the given kinds, joined by blank lines."""
    return "\n\n".join(text for kind, text in parts if text and (kinds is None or kind in kinds))


def turn_messages(history: str, past: Sequence[tuple[Sequence[Part], str]], parts: Sequence[Part]) -> list[Message]:
    """The prompt of one turn, without any context.

    Args:
        history: ``transcript``: one fresh user message per turn, with the game's log so far (the paper's form);
            ``chat``: a conversation that grows.
        past: earlier turns as ``(parts shown, what the model did)``.
        parts: the new observation.

    Raises:
        ConfigError: ``history`` is unknown.
    """
    if history == "chat":
        messages: list[Message] = []
        for seen, did in past:
            messages += [Message(role="user", content=shown(seen)), Message(role="assistant", content=did)]
        return [*messages, Message(role="user", content=shown(parts))]
    if history != "transcript":
        raise ConfigError(f"history is {history!r}; wanted 'transcript' or 'chat'")
    if not past:
        return [Message(role="user", content=shown(parts))]
    # Rules open the log. A turn's feedback answers the action before it, so it stands above that turn's own heading.
    log = [shown(past[0][0], ["rules"])]
    for number, (seen, did) in enumerate(past, start=1):
        log += [shown(seen, ["feedback"]), f"Turn {number}:", shown(seen, ["state"]), f"You answered: {did}"]
    log += [shown(parts, ["rules", "feedback"]), f"Turn {len(past) + 1}:", shown(parts, ["state", "actions"])]
    return [Message(role="user", content="\n\n".join(text for text in log if text))]


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The same conversation without system messages: the text of each stands before the user message that follows."""
    told: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting += [message["content"]] if message["content"] else []
        elif message["role"] == "user":
            told.append(Message(role="user", content="\n\n".join([*waiting, message["content"]])))
            waiting = []
        else:
            told.append(message)
    return [*told, Message(role="user", content="\n\n".join(waiting))] if waiting else told
