"""ENV/student: which student of an environment plays. Every change is kept, so that each can be taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from agentopcd.core.errors import StoreError
from agentopcd.knowledge.database import Row, now
from agentopcd.knowledge.refs import home
from agentopcd.knowledge.store import Store

Actor = Literal["gate", "no gate", "person", "rollback", "newest"]
"""Who moved it: the gate of :mod:`agentopcd.workspace.ratchet`; a training that was told to leave the gate out; a
person; a person who took the last move back; or, before schema 4, whichever student was trained last."""

_SUFFIX = "/student"


def student_ref(env: str) -> str:
    """The ref of an environment's student, for example ``sokoban/student``."""
    return home(env) + _SUFFIX


def env_of(ref: str) -> str:
    """The environment of a student's ref; '' if the name is none."""
    return home(ref.removesuffix(_SUFFIX)) if ref.endswith(_SUFFIX) else ""


def student_moves(store: Store, env: str | None = None) -> list[Row]:
    """The moves of ENV/student, oldest first; of all environments if ``env`` is None.

    Each has the environment's :func:`home`; older versions wrote a recording's arguments down as well.
    """
    moves = [move | {"env": home(move["env"])} for move in store.query("SELECT * FROM student_move ORDER BY id")]
    return [move for move in moves if env is None or move["env"] == home(env)]


def past_students(moves: Sequence[Row]) -> list[str | None]:
    """What ENV/student has been after its moves and is not taken back: model ids, the current one last.

    A rollback takes the last entry away; every other move adds one. None stands for no student.
    """
    past: list[str | None] = []
    for move in moves:
        if move["actor"] == "rollback" and past:
            past.pop()
        else:
            past.append(move["model_id"])
    return past


def current_student(store: Store, env: str) -> str | None:
    """The id of the model at ENV/student, or None if there is none."""
    moves = student_moves(store, env)
    return moves[-1]["model_id"] if moves else None


def leads(store: Store, env: str, model_id: str) -> bool:
    """Whether a model that became ENV/student still is that, or an ancestor of it; also if no move is known."""
    moves = student_moves(store, env)
    return not moves or (moves[-1]["model_id"] is not None and model_id in lineage(store, moves[-1]["model_id"]))


def move_student(
    store: Store, env: str, model_id: str | None, actor: Actor, reason: str = "", run_id: int | None = None
) -> None:
    """Put a model in the place of ENV/student.

    Raises:
        StoreError: the store does not know the model.
    """
    if model_id is not None and store.lookup("model", id=model_id) is None:
        raise StoreError(f"no model {model_id[:12]} in {store.path}")
    with store.write():
        store.insert(
            "student_move",
            {"env": home(env), "model_id": model_id, "actor": actor, "reason": reason, "run_id": run_id, "at": now()},
        )


CANARY = "canary"
"""The setup, in the table of looks, of a comparison of served sessions."""


def canary_looks(store: Store, env: str, model_id: str, context_id: str) -> list[Row]:
    """The looks that compared a canary with what is served otherwise, oldest first."""
    return [
        look for look in store.looks(env, context_id) if (look["setup"], look["model_id"]) == (CANARY, model_id)
    ]  # fmt: skip


def lineage(store: Store, model_id: str) -> list[str]:
    """A model and its ancestors, the model first and the base last."""
    line: list[str] = []
    while model_id not in line:  # a damaged store may go in circles
        line.append(model_id)
        row = store.lookup("model", id=model_id)
        if row is None or row["parent_id"] is None:
            break
        model_id = row["parent_id"]
    return line
