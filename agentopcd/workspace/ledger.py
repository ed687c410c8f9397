"""The ledger: one row of the store for each run of a verb, by which a repeated command finds its run again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from agentopcd.core.config import GatherConfig, LearnConfig, PlayerConfig, ScoreConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import MODELS, read_json, read_result
from agentopcd.knowledge import Store
from agentopcd.knowledge.extract import Kind
from agentopcd.knowledge.faults import read_object
from agentopcd.workspace.holding import Hold
from agentopcd.workspace.paths import inside, recall

C = TypeVar("C", bound=PlayerConfig)

FORGET = "forget"
"""The verb of the runs that forget. Trainings in them hold their number under this name, and by it the recipe of a
context says that something was left out."""

MARKS: Mapping[str, str] = {"recipe": "reproduce", FORGET: FORGET, "round": "learn", "replay": "learn"}
"""What stands in the row of a run that is a stage of another command, and that command."""

SOME_SERVER = "http://ADDRESS"
"""Stands for the address of a server, which a run's row does not hold."""

LATER_SETTINGS = (
    "anchor", "async_steps", "by", "decay", "direction", "drift_budget", "extract_prompt", "extractor", "gate",
    "grader", "judge", "keep_checkpoints", "margin", "mix", "one_method", "patience", "save_dtype", "since",
    "success_when", "teacher_strength", "token_cap", "turn_decay", "turn_fade", "turn_items", "turns", "warmup_steps",
)  # fmt: skip
"""Settings that are younger than the first workspaces. Each is false, 0 or '' if it is not used."""


NOT_OF_A_RUN = ("placebo", "server", "track")
"""Settings that change nothing in what a run computes. The second student of ``placebo`` has a run of its own."""


