"""Models of the store, loaded with the weights that they are known by."""

from __future__ import annotations

from agentopcd.core.errors import ConfigError
from agentopcd.core.text import SHORT
from agentopcd.models.load import LoadedModel
from agentopcd.workspace.paths import recall
from agentopcd.workspace.session import Session


def load_known(session: Session, model_id: str) -> LoadedModel:
    """A model of the store, with the weights that it is known by.

    Raises:
        ConfigError: it is gone, or was changed.
    """
    row = session.store.lookup("model", id=model_id)
    name = recall(session.work, row) if row else None
    known = row["name"] if row else "?"
    if name is None:
        raise ConfigError(f"the model {known} ({model_id[:SHORT]}) is needed and no longer here; put it back")
    loaded = session.load(name)
    if loaded.id != model_id:
        raise ConfigError(f"{name} is no longer model {model_id[:SHORT]}: its files were changed; put them back")
    return loaded
