"""What the store knows of a context before a model is trained on it: does it help this model here?"""

from __future__ import annotations

from agentopcd.core.runs import work_flag
from agentopcd.core.types import Context
from agentopcd.knowledge import USEFUL, Arena, Arm
from agentopcd.knowledge.faults import read_object
from agentopcd.workspace.session import Session


def evidence(session: Session, context: Context, flags: str = "") -> str:
    """One line: the context helps, it does not help, or nobody has measured it. It decides nothing.

    The model's own last look at confirm tasks comes first, then its games on select tasks, with and without the
    context, then the looks of other models.

    Args:
        flags: what a command needs to measure it in the same way.

    Returns:
        '' where nothing is right or wrong, so that nothing could be said.
    """
    if not session.game.graded:
        return ""
    name, store = f"context {context.id[:12]}", session.store
    looks = [look for look in store.looks(session.env, context.id) if look["verdict"]]
    own = [look for look in looks if look["model_id"] == session.loaded.id]
    if own and own[-1]["verdict"] in USEFUL:
        return (
            f"note: {name} helps this model: it passed the confirm gate{_figures(own[-1])} (look {own[-1]['number']})"
        )
    if own:
        why = f"{own[-1]['verdict']} (look {own[-1]['number']})"
        return f"note: {name} does not help this model: it did not pass the confirm gate: {why}"
    arena = Arena(session.env, session.setup(), "select", by=session.by if session.by != "distance" else "success")
    pair = store.compare(Arm(session.loaded.id, context.id), Arm(session.loaded.id), arena)
    if pair.n:
        says = "helps" if pair.difference.low > 0 else "does not help" if pair.difference.high <= 0 else "may not help"
        return f"note: {name} {says} this model on select tasks: {pair.difference} to none (n={pair.n}); not confirmed"
    if any(look["verdict"] in USEFUL for look in looks):
        return f"note: {name} passed the confirm gate, but with another model; whether it helps this one is not known"
    if looks:
        why = f"{looks[-1]['verdict']} (look {looks[-1]['number']})"
        return f"note: {name} did not pass the confirm gate: {why}; that was another model, this one was not measured"
    measure = f"agentopcd knowledge confirm --context {context.id[:12]} {flags}".rstrip() + work_flag(session.work)
    return f"note: whether {name} helps this model was never measured here; {measure} would tell"


def _figures(look: dict[str, object]) -> str:
    """What a look has found against no context, as figures; '' for one of schema 1, which kept none."""
    if not look["result"]:
        return ""
    found = read_object(str(look["result"]), f"the result of look {look['id']}").get("against", {}).get("empty")
    low, high = (found or {}).get("low"), (found or {}).get("high")
    return f", {found['difference']:+.3f} [{low:+.3f}, {high:+.3f}] to none" if None not in (low, high) else ""
