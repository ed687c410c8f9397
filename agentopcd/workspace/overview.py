"""What a workspace holds, for people: its runs and how far they are, its students, its contexts, and its size.

Reads and plays nothing, loads no model, and imports no torch, so that it is quick while another process works.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agentopcd.core.config import VERBS, flags_of
from agentopcd.core.config.toml import command_of, without_flags
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import last_record, read_json
from agentopcd.core.text import SHORT, counted
from agentopcd.core.types import EMPTY
from agentopcd.knowledge import Store
from agentopcd.knowledge.database import Row, now
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.students import current_student, student_moves, student_ref
from agentopcd.workspace.holding import is_held
from agentopcd.workspace.ledger import FORGET, MARKS, SOME_SERVER, config_of, evaluated, held_as
from agentopcd.workspace.lineage.found import AUDIT, TURNS
from agentopcd.workspace.paths import inside, recall


@dataclasses.dataclass(kw_only=True)
class Job:
    """A run, or a command of several runs, as a person sees it."""

    number: int | None
    """The run's number in the store; None for a command of several runs."""
    verb: str
    env: str
    model: str
    """The name of the model that it began with."""
    state: str
    """``running``, ``interrupted``, ``unfinished`` (which of both cannot be told), ``done`` or ``failed``."""
    why: str = ""
    """Why it failed, in one line."""
    progress: str = ""
    started_at: str = ""
    """Time in UTC, as ISO-8601 text; '' if unknown."""
    took_s: float | None = None
    """Seconds from the start to the end, or, if it has not ended, to the last sign of life."""
    part_of: str = ""
    """The verb of the command that this run is a stage of, if it is one."""
    command: str = ""
    """What goes on with it, for a shell; '' if it is done, runs, or its settings cannot be written as a command."""
    needs: str = ""
    """What a person must put into the command."""

    @property
    def open(self) -> bool:
        return self.state in ("interrupted", "failed", "unfinished")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overview:
    """A workspace at a glance."""

    work: str
    jobs: Sequence[Job]
    """Oldest first."""
    students: Sequence[Row]
    """``folder, id, base, base_id, env, contexts, test, run, bytes``; oldest first. ``folder`` is None if it is gone,
    ``test`` None if nothing was measured."""
    contexts: Sequence[Row]
    """Contexts with a name of their own or a verdict: ``id, refs, verdicts``."""
    candidates: int
    """Refs of chain steps."""
    sizes: Mapping[str, int]
    """The numbers of ``episodes``, ``items`` and ``contexts``; ``store_bytes`` and ``runs_bytes``."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def overview(store: Store, work: Path, where: str = "") -> Overview:
    """Look at a workspace.

    Args:
        where: the words that name the workspace in a command, such as ``--work FOLDER``.
    """
    with store.read():
        rows, names = store.headlines(), {row["id"]: row for row in store.models()}
        for row in rows:
            row["settings"] = read_object(row["config"], f"the config of run {row['id']}")
        played = store.played_by([row["id"] for row in rows if row["status"] != "done"])
        jobs = [_job(store, row, names, played.get(row["id"]), work, where) for row in rows]
        jobs = sorted([*_commands(work, rows, where), *jobs], key=lambda job: job.started_at)
        refs = store.refs()
        return Overview(
            work=str(work), jobs=jobs, students=_students(store, work, rows, names), contexts=_contexts(store, refs),
            candidates=sum("/pool/" in name for name in refs),
            sizes={
                **store.sizes(), "store_bytes": sum(bytes_of(file) for file in work.glob("store.db*")),
                "runs_bytes": bytes_of(work / "runs"),
            },
        )  # fmt: skip


# -- runs ---------------------------------------------------------------------------------------------


def _job(store: Store, row: Row, names: Mapping[str, Row], played: Row | None, work: Path, where: str) -> Job:
    settings, model = row["settings"], names.get(row["settings"].get("model_id", ""))
    job = Job(
        number=row["id"], verb=row["verb"], env=settings.get("env", ""), model=model["name"] if model else "",
        state=state_of(work, row),
        why=row["error"] or "", started_at=row["started_at"], part_of=_part_of(row),
    )  # fmt: skip
    folder = work / "runs" / Path(settings["folder"]).name if settings.get("folder") else None
    job.progress, sign = _progress(row, played, folder)
    job.took_s = _seconds(row["started_at"], now() if job.state == "running" else row["finished_at"] or sign)
    if job.open and not job.part_of and row["verb"] in VERBS:
        _add_command(job, settings, where, folder, model=_model_then(store, work, row))
    elif job.open and row["verb"] in (AUDIT, FORGET):
        job.command = _of_lineage(row["verb"], settings) + where
    return job


def _part_of(row: Row) -> str:
    """The command of several runs that a run is a stage of: its row has that command's mark, or settings of play."""
    settings = row["settings"]
    of_learn = row["verb"] == "consolidate" and "steps" not in settings
    return next((command for mark, command in MARKS.items() if mark in settings), "learn" if of_learn else "")


