"""Recordings as environments: a snapshot of the sessions of a recording, for one command.

While a command works, its model may go on being served and recorded. So a command reads a copy: the sessions as they
were when it began, in a file that is named by its content. A command that goes on after a kill reads the copy that it
began with; the next command makes a new one.

A task is all sessions about the same thing: those for which the client sent the same ``X-Agentopcd-Task``; without it,
those that begin with the same prompt, or go on from it. A task's split follows from its key alone, so what comes later
changes no split.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from agentopcd.core.config import RECORDED, VERBS, PlayerConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import work_flag, write_text, writing
from agentopcd.envs.chats.recorded import recorded_spec
from agentopcd.envs.registry import provide
from agentopcd.envs.views import hash_text
from agentopcd.knowledge import Store
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.recordings import Recorded, chain, recordings, sessions
from agentopcd.workspace.ledger import MARKS, NOT_OF_A_RUN, run_config
from agentopcd.workspace.paths import recall

BRANCHES = 1000
"""The most conversations of one session: its requests that go on from no other one of it begin one each."""


def recording_of(ref: str) -> str:
    """The recording that an environment's reference names; '' if it names none."""
    return ref.removeprefix(RECORDED) if ref.startswith(RECORDED) else ""


def open_recording(store: Store, work: Path, config: PlayerConfig, snapshot: str = "") -> str:
    """Make ``config.env`` stand for a snapshot of its recording in this process.

    Args:
        snapshot: its name; '': that of the unfinished run of these settings, else a new one.

    Returns:
        The name of the snapshot.

    Raises:
        ConfigError: there is no such recording or snapshot.
    """
    folder = work / "recorded" / recording_of(config.env)
    snapshot = snapshot or _unfinished(store, config, folder) or new_snapshot(store, work, config.env)
    use_snapshot(work, config.env, snapshot)
    return snapshot


def use_snapshot(work: Path, ref: str, snapshot: str) -> None:
    """Make a reference stand for a snapshot in this process.

    Raises:
        ConfigError: its file is gone.
    """
    file = work / "recorded" / recording_of(ref) / snapshot
    if not file.is_file():
        raise ConfigError(f"{file} is gone, which this run reads; put it back, or change a setting to begin a new run")
    provide(recorded_spec(ref, str(file)))


def _unfinished(store: Store, config: PlayerConfig, folder: Path) -> str:
    """The snapshot of the unfinished or failed run of this command, newest first; '' if there is none."""
    wanted, fields = run_config(config), {field.name for field in dataclasses.fields(config)}
    # A setting that is not used stands in neither of the two.
    names = (fields | {"env_ref"}) - {"env", "model", *NOT_OF_A_RUN}
    rows = [*store.runs(status="failed"), *store.runs(status="running")]
    for row in reversed([row for row in rows if not row["imported"]]):  # others read snapshots of their own
        stored = read_object(row["config"], f"the config of run {row['id']}")
        snapshot = Path(stored.get("snapshot", "")).name
        same = VERBS.get(row["verb"]) is type(config) and all(stored.get(name) == wanted.get(name) for name in names)
        same = same and not any(mark in stored for mark in MARKS)  # a stage of another command
        same = same and config.model in (stored.get("model"), _played(store, folder.parent.parent, stored))
        if same and snapshot and (folder / snapshot).is_file():
            return snapshot
    return ""


def _played(store: Store, work: Path, stored: Mapping[str, Any]) -> str | None:
    """How ``agentopcd status`` names the model of a run that left it open."""
    row = None if stored.get("model") else store.lookup("model", id=stored.get("model_id", ""))
    return recall(work, row) if row else None


def new_snapshot(store: Store, work: Path, ref: str, since: str = "") -> str:
    """Copy a recording as it is now.

    Args:
        since: only sessions with a request or a rating at or after this time (UTC, as in the store).

    Returns:
        The name of the copy; the same sessions have the same name.

    Raises:
        ConfigError: there is no such recording, or nothing was recorded since then.
    """
    name = recording_of(ref)
    with store.read():
        rows = list(snapshot_rows(sessions(store, name)))
    if not rows:
        known = ", ".join(row["name"] for row in recordings(store)) or "none"
        raise ConfigError(
            f"nothing is recorded under {name!r} in {store.path} (recordings: {known}); record with `agentopcd serve "
            f"--model MODEL --record {name}{work_flag(work)}`"
        )
    if since:
        news = {session.key for session in sessions(store, name, since=since)}
        if not (rows := [row for row in rows if row["session"] in news]):
            raise ConfigError(f"no session of {name!r} was recorded or rated since {since}")
    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    folder = work / "recorded" / name
    file = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
    if not file.is_file():
        with writing(file):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(file, text)
    return file.name


def snapshot_rows(found: Iterable[Recorded]) -> Iterator[dict[str, Any]]:
    """The conversations of sessions as rows, in the order of the sessions.

    Args:
        found: all sessions of a recording, oldest first: a later one may go on from the prompt of an earlier one.
    """
    openings: dict[str, str] = {}
    for session in found:
        begun = chain(session.requests[0].messages)
        key = next((openings[hash_] for hash_ in begun if hash_ in openings), None)
        key = openings.setdefault(begun[-1], key or hash_text(f"opening:{begun[-1]}"))
        if session.task is not None:
            key = hash_text(f"task:{session.task}")
        for number, talk in enumerate(_talks(session)[:BRANCHES]):
            yield {
                "seed": session.id * BRANCHES + number, "task": key, "session": session.key, "about": session.task,
                "arm": session.arm, "model": talk.model, "context": talk.context,
                "success": session.rating.success, "reward": session.rating.reward,
                "metrics": dict(session.rating.metrics), "messages": talk.messages, "tools": talk.tools,
                "places": talk.places, "requests": talk.requests,
            }  # fmt: skip


@dataclasses.dataclass
class _Talk:
    """Requests of a session of which each goes on from the one before, with the same tools, model and context."""

    messages: list[Any]
    tools: list[Any]
    tail: str
    model: str
    context: str
    places: list[int] = dataclasses.field(default_factory=list)
    requests: list[str] = dataclasses.field(default_factory=list)


def _talks(session: Recorded) -> list[_Talk]:
    """The conversations of a session. A prompt that was asked before is a second try, and no turn of its own."""
    talks: list[_Talk] = []
    asked: set[str] = set()
    for one in session.requests:
        begun = chain(one.messages)
        prompt = begun[-1] + json.dumps(one.tools, sort_keys=True)
        if prompt in asked:
            continue
        asked.add(prompt)
        who = (one.tools, one.model_id, one.context_id)
        goes_on = (talk for talk in talks if talk.tail in begun and (talk.tools, talk.model, talk.context) == who)
        talk = next(goes_on, None)
        if talk is None:
            talk = _Talk([], one.tools, "", one.model_id, one.context_id)
            talks.append(talk)
        talk.messages = [*one.messages, one.message]
        talk.tail = chain(talk.messages)[-1]
        talk.places.append(len(one.messages))
        talk.requests.append(one.name)
    return talks
