"""Import and export of stores: lossless JSON lines.

A JSON lines file is a header, typed rows in foreign-key order, and the number of the rows as its end. Run and episode
numbers are local to the file. An import adds the rows that the receiving store lacks and overwrites nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, cast

from agentopcd.core.errors import AgentOpcdError, StoreError, did_you_mean
from agentopcd.core.transcript import UNREADABLE, differs, pack, unpack
from agentopcd.core.types import EMPTY, MARKER, Context
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.faults import REPAIR
from agentopcd.knowledge.items import identify, item_ids, normalise
from agentopcd.knowledge.refs import check_ref
from agentopcd.knowledge.store import EPISODE_KEY, Store

FORMAT, VERSION = "agentopcd-kb", 2
ENDLESS = 1
"""The version whose files have no end, so that a file cut short could not be told from a whole one."""

IMPORTED = "import"
"""Actor of the events that an import adds: decisions of the receiver, which are not exported again."""

GATES = ("review", "keep")
TABLES = {"source": "item_source", "event": "item_event", "ref": "ref_move"}
"""The tables of the types of rows that are called otherwise."""
KINDS = ("run", "task", "item", "context", "model", "episode", "source", "event", "ref")
"""Types of rows, in the order in which they refer to each other."""


# -- JSON lines: out ---------------------------------------------------------------------------------


def dump(store: Store, contexts: Iterable[str] | None = None, *, episodes: bool = False) -> Iterator[Row]:
    """Export the store as typed rows, header first.

    Args:
        contexts: only these contexts (ids) with their items, origins and refs; by default everything.
        episodes: also export episodes and transcripts. Without them, an item's origin still names
            environment and task, so the leak guard works in the receiving store.
    """
    with store.read():
        wanted = None if contexts is None else {EMPTY.id, *contexts}
        try:
            rows = list(_Dump(store, wanted, episodes and wanted is None).rows())
        except KeyError as error:
            raise StoreError(f"{store.path} refers to row {error} of a table, which is not there; {REPAIR}") from error
    yield {"format": FORMAT, "version": VERSION}
    for row in rows:
        if row["type"] == "episode":  # unpacked one by one: together they may not fit in memory
            row = {**row, "transcript": _transcript(store, row["transcript"])}
        yield row
    yield {"type": "end", "rows": len(rows)}


def _transcript(store: Store, episode_id: int) -> Row | None:
    body = store.lookup("transcript", episode_id=episode_id)
    try:
        return unpack(body["body"]) if body else None
    except UNREADABLE as error:
        raise StoreError(f"the transcript of episode {episode_id} in {store.path} is damaged; {REPAIR}") from error


class _Dump:
    """Collects the rows of one export. Runs come first in the file but are known last."""

    def __init__(self, store: Store, wanted: set[str] | None, episodes: bool) -> None:
        self.store, self.episodes = store, episodes
        self.contexts = [row for row in store.table("context", "id") if wanted is None or row["id"] in wanted]
        self.links = {row["id"]: [item.id for item in store.items(context_id=row["id"])] for row in self.contexts}
        held = {item_id for ids in self.links.values() for item_id in ids}
        self.items = [row for row in store.table("item", "id") if wanted is None or row["id"] in held]
        self.held = {row["id"] for row in self.items}
        self.shown = {row["id"] for row in self.contexts}
        self.everything = wanted is None
        self.runs: dict[int, Row] = {row["id"]: row for row in store.table("run", "id")}
        self.used: set[int] = set()

    def rows(self) -> Iterator[Row]:
        models = self._models()
        episodes = list(self.store.table("episode", "id")) if self.episodes else []
        self.local = {row["id"]: number for number, row in enumerate(episodes, 1)}
        sources, events, refs = self._sources(), self._events(), self._refs()
        self.used.update(row["run_id"] for row in (*models, *episodes, *sources, *refs) if row["run_id"] is not None)
        number = {run_id: n for n, run_id in enumerate(sorted(self.used), 1)}
        for run_id, n in number.items():
            yield {**_typed("run", self.runs[run_id]), "id": n}
        for row in self._tasks(episodes):
            yield _typed("task", row)
        for row in self.items:
            yield _typed("item", row)
        for row in self.contexts:
            yield {**_typed("context", row), "items": self.links[row["id"]]}
        for row in models:
            weights = self.store.model_contexts(row["id"]) if self.everything else {}
            yield {**_typed("model", row), "run_id": number.get(row["run_id"]), "contexts": weights}
        for row in episodes:
            yield {**_typed("episode", row), "id": self.local[row["id"]], "run_id": number[row["run_id"]],
                   "transcript": row["id"]}  # fmt: skip
        for row in sources:
            yield {**_typed("source", row), "run_id": number[row["run_id"]]}
        for row in events:
            yield {key: value for key, value in _typed("event", row).items() if key != "id"}
        for row in refs:
            moved = {key: value for key, value in _typed("ref", row).items() if key != "id"}
            yield {**moved, "run_id": number.get(row["run_id"])}

    def _models(self) -> list[Row]:
        return list(self.store.table("model", "rowid")) if self.everything else []

    def _tasks(self, episodes: list[Row]) -> list[Row]:
        """Tasks of the exported episodes; the origin of an item carries its own task."""
        played = {(row["env"], row["task_key"]) for row in episodes}
        return [row for row in self.store.table("task", "env, key") if (row["env"], row["key"]) in played]

    def _sources(self) -> list[Row]:
        """Origins of the items; without episodes, origins that differ only in their episode are merged."""
        kept: dict[tuple[Any, ...], Row] = {}
        for row in self.store.table("item_source", "run_id, episode_id, line, item_id, env, task_key, raw"):
            if row["item_id"] not in self.held:
                continue
            row["episode_id"] = self.local.get(row["episode_id"])
            if row["shown_context_id"] not in self.shown:
                row["shown_context_id"] = None
            key = tuple(row[name] for name in ("item_id", "run_id", "episode_id", "env", "task_key", "line"))
            kept.setdefault(key, row)
        return sorted(kept.values(), key=_source_order)

    def _events(self) -> list[Row]:
        def travels(row: Row) -> bool:
            known = row["item_id"] in self.held and (row["other_id"] is None or row["other_id"] in self.held)
            return known and row["actor"] != IMPORTED

        # Sorted by item, because an importer may hold the items in another order.
        return sorted(filter(travels, self.store.table("item_event", "id")), key=lambda row: row["item_id"])

    def _refs(self) -> list[Row]:
        moves = list(self.store.table("ref_move", "id"))
        if not self.everything:
            current = {name for name, context_id in self.store.refs().items() if context_id in self.shown}
            moves = [row for row in moves if row["name"] in current and row["context_id"] in self.shown]
        return sorted(moves, key=lambda row: row["name"])


def _source_order(row: Row) -> tuple[Any, ...]:
    return (
        row["run_id"],
        row["episode_id"] or 0,
        row["env"] or "",
        row["task_key"] or "",
        row["line"],
        row["item_id"],
    )


def _typed(kind: str, row: Row) -> Row:
    return {"type": kind, **row}


def to_jsonl(rows: Iterable[Row]) -> Iterator[str]:
    """One JSON text per row, line end included."""
    for row in rows:
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"
        if any("\ud800" <= char <= "\udfff" for char in line):  # half a surrogate pair, which only an escape can write
            line = json.dumps(row, separators=(",", ":")) + "\n"
        yield line


def is_export(text: str) -> bool:
    """Whether a text is an export, whole or not, whatever its file is called: its first line is a row of one."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and (row.get("format") == FORMAT or row.get("type") in (*KINDS, "end"))


