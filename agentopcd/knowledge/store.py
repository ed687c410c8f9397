"""The knowledge store: all write access. All SQL is in this module, ``queries``, ``recordings`` and
``database``.

::

    with Store.open("agentopcd-work/store.db") as store:
        run_id = store.start("play", {"env": "sokoban"}, seed=0)
        store.add_tasks("sokoban", tasks, "extract")
        ids = store.add_episodes(run_id, model_id, setup, episodes)
        store.finish(run_id, {"episodes": len(ids)})

One coordinator writes; workers only return episodes. Rows are immutable: choices are ref moves, statuses
are events, scores are queries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import agentopcd
from agentopcd.core.errors import StoreError, TaskLeak, did_you_mean
from agentopcd.core.runs import alike
from agentopcd.core.transcript import facts, pack, to_json
from agentopcd.core.types import EMPTY, SPLITS, Context, Episode, Task
from agentopcd.knowledge.database import Row, now
from agentopcd.knowledge.items import identify, item_texts, normalise
from agentopcd.knowledge.looks import next_level
from agentopcd.knowledge.queries import Queries
from agentopcd.knowledge.refs import check_ref

EVENTS = ("add", "flag", "approve", "pin", "retire", "restore", "supersede", "distinct", "note")
"""Kinds of events of an item; the last event that is neither ``note`` nor ``distinct`` sets its status."""

ANY = "\0any"
"""Stands for "do not compare" in :meth:`Store.move`."""

PLACEBO = "placebo"
"""How the recipe of a placebo says what it is."""

EPISODE_KEY = ("model_id", "context_id", "env", "setup", "seed", "rep")
"""Columns that identify an episode; the key for caching, resuming and pairing."""


class Found(NamedTuple):
    """An item found in a reply, ready to be stored."""

    text: str
    raw: str = ""
    line: int = 0
    flags: tuple[str, ...] = ()


def canonical(config: Mapping[str, Any]) -> str:
    """Canonical JSON of a config: keys sorted, no spaces."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _alike(text: str, but: Sequence[str]) -> str | None:
    try:
        return alike(json.loads(text), but)
    except (ValueError, TypeError, AttributeError, RecursionError):  # damaged: another's fault, and no run of ours
        return None


def setup_id(setup: Mapping[str, Any]) -> str:
    """The hash that names a setup: everything besides model, context and task that affects play."""
    return hashlib.sha256(canonical(setup).encode()).hexdigest()


