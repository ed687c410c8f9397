"""Runs of verbs that look at a lineage: their rows, and the settings with which each student was trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, get_args

from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.config.training import Replay
from agentopcd.core.errors import AgentOpcdError, ConfigError
from agentopcd.core.runs import kept, read_json
from agentopcd.core.text import SHORT, first_line
from agentopcd.knowledge import Item, Store
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.lineage import carried
from agentopcd.knowledge.students import current_student, env_of
from agentopcd.workspace.holding import Hold
from agentopcd.workspace.ledger import FORGET, held_as
from agentopcd.workspace.paths import inside


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a student was trained, as its run folder says."""

    config: ConsolidateConfig
    identity: Mapping[str, Any]
    """What distinguishes the run from others; ``setup``, ``student`` (the base) and ``teacher_id`` are in it, and the
    settings as they came out, such as the method."""
    snapshot: str = ""
    """Of an environment that is a recording, the copy that was read."""

    @property
    def replays(self) -> bool:
        """Whether it answered stored turns, as it was told or because its environment allows no other method."""
        return self.identity.get("method", self.config.method) in get_args(Replay)

    @classmethod
    def of(cls, store: Store, work: Path, model_id: str) -> Training:
        """Read it.

        Raises:
            ConfigError: the model was not trained here, or its run folder is gone or of another version.
        """
        model = store.lookup("model", id=model_id)
        run = store.run(model["run_id"]) if model and model["run_id"] is not None else None
        settings = read_object(run["config"], f"the config of run {run['id']}") if run else {}
        folder = work / "runs" / Path(str(settings.get("folder", ""))).name
        lost = [file for file in ("config.json", "config.toml") if not (folder / file).is_file()]
        if not settings.get("folder") or lost:
            raise ConfigError(
                f"how student {model_id[:SHORT]} was trained is not known any more: {folder} has no "
                f"{' and no '.join(lost)}; put that folder back"
            )
        identity = read_json(folder / "config.json", f"put {folder} back as it was")
        return cls(
            config=ConsolidateConfig.load(folder / "config.toml"), identity=identity,
            snapshot=Path(settings.get("snapshot", "")).name,
        )  # fmt: skip


def student_named(store: Store, work: Path, name: str) -> Row | None:
    """The row of a student that this workspace has trained, by its folder, ENV/student, or the start of its id (4
    digits or more).

    Raises:
        ConfigError: several have such an id.
    """
    trained = [row for row in store.models() if row["run_id"] is not None and row["parent_id"]]
    here = work / kept(work, name) if name else None
    for row in trained:
        if here is not None and row["path"] and inside(work, row["path"]) == here:
            return row
    ids = [current_student(store, env)] if (env := env_of(name)) else store.prefixed("model", name)
    found = [row for row in trained if row["id"] in ids]
    if len(found) > 1:
        raise ConfigError(f"{name!r} is the start of {len(found)} students; give more digits")
    return found[0] if found else None


def forgotten(store: Store, model_id: str) -> list[Item]:
    """The items in the weights of a model that somebody has had taken out of a student; not those that may be learned
    again since then."""
    taken = [
        read_object(row["config"], f"the config of run {row['id']}").get("items", []) for row in store.runs(FORGET)
    ]
    ids = {id_ for items in taken for id_ in items}
    return [one.item for one in carried(store, model_id) if one.item.id in ids and one.item.status == "retired"]


def finished(store: Store, verb: str, settings: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
    """The finished run with these settings, and its result; what was imported is no word of this store."""
    run_id = store.find_run(verb, settings, status="done")
    if run_id is None or (row := store.run(run_id))["imported"]:
        return None
    return run_id, read_object(row["result"], f"the result of run {run_id}")


@contextmanager
def recorded(
    store: Store, work: Path, verb: str, settings: Mapping[str, Any], say: Callable[[str], None]
) -> Iterator[int]:
    """A run's row for as long as it works: the unfinished or failed one with the same settings, else a new one.

    An error closes it as failed. Whoever finishes it calls ``store.finish``.
    """
    known = store.find_run(verb, settings)
    failed = store.find_run(verb, settings, status="failed") if known is None else None
    if (run_id := known or failed) is None:
        run_id = store.start(verb, settings, 0)
    with closing(Hold(work, held_as(run_id), f"{verb} run {run_id}")):
        if failed is not None:
            store.reopen(failed)
        if known or failed:
            say(f"resuming {verb} run {run_id}")
        try:
            yield run_id
        except AgentOpcdError as error:
            store.finish(run_id, {"error": first_line(error)}, status="failed")
            raise
