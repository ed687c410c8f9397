"""The proof that a student does not hold some items: the hashes of all models, contexts and items that it came of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentopcd.core.errors import ConfigError
from agentopcd.core.text import SHORT
from agentopcd.knowledge import Item, Store, item_ids
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.lineage import Generation, generations, passages, repeats
from agentopcd.models import find
from agentopcd.workspace.paths import recall


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forgotten:
    """The student that came of it, and the proof."""

    student: str
    """Its id; that of the ancestor if nothing was left to train on."""
    folder: str
    instead_of: str
    """Id of the student that carries the items."""
    items: Sequence[str]
    proof: Sequence[Mapping[str, Any]]
    """Of each model of the lineage, the oldest first, and then of the teachers that were others, with their lineages:
    ``model`` and ``name``, ``checked`` (whether its files were hashed again; not if they are not here), ``contexts``,
    each with its ``id`` and the ids of its ``items``, and, if so, ``taught``, the model that was trained by it."""
    repeated: bool = False

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def lines(self) -> Iterator[str]:
        """The proof, a line for each model, and the new student."""
        names = ", ".join(id_[:SHORT] for id_ in self.items)
        yield f"proof, by hashes of weights and texts: the lineage of {self.student[:SHORT]}, the oldest first"
        for row in self.proof:
            files = "files as hashed" if row["checked"] else "files not here"
            taught = f"; in the lineage of the teacher of {row['taught'][:SHORT]}" if "taught" in row else ""
            yield f"  {row['model'][:SHORT]} {row['name']}, {files}{taught}"
            for context in row["contexts"]:
                held = ", ".join(id_[:SHORT] for id_ in context["items"]) or "plain text"
                yield f"    trained on {context['id'][:SHORT]}: {held}"
        yield f"none of these hashes is that of {names}"
        yield f"student: {self.folder}"


def teachers(store: Store, line: Sequence[Generation]) -> dict[str, str]:
    """Who taught the models of a lineage, where another than the model's own parent did: by the id of the teacher, the
    model that it taught; with the teachers of teachers."""
    found: dict[str, str] = {}
    waiting = list(line)
    while waiting:
        model = waiting.pop(0).model
        run = store.run(model["run_id"]) if model["run_id"] is not None else None
        result = read_object(run["result"], f"the result of run {run['id']}") if run and run["result"] else {}
        teacher = result.get("teacher")
        if teacher and teacher != model["parent_id"] and teacher not in found:
            found[teacher] = model["id"]
            waiting += generations(store, teacher)
    return found


def holds(store: Store, model_id: str, items: Sequence[Item]) -> bool:
    """Whether a model or an ancestor was trained on one of the items, or on an item or text that says the same."""
    ids = {item.id for item in items}
    for context_id in {context_id for one in generations(store, model_id) for context_id in one.contexts}:
        held = store.items(context_id=context_id)
        if ids & {item.id for item in held} or repeats(store, items, held) or passages(store, context_id, items):
            return True
    return False


def proved(
    store: Store, work: Path, items: Sequence[Item], student: str, *, instead_of: str, repeated: bool = False
) -> Forgotten:
    """Look at everything that a new lineage was made of.

    Raises:
        ConfigError: something of it is, holds or says one of the items, or a model's files were changed.
    """
    line = generations(store, student)
    proof = {one.model["id"]: _row(store, work, one, items) for one in line}
    for teacher, taught in teachers(store, line).items():
        for one in generations(store, teacher):
            proof.setdefault(one.model["id"], _row(store, work, one, items) | {"taught": taught})
    row = store.lookup("model", id=student)
    return Forgotten(
        student=student, folder=(recall(work, row) if row else None) or "", instead_of=instead_of,
        items=sorted(item.id for item in items), proof=list(proof.values()), repeated=repeated,
    )  # fmt: skip


def _row(store: Store, work: Path, one: Generation, items: Sequence[Item]) -> dict[str, Any]:
    name = recall(work, one.model)
    own = fingerprint(name) if name else None
    if own not in (None, one.model["id"]):
        raise ConfigError(f"{name} is no longer model {one.model['id'][:SHORT]}: its files were changed; put them back")
    ids, contexts = {item.id for item in items}, []
    for context_id in one.contexts:
        context = store.get_context(context_id)
        held = item_ids(context)  # from the text itself, not from the table of items
        if context.id != context_id or ids & {context_id, *held} or passages(store, context_id, items):
            raise ConfigError(f"context {context_id[:SHORT]} of the new lineage holds what was to be forgotten")
        contexts.append({"id": context_id, "items": held})
    return {"model": one.model["id"], "name": one.model["name"], "contexts": contexts, "checked": own is not None}


def fingerprint(name: str) -> str:
    """The id of a model as its files are now."""
    return find.fingerprint(find.folders_of(name)[0])