@dataclasses.dataclass(kw_only=True)
class Ledger:
    """Begins, finds and closes runs with one verb's settings on one environment."""

    store: Store
    config: PlayerConfig
    env: str
    """The environment's name in the store."""
    kind: Kind
    work: Path
    """The workspace folder."""
    model_id: Callable[[], str]
    """Returns the id of the model that plays; loads the model if need be."""
    say: Callable[[str], None]
    shortcuts: Callable[[], dict[str, Any]] = dict
    """Returns what the comparisons of shortcuts found, by model (:class:`agentopcd.models.Shortcuts`)."""
    extraction: Callable[[], dict[str, Any]] = dict
    """Returns what a run's row says about its extraction (:class:`agentopcd.workspace.extraction.Extraction`)."""
    snapshot: str = ""
    """Of an environment that is a recording, the copy that is read (:mod:`agentopcd.workspace.recorded`)."""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else the rows of all runs hold, such as the command that they are stages of."""
    env_errors: list[str] = dataclasses.field(default_factory=list)
    """Tracebacks of the episodes that the environment broke despite retries."""
    _open: dict[int, Hold] = dataclasses.field(default_factory=dict)

    def begin(self, verb: str, **facts: object) -> int:
        """The run of this verb: the unfinished or failed run with the same settings and model, else a new one.

        Raises:
            ConfigError: another process works on it.
        """
        identity = self._identity(facts)
        while True:
            with self.store.write():  # of two commands that begin at once, the second finds the run of the first
                known = self._found(verb, identity, "running")
                failed = self._found(verb, identity, "failed") if known is None else None
                if (run_id := known or failed) is None:
                    run_id = self.store.start(verb, identity, self.config.seed)
            if run_id not in self._open:
                self._open[run_id] = Hold(self.work, held_as(run_id), f"{verb} run {run_id}")
            if self.store.run(run_id)["status"] != "done":
                break
            self._open.pop(run_id).close()  # another process has finished it before this one held it
        if failed is not None:
            self.store.reopen(failed)
        if known or failed:
            self.say(f"resuming {verb} run {run_id}")
        return run_id

    def stage(self, verb: str, **facts: object) -> int:
        """The run of one stage of a longer job: the finished run with the same settings, else that of :meth:`begin`."""
        done = self.finished(verb, **facts)
        return self.begin(verb, **facts) if done is None else done

    def finished(self, verb: str, **facts: object) -> int | None:
        """The finished run with the same settings and model, if there is one."""
        return self._found(verb, self._identity(facts), "done")

    def finish(self, run_id: int, result: dict[str, Any]) -> None:
        """Close a run with its result and the number of episodes that the environment broke."""
        broken = {"env_errors": len(self.env_errors), "env_error_samples": self.env_errors[:3]}
        found = {"shortcuts": found} if (found := self.shortcuts()) else {}
        self.store.finish(run_id, result | broken | found)
        self.env_errors.clear()  # the next stage counts its own
        if (hold := self._open.pop(run_id, None)) is not None:
            hold.close()

    def close(self) -> None:
        """Let go of the runs that are not finished; the same command goes on with them."""
        while self._open:
            self._open.popitem()[1].close()

    def fail(self, why: str) -> None:
        """Close the runs that were begun here and not finished, as failed. The same command goes on with them."""
        while self._open:
            run_id, hold = self._open.popitem()
            self.store.finish(run_id, {"error": why}, status="failed")
            hold.close()
        self.env_errors.clear()

    def settle(self) -> None:
        """Close every run that was killed after its result was written to its folder and before it reached its row.

        An import is one transaction, so one that still seems to run was killed (by version 0.1).
        """
        for row in (*self.store.runs(status="running"), *self.store.runs(status="failed")):
            if row["verb"] == "import" and row["status"] == "running":
                self.store.finish(row["id"], status="failed")
            if row["imported"]:  # the run of another store: a folder of that name here is that of another run
                continue
            if folder := read_object(row["config"], f"the config of run {row['id']}").get("folder"):
                # Use the folder's name alone: the command that wrote its path may have run in another directory.
                file = self.work / "runs" / Path(folder).name / "result.json"
                if file.is_file():
                    try:
                        self.store.finish(row["id"], read_result(file, "remove it and repeat the command of that run"))
                    except ConfigError as error:  # this run alone is lost, not the command that looks in
                        self.say(f"warning: {error}")

    def result(self, run_id: int) -> dict[str, Any] | None:
        """The result of a run, or None while it is unfinished."""
        row = self.store.run(run_id)
        done = row["status"] == "done" and row["result"]
        return read_object(row["result"], f"the result of run {run_id}") if done else None

    def started_from(self, verb: str, context_id: str) -> str | None:
        """The model that a run of this store with the same settings started from, whether the run is finished or not.

        Without this, a repeated command without ``--model`` would take the student that its first call has made.

        Args:
            verb: the verb of the run.
            context_id: the run's context.

        Raises:
            ConfigError: that model is gone.
        """
        config = self._first(verb, context_id)
        return None if config is None else self._recalled(config["model_id"], "started from", "model")

    def taught_by(self, verb: str, context_id: str) -> str | None:
        """The teacher of a run of this store with the same settings, of which one may name ENV/student.

        Raises:
            ConfigError: that model is gone.
        """
        config = self._first(verb, context_id)
        file = self.work / "runs" / Path((config or {}).get("folder", "")).name / "config.json"
        if config is None or not file.is_file():
            return None
        return self._recalled(read_json(file, "remove its folder to train again")["teacher_id"], "learned", "teacher")

    def earlier(self, verb: str) -> list[tuple[str, str]]:
        """The ids of model and context of each run of this store with the settings of this one, the oldest first."""
        return [(config["model_id"], config["context_id"]) for config in self._same(verb)]

    def _first(self, verb: str, context_id: str) -> dict[str, Any] | None:
        """The row's settings of the first run of this store with the settings of this one and this context."""
        return next((config for config in self._same(verb) if config.get("context_id") == context_id), None)

    def _same(self, verb: str) -> Iterator[dict[str, Any]]:
        wanted = run_config(self.config) | {"env": self.env}
        for row in self.store.runs(verb):
            config = read_object(row["config"], f"the config of run {row['id']}")
            if not row["imported"] and all(config.get(name) == value for name, value in wanted.items()):
                yield config

    def _recalled(self, id_: str, did: str, flag: str) -> str | None:
        model = self.store.lookup("model", id=id_)
        if model is None or not model["path"]:
            return None
        if (name := recall(self.work, model)) is None:
            raise ConfigError(
                f"this command {did} from the model {model['name']}, which is no longer at {model['path']}; "
                f"put it back, or name another one with --{flag}"
            )
        return name

    def _found(self, verb: str, identity: Mapping[str, object], status: str) -> int | None:
        """The newest run of this store that is the same run, though the workspace may have had another path then."""
        for row in self.store.find_runs(verb, identity, status, but=(*MODELS, "folder")):
            config = read_object(row["config"], f"the config of run {row['id']}")
            pairs = {name: (config.get(name), identity.get(name)) for name in (*MODELS, "folder")}
            if status != "done" and not all(pairs["model"]):
                del pairs["model"]  # one left it open, and the id says that it was the same
            if all(self._place(one) == self._place(other) for one, other in pairs.values()):
                return row["id"]
        return None

    def _place(self, path: object) -> object:
        """What a path names: for a folder of a run, that folder, whatever workspace stands in front of it."""
        return inside(self.work, str(path)) or path if path else None

    def _identity(self, facts: dict[str, object]) -> dict[str, object]:
        """Everything that makes two runs the same run."""
        common = {"env": self.env, "model_id": self.model_id(), "kind": self.kind, **self.extraction()}
        read = {"snapshot": self.snapshot} if self.snapshot else {}
        return run_config(self.config) | common | read | dict(self.facts) | facts