def state_of(work: Path, row: Row) -> str:
    """The :attr:`Job.state` of a run: a row alone cannot say whether it runs or was killed."""
    if row["status"] != "running":
        return row["status"]
    return "unfinished" if row.get("imported") else _state(work, held_as(row["id"]))


def _state(work: Path, name: str) -> str:
    return {True: "running", False: "interrupted", None: "unfinished"}[is_held(work, name)]


def _progress(row: Row, played: Row | None, folder: Path | None) -> tuple[str, str]:
    """How far a run is, and the time of its last sign of life, '' if there is none."""
    settings, sign = row["settings"], played["at"] if played else ""
    done = row["episodes"] if row["status"] == "done" else played["n"] if played else 0
    parts = []
    if folder is not None and (log := last_record(folder / "metrics.jsonl")) is not None:
        steps = settings.get("steps") or _steps_of(folder)
        at = log.get("step", 0)  # a training may stop early
        done_of = f"step {at} of {steps}" if steps else f"step {at}"
        parts.append(done_of if row["status"] != "done" else counted(at, "step"))
        sign = max(sign, _time_of(folder / "metrics.jsonl"))
    elif row["verb"] == "play" and row["status"] != "done" and settings.get("episodes"):
        parts.append(f"{done} of {counted(settings['episodes'], 'episode')}")
    elif done:
        parts.append(counted(done, "episode"))
    if row["broken"]:
        parts.append(f"{row['broken']} broken by the environment")
    return ", ".join(parts), sign


def _steps_of(folder: Path) -> Any:
    """The planned steps of a training whose row does not say them; None if its settings cannot be read.

    The other runs can be told without that number, and the command that goes on with this one tells what is wrong.
    """
    with suppress(ConfigError):
        return _config(folder).get("steps")
    return None


def _commands(work: Path, rows: Sequence[Row], where: str) -> Iterator[Job]:
    """The commands that consist of several runs: learn and reproduce, each with a folder of its own.

    A folder whose files cannot be read is told with the reason; the others can.
    """
    for folder in sorted((work / "runs").glob("*")) if (work / "runs").is_dir() else ():
        verb = folder.name.partition("-")[0]
        begun = {"learn": "start.json", "reproduce": "config.json"}.get(verb)
        if begun is None or not (folder / begun).is_file():  # another's, or killed or refused before it began
            continue
        done = (folder / "result.json").is_file()
        job = Job(
            number=None, verb=verb, env="", model="", state="done" if done else _state(work, folder.name),
            started_at=_time_of(folder / "config.json"),
        )  # fmt: skip
        try:
            (_of_learn if verb == "learn" else _of_reproduce)(job, folder, rows, where)
        except ConfigError as error:
            job.state, job.why = "failed" if job.open else job.state, str(error)
        yield job