def from_jsonl(lines: Iterable[str]) -> Iterator[Row]:
    """The rows of a JSON lines file.

    Raises:
        StoreError: a line is not a JSON object; the message gives its number.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"line {number} is not JSON ({error}); export again") from error
        if not isinstance(row, dict):
            raise StoreError(f"line {number} is not a JSON object")
        yield row


# -- JSON lines: in ----------------------------------------------------------------------------------


def load(store: Store, rows: Iterable[Row], prefix: str = "", *, gate: str = "review") -> dict[str, int]:
    """Merge exported rows into the store, in one transaction.

    Ids are recomputed and checked. Items that are new to this store arrive with their history. With
    ``gate="review"``, active and pinned items then wait for approval; with ``"keep"``, they keep their
    status. A task that this store already has keeps its split.

    Args:
        prefix: prefix for the name of every imported ref.

    Returns:
        How many rows of each type were new.

    Raises:
        StoreError: another format or version, an id that does not fit its text, or a ref that exists
            here with another context.
    """
    if gate not in GATES:
        raise StoreError(f"unknown gate {gate!r}{did_you_mean(gate, GATES)}")
    stream = iter(rows)
    header = next(stream, {})
    if header.get("format") != FORMAT:
        raise StoreError(f'not a knowledge export: the first line has no "format": "{FORMAT}"')
    if header.get("version") not in (ENDLESS, VERSION):
        raise StoreError(f"export version {header.get('version')!r}, this version of agentopcd reads {VERSION}")
    with store.write():
        importer = _Load(store, prefix)
        for number, row in enumerate(_to_the_end(stream, header["version"] == ENDLESS), 2):
            try:
                importer.take(row)
            except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
                why = str(error) if isinstance(error, AgentOpcdError) else repr(error)
                raise StoreError(f"row {number} ({row.get('type')!r:.40}) cannot be imported: {why}") from error
        importer.end(gate)
    return importer.new


def _to_the_end(rows: Iterator[Row], endless: bool) -> Iterator[Row]:
    """The rows before the end of an export.

    Raises:
        StoreError: there is no end, it counts other rows, rows follow it, or a row is there twice, in another's place.
    """
    count = 0
    seen: set[int] = set()
    for row in rows:
        if row.get("type") == "end":
            if row.get("rows") != count:
                raise StoreError(f"the export should hold {row.get('rows')!r:.40} rows and holds {count}; export again")
            if (more := next(rows, None)) is not None:
                raise StoreError(f"the export goes on after its end, with {str(more)[:60]!r}; import each file alone")
            return
        count += 1
        if (text := hash(json.dumps(row, sort_keys=True))) in seen:
            raise StoreError(f"row {count + 1} of the export is there twice; export again")
        seen.add(text)
        yield row
    if not endless:
        raise StoreError(f"the export was cut short after {count} rows: its last line is missing; export again")


class _Load:
    """Imports rows one by one and translates the file's run and episode numbers."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store, self.prefix = store, prefix
        self.runs: dict[int, int] = {}
        self.episodes: dict[int, int] = {}
        self.items: set[str] = set()
        self.refs: dict[str, list[Row]] = {}
        self.new: dict[str, int] = dict.fromkeys(KINDS, 0)

    def take(self, row: Row) -> None:
        row = dict(row)
        kind = row.pop("type")
        if kind not in KINDS:
            raise StoreError(f"unknown row type {kind!r:.40}{did_you_mean(str(kind)[:40], KINDS)}")
        unnumbered = {"id"} if kind in ("event", "ref") else set()
        if missing := self.store.columns(TABLES.get(kind, kind)).keys() - row.keys() - unnumbered:
            raise StoreError(f"a row of type {kind} lacks {', '.join(sorted(missing))}; the file was changed")
        self.new[kind] += bool(getattr(self, f"_{kind}")(row))

    def _run(self, row: Row) -> bool:
        number = row.pop("id")
        for name in ("config", "result"):
            _object_or_null(row, name)
        known = self.store.lookup("run", **row)
        self.runs[number] = known["id"] if known else cast(int, self.store.insert("run", row))
        return known is None

    def _task(self, row: Row) -> bool:
        return self.store.insert("task", row, unique=("env", "key")) is not None

    def _item(self, row: Row) -> bool:
        if identify(row["text"]) != row["id"] or normalise(row["text"]) != row["text"]:
            raise StoreError(f"item {row['id'][:12]} does not fit its text {row['text'][:60]!r}; the file was changed")
        if self.store.insert("item", row, unique=("id",)) is None:
            return False
        self.items.add(row["id"])
        return True

    def _context(self, row: Row) -> bool:
        links = row.pop("items")
        _object_or_null(row, "recipe")
        context = Context(row["rendered"], row["placement"])
        if context.id != row["id"]:
            raise StoreError(f"context {row['id'][:12]} does not fit its text; the file was changed")
        if links not in (item_ids(context), _ids_before(context)):
            raise StoreError(f"context {row['id'][:12]} shows other items than it lists; the file was changed")
        if self.store.insert("context", row, unique=("id",)) is None:
            return False
        for pos, item_id in enumerate(links):
            self.store.insert("context_item", {"context_id": row["id"], "pos": pos, "item_id": item_id})
        return True

    def _model(self, row: Row) -> bool:
        contexts = row.pop("contexts")
        row["run_id"] = self.runs.get(row["run_id"])
        if self.store.insert("model", row, unique=("id",)) is None:
            return False
        for context_id, weight in contexts.items():
            self.store.insert("model_context", {"model_id": row["id"], "context_id": context_id, "weight": weight})
        return True

    def _episode(self, row: Row) -> bool:
        number, transcript = row.pop("id"), row.pop("transcript")
        if transcript is not None and (odd := differs(row, transcript)):
            raise StoreError(f"the transcript does not fit its episode ({odd}); the file was changed")
        row["run_id"] = self.runs[row["run_id"]]
        episode_id = self.store.insert("episode", row, unique=EPISODE_KEY)
        if episode_id is not None and transcript is not None:
            self.store.insert("transcript", {"episode_id": episode_id, "body": pack(transcript)})
        known = self.store.lookup("episode", **{name: row[name] for name in EPISODE_KEY})
        self.episodes[number] = cast(Row, known)["id"]
        return episode_id is not None

    def _source(self, row: Row) -> bool:
        row["run_id"] = self.runs[row["run_id"]]
        row["episode_id"] = self.episodes.get(row["episode_id"])
        if row["task_key"] is not None:
            # Items were extracted from this task, so a store that does not know it must never use it otherwise.
            origin = {"env": row["env"], "key": row["task_key"], "split": "extract"}
            self.store.insert("task", origin, unique=("env", "key"))
        if row["episode_id"] is None:
            same = ("item_id", "run_id", "env", "task_key", "line")
            if self.store.lookup("item_source", **{name: row[name] for name in same}):
                return False  # this store already has it, with its episode
        return self.store.add_source(row)

    def _event(self, row: Row) -> bool:
        if row["item_id"] not in self.items:
            return False  # an item that this store already had keeps its status
        self.store.insert("item_event", row)
        return True

    def _ref(self, row: Row) -> bool:
        row["name"] = self.prefix + row["name"]
        check_ref(row["name"])
        if not isinstance(row["context_id"], (str, type(None))):
            raise StoreError(f"ref {row['name']!r} points at no context; the file was changed")
        row["run_id"] = self.runs.get(row["run_id"])
        self.refs.setdefault(row["name"], []).append(row)
        return False  # counted at the end, when all moves of a ref are known

    def end(self, gate: str) -> None:
        for name, moves in self.refs.items():
            last, history = moves[-1]["context_id"], self.store.log(name)
            current = history[-1]["context_id"] if history else None
            if current not in (None, last):
                raise StoreError(
                    f"ref {name!r} is at {current[:12]} here and at {(last or 'nothing')[:12]} in the file; "
                    f"import under a prefix (--prefix other/) or move it by hand"
                )
            if not history:
                for move in moves:
                    self.store.insert("ref_move", move)
                self.new["ref"] += last is not None  # the numbers of an extraction's chains are no refs yet
        if gate == "review":
            for item in self.store.items(ids=self.items):
                if item.status in ("active", "pinned"):
                    self.store.event(item.id, "flag", IMPORTED, f"was {item.status} where it came from")


def _ids_before(context: Context) -> list[str]:
    """The items that version 0.1 saw in a context: it took more characters for ends of lines."""
    lines = [line[len(MARKER) :] for line in context.text.splitlines() if line.startswith(MARKER)]
    return [identify(line) for line in lines if normalise(line)]


def _object_or_null(row: Row, name: str) -> None:
    """Refuse JSON text that is no object: whoever reads the column would stumble over it."""
    if row[name] is not None and not isinstance(json.loads(row[name]), dict):
        raise StoreError(f"{name} is no JSON object; the file was changed")
