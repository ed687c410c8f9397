"""Queries of the store, but for those of :mod:`agentopcd.knowledge.episodes`: runs, models, items, contexts, refs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

from agentopcd.core.config import RECORDED
from agentopcd.core.errors import StoreError, did_you_mean
from agentopcd.core.types import EMPTY, Context
from agentopcd.knowledge.database import Row, check_columns
from agentopcd.knowledge.episodes import Episodes
from agentopcd.knowledge.items import Item
from agentopcd.knowledge.refs import home

_HOME = f"CASE WHEN env GLOB '{RECORDED}*,*' THEN substr(env, 1, instr(env, ',') - 1) ELSE env END"
"""What :func:`agentopcd.knowledge.refs.home` gives, in SQL."""


class Leak(NamedTuple):
    """An item of a context that came from a task that must not be learned from."""

    item_id: str
    env: str
    key: str
    split: str


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts ``pool/2`` before ``pool/10``."""
    pieces = re.split("([0-9]+)", name)
    pieces[1::2] = [digits.lstrip("0") for digits in pieces[1::2]]
    return [(0, len(piece), piece) if odd % 2 else (1, 0, piece) for odd, piece in enumerate(pieces)]


class Queries(Episodes):
    """All read access to the store."""

    # -- any table ----------------------------------------------------------------------------------

    def table(self, name: str, order: str) -> list[Row]:
        """All rows of a table, for the exchange of whole stores."""
        return self.query(f"SELECT * FROM {name} ORDER BY {order}")

    def lookup(self, name: str, **columns: Any) -> Row | None:
        """The first row whose columns have these values (None matches NULL)."""
        check_columns(columns)
        where = " AND ".join(f"{column} IS :{column}" for column in columns)
        rows = self.query(f"SELECT * FROM {name} WHERE {where} LIMIT 1", columns)
        return rows[0] if rows else None

    # -- runs, models, tasks ------------------------------------------------------------------------

    def run(self, run_id: int) -> Row:
        """One run; ``config`` and ``result`` are JSON text.

        Raises:
            StoreError: there is no such run.
        """
        rows = self.query("SELECT * FROM run WHERE id = ?", (run_id,))
        if not rows:
            raise StoreError(f"no run {run_id} in {self.path}")
        return rows[0]

    def runs(self, verb: str | None = None, status: str | None = None) -> list[Row]:
        """Runs, oldest first, optionally of one verb or status; ``config`` and ``result`` are JSON text."""
        return self.query(
            "SELECT * FROM run WHERE (:verb IS NULL OR verb = :verb) AND (:status IS NULL OR status = :status)"
            " ORDER BY id",
            {"verb": verb, "status": status},
        )

    def headlines(self) -> list[Row]:
        """The runs of this store, oldest first, without what was imported; of their results, what says how it went.

        ``evaluation`` is the table on test tasks of a consolidation or an evaluation, as JSON text.
        """
        return self.query(
            "SELECT id, verb, config, status, started_at, finished_at, json_extract(result, '$.error') AS error,"
            " json_extract(result, '$.episodes') AS episodes, json_extract(result, '$.env_errors') AS broken,"
            " CASE verb WHEN 'consolidate' THEN json_extract(result, '$.evaluation')"
            " WHEN 'evaluate' THEN result END AS evaluation FROM run WHERE NOT imported ORDER BY id"
        )

    def sizes(self) -> dict[str, int]:
        """The number of episodes, items and contexts (besides the empty one)."""
        names = {"episodes": "episode", "items": "item", "contexts": "context"}
        found = {name: self.query(f"SELECT count(*) AS n FROM {table}")[0]["n"] for name, table in names.items()}
        return found | {"contexts": found["contexts"] - 1}

    def models(self, env: str | None = None, *, trained: bool = False) -> list[Row]:
        """Models, newest first.

        Args:
            env: only models whose run's config has this ``env``; of a recording, however it was shown and graded.
            trained: only students: models that a finished run of this store has trained, but not on a placebo.
        """
        return self.query(
            "SELECT m.* FROM model m LEFT JOIN run r ON r.id = m.run_id"
            " WHERE (:env IS NULL OR json_extract(r.config, '$.env') = :env"
            " OR :recorded AND json_extract(r.config, '$.env') GLOB :env || ',*')"
            " AND (NOT :trained OR (m.parent_id IS NOT NULL AND r.status = 'done' AND NOT r.imported"
            " AND json_extract(r.config, '$.placebo') IS NOT 1))"
            " ORDER BY m.created_at DESC, m.rowid DESC",
            {"env": env and home(env), "recorded": bool(env and env.startswith(RECORDED)), "trained": trained},
        )

    def split_of(self, env: str, key: str) -> str | None:
        """The split of a task, or None if the store does not know the task."""
        rows = self.query("SELECT split FROM task WHERE env = ? AND key = ?", (env, key))
        return rows[0]["split"] if rows else None

    # -- items and contexts -------------------------------------------------------------------------

    def items(
        self,
        *,
        status: str | None = None,
        env: str | None = None,
        context_id: str | None = None,
        ids: Collection[str] | None = None,
    ) -> list[Item]:
        """Items, oldest first, or in the order of the context when ``context_id`` is given."""
        columns = "s.id, s.text, s.status, s.support, s.created_at"
        where = (
            " WHERE (:status IS NULL OR s.status = :status)"
            " AND (:env IS NULL OR EXISTS (SELECT 1 FROM item_source o"
            " WHERE o.item_id = s.id AND o.env = :env))"
            " AND (:ids IS NULL OR s.id IN (SELECT value FROM json_each(:ids)))"
        )
        join, order = "", " ORDER BY s.created_at, s.id"
        if context_id is not None:
            join = " JOIN context_item c ON c.item_id = s.id AND c.context_id = :context_id"
            order = " ORDER BY c.pos"
        rows = self.query(
            f"SELECT {columns} FROM item_status s{join}{where}{order}",
            {
                "status": status,
                "env": env,
                "context_id": context_id,
                "ids": None if ids is None else json.dumps([*ids]),
            },
        )
        return [Item(**row) for row in rows]

    def newest_items(self, limit: int, status: str | None = None, env: str | None = None) -> tuple[list[Item], int]:
        """The last ``limit`` items as :meth:`items`, and the number of all of them."""
        rows = self.query(  # the support of an item costs more than all else, so only of those that are asked for
            "SELECT s.id FROM item_status s WHERE (:status IS NULL OR s.status = :status)"
            " AND (:env IS NULL OR EXISTS (SELECT 1 FROM item_source o WHERE o.item_id = s.id AND o.env = :env))"
            " ORDER BY s.created_at, s.id",
            {"status": status, "env": env},
        )
        return self.items(ids=[row["id"] for row in rows[-limit:]]), len(rows)

    def item(self, item_id: str) -> Item:
        """One item by its full id.

        Raises:
            StoreError: there is no such item.
        """
        rows = self.query("SELECT id, text, status, support, created_at FROM item_status WHERE id = ?", (item_id,))
        if not rows:
            raise StoreError(f"no item {item_id[:12]} in {self.path}")
        return Item(**rows[0])

    def support_until(self, item_id: str, run_id: int, episode_id: int | None) -> int:
        """The support of an item, as :attr:`Item.support`, when it was last found in an episode by a run."""
        rows = self.query(
            "SELECT count(DISTINCT s.env || '/' || s.task_key) AS n"
            " FROM item_source s JOIN run r ON r.id = s.run_id LEFT JOIN episode e ON e.id = s.episode_id"
            " WHERE s.item_id = :item AND NOT r.imported AND s.rowid <= (SELECT max(rowid) FROM item_source"
            " WHERE item_id = :item AND run_id = :run AND episode_id IS :episode)"
            " AND NOT EXISTS (SELECT 1 FROM context_item c"
            " WHERE c.item_id = :item AND c.context_id IN (s.shown_context_id, e.context_id))",
            {"item": item_id, "run": run_id, "episode": episode_id},
        )
        return rows[0]["n"]

    def flags(self, ids: Collection[str]) -> dict[str, list[str]]:
        """The flags of items, by item id and in the order in which they were given; only items that have any."""
        rows = self.query(
            "SELECT item_id, reason FROM item_event WHERE event = 'flag'"
            " AND item_id IN (SELECT value FROM json_each(?)) ORDER BY id",
            (json.dumps([*ids]),),
        )
        found: dict[str, dict[str, None]] = {}
        for row in rows:
            found.setdefault(row["item_id"], {})[row["reason"] or "flagged by a person"] = None
        return {item_id: list(reasons) for item_id, reasons in found.items()}

    def successors(self, ids: Collection[str]) -> dict[str, str]:
        """The item that took the place of each of these items; only items that gave way to another."""
        rows = self.query(
            "SELECT item_id, other_id FROM item_event WHERE event = 'supersede' AND other_id IS NOT NULL"
            " AND item_id IN (SELECT value FROM json_each(?)) ORDER BY id",
            (json.dumps([*ids]),),
        )
        return {row["item_id"]: row["other_id"] for row in rows}

    def decided_pairs(self) -> set[frozenset[str]]:
        """Pairs of items about which somebody has said that one replaces the other, or that both are needed."""
        rows = self.query(
            "SELECT item_id, other_id FROM item_event WHERE event IN ('supersede', 'distinct') AND other_id IS NOT NULL"
        )
        return {frozenset((row["item_id"], row["other_id"])) for row in rows}

    def sources(self, item_id: str) -> list[Row]:
        """Where an item came from; a NULL task means that the origin is unknown."""
        return self.query("SELECT * FROM item_source WHERE item_id = ? ORDER BY run_id, episode_id, line", (item_id,))

    def origins(self) -> list[Row]:
        """Where all items came from, each row with ``played_with``: the context that its episode was played with."""
        return self.query(
            "SELECT s.*, e.context_id AS played_with FROM item_source s LEFT JOIN episode e ON e.id = s.episode_id"
            " ORDER BY s.run_id, s.episode_id, s.line, s.item_id, s.env, s.task_key, s.raw"
        )

    def events(self, item_id: str) -> list[Row]:
        """What was decided about an item, oldest first."""
        return self.query("SELECT * FROM item_event WHERE item_id = ? ORDER BY id", (item_id,))

    def get_context(self, context_id: str) -> Context:
        """A context by its full id.

        Raises:
            StoreError: there is no such context.
        """
        row = self.context_row(context_id)
        return Context(row["rendered"], row["placement"])

    def context_row(self, context_id: str) -> Row:
        """A context's row: ``rendered``, ``placement``, ``recipe`` (JSON text), ``created_at``."""
        rows = self.query("SELECT * FROM context WHERE id = ?", (context_id,))
        if not rows:
            raise StoreError(f"no context {context_id[:12]} in {self.path}")
        return rows[0]

    def contexts(self, *, item_id: str | None = None) -> list[Row]:
        """Contexts, oldest first, with their number of items; with ``item_id``, only those that hold this item."""
        return self.query(
            "SELECT c.*, (SELECT count(*) FROM context_item i WHERE i.context_id = c.id) AS items"
            " FROM context c WHERE :item_id IS NULL"
            " OR c.id IN (SELECT context_id FROM context_item WHERE item_id = :item_id)"
            " ORDER BY c.created_at, c.id",
            {"item_id": item_id},
        )

    def refs(self, prefix: str = "") -> dict[str, str]:
        """Refs that start with ``prefix``: name to context id, numbers in numeric order."""
        rows = self.query("SELECT name, context_id FROM ref WHERE substr(name, 1, length(?)) = ?", (prefix, prefix))
        return {row["name"]: row["context_id"] for row in sorted(rows, key=lambda row: natural(row["name"]))}

    def ref(self, name: str) -> str | None:
        """The context id that a ref points at, or None if there is no such ref."""
        rows = self.query("SELECT context_id FROM ref_move WHERE name = ? ORDER BY id DESC LIMIT 1", (name,))
        return rows[0]["context_id"] if rows else None

    def moves(self, prefix: str = "", *, run_id: int | None = None) -> list[Row]:
        """Moves of all refs that start with ``prefix``, oldest first; with ``run_id``, only those of this run."""
        return self.query(
            "SELECT * FROM ref_move WHERE substr(name, 1, length(:prefix)) = :prefix"
            " AND (:run_id IS NULL OR run_id = :run_id) ORDER BY id",
            {"prefix": prefix, "run_id": run_id},
        )

    def log(self, name: str) -> list[Row]:
        """Every move of one ref, oldest first."""
        return self.query("SELECT * FROM ref_move WHERE name = ? ORDER BY id", (name,))

    def resolve(self, name: str) -> str:
        """The context id behind a ref, a unique prefix of an id (4 digits or more), or ``empty``.

        Raises:
            StoreError: nothing, or more than one context, has this name.
        """
        if name == "empty":
            return EMPTY.id
        if (target := self.ref(name)) is not None:
            return target
        ids = self.prefixed("context", name)
        if len(ids) == 1:
            return ids[0]
        if len(ids) > 1:
            raise StoreError(f"{name!r} is the start of {len(ids)} contexts; give more digits")
        raise StoreError(f"unknown context {name!r}{did_you_mean(name, ['empty', *self.refs()])}")

    def find(self, name: str) -> tuple[Literal["item", "context"], str]:
        """What a name stands for, an item or a context, and its id.

        Args:
            name: a ref, or the start of an id (4 digits or more); a ref comes first.

        Raises:
            StoreError: nothing, or more than one thing, has this name.
        """
        items = self.prefixed("item", name)
        contexts = self.prefixed("context", name) if self.ref(name) is None else []
        if len(items) + len(contexts) > 1:
            found = f"{len(items)} items and {len(contexts)} contexts"
            raise StoreError(f"{name!r} is the start of {found}; give more digits")
        return ("item", items[0]) if items else ("context", self.resolve(name))

    def prefixed(self, table: str, prefix: str) -> list[str]:
        """Ids in the table ``item``, ``context`` or ``model`` that start with 4 or more given hexadecimal digits."""
        if len(prefix) < 4 or not re.fullmatch("[0-9a-f]+", prefix):
            return []
        rows = self.query(f"SELECT id FROM {table} WHERE id BETWEEN ? AND ? ORDER BY id", (prefix, prefix + "g"))
        return [row["id"] for row in rows]

    # -- safety -------------------------------------------------------------------------------------

    def leaks(self, context_id: str) -> list[Leak]:
        """Items of a context that came from select, confirm or test tasks; must be empty before any use."""
        rows = self.query(
            "SELECT DISTINCT item_id, t.env, t.key, t.split FROM context_item"
            " JOIN item_source s USING (item_id) JOIN task t ON t.env = s.env AND t.key = s.task_key"
            " WHERE context_id = ? AND t.split IN ('select', 'confirm', 'test') ORDER BY 1, 2, 3",
            (context_id,),
        )
        return [Leak(**row) for row in rows]

    def blocked(self, context_id: str) -> list[Item]:
        """Items of a context that are pending or retired: any of them blocks training on the context."""
        return [item for item in self.items(context_id=context_id) if item.status in ("pending", "retired")]

    def carriers(self, item_id: str) -> list[str]:
        """Ids of the models that have an item in their weights, directly or by descent."""
        rows = self.query(
            "WITH RECURSIVE hit(id) AS ("
            "SELECT model_id FROM model_context JOIN context_item USING (context_id)"
            " WHERE item_id = ? UNION SELECT m.id FROM model m JOIN hit ON m.parent_id = hit.id)"
            " SELECT m.id FROM model m JOIN hit USING (id) ORDER BY m.created_at, m.rowid",
            (item_id,),
        )
        return [row["id"] for row in rows]

    def looks(self, env: str | None = None, context_id: str | None = None) -> list[Row]:
        """Looks at confirm tasks, oldest first, each with its ``number`` in its environment; both filters are optional.

        Those of a recording are one series, however its sessions were shown and graded: all of them can move the same
        student and the same best context, and its confirm tasks are the same. A look taken over from schema 1 may have
        neither model nor setup; its level was 0.025.
        """
        return self.query(
            f"SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY {_HOME} ORDER BY id) AS number FROM look"
            f" WHERE :env IS NULL OR {_HOME} = :env) WHERE :context_id IS NULL OR context_id = :context_id ORDER BY id",
            {"env": env and home(env), "context_id": context_id},
        )

    def learned(self, model_id: str) -> set[str]:
        """Ids of the contexts that a model has in its weights, directly or by descent, as far as trainings of this
        store say so: what an import says of a model is no evidence."""
        rows = self.query(
            "WITH RECURSIVE own AS (SELECT m.id, m.parent_id FROM model m LEFT JOIN run r ON r.id = m.run_id"
            " WHERE r.imported IS NOT 1), line AS (SELECT * FROM own WHERE id = ?"
            " UNION SELECT own.* FROM own JOIN line ON own.id = line.parent_id)"
            " SELECT context_id FROM model_context JOIN line ON model_id = line.id",
            (model_id,),
        )
        return {row["context_id"] for row in rows}

    def students(self, context_id: str) -> list[str]:
        """Ids of the models into which a context was consolidated, newest first."""
        rows = self.query(
            "SELECT m.id FROM model m JOIN model_context c ON c.model_id = m.id WHERE c.context_id = ?"
            " ORDER BY m.created_at DESC, m.rowid DESC",
            (context_id,),
        )
        return [row["id"] for row in rows]

    def model_contexts(self, model_id: str) -> Mapping[str, Any]:
        """The contexts consolidated into a model: context id to weight, the heaviest first."""
        rows = self.query(
            "SELECT context_id, weight FROM model_context WHERE model_id = ? ORDER BY weight DESC, context_id",
            (model_id,),
        )
        return {row["context_id"]: row["weight"] for row in rows}
