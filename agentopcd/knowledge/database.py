"""The SQLite file of the store: opening, migrations, transactions, and two generic helpers.

The file is in WAL mode. Writers begin IMMEDIATE: a transaction that reads first and then writes would fail
at once if another writer committed in between, whatever the timeout. Readers begin a plain transaction.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from agentopcd.core.errors import StoreError

Row = dict[str, Any]

MIN_SQLITE = (3, 37, 0)
"""The first SQLite with STRICT tables."""

BUSY_TIMEOUT_S = 10
"""How long a writer waits for another one."""


def now() -> str:
    """The current time in UTC, as ISO-8601 text with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def migrations() -> list[tuple[int, str]]:
    """The numbered schema files: ``(version, sql)``, in order."""
    folder = files("agentopcd.knowledge") / "schema"
    found = [(int(entry.name[:4]), entry.read_text()) for entry in folder.iterdir() if entry.name.endswith(".sql")]
    return sorted(found)


def statements(script: str) -> Iterator[str]:
    """Split a script into statements; ``executescript`` would commit, and a migration must be atomic."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def check_columns(columns: Iterable[str]) -> None:
    """Refuse names that are not plain identifiers, because they become part of SQL text."""
    for column in columns:
        if not column.isidentifier():
            raise StoreError(f"{column!r} is not a column of the store")


class Database:
    """One connection to a store file. Use it in the process and thread that opened it."""

    def __init__(self, connection: sqlite3.Connection, path: Path | str) -> None:
        self.path = path
        self._connection = connection
        self._pid = os.getpid()
        self._reading = False

    @classmethod
    def open(cls, path: Path | str, *, create: bool = True) -> Self:
        """Open a store and bring its schema up to date.

        Args:
            path: the file, or ``":memory:"``.
            create: create a new store if there is none.

        Raises:
            StoreError: SQLite is too old, or the file is missing, is not a store, or is newer than this code.
        """
        if sqlite3.sqlite_version_info < MIN_SQLITE:
            wanted = ".".join(map(str, MIN_SQLITE[:2]))
            raise StoreError(f"the store needs SQLite {wanted} or newer, Python has {sqlite3.sqlite_version}")
        if path != ":memory:":
            path = Path(path)
            if not path.exists() and not create:
                raise StoreError(f"no knowledge store at {path}; play first, or point --work at another folder")
        try:
            if isinstance(path, Path):
                path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot open the knowledge store {path}: {error}") from error
        try:
            database = cls(connection, path)
            database._prepare()
        except sqlite3.Error as error:
            connection.close()
            raise StoreError(f"{path} cannot be used as a knowledge store: {error}") from error
        except BaseException:
            connection.close()
            raise
        return database

    def close(self) -> None:
        """Close the connection. Committed data stays."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self) -> None:
        connection = self._connection
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
        version = self._version()
        if version == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            # Another process may have migrated the file between the two checks, so check once more.
            version = self._version()
            if version == 0:
                raise StoreError(f"{self.path} is a database of another program, not a knowledge store")
        self._use_wal()
        connection.execute("PRAGMA synchronous = NORMAL")
        newest = migrations()[-1][0]
        if version < newest:
            self._migrate()
        elif version > newest:
            raise StoreError(f"{self.path} has schema {version}, this agentopcd knows {newest}; install a newer one")

    def _version(self) -> int:
        return self._connection.execute("PRAGMA user_version").fetchone()[0]

    def _use_wal(self) -> None:
        """Switch to write-ahead logging. The switch ignores the busy timeout, hence the loop."""
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                mode = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        if mode not in ("wal", "memory"):
            raise StoreError(f"{self.path}: this file system does not allow SQLite's WAL mode; use a local folder")

    def _migrate(self) -> None:
        with self.write():
            version = self._version()  # read again inside the lock: another process may have migrated first
            for number, script in migrations():
                if number > version:
                    for statement in statements(script):
                        self._connection.execute(statement)
                    self._connection.execute(f"PRAGMA user_version = {number}")

    @contextmanager
    def write(self) -> Iterator[None]:
        """One write transaction. A nested call joins the outer one. Any exception rolls back the whole transaction."""
        self._check_process()
        if self._reading:
            raise StoreError("this store is being read in one view; finish reading before writing to it")
        if self._connection.in_transaction:
            yield
            return
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextmanager
    def read(self) -> Iterator[None]:
        """One consistent view over several queries."""
        self._check_process()
        if self._connection.in_transaction:
            yield
            return
        self._connection.execute("BEGIN")
        self._reading = True
        try:
            yield
        finally:
            self._reading = False
            self._connection.execute("ROLLBACK")

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise StoreError("a store cannot be carried into another process; open it there")

    def query(self, sql: str, parameters: Mapping[str, Any] | Sequence[Any] = ()) -> list[Row]:
        """The rows of one SELECT, as dictionaries."""
        self._check_process()
        return [dict(row) for row in self._connection.execute(sql, parameters)]

    def insert(self, table: str, row: Mapping[str, Any], *, unique: Sequence[str] = ()) -> int | None:
        """Insert one row.

        Args:
            table: a table of the schema.
            row: column to value.
            unique: columns whose conflict means "already there"; other violations still raise.

        Returns:
            The new rowid, or None if the row was already there.

        Raises:
            StoreError: a column name is not an identifier; imported files supply column names, too.
        """
        check_columns(row)
        columns, marks = ", ".join(row), ", ".join("?" * len(row))
        conflict = f"ON CONFLICT ({', '.join(unique)}) DO NOTHING" if unique else ""
        with self.write():
            cursor = self._connection.execute(
                f"INSERT INTO {table} ({columns}) VALUES ({marks}) {conflict}", tuple(row.values())
            )
        return cursor.lastrowid if cursor.rowcount == 1 else None

    def update_run(self, run_id: int, result: str | None, status: str) -> None:
        """Close a run, or open it again; runs are the only rows that change."""
        with self.write():
            self._connection.execute(
                "UPDATE run SET result = ?, status = ?, finished_at = ? WHERE id = ?",
                (result, status, None if status == "running" else now(), run_id),
            )