def held_as(run_id: int) -> str:
    """The name by which the process that works on a run holds it."""
    return f"run-{run_id}"


def evaluated(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Student, environment and base of a run of ``evaluate``; of others its figures say nothing."""
    return settings.get("student"), settings.get("env"), settings.get("base", settings.get("model_id"))


def run_config(config: PlayerConfig) -> dict[str, Any]:
    """The settings as JSON, as a run's row holds them.

    ``env_ref`` keeps the environment's reference, because the ledger replaces ``env`` by the label. Left out
    are a server's address and the tracker, since a run may resume with another one, and unused :data:`LATER_SETTINGS`,
    so that runs of an older version resume. Of an extractor behind an address, the name stays.
    """
    settings = json.loads(json.dumps(dataclasses.asdict(config))) | {"env_ref": config.env}
    if settings.get("tokens_per_batch") == 0:  # what older versions wrote; it does not change the result
        settings["tokens_per_batch"] = 4096
    if settings.get("gate") == "auto":  # the only gate of older versions
        settings["gate"] = ""
    if settings.get("gate_tasks") == 256:  # older versions had no gate for students
        del settings["gate_tasks"]
    if settings.get("save_dtype") == "float32":  # the only dtype of older versions
        settings["save_dtype"] = ""
    if isinstance(config, GatherConfig) and config.extractor and config.extracting.engine == "api":
        settings["extractor"] = f"{config.extracting.model} (API)"
    later = (*LATER_SETTINGS, "context") if isinstance(config, ScoreConfig | LearnConfig) else LATER_SETTINGS
    used = {name: value for name, value in settings.items() if value or name not in later}
    return {name: value for name, value in used.items() if name not in NOT_OF_A_RUN}


def config_of(kind: type[C], stored: Mapping[str, Any]) -> C:
    """The settings that :func:`run_config` wrote, as far as they say how to go on.

    Where a server played, its address is :data:`SOME_SERVER`, because addresses are not kept.

    Raises:
        ConfigError: another version wrote them, or the run had settings of another verb.
    """
    given = {field.name: stored[field.name] for field in dataclasses.fields(kind) if field.name in stored}
    given["env"] = stored.get("env_ref", stored.get("env", ""))
    if given.get("tokens_per_batch") == 4096:
        del given["tokens_per_batch"]
    for name in ("gate", "save_dtype"):
        if given.get(name) == "":
            del given[name]
    if given.get("engine") in ("server", "api"):
        given["server"] = SOME_SERVER
    if str(given.get("extractor", "")).endswith(" (API)"):
        given["extractor"] = f"{SOME_SERVER}#{given['extractor'].removesuffix(' (API)')}"
    config = kind.load(**given)
    again = run_config(config)
    if lost := [name for name, value in again.items() if name != "env" and stored.get(name) != value]:
        raise ConfigError(f"another version, or another verb, wrote these settings: {', '.join(lost)}")
    return config
