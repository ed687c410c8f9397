"""Queries about episodes: every score is recomputed from their rows, nothing is cached.

The largest tables by far, so no query may read all their rows to answer about a few of them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from agentopcd.core.crossed import rate_of
from agentopcd.core.errors import StoreError
from agentopcd.core.stats import DRAWS, Z95, Comparison, Mean, Rate, compare, mean_of
from agentopcd.core.transcript import UNREADABLE, from_json, unpack
from agentopcd.core.types import EMPTY, Episode
from agentopcd.knowledge.database import Database, Row
from agentopcd.knowledge.faults import REPAIR, read_object

Place = tuple[str, int, int]
"""Task key, seed and repetition: the key by which two episodes are paired."""


class Arm(NamedTuple):
    """Who plays: a model and the context it is shown."""

    model_id: str
    context_id: str = EMPTY.id


class Arena(NamedTuple):
    """Where arms are compared, and which of their episodes count."""

    env: str
    setup: str
    split: str | None = None
    """Only tasks of this split; None: any split."""
    places: Collection[Place] | None = None
    """Only these places; None: all that were played."""
    by: str = "success"
    """What is compared: ``success``, ``reward``, or the name of a metric that the environment reports."""


class Count(NamedTuple):
    """Result of one arm: its rate or mean (with interval) and the number of distinct tasks behind it."""

    rate: Rate | Mean
    tasks: int


MANY = 100_000
"""More episodes than an index is read for as a whole."""

_EPISODES = "SELECT e.*, t.split FROM episode e JOIN task t ON t.env = e.env AND t.key = e.task_key"

_SPLIT = "(:split IS NULL OR t.split IN (:split, 'shared'))"
"""``shared`` stands for all splits at once."""


_SCORED = "e.id, e.task_key, e.seed, e.rep, e.success, e.reward, e.metrics"

_ARMS = """
    WITH RECURSIVE arm (model_id, context_id, env, setup) AS (
      SELECT * FROM (SELECT model_id, context_id, env, setup FROM episode
        WHERE model_id >= COALESCE(:model_id, '') ORDER BY 1, 2, 3, 4 LIMIT 1)
      UNION ALL
      SELECT e.model_id, e.context_id, e.env, e.setup FROM arm a JOIN episode e ON e.id = COALESCE(
        (SELECT id FROM episode WHERE model_id = a.model_id AND context_id = a.context_id AND env = a.env
         AND setup > a.setup ORDER BY setup LIMIT 1),
        (SELECT id FROM episode WHERE model_id = a.model_id AND context_id = a.context_id
         AND env > a.env ORDER BY env, setup LIMIT 1),
        (SELECT id FROM episode WHERE model_id = a.model_id
         AND context_id > a.context_id ORDER BY context_id, env, setup LIMIT 1),
        (SELECT id FROM episode WHERE model_id > a.model_id AND :model_id IS NULL
         ORDER BY model_id, context_id, env, setup LIMIT 1)))
"""
"""Who has played what in which setup, found by leaps along an index: a few steps each, however many episodes. With
``:model_id``, from that model's first arm on."""


def _by_place(rows: Iterable[Row]) -> dict[Place, Row]:
    return {(row["task_key"], row["seed"], row["rep"]): row for row in rows}


