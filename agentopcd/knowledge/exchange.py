"""The format of exports, JSON lines, and how they are read; :mod:`agentopcd.knowledge.dump` writes them.

A JSON lines file is a header, typed rows in foreign-key order, and the number of the rows as its end. Run and episode
numbers are local to the file. An import adds the rows that the receiving store lacks and overwrites nothing. The rows
say what their store had only imported itself. Recordings and the moves of ENV/student stay behind.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import cast

from agentopcd.core.errors import AgentOpcdError, StoreError, did_you_mean
from agentopcd.core.transcript import differs, pack
from agentopcd.core.types import MARKER, Context
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.items import identify, item_ids, normalise, sanitise
from agentopcd.knowledge.placebo import placebo
from agentopcd.knowledge.poison import flags
from agentopcd.knowledge.refs import check_ref
from agentopcd.knowledge.store import EPISODE_KEY, PLACEBO, Store

FORMAT, VERSION = "agentopcd-kb", 4
ENDLESS = 1
"""The version whose files have no end, so that a file cut short could not be told from a whole one."""

BEFORE_METRICS = 2
"""The last version whose episodes have no metrics beside their transcript."""

BEFORE_LOOKS = 3
"""The last version whose files hold no looks and do not say what their store had only imported."""

ELSEWHERE = "imported:"
"""Before the setup of an imported episode, and before the actor of an imported move of a ref: both are shown, and
never taken for what was played or moved here."""

IMPORTED = "import"
"""Actor of the events that an import adds. What it reads off the text (:func:`signs`) is not exported again."""

GATES = ("review", "keep")
TABLES = {"source": "item_source", "event": "item_event", "ref": "ref_move"}
"""The tables of the types of rows that are called otherwise."""
NOT_WRITTEN = {
    "event": {"id"}, "ref": {"id"}, "look": {"id"}, "run": {"imported"}, "context": {"imported"},
    "episode": {"metrics"},
}  # fmt: skip
"""The columns that a row of an export may lack."""
KINDS = ("run", "task", "item", "context", "model", "episode", "source", "event", "ref", "look")
"""Types of rows, in the order in which they refer to each other."""


def without(row: Row, name: str) -> Row:
    """A row without one of its columns."""
    return {key: value for key, value in row.items() if key != name}


def signs(text: str) -> tuple[str, ...]:
    """The flags that every import gives an item by its text."""
    return tuple(flags(sanitise(text), given=text))


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


def load(store: Store, rows: Iterable[Row], prefix: str = "", *, gate: str = "review") -> dict[str, int]:
    """Merge exported rows into the store, in one transaction.

    Ids are recomputed and checked. Items that are new to this store arrive with their history, and are flagged as if
    they were found here. With ``gate="review"``, active and pinned items then wait for approval, and nothing in the
    file is evidence: its episodes are compared with none of this store, its origins add no support, and its looks are
    not this store's. With ``"keep"``, all of that is taken as this store's own, but for what the sender had only
    imported: that stays what it was there. A task that this store already has keeps its split.

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
    if header.get("version") not in (ENDLESS, BEFORE_METRICS, BEFORE_LOOKS, VERSION):
        raise StoreError(f"export version {header.get('version')!r}, this version of agentopcd reads {VERSION}")
    with store.write():
        importer = _Load(store, prefix, trusted=gate == "keep", older=header["version"] != VERSION)
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

    def __init__(self, store: Store, prefix: str, *, trusted: bool, older: bool) -> None:
        self.store, self.prefix, self.trusted, self.older = store, prefix, trusted, older
        self.runs: dict[int, int] = {}
        self.own: set[int] = set()
        """Runs of the file that are this store's own."""
        self.episodes: dict[int, int] = {}
        self.items: set[str] = set()
        self.refs: dict[str, list[Row]] = {}
        self.placebos: dict[str, str] = {}
        """New contexts that say that they are placebos, and of which context."""
        self.new: dict[str, int] = dict.fromkeys(KINDS, 0)

    def take(self, row: Row) -> None:
        row = dict(row)
        kind = row.pop("type")
        if kind not in KINDS:
            raise StoreError(f"unknown row type {kind!r:.40}{did_you_mean(str(kind)[:40], KINDS)}")
        # A row that does not say that it was imported would pass for the sender's own.
        may_lack = NOT_WRITTEN.get(kind, set()) - (set() if self.older else {"imported"})
        if missing := self.store.columns(TABLES.get(kind, kind)).keys() - row.keys() - may_lack:
            raise StoreError(f"a row of type {kind} lacks {', '.join(sorted(missing))}; the file was changed")
        self.new[kind] += bool(getattr(self, f"_{kind}")(row))

    def _run(self, row: Row) -> bool:
        number = row.pop("id")
        for name in ("config", "result"):
            _object_or_null(row, name)
        known = self.store.lookup("run", **without(row, "imported"))
        self.own |= {number} if known and not known["imported"] else set()
        given = {**row, "imported": row.get("imported", 0) if self.trusted else 1}
        self.runs[number] = known["id"] if known else cast(int, self.store.insert("run", given))
        return known is None

    def _task(self, row: Row) -> bool:
        return self.store.insert("task", row, unique=("env", "key")) is not None

    def _item(self, row: Row) -> bool:
        if identify(row["text"]) != row["id"] or normalise(row["text"]) != row["text"]:
            raise StoreError(f"item {row['id'][:12]} does not fit its text {row['text'][:60]!r}; the file was changed")
        if self.store.insert("item", row, unique=("id",)) is None:
            return False
        self.items.add(row["id"])
        # The text stays, because its hash is its name. The flags come before its history, which decides its status.
        for flag in signs(row["text"]):
            self.store.event(row["id"], "flag", IMPORTED, flag)
        return True

    def _context(self, row: Row) -> bool:
        links = row.pop("items")
        _object_or_null(row, "recipe")
        recipe = json.loads(row["recipe"])
        twin = recipe.get("order") == PLACEBO
        context = Context(row["rendered"], row["placement"])
        if context.id != row["id"]:
            raise StoreError(f"context {row['id'][:12]} does not fit its text; the file was changed")
        if links not in (([],) if twin else (item_ids(context), _ids_before(context))):
            raise StoreError(f"context {row['id'][:12]} shows other items than it lists; the file was changed")
        given = {**row, "imported": row.get("imported", 0) if self.trusted else 1}
        if self.store.insert("context", given, unique=("id",)) is None:
            return False
        if twin and not self.trusted:
            self.placebos[row["id"]] = str(recipe.get("of"))
        for pos, item_id in enumerate(links):
            self.store.insert("context_item", {"context_id": row["id"], "pos": pos, "item_id": item_id})
        return True

    def _model(self, row: Row) -> bool:
        contexts, own = row.pop("contexts"), row["run_id"] in self.own
        row["run_id"] = self.runs.get(row["run_id"])
        if self.store.insert("model", row, unique=("id",)) is None:
            return False
        trained = contexts or row["parent_id"] is not None
        if trained and (own or row["run_id"] is None) and not self.trusted:  # it would count as trained here
            by = f"run {row['run_id']}, which is this store's own" if own else "no run"
            raise StoreError(
                f"model {row['id'][:12]!r} says that it was trained, by {by}; import with --gate keep if you trust the "
                "file"
            )
        for context_id, weight in contexts.items():
            self.store.insert("model_context", {"model_id": row["id"], "context_id": context_id, "weight": weight})
        return True

    def _episode(self, row: Row) -> bool:
        number, transcript = row.pop("id"), row.pop("transcript")
        if transcript is not None and (odd := differs(row, transcript)):
            raise StoreError(f"the transcript does not fit its episode ({odd}); the file was changed")
        row["run_id"] = self.runs[row["run_id"]]
        _object_or_null(row, "metrics")
        for name, value in [*json.loads(row["metrics"] or "{}").items(), ("reward", row["reward"])]:
            if not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
                raise StoreError(f"{name!r:.40} is {value!r:.40}, which is no finite number; the file was changed")
        played = row["setup"].removeprefix(ELSEWHERE)
        if self.store.lookup("episode", **{name: row[name] for name in EPISODE_KEY} | {"setup": played}):
            row["setup"] = played
        elif not self.trusted:
            row["setup"] = f"{ELSEWHERE}{played}"
        episode_id = self.store.insert("episode", row, unique=EPISODE_KEY)
        if episode_id is not None and transcript is not None:
            self.store.insert("transcript", {"episode_id": episode_id, "body": pack(transcript)})
        known = self.store.lookup("episode", **{name: row[name] for name in EPISODE_KEY})
        self.episodes[number] = cast(Row, known)["id"]
        return episode_id is not None

    def _source(self, row: Row) -> bool:
        own = row["run_id"] in self.own and not self.trusted
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
        new = self.store.add_source(row)
        if new and own:  # it would count as what this store has seen itself
            raise StoreError(
                f"it adds an origin to run {row['run_id']}, which is this store's own; import with --gate keep if you "
                "trust the file"
            )
        return new

    def _event(self, row: Row) -> bool:
        if row["item_id"] not in self.items:
            if not self.store.lookup("item", id=row["item_id"]):
                raise StoreError(f"event of item {row['item_id']!r:.40}, which is not there; the file was changed")
            return False  # an item that this store already had keeps its status
        self.store.insert("item_event", row)
        return True

    def _ref(self, row: Row) -> bool:
        row["name"] = self.prefix + row["name"]
        check_ref(row["name"])
        if not isinstance(row["context_id"], (str, type(None))):
            raise StoreError(f"ref {row['name']!r} points at no context; the file was changed")
        row["run_id"] = self.runs.get(row["run_id"])
        if not self.trusted:
            row["actor"] = f"{ELSEWHERE}{row['actor'].removeprefix(ELSEWHERE)}"
        self.refs.setdefault(row["name"], []).append(row)
        return False  # counted at the end, when all moves of a ref are known

    def _look(self, row: Row) -> bool:
        row["run_id"] = self.runs.get(row["run_id"])
        _object_or_null(row, "result")
        key = ("env", "model_id", "context_id", "setup", "plan")
        if not self.trusted or self.store.lookup("look", **{name: row[name] for name in key}):
            return False  # what others have spent of their false-alarm rate is not spent here
        return self.store.insert("look", row) is not None

    def end(self, gate: str) -> None:
        for id_, of in self.placebos.items():  # whose lines are no items, so nobody is asked about them
            if not self.store.lookup("context", id=of) or placebo(self.store.get_context(of)).id != id_:
                raise StoreError(
                    f"context {id_[:12]} is not the placebo of context {of[:12]}, as it says; import with --gate keep "
                    "if you trust the file"
                )
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
    if row.setdefault(name, None) is not None and not isinstance(json.loads(row[name]), dict):
        raise StoreError(f"{name} is no JSON object; the file was changed")
