"""Refs, imports of text and of exports, and damaged store folders."""

from __future__ import annotations

import codecs
import hashlib
import json
import random
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentopcd.core.types import EMPTY, MARKER, Context
from agentopcd.knowledge import Store
from agentopcd.knowledge.items import identify, parse
from benchmarks.fuzz import stock
from benchmarks.fuzz.harness import Case, Refused, Silent, call
from benchmarks.fuzz.mutate import ODD_TEXTS, damage_bytes, damage_json, odd_text, some_text

# -- refs ----------------------------------------------------------------------------------------------

NAMES = (
    "room/best", "room/pool/01/01", "room/²", "room/2²", "room/١٢", "room/pool/1/٢", "empty",
    "0000", "", " ", "a b", "/",
    "room/", "//", "room/\u2028x", "room/\u200bbest", "Room/Best", "-x", "--as", "room/best/",
    "é/é", "e\u0301/é", "room/\x1b[1m",
    "9" * 400, "x" * 3000, "room/%s", "room/*", "room/1e5", "room/½", "room/①", "other/pool/00/01",
    "0" * 64, "deadbeef",
)  # fmt: skip
TARGETS = ("room/best", "room/mine", "empty", "0000", "room/nope", "", "room/pool/00/02", "²²²²", "e3b0c442")


def try_refs(case: Case) -> None:
    """A ref with any name points where it was moved to, can be listed, shown and exported, and bricks nothing."""
    rng = case.rng
    work = stock.copy(stock.store(), case.folder / "work")
    name = rng.choice(NAMES) if rng.random() < 0.7 else odd_text(rng).replace("\0", "")[:300]
    name = name.encode("utf-8", "replace").decode() if rng.random() < 0.9 else name
    target = rng.choice(TARGETS)
    how = rng.choice(("move", "import", "prefix"))
    case.shown = f"{how} {name!r:.200} {target!r}"
    refused = None
    try:
        if how == "move":
            call("knowledge", "move", "--work", str(work), "--", name, target)
        elif how == "import":
            (case.folder / "rules.txt").write_text("Some rules.\n")
            call("knowledge", "import", "rules.txt", f"--as={name}", "--work", str(work))
        else:
            rows = b"".join(json.dumps(row).encode() + b"\n" for row in stock.export(False))
            (case.folder / "all.jsonl").write_bytes(rows)
            call("knowledge", "import", "all.jsonl", f"--prefix={name}", "--work", str(work))
    except Refused as error:
        refused = error
    listed = json.loads(call("knowledge", "list", "refs", "--json", "--limit", "1000", "--work", str(work)))
    call("knowledge", "list", "contexts", "--work", str(work))
    call("knowledge", "show", "room/mine", "--work", str(work))
    if refused:
        raise refused
    if how == "prefix":
        wanted = {f"{name}{ref}" for ref in ("room/best", "room/mine")}
        if lost := wanted - {row["name"] for row in listed}:
            raise Silent(f"refs {lost!r:.100} were imported and are not there")
        return
    found = [row["context"] for row in listed if row["name"] == name]
    if len(found) != 1:
        raise Silent(f"{name!r:.80} is listed {len(found)} times")
    with Store.open(work / "store.db") as store:
        if store.resolve(name) != found[0] or store.ref(name) != found[0]:
            raise Silent(f"{name!r:.80} resolves to another context than it is listed with")
    call("knowledge", "export", "-o", "out.txt", "--work", str(work), "--", name)
    text = Path("out.txt").read_bytes().decode()
    if not any(Context(text, place).id == found[0] for place in ("user", "system")):  # type: ignore[arg-type]
        raise Silent(f"the export of {name!r:.80} is not its text")


# -- imports -------------------------------------------------------------------------------------------


