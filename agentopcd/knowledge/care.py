"""Look after a store's file: find what is damaged, and copy the file while others use it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from agentopcd.core.errors import StoreError
from agentopcd.core.runs import writing
from agentopcd.core.transcript import UNREADABLE, differs, unpack
from agentopcd.core.types import Context
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.faults import beside, told
from agentopcd.knowledge.items import identify
from agentopcd.knowledge.recordings import odd_request
from agentopcd.knowledge.refs import check_ref
from agentopcd.knowledge.store import Store

MOST = 20
"""The most problems of one kind to list."""

JSON = (("run", "config"), ("run", "result"), ("context", "recipe"), ("episode", "metrics"), ("look", "result"),
        ("feedback", "metrics"))  # fmt: skip
"""Tables and their columns that hold a JSON object, or nothing."""

BATCH = 500
"""How many episodes are read at once: with their transcripts, all of them may not fit in memory."""


def problems(store: Store) -> list[str]:
    """What is wrong with a store, one line each: the file, links, texts, JSON, refs, transcripts, recordings."""
    found: list[str] = []
    for look in (_file, _links, _texts, _json, _refs, _transcripts, _requests):
        lines = look(store)
        try:
            for number, line in enumerate(lines, 1):
                found.append(line)
                if number == MOST:
                    found.append("... and perhaps more of this kind")
                    break
        except StoreError as error:  # what cannot be read is a problem, too
            found.append(str(error).partition(";")[0])
    return found


def _file(store: Store) -> Iterator[str]:
    for row in store.query(f"PRAGMA integrity_check({MOST})"):
        if row["integrity_check"] != "ok":
            yield f"file: {row['integrity_check']}"


def _links(store: Store) -> Iterator[str]:
    for row in store.query("PRAGMA foreign_key_check"):
        yield f"{row['table']}: row {row['rowid']} belongs to a {row['parent']} that is not there"


def _texts(store: Store) -> Iterator[str]:
    for row in store.table("item", "id"):
        if identify(row["text"]) != row["id"]:
            yield f"item {row['id'][:12]}: its text was changed"
    for row in store.table("context", "id"):
        if Context(row["rendered"], row["placement"]).id != row["id"]:
            yield f"context {row['id'][:12]}: its text was changed"


def _json(store: Store) -> Iterator[str]:
    for table, column in JSON:
        for row in store.query(f"SELECT id, {column} AS body FROM {table} WHERE {column} IS NOT NULL"):
            if not is_object(row["body"]):
                yield f"{table} {row['id']!s:.12}: its {column} is no JSON object"


def is_object(body: str) -> bool:
    """Whether a text is a JSON object."""
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def _refs(store: Store) -> Iterator[str]:
    for name in store.refs():
        try:
            check_ref(name)
        except StoreError as error:
            yield f"ref: {error}"


def _transcripts(store: Store) -> Iterator[str]:
    last = 0
    while rows := _episodes(store, last):
        for row in rows:
            last = row["id"]
            try:
                odd = differs(row, unpack(row["body"]))
            except UNREADABLE as error:
                odd = f"the transcript is damaged: {error}"
            if odd:
                yield f"episode {row['id']}: {odd}"


def _requests(store: Store) -> Iterator[str]:
    last = 0
    while rows := store.query("SELECT * FROM request WHERE id > ? ORDER BY id LIMIT ?", (last, BATCH)):
        for row in rows:
            last = row["id"]
            if odd := odd_request(row):
                yield f"request {row['id']}: {odd}"


def _episodes(store: Store, last: int) -> list[Row]:
    return store.query(
        "SELECT e.*, t.body FROM episode e JOIN transcript t ON t.episode_id = e.id"
        " WHERE e.id > ? ORDER BY e.id LIMIT ?",
        (last, BATCH),
    )


def backup(store: Store, target: Path) -> None:
    """Copy a store into one new file; others may go on using the store.

    Raises:
        ConfigError: the file exists or cannot be written.
    """
    if target.exists():
        raise StoreError(f"{target} exists; a backup is always a new file, so give another name or remove it")
    scratch = beside(target, ".tmp")
    with writing(target):
        scratch.write_bytes(b"")
        try:
            with told(target):
                copy = sqlite3.connect(scratch)
                try:
                    store.copy_into(copy)
                finally:
                    copy.close()
            scratch.replace(target)
        finally:
            for ending in ("", "-wal", "-shm", "-journal"):
                beside(scratch, ending).unlink(missing_ok=True)