def _of_learn(job: Job, folder: Path, rows: Sequence[Row], where: str) -> None:
    begun, done = folder / "start.json", job.state == "done"
    settings, start = _config(folder), _object(begun, f"remove {folder} to begin again")
    job.env, job.model = settings.get("env", ""), start.get("model", "")
    job.started_at = start.get("started_at") or job.started_at
    ended = now() if job.state == "running" else _time_of(folder / "result.json" if done else begun)
    env, signs = settings.get("env_ref"), _signs(folder.parent)
    ours = (row for row in rows if _part_of(row) == "learn" and row["settings"].get("env_ref") == env)
    stages = [row for row in ours if _last(signs, env, row["started_at"]) == folder]
    if not done and job.state != "running" and stages:
        ended, job.why = stages[-1]["finished_at"] or ended, stages[-1]["error"] or ""
        job.state = "failed" if job.why else job.state
    job.took_s = _seconds(job.started_at, ended)
    rounds = settings.get("rounds") or 0
    job.progress = counted(rounds, "round") if done else f"round {start.get('round', 1)} of {rounds}"
    if job.open:
        _add_command(job, settings, where, folder)


def _signs(runs: Path) -> list[tuple[str, Path, Any]]:
    """When each learn has begun, and when it has last begun a round, with its folder and its environment.

    The row of a stage does not name its command, which is the one of that environment that gave the last sign before.
    """
    found: list[tuple[str, Path, Any]] = []
    for begun in runs.glob("learn-*/start.json"):
        with suppress(ConfigError):  # one that cannot be read is told of as a job of its own
            env, start = _config(begun.parent).get("env_ref"), _object(begun, "")
            first = start.get("started_at") or _time_of(begun.parent / "config.json")
            found += [(at, begun.parent, env) for at in (first, _time_of(begun))]
    return found


def _last(signs: Sequence[tuple[str, Path, Any]], env: object, at: str) -> Path | None:
    """The folder of the learn of an environment that gave the last sign until then."""
    given = [(time, folder) for time, folder, of in signs if of == env and time <= at]
    return max(given)[1] if given else None


def _of_reproduce(job: Job, folder: Path, rows: Sequence[Row], where: str) -> None:
    settings = _config(folder)
    job.env = settings.get("recipe", "")
    if job.state == "done":
        job.took_s = _seconds(job.started_at, _time_of(folder / "result.json"))
    elif job.open and settings.get("words"):
        job.command = f"agentopcd reproduce {settings['words']}{where}"


def _add_command(job: Job, settings: Mapping[str, Any], where: str, folder: Path | None, *, model: str = "") -> None:
    """The command that goes on with a run, from its settings.

    Args:
        folder: of the run; the settings in it hold those, too, by which a run is not told from another.
        model: see :func:`_model_then`.
    """
    kind: Any = VERBS[job.verb]
    try:
        config = config_of(kind, settings)
    except ConfigError as error:
        job.needs = f"no command can be given: {error}"
        return
    more: dict[str, Any] = {"model": model} if model else {}
    if folder is not None and (folder / "config.toml").is_file():
        with suppress(ConfigError):  # another version wrote it
            full = kind.load(folder / "config.toml")
            more |= {name: value for name in ("placebo", "track") if (value := getattr(full, name, None))}
    config = dataclasses.replace(config, **more)
    job.command = f"{command_of(job.verb)} {flags_of(config)}{where}"
    needs = [f"put the server's address in the place of {SOME_SERVER}"] if SOME_SERVER in job.command else []
    if others := without_flags(config):
        needs.append(f"add --config FILE with {others}")
    job.needs = "; ".join(needs)


def _model_then(store: Store, work: Path, row: Row) -> str:
    """The model that a run plays that was left open, if another one would be taken now; '' if none has to be named.

    A training finds its own again, and evaluate asks what its student was trained from.
    """
    settings = row["settings"]
    if row["verb"] not in ("play", "score", "confirm", "forecast") or settings.get("model"):
        return ""
    id_, now_id = settings.get("model_id", ""), current_student(store, settings.get("env", ""))
    known = store.lookup("model", id=id_)
    if known is None or id_ == now_id or (now_id is None and known["parent_id"] is None):
        return ""
    return recall(work, known) or known["name"]