def try_text(case: Case) -> None:
    """A text file: free text is kept to the byte, and every item is there; or it is refused."""
    rng = case.rng
    pieces = [
        f"{rng.choice((MARKER, '* EXPERIENCE ITEM:', '- experience item:', ''))} {some_text(rng)}"
        for _ in range(rng.randint(0, 4))
    ]
    text = rng.choice(("\n", "\n\n", "\r\n", " ")).join(pieces) + rng.choice(("", "\n"))
    data = text.encode("utf-8", "replace")
    how = "whole"
    if rng.random() < 0.3:
        data, how = damage_bytes(rng, data)
    name = rng.choice(("rules.txt", "rules.md", "rules", "RULES.TXT", "rules.jsonl.txt", "r\u00fcles.txt", "a b.txt"))
    (case.folder / name).write_bytes(data)
    case.shown = f"{name}, {how}: {data[:300]!r}"
    call("knowledge", "import", name, "--as", "a/b", "--work", "work")
    given = decoded(data)
    call("knowledge", "export", "a/b", "-o", "out.txt", "--work", "work")
    kept = (case.folder / "out.txt").read_bytes().decode()
    with Store.open(Path("work/store.db")) as store:
        items = store.items(context_id=store.resolve("a/b"))
    wanted = parse(given)
    if MARKER not in given:
        if items or kept not in (given, given.rstrip("\n"), data.decode("utf-8", "replace")):
            raise Silent(f"free text {given!r:.100} became {kept!r:.100} with {len(items)} items")
    elif not len({identify(item.text) for item in items}) <= len(items) <= len(wanted):
        raise Silent(f"{len(wanted)} items became {len(items)}")
    elif len(items) < len({piece.text for piece in wanted if any(map(str.isalnum, piece.text))}) - _alike(wanted):
        raise Silent(f"{len(wanted)} items became {len(items)}: {kept!r:.200}")


def _alike(pieces: list[Any]) -> int:
    """How many of the pieces cannot be told apart, or hold nothing, once they are cleaned."""
    from agentopcd.knowledge.items import sanitise

    cleaned = [sanitise(piece.text) for piece in pieces]
    return len(pieces) - len({text for text in cleaned if any(map(str.isalnum, text))})


COLUMNS = ("id", "type", "text", "run_id", "status", "success", "reward", "env", "items", "weight", "x")


def try_export(case: Case) -> None:
    """An export with damage: what was imported is exported again as it stood in the file; or it is refused."""
    rng = case.rng
    rows: list[Any] = list(stock.export(rng.random() < 0.7))
    done = []
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        at = rng.randrange(len(rows))
        how = rng.choice(("value", "value", "value", "drop", "twice", "swap"))
        if how == "value":
            rows[at], how = damage_json(rng, rows[at], COLUMNS)
        elif how == "drop":
            del rows[at]
        elif how == "twice":
            rows.insert(rng.randrange(len(rows)), rows[at])
        else:
            other = rng.randrange(len(rows))
            rows[at], rows[other] = rows[other], rows[at]
        done.append(f"row {at + 1}: {how}")
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    if rng.random() < 0.25:
        data, how = damage_bytes(rng, data)
        done.append(how)
    name = "all.jsonl" if rng.random() < 0.9 else rng.choice(("ALL.JSONL", "all.ndjson", "all.txt"))
    (case.folder / name).write_bytes(data)
    case.shown = f"{name}: {', '.join(done) or 'whole'}"
    call("knowledge", "import", name, "--gate", "keep", "--work", "work")
    call("knowledge", "export", "--all", "--episodes", "-o", "again.jsonl", "--work", "work")
    given, kept = _contents(data), _contents((case.folder / "again.jsonl").read_bytes())
    if lost := given - kept:
        raise Silent(f"{sum(lost.values())} rows of the file are not in the store, such as {next(iter(lost)):.250}")
    if more := Counter(row for row in kept if '"type": "run"' not in row) - given:
        raise Silent(f"{sum(more.values())} rows of the store are not in the file, such as {next(iter(more)):.250}")