class Store(Queries):
    """A knowledge store. Open it with :meth:`open`, in the process and thread that uses it."""

    # -- runs ---------------------------------------------------------------------------------------

    def start(self, verb: str, config: Mapping[str, Any], seed: int) -> int:
        """Record one invocation of a verb and return its run id."""
        row = {
            "verb": verb, "code": agentopcd.__version__, "seed": seed, "config": canonical(config),
            "started_at": now(),
        }  # fmt: skip
        run_id = self.insert("run", row)
        assert run_id is not None
        return run_id

    def finish(self, run_id: int, result: Mapping[str, Any] | None = None, status: str = "done") -> None:
        """Close a run with its result; ``status`` is ``done`` or ``failed``."""
        if status not in ("done", "failed"):
            raise StoreError(f"a run ends as 'done' or 'failed', not as {status!r}")
        self.run(run_id)
        self.update_run(run_id, None if result is None else canonical(result), status)

    def reopen(self, run_id: int) -> None:
        """Take up a run again that ended as ``failed``."""
        self.update_run(run_id, None, "running")

    def find_run(self, verb: str, config: Mapping[str, Any], status: str = "running") -> int | None:
        """The newest run of this store with this verb, config and status; a running one can be resumed."""
        rows = self.find_runs(verb, config, status)
        return rows[0]["id"] if rows else None

    def find_runs(self, verb: str, config: Mapping[str, Any], status: str, but: Sequence[str] = ()) -> list[Row]:
        """The runs of this store with this verb, config and status, newest first.

        Args:
            but: names of the config that need not agree.
        """
        rows = self.query(
            "SELECT * FROM run WHERE verb = ? AND status = ? AND NOT imported ORDER BY id DESC", (verb, status)
        )
        wanted = alike(config, but)
        return [row for row in rows if _alike(row["config"], but) == wanted]

    # -- tasks, models, episodes --------------------------------------------------------------------

    def add_tasks(self, env: str, tasks: Iterable[Task | str], split: str) -> None:
        """Register tasks (or their keys) in a split, permanently.

        A task that is already ``shared`` may be registered under any split and stays shared.

        Raises:
            TaskLeak: a task is already in another split.
        """
        if split not in (*SPLITS, "shared"):
            raise StoreError(f"unknown split {split!r}{did_you_mean(split, (*SPLITS, 'shared'))}")
        with self.write():
            for task in tasks:
                key = task if isinstance(task, str) else task.key
                self.insert("task", {"env": env, "key": key, "split": split}, unique=("env", "key"))
                known = self.split_of(env, key)
                if known not in (split, "shared"):
                    raise TaskLeak(
                        f"task {key[:12]} of {env} is in split {known!r} and was about to be used for "
                        f"{split!r}; a task belongs to one split for ever"
                    )

    def add_model(
        self,
        model_id: str,
        name: str,
        path: str | None = None,
        parent_id: str | None = None,
        run_id: int | None = None,
        contexts: Mapping[str, float] | None = None,
    ) -> None:
        """Register a base or trained model. A known one stays as it is, unless ``run_id`` has trained it here, and what
        is known is only an import's word or names no run.

        Args:
            model_id: hash of weights, tokenizer and chat template.
            contexts: ids and weights of the contexts consolidated into the model.
        """
        row = {
            "id": model_id, "name": name, "path": path, "parent_id": parent_id, "run_id": run_id,
            "created_at": now(),
        }  # fmt: skip
        with self.write():
            if self.insert("model", row, unique=("id",)) is None and run_id is not None and model_id != parent_id:
                taken = "run_id IS NULL OR run_id IN (SELECT id FROM run WHERE imported)"
                names = ", ".join(f"{name} = ?" for name in row)
                if self.change(f"UPDATE model SET {names} WHERE id = ? AND ({taken})", (*row.values(), model_id)):
                    self.change("DELETE FROM model_context WHERE model_id = ?", (model_id,))
            for context_id, weight in (contexts or {}).items():
                link = {"model_id": model_id, "context_id": context_id, "weight": float(weight)}
                self.insert("model_context", link, unique=("model_id", "context_id"))

    def move_model(self, model_id: str, path: str) -> None:
        """Note where a model lies now."""
        with self.write():
            self.change("UPDATE model SET path = ? WHERE id = ?", (path, model_id))

    def add_episodes(self, run_id: int, model_id: str, setup: str, episodes: Iterable[Episode]) -> list[int | None]:
        """Store finished episodes with every turn, in one transaction; an episode already stored stays unchanged.

        Args:
            setup: from :func:`setup_id`; episodes of different setups are never compared.

        Returns:
            The id of each episode, or None for an episode that ended with an environment error: it is never
            stored, and the caller counts it.

        Raises:
            StoreError: the run, model, context or task of an episode is not registered, or a seed yields
                a different task than before.
        """
        with self.write():
            return [self._add_episode(run_id, model_id, setup, episode) for episode in episodes]

    def _add_episode(self, run_id: int, model_id: str, setup: str, episode: Episode) -> int | None:
        if episode.stop_reason == "env_error":
            return None
        self._require(run_id, model_id, episode)
        row = {
            "run_id": run_id, "model_id": model_id, "setup": setup, "created_at": now(), **facts(episode),
            "metrics": canonical(episode.metrics),
        }  # fmt: skip
        episode_id = self.insert("episode", row, unique=EPISODE_KEY)
        if episode_id is None:
            known = self.lookup("episode", **{column: row[column] for column in EPISODE_KEY})
            assert known is not None
            if known["task_key"] != row["task_key"]:
                raise StoreError(
                    f"seed {row['seed']} of {row['env']} was task {known['task_key'][:12]} and is now "
                    f"{row['task_key'][:12]}: the environment has changed, give it another name or version"
                )
            return known["id"]
        self.insert("transcript", {"episode_id": episode_id, "body": pack(to_json(episode))})
        return episode_id

    def _require(self, run_id: int, model_id: str, episode: Episode) -> None:
        """Name the parent row that is missing; SQLite would only report a failed foreign key."""
        wanted = (
            ("run", "id = ?", (run_id,), f"run {run_id}", "start"),
            ("model", "id = ?", (model_id,), f"model {model_id[:12]}", "add_model"),
            ("context", "id = ?", (episode.context_id,), f"context {episode.context_id[:12]}", "add_context"),
            ("task", "env = ? AND key = ?", (episode.env, episode.task.key),
             f"task {episode.task.key[:12]} of {episode.env}", "add_tasks"),
        )  # fmt: skip
        for table, where, parameters, words, method in wanted:
            if not self.query(f"SELECT 1 FROM {table} WHERE {where}", parameters):
                raise StoreError(f"{words} is not in the store; call Store.{method} before storing its episodes")

    # -- looks --------------------------------------------------------------------------------------

    def next_level(self, env: str) -> float:
        """Level of an environment's next look.

        Raises:
            StoreError: imported looks have left none.
        """
        if not (level := next_level(self.looks(env))):
            raise StoreError(
                f"no look at the confirm tasks of {env} is left: those here and the imported ones spent all; go on in "
                "a workspace without that import"
            )
        return level

    def begin_look(self, key: Mapping[str, Any], compared: Mapping[str, Any]) -> Row:
        """Begin a look at an environment's confirm tasks, or find the one that was begun with the same key.

        Its level is spent now: whoever stops a look half-way has looked.

        Args:
            key: ``env``, ``model_id``, ``context_id``, ``setup`` and ``plan``.
            compared: ``placebo_id``, ``incumbent_id`` and ``run_id`` of a new look.

        Returns:
            The look's row, with its ``number`` in its environment, from 1.
        """
        with self.write():
            if self.lookup("look", **key) is None:
                level = self.next_level(key["env"])
                self.insert("look", {**key, **compared, "level": level, "at": now()})
            return next(row for row in self.looks(key["env"]) if all(row[name] == key[name] for name in key))

    def end_look(self, look_id: int, verdict: str, result: Mapping[str, Any]) -> None:
        """Record what a look has shown; what was recorded before stays."""
        with self.write():
            self.change(
                "UPDATE look SET verdict = ?, result = ? WHERE id = ? AND verdict IS NULL",
                (verdict, canonical(result), look_id),
            )

    def drop_look(self, look: Row) -> None:
        """Take back a look that was begun and has shown nothing to anybody. Its number may go to another one."""
        with self.write():
            self.change("DELETE FROM look WHERE id = ? AND at = ? AND verdict IS NULL", (look["id"], look["at"]))

    # -- items and contexts -------------------------------------------------------------------------

    def add_items(
        self,
        run_id: int,
        found: Iterable[Found],
        *,
        episode_id: int | None = None,
        env: str | None = None,
        task_key: str | None = None,
        shown_context_id: str | None = None,
        actor: str = "extract",
    ) -> list[str]:
        """Store items with their origin; an item that the store already has gets one more source.

        A new item is pending, with one ``flag`` event per flag.

        Returns:
            The id of each item, in order.
        """
        ids = []
        with self.write():
            for item in found:
                item_id = self._add_item(item.text, actor, item.flags)
                source = {
                    "item_id": item_id, "run_id": run_id, "episode_id": episode_id, "env": env,
                    "task_key": task_key, "shown_context_id": shown_context_id, "line": item.line,
                    "raw": item.raw or item.text,
                }  # fmt: skip
                self.add_source(source)
                ids.append(item_id)
        return ids

    def _add_item(self, text: str, actor: str, flags: Sequence[str] = ()) -> str:
        item_id = identify(text)
        row = {"id": item_id, "text": normalise(text), "created_at": now()}
        if self.insert("item", row, unique=("id",)) is not None:
            self.event(item_id, "add", actor)
            for flag in flags:
                self.event(item_id, "flag", actor, flag)
        return item_id

    def add_source(self, source: Row) -> bool:
        """Record one origin of an item; return False if it was already recorded."""
        parts = ("item_id", "run_id", "COALESCE(episode_id, 0)", "COALESCE(env, '')", "COALESCE(task_key, '')", "line")
        return self.insert("item_source", source, unique=parts) is not None

    def add_context(self, context: Context, origin: Mapping[str, Any] | None = None, *, imported: bool = False) -> str:
        """Store a context and the items it shows; storing the same context again adds nothing.

        An item that the store does not know becomes a pending item of unknown origin.

        Args:
            origin: how the context was first made (order, budget, file ...). The lines of a placebo are no items.
            imported: the text came from elsewhere, and nobody has named it as what is to be shown.

        Returns:
            The id of the context.
        """
        row = {
            "id": context.id, "rendered": context.text, "placement": context.placement,
            "recipe": canonical(origin or {}), "created_at": now(), "imported": int(imported),
        }  # fmt: skip
        with self.write():
            if self.insert("context", row, unique=("id",)) is None:
                return context.id
            shown = [] if origin and origin.get("order") == PLACEBO else item_texts(context)
            for pos, text in enumerate(shown):
                link = {"context_id": context.id, "pos": pos, "item_id": self._add_item(text, "assemble")}
                self.insert("context_item", link)
        return context.id

    def event(self, item_id: str, kind: str, actor: str, reason: str | None = None, other: str | None = None) -> None:
        """Append a decision about an item.

        Args:
            other: the item that takes its place (``supersede``), or that says something else (``distinct``).

        Raises:
            StoreError: an unknown kind, or no such item.
        """
        if kind not in EVENTS:
            raise StoreError(f"unknown event {kind!r}{did_you_mean(kind, EVENTS)}")
        for known in (item_id,) if other is None else (item_id, other):
            if not self.query("SELECT 1 FROM item WHERE id = ?", (known,)):
                raise StoreError(f"no item {known[:12]} in {self.path}")
        row = {"item_id": item_id, "other_id": other, "event": kind, "actor": actor, "reason": reason, "at": now()}
        self.insert("item_event", row)

    def move(
        self,
        name: str,
        context_id: str | None,
        actor: str,
        reason: str | None = None,
        run_id: int | None = None,
        expect: str | None = ANY,
    ) -> None:
        """Point a ref at a context, or delete the ref with None. Earlier moves stay in the log.

        Args:
            expect: the context id the ref must have now (None: it must not exist), compared and swapped
                in one transaction, so that two people cannot overwrite each other.

        Raises:
            StoreError: an invalid name, an unknown context, or a ref that does not point where expected.
        """
        if context_id is not None:
            check_ref(name)
        with self.write():
            if context_id is not None:
                self.context_row(context_id)
            current = self.ref(name)
            if expect != ANY and current != expect:
                at = "is gone" if current is None else f"is at {current[:12]}"
                wanted = "not to exist" if expect is None else f"at {expect[:12]}"
                raise StoreError(f"ref {name!r} {at}, it was expected {wanted}; look again and repeat the move")
            row = {
                "name": name, "context_id": context_id, "actor": actor, "reason": reason, "run_id": run_id,
                "at": now(),
            }  # fmt: skip
            self.insert("ref_move", row)


assert EMPTY.id == hashlib.sha256(b"").hexdigest()  # the schema inserts the empty context under this id
