"""What the store knows for or against a context: where it has played, and what its looks have shown."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agentopcd.core.config import RECORDED
from agentopcd.core.files import told
from agentopcd.core.terminal import harmless
from agentopcd.core.text import first_line
from agentopcd.core.types import EMPTY, Context
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.episodes import Arena, Arm, Place
from agentopcd.knowledge.exchange import ELSEWHERE
from agentopcd.knowledge.refs import home
from agentopcd.knowledge.store import Store, setup_id
from agentopcd.knowledge.students import CANARY

CHOOSING = ("select", "shared")
"""Splits whose games choose among contexts; where splits share their tasks, all games are of one."""


class Competed:
    """How many contexts competed, asked once for each place: several contexts of one item have competed in the same.
    And where nothing is right or wrong.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.known: dict[tuple[str, ...], int] = {}
        self.silent = ungraded(store)

    def in_place_of(self, row: Row) -> int:
        """The number of contexts that have played where a score comes from."""
        place = (row["env"], row["split"], row["model_id"], row["setup"])
        if place not in self.known:
            env, split, model_id, setup = place
            self.known[place] = self.store.competitors(env, split, model_id=model_id, setup=setup)
        return self.known[place]


def scores(store: Store, context_id: str, competed: Competed) -> list[Row]:
    """Rate with n, tasks and interval wherever the context has played, and the difference to no context.

    Where ``graded`` is False, nothing is right or wrong, and the rate says nothing. Of recorded sessions, those count
    that people have rated.
    """
    rows = []
    for row in store.scores(context_id):
        arm, arena = Arm(row["model_id"], context_id), Arena(row["env"], row["setup"], row["split"])
        graded = row["env"] not in competed.silent
        if _were_read(row):
            rated = _rated(store, arm, arena)
            graded, arena = bool(rated), arena._replace(places=rated)
            row |= {"n": len(rated), "tasks": len({task for task, _, _ in rated})}
        rate = store.rate(arm, arena)
        score = {**row, "rate": rate.rate, "low": rate.low, "high": rate.high, "graded": graded}
        if context_id != EMPTY.id:
            pair = store.compare(arm, Arm(row["model_id"]), arena)
            if pair.n:
                score["to_empty"] = {
                    "pairs": pair.n, "diff": pair.difference.diff, "low": pair.difference.low,
                    "high": pair.difference.high, "p": pair.p, "test": pair.test,
                }  # fmt: skip
            score["best_of"] = competed.in_place_of(row)
        rows.append(score)
    return rows


def _were_read(row: Row) -> bool:
    """Whether a score is of recorded sessions as they were, which have a setup of their own."""
    recording = home(row["env"]).removeprefix(RECORDED)
    return row["env"].startswith(RECORDED) and row["setup"].removeprefix(ELSEWHERE) == setup_id({"recorded": recording})


def _rated(store: Store, arm: Arm, arena: Arena) -> set[Place]:
    """The sessions of an arm that somebody has rated as success or failure."""
    found = store.episodes(**arm._asdict(), env=arena.env, setup=arena.setup, split=arena.split)
    return {(row["task_key"], row["seed"], row["rep"]) for row in found if came_of(row, ()) != "played"}


def ungraded(store: Store) -> set[str]:
    """Environments in which nothing is right or wrong, as tables of finished runs say: success says nothing there."""
    rows = store.query(
        "SELECT DISTINCT json_extract(config, '$.env') AS env FROM run WHERE NOT imported AND"
        " (json_extract(result, '$.graded') = 0 OR json_extract(result, '$.evaluation.graded') = 0)"
    )
    return {row["env"] for row in rows}


def came_of(row: Mapping[str, Any], silent: Collection[str]) -> str:
    """Whether an episode was ``won`` or ``lost``; ``played`` where nothing is right or wrong, or nobody has rated it.

    Args:
        row: the episode's row.
        silent: environments in which nothing is right or wrong, see :func:`ungraded`.
    """
    # Tables of a recording say that nothing is graded there, yet a session of it that was rated has an end.
    open_ = row["stop"] == "max_steps" if row["env"].startswith(RECORDED) else row["env"] in silent
    return "played" if open_ else "won" if row["success"] else "lost"


def evidence(store: Store, context_id: str, without: Collection[str] = ()) -> list[str]:
    """The scores of a context, its looks and its refs, a line of text for each. What others have played is left out.

    Args:
        without: environments in which nothing is right or wrong, besides those of :func:`ungraded`.
    """
    names = {row["id"]: told(row["name"]) for row in store.models()}
    competed = Competed(store)
    competed.silent.update(without)
    found = [row for row in scores(store, context_id, competed) if not elsewhere(row)]
    lines = unknown(found)
    for row in (row for row in found if row["graded"]):
        line = (
            f"{row['env']}, {row['split']} tasks, {names.get(row['model_id'], row['model_id'][:12])}: "
            f"{row['rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}], n = {row['n']} on {row['tasks']} tasks"
        )
        if pair := row.get("to_empty"):
            line += (
                f"; to no context {pair['diff']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}], "
                f"one-sided p = {pair['p']:.2g}"
            )
        if row["split"] in CHOOSING and row.get("best_of", 0) > 1:
            line += f"; one of {row['best_of']}, and the best one's rate is biased upward"
        lines.append(line)
    for look in store.looks(context_id=context_id):
        by = f" with {names[look['model_id']]}" if look["model_id"] in names else ""
        verdict = f"look {look['number']} {looked_at(look)}{by}, {look['at'][:10]}: {look['verdict'] or 'broken off'}"
        lines.append(f"{look['env']}, {verdict}")
    refs = [name for name, target in store.refs().items() if target == context_id]
    lines += [f"refs: {', '.join(refs)}"] if refs else []
    return [one_line(line) for line in lines] or ["none: this store has not played with it"]


def unknown(scores: Sequence[Row]) -> list[str]:
    """The environments of some scores in which nothing is right or wrong, a line of text for each."""
    played = dict.fromkeys(row["env"] for row in scores if not row["graded"])
    return [f"{env}: nothing is right or wrong there, so no success is known" for env in played]


def elsewhere(row: Row) -> bool:
    """Whether a score comes from episodes of another store."""
    return row["setup"].startswith(ELSEWHERE)


def looked_at(look: Row) -> str:
    """What a look has compared on."""
    return "of served sessions" if look["setup"] == CANARY else "at confirm tasks"


def one_line(text: str) -> str:
    """Text of strangers as one harmless line."""
    return harmless(" ".join(text.split()))


def skill(store: Store, context_id: str, ref: str) -> str:
    """A context as a SKILL.md: name and description in front, then its text, then its evidence."""
    context, row = store.get_context(context_id), store.context_row(context_id)
    name = re.sub(r"[^a-z0-9]+", "-", ref.lower()).strip("-")[:64].strip("-") or context_id[:12]
    envs = sorted({score["env"] for score in store.scores(context_id)})
    found = [f"- {line}" for line in evidence(store, context_id)]
    front = {"name": name, "description": _description(context, envs)}
    return "\n".join([
        "---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()), "---", "",
        context.text.rstrip("\n"), "", "## Evidence", "",
        f"Context {context_id[:12]}, {row['created_at'][:10]}, shown in the {context.placement} message. Success with "
        "its 95 % interval, by environment, split and model:", "", *found, "",
    ])  # fmt: skip


def _description(context: Context, envs: list[str]) -> str:
    where = f"What was learned by playing {', '.join(envs)}" if envs else "What was learned"
    says = context.lines[0] if context.lines else first_line(context.text)
    return one_line(f"{where}. Read it before acting there. It begins: {says}")[:1024]