def _of_lineage(verb: str, settings: Mapping[str, Any]) -> str:
    """The command that goes on with an audit or a forgetting, from its settings."""
    student, items = settings["model_id"][:SHORT], [id_[:SHORT] for id_ in settings["items"]]
    if verb == FORGET:
        return f"agentopcd knowledge forget {' '.join(items)} --student {student}"
    asked = "".join(f" --item {id_}" for id_ in items)
    turns = f" --turns {settings['turns']}" if settings["turns"] != TURNS else ""
    return f"agentopcd knowledge audit {student}{asked}{turns}"


def _config(folder: Path) -> dict[str, Any]:
    return _object(folder / "config.json", f"remove {folder} to begin again")


def _object(file: Path, remedy: str) -> dict[str, Any]:
    if not isinstance(found := read_json(file, remedy), dict):
        raise ConfigError(f"{file} is no object of JSON; {remedy}")
    return found


# -- students, contexts, sizes ------------------------------------------------------------------------


def _students(store: Store, work: Path, rows: Sequence[Row], names: Mapping[str, Row]) -> list[Row]:
    """The students that runs of this store have trained; a placebo student stands in the table of its twin."""
    runs = {row["id"]: row for row in rows}
    evaluations = [row for row in rows if row["verb"] == "evaluate" and row["status"] == "done" and row["evaluation"]]
    tested = {evaluated(row["settings"]): row for row in evaluations}
    found: list[Row] = []
    current = {move["env"]: move["model_id"] for move in student_moves(store)}
    refs = {id_: [student_ref(env) for env, model_id in current.items() if model_id == id_] for id_ in names}
    for id_, model in names.items():
        run = runs.get(model["run_id"])
        if run is None or model["parent_id"] is None or run["status"] != "done" or run["settings"].get("placebo"):
            continue
        folder, base = inside(work, model["path"] or ""), names.get(model["parent_id"])
        here = folder if folder is not None and folder.is_dir() else None
        result = tested.get((id_, run["settings"].get("env"), model["parent_id"]), run)["evaluation"]
        table = read_object(result, f"the result of run {run['id']}") if result else {}
        found.append(
            {"folder": str(here) if here else None, "id": id_, "refs": refs.get(id_, []),
             "base": base["name"] if base else "", "base_id": model["parent_id"], "env": run["settings"].get("env", ""),
             "contexts": list(store.model_contexts(id_)), "run": run["id"], "bytes": bytes_of(here) if here else 0,
             "test": table.get("rows") if table.get("graded", True) else None,
             "closed": (table.get("distances") or {}).get("closed")}
        )  # fmt: skip
    return found[::-1]


def _contexts(store: Store, refs: Mapping[str, str]) -> list[Row]:
    """The contexts that have a name other than that of a chain's step, or that somebody has looked at."""
    found: dict[str, Row] = {}
    for name, id_ in refs.items():
        if "/pool/" not in name:
            found.setdefault(id_, {"id": id_, "refs": [], "verdicts": []})["refs"].append(name)
    for look in store.looks():
        if look["context_id"] == EMPTY.id:  # a student's look, without a context
            continue
        entry = found.setdefault(look["context_id"], {"id": look["context_id"], "refs": [], "verdicts": []})
        keep = ("env", "model_id", "number", "verdict")
        entry["verdicts"].append({name: look[name] for name in keep})
    return list(found.values())


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; what vanishes while they are counted does not count."""
    total = 0
    with suppress(OSError):
        if not path.is_dir():
            return path.stat().st_size
        for folder, _, files in os.walk(path):
            for name in files:
                with suppress(OSError):
                    total += Path(folder, name).stat().st_size
    return total


def _time_of(file: Path) -> str:
    """When a file was written last, as the store writes times; '' if there is none."""
    with suppress(OSError):
        return datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="microseconds")
    return ""


def _seconds(start: str, end: str | None) -> float | None:
    if not start or not end:
        return None
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