def decoded(data: bytes) -> str:
    """The text of a file by its byte order mark."""
    for name, *marks in (
        ("utf-32", codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), ("utf-16", codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    ):  # fmt: skip
        if data.startswith(tuple(marks)):
            return data.decode(name)
    return data.decode("utf-8-sig")


def _contents(data: bytes) -> Counter[str]:
    """The distinct rows of an export, without what an import counts anew: the numbers of runs and episodes."""
    found: set[str] = set()
    for line in decoded(data).split("\n"):
        try:
            row = json.loads(line) if line.strip() else {}
        except ValueError:
            row = line
        if not isinstance(row, dict):
            found.add(repr(row))
        elif "type" in row and row["type"] != "end" and row.get("id") != EMPTY.id:  # every store has the empty context
            local = {"run_id", "episode_id"} | ({"id"} if row["type"] in ("run", "episode") else set())
            found.add(json.dumps({key: value for key, value in row.items() if key not in local}, sort_keys=True))
    return Counter(found)


# -- damaged stores ------------------------------------------------------------------------------------

LISTS = ("items", "contexts", "refs", "episodes")


def try_store(case: Case) -> None:
    """A store folder with damage: lists and exports say what was stored, or refuse; nothing ends in a traceback."""
    rng = case.rng
    work = stock.copy(stock.store(), case.folder / "work")
    file = work / "store.db"
    how = _damage_store(rng, work, file)
    case.shown = how
    words = rng.choice(("list", "show", "export", "import", "check", "play"))
    if words == "list":
        what = rng.choice(LISTS)
        rows = json.loads(call("knowledge", "list", what, "--json", "--limit", "99", "--work", str(work)))
        _same_list(rows, what)
    elif words == "show":
        name = rng.choice(("1", "5", "room/best", "room/mine"))
        call("knowledge", "show", name, "--work", str(work))
    elif words == "export":
        call("knowledge", "export", "--all", "--episodes", "-o", "out.jsonl", "--work", str(work))
        _check_ids((case.folder / "out.jsonl").read_bytes())
    elif words == "import":
        (case.folder / "rules.txt").write_text("Some rules.\n")
        call("knowledge", "import", "rules.txt", "--as", "new/one", "--work", str(work))
    elif words == "check":
        call("store", "check", "--work", str(work), may_fail=True)
    else:
        call("play", "--env", "frozen-lake", "--model", str(stock.MODEL), "--dry-run", "--work", str(work))


def _damage_store(rng: random.Random, work: Path, file: Path) -> str:
    how = rng.choice(("bytes", "bytes", "bytes", "wal", "shm", "folder", "other", "sql", "gone", "link"))
    if how == "bytes":
        data, how = damage_bytes(rng, file.read_bytes())
        file.write_bytes(data)
    elif how in ("wal", "shm"):
        work.joinpath(f"store.db-{how}").write_bytes(rng.choice((b"", b"x" * 40, rng.randbytes(5000))))
    elif how == "folder":
        file.unlink()
        file.mkdir()
    elif how == "other":
        file.write_bytes(rng.choice((b"PK\x03\x04", b"SQLite format 3\0", b"\0" * 4096, ODD_TEXTS[-1].encode())))
    elif how == "gone":
        file.unlink()
    elif how == "link":
        file.rename(work / "elsewhere")
        file.symlink_to(rng.choice(("elsewhere", "nowhere", "store.db")))
    elif how == "sql":
        how = rng.choice(SQL)
        with sqlite3.connect(file) as connection:
            connection.executescript(how)
        connection.close()
    return how


SQL = (
    "PRAGMA user_version = 99", "PRAGMA user_version = 0", "PRAGMA user_version = -1",
    "DROP TABLE run", "DROP VIEW ref",
    "DROP TABLE transcript", "DELETE FROM transcript", "UPDATE transcript SET body = x'00'", "DROP VIEW item_status",
    "PRAGMA foreign_keys = OFF; DELETE FROM run", "UPDATE run SET status = 'running'", "UPDATE run SET config = '[]'",
    "PRAGMA foreign_keys = OFF; DELETE FROM context", "ALTER TABLE run RENAME TO runs", "CREATE TABLE extra (x)",
    "UPDATE run SET result = NULL", "PRAGMA journal_mode = DELETE", "DELETE FROM item_event",
    "UPDATE run SET config = '{}'",
    "UPDATE model SET path = '/nowhere'", "DROP TRIGGER context_frozen; UPDATE context SET recipe = '[]'",
)  # fmt: skip


def _same_list(rows: list[Any], what: str) -> None:
    """Items and contexts are named by what they say: a list that shows another text under an id is wrong."""
    for row in rows:
        if what == "items" and identify(row["text"]) != row["id"]:
            raise Silent(f"item {row['id'][:12]} is listed with another text: {row['text']!r:.80}")
        if what == "contexts" and Context(row["text"], row["placement"]).id != row["id"]:
            raise Silent(f"context {row['id'][:12]} is listed with another text: {row['text']!r:.80}")


def _check_ids(data: bytes) -> None:
    for line in filter(None, data.decode().split("\n")):
        row = json.loads(line)
        if row.get("type") == "item" and identify(row["text"]) != row["id"]:
            raise Silent(f"item {row['id'][:12]} was exported with another text")
        if row.get("type") == "context" and _context_id(row) != row["id"]:
            raise Silent(f"context {row['id'][:12]} was exported with another text")


def _context_id(row: dict[str, Any]) -> str:
    payload = f"{row['placement']}\0{row['rendered']}" if row["rendered"] else ""
    return hashlib.sha256(payload.encode()).hexdigest()


KINDS: dict[str, tuple[Callable[[Case], None], int]] = {
    "refs": (try_refs, 400),
    "texts": (try_text, 600),
    "exports": (try_export, 900),
    "stores": (try_store, 700),
}
