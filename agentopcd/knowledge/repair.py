"""Save what can be read of a damaged store into a new one, which then takes its place."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from agentopcd.core.errors import StoreError
from agentopcd.core.transcript import UNREADABLE, facts, from_json, unpack
from agentopcd.core.types import EMPTY, Context
from agentopcd.knowledge.care import is_object
from agentopcd.knowledge.database import Row, migrations, now, statements
from agentopcd.knowledge.faults import beside, check_file, copy_to_read, told
from agentopcd.knowledge.items import identify, item_texts
from agentopcd.knowledge.recordings import odd_request
from agentopcd.knowledge.store import PLACEBO, Store

KEYS = {"context_item": "context_id, pos", "model_context": "model_id, context_id", "task": "env, key"}
"""Tables without row numbers, and their keys."""

TABLES = (
    "run", "item", "context", "context_item", "ref_move", "model", "model_context", "task", "episode", "transcript",
    "item_source", "item_event", "look", "student_move", "session", "request", "feedback",
)  # fmt: skip

LATER = {"look": 2, "student_move": 4, "session": 5, "request": 5, "feedback": 5}
"""Tables that older stores lack, and the schema that made them."""

RIVALS = ("placebo_id", "incumbent_id")
"""The columns of what a look compares its context with, besides the empty one."""

FILLED = {"look": ("UPDATE run SET", "INSERT INTO look"), "student_move": ("INSERT INTO student_move",)}
"""What the migrations that made these tables did with older rows. Without it, spent looks would be given back, what was
imported would be this store's own, and no student would play."""

FILES = ("", "-wal", "-shm", "-journal")


class Repaired(NamedTuple):
    """What a repair has done."""

    kept: Path
    """The damaged file."""
    lost: list[str]
    """What could not be saved, one line each."""


def repair(path: Path) -> Repaired:
    """Write a store anew from every row that can be read and that is as it was written. The old files are kept.

    Raises:
        StoreError: there is no store, not even the list of its tables can be read, or somebody wrote to it meanwhile.
    """
    check_file(path, create=False)
    found = _written(path)
    with told(path), copy_to_read(path) as folder, tempfile.TemporaryDirectory(dir=path.parent) as beside_it:
        damaged, new = Path(folder) / path.name, Path(beside_it) / path.name
        Store.open(new).close()
        source = _open(damaged, new, path)
        try:
            with Store.open(new) as store:
                lost = _Repair(source, store, path.parent / "splits").run()
        finally:
            source.close()
        if _written(path) != found:
            raise StoreError(f"something wrote to {path} while it was repaired; stop what uses it, and repair it again")
        kept = next(name for n in range(1, 1000) if not (name := beside(path, f".damaged-{n}")).exists())
        for ending in FILES:
            if (file := beside(path, ending)).exists():
                file.rename(beside(kept, ending))
        new.rename(path)
    return Repaired(kept, lost)


