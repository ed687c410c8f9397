"""What settings that a person left open came out as, in words."""

from __future__ import annotations

from agentopcd.core.config import EvaluateConfig
from agentopcd.workspace.session import Session


def resolved(session: Session) -> dict[str, str]:
    """What the environment and the workspace choose where a setting is empty or 0, as far as it is known before a
    model is loaded: by the name of the setting. For the comments of :func:`agentopcd.core.config.toml.saved`.
    """
    game = session.game
    found = {
        "rules": "hidden" if "hidden" in game.spec.views else "full",
        "history": game.form,
        "max_steps": str(game.step_limit),
        "by": session.by,
    }
    if not isinstance(session.config, EvaluateConfig):  # its base is the student's, which is found later
        name, why = session.model_name()
        found["model"] = f"{name}, {why}"
    return {name: f"here: {value}" for name, value in found.items()}
