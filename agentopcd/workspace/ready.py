"""What each verb refuses before it loads a model, so that a dry run fails where the run would, with the same line."""

from __future__ import annotations

from collections.abc import Sequence

from agentopcd.core.config import ConfirmConfig, ConsolidateConfig, EvaluateConfig, LearnConfig, PlayConfig, ScoreConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import kept, work_flag
from agentopcd.core.types import EMPTY, Context
from agentopcd.knowledge import check_leaks
from agentopcd.knowledge.decide import waiting_flags
from agentopcd.workspace.checks import check_teacher, check_unseen
from agentopcd.workspace.experience.choose import ranked_by, traced
from agentopcd.workspace.paths import inside, recall
from agentopcd.workspace.session import Session


def to_play(session: Session, config: PlayConfig) -> None:
    """Refuse a play that could not begin.

    Raises:
        ConfigError: the context is unknown, or the split has no tasks.
    """
    if session.recording and config.context:
        raise ConfigError(f"the sessions of {session.env} were played already, so --context is of no use; leave it out")
    if config.context:
        session.context(config.context, config.placement)
    session.needed(config.split)
    session.refuse_changed_game()


def to_score(session: Session, config: ScoreConfig, candidates: Sequence[Context]) -> list[Context]:
    """The candidates that compete: without those that could not be distilled, because an item of theirs waits or is
    retired, or imported text of theirs has flags. ``subsets`` needs none of this: it reads the active items alone.

    Raises:
        ConfigError: nothing is right or wrong here, or there are no tasks, or no episodes for the raw traces, or every
            candidate is left out.
        TaskLeak: a candidate holds an item from a held-out task.
    """
    every = config.method == "subsets"
    store = session.store
    found = [one for one in candidates if every or not (store.blocked(one.id) or waiting_flags(store, one.id))]
    ranked_by(session)
    session.needed("select")
    if config.confirm and config.method != "subsets":
        session.needed("confirm")
    if config.traces:
        traced(session)
    for context in found[: config.candidates]:
        check_leaks(session.store, context.id)
    session.refuse_changed_game()
    pending = f"agentopcd knowledge list items --status pending{work_flag(session.work)}"
    if not found:
        raise ConfigError(
            f"each of the {len(candidates)} candidates holds an item that is pending or retired, or imported text with "
            f"flags, so none could be distilled; to see what waits: {pending}"
        )
    if left_out := len(candidates) - len(found):
        why = "hold an item that is pending or retired, or imported text with flags"
        session.say(f"{left_out} of {len(candidates)} candidates {why}: left out")
    return found


def to_confirm(session: Session, config: ConfirmConfig) -> Context:
    """The context to confirm.

    Raises:
        ConfigError: it is unknown or empty, nothing is right or wrong here, or there are no tasks.
        TaskLeak: it holds an item from a held-out task.
    """
    context, _ = session.context(config.context)
    ranked_by(session)
    if context.id == EMPTY.id:
        raise ConfigError("the empty context cannot be confirmed: it is what a context is compared with")
    session.needed("confirm")
    check_leaks(session.store, context.id)
    session.refuse_changed_game()
    return context


def to_train(session: Session, config: ConsolidateConfig | LearnConfig) -> None:
    """Refuse a training, or the gate after it, that would find no tasks, or has no fixed yardstick.

    Raises:
        ConfigError: a split that is needed has none, or checkpoints are measured from a teacher that moves.
    """
    check_teacher(session, config)
    for split in ("train", "select", *(["test"] if config.test_tasks else [])):
        session.needed(split)
    if config.gate_tasks:
        try:
            session.needed("confirm")
        except ConfigError as error:
            raise ConfigError(f"{error}; or train without the gate, which plays them, by --gate-tasks 0") from None


def to_evaluate(session: Session, config: EvaluateConfig) -> str:
    """The student to evaluate, '' if there is none.

    Raises:
        ConfigError: the context is unknown, the base of the student is not here, or there are no tasks.
    """
    if config.context:
        check_unseen(session, session.context(config.context, config.placement)[0].parts, refuse=False)
    student = config.student or session.newest_student() or ""
    row = _trained(session, student)
    if row is not None and not config.model:
        base = session.store.lookup("model", id=row["parent_id"])
        if base is None or recall(session.work, base) is None:
            raise ConfigError(f"the model that {student} was trained from is not here; give the base with --model")
    session.needed("test", config.test_tasks)
    return student


def _trained(session: Session, name: str) -> dict[str, object] | None:
    """The row of a student that this workspace has trained; None if it has not."""
    here = session.work / kept(session.work, name) if name else None
    rows = [row for row in session.store.models() if row["run_id"] and row["path"] and row["parent_id"]]
    return next((row for row in rows if here is not None and inside(session.work, row["path"]) == here), None)


def to_learn(session: Session, config: LearnConfig) -> None:
    """Refuse rounds that could not begin, or would stop at a later stage for want of tasks.

    Raises:
        ConfigError: nothing is right or wrong here, a split that is needed has no tasks, or the prompts hold the
            context already.
    """
    ungraded = session.recording and not session.game.graded  # contexts come from people there, and no task ranks them
    if config.context and not ungraded:
        raise ConfigError(
            "--context is for recordings that nothing grades; elsewhere learn ranks contexts; leave it out, or distil "
            "it with `agentopcd consolidate --context`"
        )
    if ungraded:
        if config.context:
            check_unseen(session, session.context(config.context, config.placement)[0].parts)
        return to_train(session, config)
    ranked_by(session)
    for split in ("extract", "select", "confirm"):
        session.needed(split)
    to_train(session, config)
    session.refuse_changed_game()