def _written(path: Path) -> list[tuple[int, int]]:
    """Sizes and times of what a row is written to."""
    files = (beside(path, ending) for ending in FILES if ending != "-shm")
    return [(file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]


def _open(damaged: Path, new: Path, path: Path) -> sqlite3.Connection:
    """Open a copy of the damaged file, with the first page of an empty store if its own cannot be read."""
    for heal in (False, True):
        if heal:
            _give_first_page(damaged, new)
        source = sqlite3.connect(damaged, isolation_level=None)
        source.row_factory = sqlite3.Row
        try:
            source.execute("PRAGMA writable_schema = ON")  # or SQLite reads nothing of a file that was cut short
            found = {row["name"] for row in source.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if found & set(TABLES):
                return source
        except sqlite3.Error:
            pass
        source.close()
    raise StoreError(f"nothing of {path} can be read as a knowledge store; put a backup in its place")


def _give_first_page(damaged: Path, new: Path) -> None:
    """Put the first page of an empty store into a file: equal schemas begin on equal pages."""
    page = bytearray(new.read_bytes()[:4096])
    body = damaged.read_bytes()
    page[28:32] = (len(body) // 4096).to_bytes(4, "big")
    damaged.write_bytes(bytes(page) + body[4096:])


class _Repair:
    """Copies rows from a damaged file into an empty store."""

    def __init__(self, source: sqlite3.Connection, store: Store, splits: Path) -> None:
        self.source, self.store, self.splits = source, store, splits
        self.lost: list[str] = []

    def run(self) -> list[str]:
        check: dict[str, Callable[[Row], bool]] = {
            "item": lambda row: identify(row["text"]) == row["id"],
            "context": lambda row: (
                Context(row["rendered"], row["placement"]).id == row["id"] and is_object(row["recipe"])
            ),
            "run": lambda row: is_object(row["config"]) and (row["result"] is None or is_object(row["result"])),
            "transcript": _is_whole,
            "request": lambda row: not odd_request(row),
        }
        self._execute("PRAGMA foreign_keys = OFF")
        with self.store.write():
            there = {row["name"] for row in self.source.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for table in TABLES:
                if table in there or table not in LATER:
                    self._copy(table, check.get(table, lambda row: True))
            self._correct_episodes()
            self._complete()
            for table in FILLED:
                if table not in there:
                    self._fill(table)
            self._drop_orphans()
        self._execute("PRAGMA foreign_keys = ON")
        return self.lost

    def _execute(self, sql: str, values: tuple[Any, ...] = ()) -> int:
        return self.store.change(sql, values)

    # -- reading ------------------------------------------------------------------------------------

    def _copy(self, table: str, sound: Callable[[Row], bool]) -> None:
        bad = 0
        for row in self._by_key(table) if table in KEYS else self._by_number(table):
            try:
                if sound(row):
                    self.store.insert(table, row, unique=("id",) if table == "context" else ())
                    continue
            except (StoreError, TypeError, ValueError):
                pass  # a row that the schema refuses
            bad += 1
        if bad:
            self.lost.append(f"{table}: {bad} rows are not as they were written")

    def _fill(self, table: str) -> None:
        """Fill a table that an older store lacks from what was saved, as its migration does."""
        script = dict(migrations())[LATER[table]]
        for statement in statements(script):
            if any(words in statement for words in FILLED[table]):
                self._execute(statement)

    def _by_number(self, table: str) -> Iterator[Row]:
        """The readable rows of a table, in the order of their numbers."""
        last = 0
        while True:
            try:
                for row in self.source.execute(
                    f"SELECT rowid AS n_, * FROM {table} WHERE rowid > ? ORDER BY rowid", (last,)
                ):
                    if row["n_"] <= last:
                        raise sqlite3.DatabaseError("rows out of order")
                    last = row["n_"]
                    yield {name: row[name] for name in row.keys() if name != "n_"}  # noqa: SIM118
                return
            except sqlite3.Error:
                following = self._after_gap(table, last)
                shown = f"{last + 1} to {following - 1}" if following else f"{last + 1} and later ones"
                self.lost.append(f"{table}: rows {shown} cannot be read")
                if following is None:
                    return
                last = following - 1

    def _after_gap(self, table: str, last: int) -> int | None:
        """The first number after ``last`` from which rows can be read again, found by doubling and halving."""
        bad, step = last + 1, 1
        while not self._reads(table, bad + step):
            step *= 2
            if bad + step > 1 << 60:
                return None
        low, high = bad + step // 2, bad + step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._reads(table, middle) else (middle, high)
        rows = self.source.execute(
            f"SELECT rowid FROM {table} WHERE rowid >= ? ORDER BY rowid LIMIT 1", (high,)
        ).fetchall()
        return rows[0][0] if rows else None

    def _reads(self, table: str, number: int) -> bool:
        try:
            self.source.execute(f"SELECT * FROM {table} WHERE rowid >= ? ORDER BY rowid LIMIT 1", (number,)).fetchall()
        except sqlite3.Error:
            return False
        return True

    def _by_key(self, table: str) -> Iterator[Row]:
        """The readable rows of a table without row numbers: from its start, and from its end if it breaks off."""
        columns, seen = KEYS[table].split(", "), set()
        for order in ("ASC", "DESC"):
            keys = ", ".join(f"{column} {order}" for column in columns)
            try:
                for row in self.source.execute(f"SELECT * FROM {table} ORDER BY {keys}"):
                    key = tuple(row[column] for column in columns)
                    if key in seen:
                        return
                    seen.add(key)
                    yield dict(row)
                if order == "ASC":
                    return
            except sqlite3.Error:
                if order == "DESC":
                    break
        self.lost.append(f"{table}: some rows cannot be read")

    # -- mending ------------------------------------------------------------------------------------

    def _correct_episodes(self) -> None:
        """Take what an episode's row says from its transcript, which has a checksum."""
        last = 0
        frozen = self.store.query("SELECT sql FROM sqlite_master WHERE name = 'episode_frozen'")[0]["sql"]
        self._execute("DROP TRIGGER episode_frozen")
        while rows := self.store.query(
            "SELECT * FROM transcript WHERE episode_id > ? ORDER BY episode_id LIMIT 500", (last,)
        ):
            for body in rows:
                last = body["episode_id"]
                row, said = self.store.lookup("episode", id=last), facts(from_json(unpack(body["body"])))
                wrong = {name: value for name, value in said.items() if row and row[name] != value}
                if wrong:
                    names = ", ".join(f"{name} = ?" for name in wrong)
                    self._execute(f"UPDATE episode SET {names} WHERE id = ?", (*wrong.values(), last))
                    self.lost.append(f"episode {last}: {', '.join(wrong)} taken from its transcript")
        self._execute(frozen)

    def _complete(self) -> None:
        """Write again what other rows or files still say."""
        for row in self.store.table("context", "id"):
            if json.loads(row["recipe"]).get("order") == PLACEBO:  # its lines are no items
                continue
            texts = item_texts(Context(row["rendered"], row["placement"]))
            linked = self.store.query("SELECT 1 FROM context_item WHERE context_id = ?", (row["id"],))
            for pos, text in enumerate(texts):
                item = {"id": identify(text), "text": text, "created_at": row["created_at"]}
                self.store.insert("item", item, unique=("id",))
                if len(linked) != len(texts):
                    link = {"context_id": row["id"], "pos": pos, "item_id": item["id"]}
                    self.store.insert("context_item", link, unique=("context_id", "pos"))
        for table in ("episode", "item_source", "ref_move", "model", "look", "student_move"):
            for row in self._missing(table, "run_id", "run"):
                run = {"id": row["id"], "verb": "lost", "code": "", "seed": 0, "config": "{}", "status": "failed"}
                self.store.insert("run", run | {"started_at": now()}, unique=("id",))
        for table in ("episode", "session", "request"):
            for row in self._missing(table, "model_id", "model"):
                self.store.insert("model", {"id": row["id"], "name": "lost", "created_at": now()}, unique=("id",))
        for table in ("episode", "item_source"):
            for row in self.store.query(
                f"SELECT DISTINCT env, task_key AS key FROM {table} e WHERE task_key IS NOT NULL"
                " AND NOT EXISTS (SELECT 1 FROM task t WHERE t.env = e.env AND t.key = e.task_key)"
            ):
                if split := self._split(row["env"], row["key"]):
                    self.store.insert("task", {**row, "split": split}, unique=("env", "key"))

    def _missing(self, table: str, column: str, parent: str) -> list[Row]:
        return self.store.query(
            f"SELECT DISTINCT {column} AS id FROM {table} WHERE {column} IS NOT NULL"
            f" AND {column} NOT IN (SELECT id FROM {parent})"
        )

    def _split(self, env: str, key: str) -> str | None:
        """The split of a task, as the workspace's file of splits has it."""
        file = self.splits / f"{hashlib.sha256(env.encode()).hexdigest()[:12]}.json"
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            owner = {known: split for split, tasks in manifest["splits"].items() for _, known in tasks}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return None if key not in owner else owner[key] if manifest.get("protocol") == "disjoint" else "shared"

    def _drop_orphans(self) -> None:
        """Remove rows that belong to rows that are gone, and links to them."""
        gone = "{column} IS NOT NULL AND {column} NOT IN (SELECT id FROM {parent})"
        no_task = (
            "task_key IS NOT NULL AND NOT EXISTS (SELECT 1 FROM task t WHERE t.env = {t}.env AND t.key = {t}.task_key)"
        )
        self._remove("episode", gone.format(column="context_id", parent="context"))
        self._remove("episode", no_task.format(t="episode"))
        self._remove("transcript", gone.format(column="episode_id", parent="episode"))
        self._remove("item_source", no_task.format(t="item_source"))
        for table, column in (
            ("item_source", "episode_id"),
            ("item_source", "shown_context_id"),
            ("model", "parent_id"),
        ):
            parent = {"episode_id": "episode", "shown_context_id": "context", "parent_id": "model"}[column]
            self._execute(f"UPDATE {table} SET {column} = NULL WHERE {gone.format(column=column, parent=parent)}")
        self._keep_spent_looks(gone)
        for table, column, parent in (
            ("item_source", "item_id", "item"), ("item_event", "item_id", "item"), ("item_event", "other_id", "item"),
            ("context_item", "item_id", "item"), ("context_item", "context_id", "context"),
            ("model_context", "model_id", "model"), ("model_context", "context_id", "context"),
            ("ref_move", "context_id", "context"), ("session", "context_id", "context"),
            ("request", "context_id", "context"), ("request", "session_id", "session"),
            ("student_move", "model_id", "model"),
        ):  # fmt: skip
            self._remove(table, gone.format(column=column, parent=parent))
        self._remove("session", "id NOT IN (SELECT session_id FROM request)")
        self._remove("feedback", gone.format(column="session_id", parent="session"))

    def _keep_spent_looks(self, gone: str) -> None:
        """Keep what looks have spent, though a context that they compared is gone.

        One that has a verdict goes on without its placebo or incumbent. Of one that has lost its own context, or that
        was still being played and would go on without a comparison, the level alone stays, at the empty context, of no
        model: nobody goes on with it, and it says nothing about any context.
        """
        frozen = self.store.query("SELECT sql FROM sqlite_master WHERE name = 'look_frozen'")[0]["sql"]
        self._execute("DROP TRIGGER look_frozen")
        lacks = {name: gone.format(column=name, parent="context") for name in ("context_id", *RIVALS)}
        begun = " OR ".join(lacks[name] for name in RIVALS)
        # The plan keeps two of them apart, here and where they are exported to.
        if count := self._execute(
            "UPDATE look SET plan = 'lost: ' || plan || ' ' || context_id || COALESCE(' ' || model_id, '')"
            " || COALESCE(' ' || setup, ''), context_id = ?, model_id = NULL, setup = NULL, placebo_id = NULL,"
            " incumbent_id = NULL, verdict = 'not better', result = NULL"
            f" WHERE {lacks['context_id']} OR (verdict IS NULL AND ({begun}))",
            (EMPTY.id,),
        ):
            self.lost.append(f"look: {count} rows have lost a context that they compared; what they spent stays spent")
        for column in RIVALS:
            if count := self._execute(f"UPDATE look SET {column} = NULL WHERE {lacks[column]}"):
                self.lost.append(f"look: {count} rows have lost their {column}")
        self._execute(frozen)

    def _remove(self, table: str, where: str) -> None:
        if count := self._execute(f"DELETE FROM {table} WHERE {where}"):
            self.lost.append(f"{table}: {count} rows belong to rows that are gone")


def _is_whole(row: Row) -> bool:
    try:
        from_json(unpack(row["body"]))
    except UNREADABLE:
        return False
    return True
