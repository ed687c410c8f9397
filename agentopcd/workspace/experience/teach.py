"""What a recording's student is taught where nothing ranks contexts: what a person named, or what is served."""

from __future__ import annotations

from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.types import EMPTY, Context
from agentopcd.knowledge import best_ref
from agentopcd.workspace.experience.find_context import find_context
from agentopcd.workspace.session import Session


def context_to_teach(session: Session, config: ConsolidateConfig) -> tuple[Context | None, str]:
    """The context that ``learn`` distils from a recording without a grader, and why it is that, or why there is none.

    In this order: the one that is named; ENV/best, if that was confirmed, say by a canary; the one that the newest
    session was served with, not counting a canary's sessions, because theirs is on trial. Of the last two, one that the
    model has in its weights is not taught again.

    Raises:
        ConfigError: the one that is named cannot be distilled.
    """
    if config.context:
        context = find_context(session, config)
        assert isinstance(context, Context)
        return context, "as given"
    known = session.store.learned(session.loaded.id)
    usual = (row for row in session.recorded_rows() if row["arm"] != "canary")
    newest = max(usual, key=lambda row: row["seed"], default={"context": EMPTY.id})["context"]
    best = session.store.ref(best_ref(session.env))
    for id_, why in ((best, best_ref(session.env)), (newest, "the newest session was served with it")):
        if id_ in (None, EMPTY.id) or id_ in known:
            continue
        context = session.store.get_context(id_)
        if why != best_ref(session.env) or session.confirmed(context):
            session.check_handover(context, force=config.force)
            return context, why
    learned = "what is served is in the weights already" if {best, newest} & known else "no context is served"
    return None, f"{learned}, and no other one was confirmed; name one with --context"