class Episodes(Database):
    """All read access to episodes and their transcripts."""

    def used(self, env: str, context_id: str, *, besides: int) -> set[tuple[int, int]]:
        """The ``(seed, rep)`` pairs that any run but ``besides`` has played with a context, whatever the model."""
        rows = self.query(  # model by model: the index of the episodes begins with the model and the context
            "SELECT e.seed, e.rep FROM model m CROSS JOIN episode e ON e.model_id = m.id"
            " WHERE e.context_id = ? AND e.env = ? AND e.run_id != ?",
            (context_id, env, besides),
        )
        return {(row["seed"], row["rep"]) for row in rows}

    def episodes(
        self,
        *,
        run_id: int | None = None,
        model_id: str | None = None,
        context_id: str | None = None,
        env: str | None = None,
        setup: str | None = None,
        split: str | None = None,
    ) -> list[Row]:
        """Episode rows with their ``split``, oldest first; every filter is optional."""
        given = {"run_id": run_id, "model_id": model_id, "context_id": context_id, "env": env, "setup": setup}
        given = {name: value for name, value in given.items() if value is not None}
        where = " AND ".join([_SPLIT, *(f"e.{name} = :{name}" for name in given)])
        return self.query(f"{_EPISODES} WHERE {where} ORDER BY e.id", {**given, "split": split})

    def played_by(self, run_ids: Collection[int]) -> dict[int, Row]:
        """What runs have stored, by run: ``n`` episodes, ``wins``, and ``at``, when the last was stored."""
        rows = self.query(
            "SELECT c.*, e.created_at AS at FROM (SELECT run_id, count(*) AS n, sum(success) AS wins, max(id) AS last"
            " FROM episode WHERE run_id IN (SELECT value FROM json_each(?)) GROUP BY run_id) c"
            " JOIN episode e ON e.id = c.last",
            (json.dumps([*run_ids]),),
        )
        return {row["run_id"]: row for row in rows}

    def spans(self, run_ids: Collection[int], pause_s: float) -> list[Row]:
        """For each run that stored several episodes, in the order of runs: the ``seconds`` between one episode and the
        next, summed over ``n`` of them, and the ``longest``. Where more than ``pause_s`` seconds lie between two, the
        run had stopped."""
        return self.query(
            "SELECT run_id, count(*) AS n, sum(seconds) AS seconds, max(seconds) AS longest"
            " FROM (SELECT run_id, 86400 * (julianday(created_at)"
            " - julianday(lag(created_at) OVER (PARTITION BY run_id ORDER BY id))) AS seconds"
            " FROM episode WHERE run_id IN (SELECT value FROM json_each(?)))"
            " WHERE seconds <= ? GROUP BY run_id ORDER BY run_id",
            (json.dumps([*run_ids]), pause_s),
        )

    def episode(self, episode_id: int) -> Row | None:
        """One episode's row with its ``split``."""
        rows = self.query(f"{_EPISODES} WHERE e.id = ?", (episode_id,))
        return rows[0] if rows else None

    def newest_episodes(self, limit: int, env: str | None = None) -> tuple[list[Row], int]:
        """The last ``limit`` episode rows with their ``split``, oldest first, and the number of all episodes."""
        where, values = ("", {}) if env is None else ("WHERE env = :env", {"env": env})
        total: int = self.query(f"SELECT count(*) AS n FROM episode {where}", values)[0]["n"]
        # The index of an environment is not in the order of the numbers: of many rows, go back from the newest instead.
        back = "NOT INDEXED" if total > MANY else ""
        newest = f"SELECT id FROM episode {back} {where} ORDER BY id DESC LIMIT :limit"
        rows = self.query(f"{_EPISODES} WHERE e.id IN ({newest}) ORDER BY e.id", {**values, "limit": limit})
        return rows, total

    def transcript(self, episode_id: int) -> Episode:
        """The stored episode in full, with every turn and token id.

        Raises:
            StoreError: there is no such episode, or it was imported without its transcript.
        """
        rows = self.query("SELECT body FROM transcript WHERE episode_id = ?", (episode_id,))
        if not rows:
            raise StoreError(f"no transcript of episode {episode_id} in {self.path}")
        try:
            return from_json(unpack(rows[0]["body"]))
        except UNREADABLE as error:
            raise StoreError(f"the transcript of episode {episode_id} in {self.path} is damaged; {REPAIR}") from error

    def outcomes(self, arm: Arm, arena: Arena) -> dict[Place, float]:
        """Success (a bool) or score (a float) of one arm by place; episodes without this score are left out."""
        return self._scores(self._played(arm, arena), arena.by)

    def _scores(self, rows: Mapping[Place, Row], by: str) -> dict[Place, float]:
        return {place: value for place, row in rows.items() if (value := self._score(row, by)) is not None}

    def _played(self, arm: Arm, arena: Arena) -> dict[Place, Row]:
        rows = self.query(
            f"SELECT {_SCORED} FROM episode e JOIN task t ON t.env = e.env AND t.key = e.task_key"
            f" WHERE e.model_id = :model_id AND e.context_id = :context_id AND e.env = :env AND e.setup = :setup"
            f" AND {_SPLIT}",
            {**arm._asdict(), "env": arena.env, "setup": arena.setup, "split": arena.split},
        )
        by_place = _by_place(rows)
        if arena.places is None:
            return by_place
        wanted = set(arena.places)
        return {place: row for place, row in by_place.items() if place in wanted}

    def _score(self, row: Row, by: str) -> float | None:
        if by == "success":
            return bool(row["success"])
        return row["reward"] if by == "reward" else self._metrics(row).get(by)

    def _metrics(self, row: Row) -> dict[str, float]:
        """The metrics of an episode; those of version 0.1 stand in the transcript only."""
        if row["metrics"] is not None:
            return read_object(row["metrics"], f"the metrics of episode {row['id']}")
        known = self.query("SELECT 1 FROM transcript WHERE episode_id = ?", (row["id"],))
        return self.transcript(row["id"]).metrics if known else {}

    def counts(self, arms: Iterable[Arm], arena: Arena) -> dict[Arm, Count]:
        """Rate or mean, and number of distinct tasks, of each arm."""
        counts: dict[Arm, Count] = {}
        for arm in arms:
            outcomes = self.outcomes(arm, arena)
            keys = {place: place[0] for place in outcomes}
            score = self.rate(arm, arena) if arena.by == "success" else mean_of(outcomes, keys)
            counts[arm] = Count(score, len(set(keys.values())))
        return counts

    def rate(self, arm: Arm, arena: Arena) -> Rate:
        """Success rate of one arm, whatever the arena compares by; where tasks repeat, its interval is over tasks."""
        outcomes = self.outcomes(arm, arena._replace(by="success"))
        return rate_of(("", task, bool(won)) for (task, _, _), won in outcomes.items())

    def means(self, arm: Arm, arena: Arena) -> dict[str, Mean]:
        """Mean reward of an arm, and the mean of each metric over the episodes that report it."""
        scores: dict[str, dict[Place, float]] = {"reward": {}}
        for place, row in self._played(arm, arena).items():
            scores["reward"][place] = row["reward"]
            for name, value in self._metrics(row).items():
                scores.setdefault(name, {})[place] = value
        return {name: mean_of(values, {place: place[0] for place in values}) for name, values in scores.items()}

    def compare(self, first: Arm, second: Arm, arena: Arena, *, draws: int = DRAWS, z: float = Z95) -> Comparison:
        """Compare two arms over their pairs: rates or means, difference with interval, one-sided p."""
        a = self.outcomes(first, arena)
        rows = self.query(  # the second arm may have played far more: look up only what the first has played, too
            f"SELECT {_SCORED.replace('e.', 'b.')} FROM episode a CROSS JOIN episode b USING (env, setup, seed, rep)"
            " WHERE a.model_id = ? AND a.context_id = ? AND a.env = ? AND a.setup = ?"
            " AND b.model_id = ? AND b.context_id = ?",
            (*first, arena.env, arena.setup, *second),
        )
        b = self._scores(_by_place(rows), arena.by)
        return compare(a, b, {place: place[0] for place in a}, draws=draws, z=z)

    def seen_before(self, env: str, keys: Collection[str], run_id: int) -> tuple[int, list[int]]:
        """How many of these tasks earlier runs have played on, and the numbers of those runs."""
        rows = self.query(
            "SELECT DISTINCT e.run_id, e.task_key FROM episode e WHERE e.env = ? AND e.run_id < ?"
            " AND e.task_key IN (SELECT value FROM json_each(?))",
            (env, run_id, json.dumps([*keys])),
        )
        return len({row["task_key"] for row in rows}), sorted({row["run_id"] for row in rows})

    def competitors(self, env: str, split: str, *, model_id: str | None = None, setup: str | None = None) -> int:
        """Number of arms with a context that have played on a split: the K of "best of K", or the looks taken."""
        rows = self.query(
            f"{_ARMS} SELECT count(*) AS n FROM (SELECT DISTINCT model_id, context_id FROM arm a"
            " WHERE a.env = :env AND a.context_id != :empty"
            " AND (:model_id IS NULL OR a.model_id = :model_id) AND (:setup IS NULL OR a.setup = :setup)"
            " AND EXISTS (SELECT 1 FROM episode e JOIN task t ON t.env = e.env AND t.key = e.task_key"
            " WHERE e.model_id = a.model_id AND e.context_id = a.context_id AND e.env = a.env AND e.setup = a.setup"
            f" AND {_SPLIT}))",
            {"env": env, "split": split, "model_id": model_id, "setup": setup, "empty": EMPTY.id},
        )
        return rows[0]["n"]

    def played_in(self, env: str) -> set[str]:
        """Ids of the contexts with which anybody has played an environment."""
        rows = self.query(f"{_ARMS} SELECT context_id FROM arm WHERE env = :env", {"env": env, "model_id": None})
        return {row["context_id"] for row in rows}

    def scores(self, context_id: str) -> list[Row]:
        """Where a context has played: ``model_id, env, setup, split``, ``n``, ``tasks`` and ``wins``."""
        return self.query(
            "SELECT e.model_id, e.env, e.setup, t.split, count(*) AS n, count(DISTINCT e.task_key) AS tasks,"
            " sum(e.success) AS wins FROM model m CROSS JOIN episode e ON e.model_id = m.id"
            " JOIN task t ON t.env = e.env AND t.key = e.task_key"
            " WHERE e.context_id = ? GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
            (context_id,),
        )
