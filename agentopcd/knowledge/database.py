"""The SQLite file of the store: opening, migrations, transactions, and two generic helpers.

The file is in WAL mode. Writers begin IMMEDIATE: a transaction that reads first and then writes would fail
at once if another writer committed in between, whatever the timeout. Readers begin a plain transaction.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from agentopcd.core.errors import StoreError
from agentopcd.knowledge.faults import UNREADABLE, check_file, copy_to_read, name_of, told

Row = dict[str, Any]

MIN_SQLITE = (3, 37, 0)
"""The first SQLite with STRICT tables."""

BUSY_TIMEOUT_S = 10
"""How long a writer waits for another one."""

READ_TIMEOUT_S = 2
"""How long a reader waits for a store that another process holds, before it reads a copy."""


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


FITS: dict[str, Any] = {"TEXT": str, "INTEGER": int, "REAL": (int, float), "BLOB": bytes}
"""What Python calls the values of each type of column."""


def check_columns(columns: Iterable[str]) -> None:
    """Refuse names that are not plain identifiers, because they become part of SQL text."""
    for column in columns:
        if not column.isidentifier():
            raise StoreError(f"{column!r} is not a column of the store")


def _identity(path: Path | str) -> tuple[int, int] | None:
    """What tells a file from another one at the same path; None if there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _create(path: Path, kind: type[Database]) -> None:
    """Make an empty store. The file appears whole or not at all, so that an empty file is never a new store."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        scratch = Path(folder) / path.name
        kind._connect(scratch).close()
        try:
            os.link(scratch, path)
        except FileExistsError:  # another process was faster
            pass
        except OSError:  # a file system without links
            scratch.rename(path)


class Database:
    """One connection to a store file. Use it in the process and thread that opened it."""

    def __init__(self, connection: sqlite3.Connection, path: Path | str) -> None:
        self.path = path
        self.note = ""
        """What a reader must know about this store; empty if nothing."""
        self._connection = connection
        self._pid = os.getpid()
        self._reading = False
        self._types: dict[str, dict[str, str]] = {}
        self._file = _identity(path)
        self._copy: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def open(cls, path: Path | str, *, create: bool = True, to_read: bool = False) -> Self:
        """Open a store and bring its schema up to date.

        Args:
            path: the file, or ``":memory:"``.
            create: create a new store if there is none.
            to_read: nothing will be written, so a store that is locked or that cannot be written is opened as well.

        Raises:
            StoreError: SQLite is too old, or the file is missing, is empty, is not a store, or is newer than this code.
        """
        if sqlite3.sqlite_version_info < MIN_SQLITE:
            wanted = ".".join(map(str, MIN_SQLITE[:2]))
            raise StoreError(f"the store needs SQLite {wanted} or newer, Python has {sqlite3.sqlite_version}")
        if path == ":memory:":
            return cls._connect(path)
        path = Path(path)
        with told(path):
            check_file(path, create=create)
            if not path.exists():
                _create(path, cls)
        try:
            return cls._connect(path, wait_s=READ_TIMEOUT_S if to_read else BUSY_TIMEOUT_S)
        except StoreError as error:
            if not to_read or name_of(error.__cause__) not in UNREADABLE:
                raise
        with told(path):
            copy = copy_to_read(path)
        try:
            database = cls._connect(Path(copy.name) / path.name)
        except BaseException:
            copy.cleanup()
            raise
        database.path, database._file, database._copy = path, None, copy
        database.note = f"{path} is locked or cannot be written, so this was read from a copy made just now"
        return database

    @classmethod
    def watch(cls, path: Path) -> Self:
        """Open a store that others may be writing to, to look at it. Nothing is written, not even its log is tidied,
        and no writer ever waits for this connection.

        Raises:
            StoreError: the file is missing or no store, or its schema is not that of this code.
        """
        with told(path):
            check_file(path, create=False)
        with told(path, " cannot be looked at:"):
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=READ_TIMEOUT_S, isolation_level=None
            )
            try:
                connection.row_factory = sqlite3.Row
                database, newest = cls(connection, path), migrations()[-1][0]
                if (version := database._version()) != newest:
                    older = version < newest
                    remedy = "`agentopcd knowledge list` brings it up to date" if older else "install a newer one"
                    raise StoreError(f"{path} has schema {version}, this agentopcd knows {newest}; {remedy}")
            except BaseException:
                connection.close()
                raise
        return database

    @classmethod
    def _connect(cls, path: Path | str, wait_s: float = BUSY_TIMEOUT_S) -> Self:
        with told(path, " cannot be used as a knowledge store:"):
            connection = sqlite3.connect(path, timeout=wait_s, isolation_level=None)
            try:
                database = cls(connection, path)
                database._prepare(wait_s)
            except BaseException:
                connection.close()
                raise
        return database

    def close(self) -> None:
        """Close the connection. Committed data stays."""
        self._connection.close()
        if self._copy is not None:
            self._copy.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self, wait_s: float) -> None:
        connection = self._connection
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        version = self._version()
        if version == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            # Another process may have migrated the file between the two checks, so check once more.
            version = self._version()
            if version == 0:
                raise StoreError(f"{self.path} is a database of another program, not a knowledge store")
        self._use_wal(wait_s)
        connection.execute("PRAGMA synchronous = NORMAL")
        newest = migrations()[-1][0]
        if version < newest:
            self._migrate()
        elif version > newest:
            raise StoreError(f"{self.path} has schema {version}, this agentopcd knows {newest}; install a newer one")

    def _version(self) -> int:
        return self._connection.execute("PRAGMA user_version").fetchone()[0]

    def _use_wal(self, wait_s: float) -> None:
        """Switch to write-ahead logging. The switch ignores the busy timeout, hence the loop."""
        deadline = time.monotonic() + wait_s
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
        if self._copy is not None:
            raise StoreError(f"{self.path} was opened to read only")
        if self._connection.in_transaction:
            yield
            return
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._check_place()
            self._execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite itself rolls back after some errors
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def read(self) -> Iterator[None]:
        """One consistent view over several queries."""
        self._check_process()
        if self._connection.in_transaction:
            yield
            return
        self._execute("BEGIN")
        self._reading = True
        try:
            yield
        finally:
            self._reading = False
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _check_place(self) -> None:
        """Refuse to write into a file that is no longer at its path: SQLite would, and the rows would be gone."""
        if self._file is not None and _identity(self.path) != self._file:
            raise StoreError(
                f"{self.path} was removed or replaced while this command was using it, so nothing more can be stored; "
                "put it back, or repeat the command to begin a new store"
            )

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise StoreError("a store cannot be carried into another process; open it there")

    def query(self, sql: str, parameters: Mapping[str, Any] | Sequence[Any] = ()) -> list[Row]:
        """The rows of one SELECT, as dictionaries."""
        self._check_process()
        with told(self.path):
            return [dict(row) for row in self._connection.execute(sql, parameters)]

    def change(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run one statement that changes rows and return their number; for the few rows that may change at all."""
        return self._execute(sql, parameters).rowcount

    def copy_into(self, target: sqlite3.Connection) -> None:
        """Copy the whole file into another database, while others go on using this one."""
        self._check_process()
        with told(self.path):
            self._connection.backup(target)

    def _execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        with told(self.path):
            return self._connection.execute(sql, parameters)

    def insert(self, table: str, row: Mapping[str, Any], *, unique: Sequence[str] = ()) -> int | None:
        """Insert one row.

        Args:
            table: a table of the schema.
            row: column to value.
            unique: columns whose conflict means "already there"; other violations still raise.

        Returns:
            The new rowid, or None if the row was already there.

        Raises:
            StoreError: a column name is not an identifier, or a value has another type than its column; imported
                files supply both.
        """
        check_columns(row)
        self._check_types(table, row)
        columns, marks = ", ".join(row), ", ".join("?" * len(row))
        conflict = f"ON CONFLICT ({', '.join(unique)}) DO NOTHING" if unique else ""
        with self.write():
            cursor = self._execute(f"INSERT INTO {table} ({columns}) VALUES ({marks}) {conflict}", tuple(row.values()))
        return cursor.lastrowid if cursor.rowcount == 1 else None

    def columns(self, table: str) -> dict[str, str]:
        """The columns of a table and their types."""
        if table not in self._types:
            rows = self.query(f"PRAGMA table_info({table})")
            self._types[table] = {column["name"]: column["type"] for column in rows}
        return self._types[table]

    def _check_types(self, table: str, row: Mapping[str, Any]) -> None:
        """Refuse what SQLite would turn into another type: the number 1 into the text "1", or false into 0."""
        types = self.columns(table)
        for name, value in row.items():
            wanted = types.get(name, "")
            if isinstance(value, bool) or not (value is None or isinstance(value, FITS.get(wanted, object))):
                raise StoreError(f"{name} of a {table} wants {wanted} and got {value!r:.60}")

    def update_run(self, run_id: int, result: str | None, status: str) -> None:
        """Close a run, or open it again; runs are the only rows that change."""
        with self.write():
            self._execute(
                "UPDATE run SET result = ?, status = ?, finished_at = ? WHERE id = ?",
                (result, status, None if status == "running" else now(), run_id),
            )
