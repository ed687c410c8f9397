"""Results as tables with pictures: evaluations, rankings, confirmations, and rows of the paper.

A result may come from an imported store or an older version, so nothing in it is taken for granted: what is missing or
of another kind is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentopcd.cli.page.marks import Dot, Line, dots, number
from agentopcd.cli.paper.verdicts import without_outcomes
from agentopcd.workspace.evaluation.spoken import FLOORS, SHARES


def mapping(value: Any) -> Mapping[str, Any]:
    """``value`` if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: Any) -> Sequence[Any]:
    """``value`` if it is a list, else an empty one."""
    return value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else ()


def rate_of(value: Any, label: str) -> dict[str, Any] | None:
    """A rate or mean of a result: label, value, interval and n; None if it holds no number."""
    given = mapping(value)
    found = next((at for name in ("success", "mean", "difference", "share", "score")
                  if (at := number(given.get(name))) is not None), None)  # fmt: skip
    if found is None:
        return None
    return {"label": label, "value": found, "low": number(given.get("low")), "high": number(given.get("high")),
            "n": number(given.get("n"))}  # fmt: skip


def dot_of(rate: Mapping[str, Any], note: str = "") -> Dot:
    """The dot of a rate; its interval is drawn where it is known."""
    return Dot(rate["label"], rate["value"], rate["low"], rate["high"], note)


def evaluation(result: Any) -> dict[str, Any] | None:
    """The table of an evaluation: arms, differences, other measures, floors, notes; None if the result holds none."""
    given = mapping(result)
    given = mapping(given.get("evaluation")) or given
    rows = []
    for row in map(mapping, sequence(given.get("rows"))):
        if rate := rate_of(row, str(row.get("label", ""))):
            rows.append({**rate, "tokens": number(row.get("reply_tokens")), "tasks": number(row.get("tasks"))})
    if not rows:
        return None
    pairs = differences(given.get("differences"))
    floors, graded = _floors(given.get("floors")), given.get("graded", True) is not False
    overlap, by = sequence(given.get("overlap")), str(given.get("by", "success"))
    of = "" if by == "success" else f" of {by}"
    return {
        "graded": graded, "by": by, "compared": f"Paired differences{of}",
        "rows": rows if graded else [], "differences": pairs if graded else [],
        "measures": [*_measures(given), *_distances(given)], "floors": floors,
        "picture": dots("Success on test tasks, with 95 % intervals", [dot_of(row) for row in rows], floors)
        if graded else None,
        "pairs": dots(f"Paired differences{of}, with 95 % intervals", [dot_of(row) for row in pairs], zero=True)
        if graded else None,
        "recovered": number(given.get("recovered")),
        "overlap": number(overlap[0]) if overlap else None,
        "seen": number(mapping(given.get("seen")).get("tasks")),
        "notes": [*_shares(given), *(str(note) for note in sequence(given.get("notes")))],
    }  # fmt: skip


def _shares(given: Mapping[str, Any]) -> list[str]:
    """Which shares of the distance to the model that sees the context are closed, a line each."""
    far = mapping(given.get("distances"))
    lines = []
    for name, words in SHARES.items():
        if one := rate_of(far.get(name), words):
            ends = (one["low"], one["high"])
            lines.append(f"{words}: {one['value']:.3f}" + ("" if None in ends else " [{:.3f}, {:.3f}]".format(*ends)))
    return lines


def differences(given: Any) -> list[dict[str, Any]]:
    """Paired differences by name, each with its interval, wins, losses and p."""
    found = []
    for name, one in mapping(given).items():
        if rate := rate_of(one, str(name)):
            found.append({**rate, **{key: number(mapping(one).get(key)) for key in ("wins", "losses", "p", "tasks")}})
    return found


def _floors(given: Any) -> list[Line]:
    known = ((label, number(mapping(given).get(name))) for name, label in FLOORS.items())
    return [Line(label, at) for label, at in known if at is not None]


def _measures(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the environment reports besides success: one table for each measure that says something else."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in map(mapping, sequence(given.get("rows"))):
        for name, mean in mapping(row.get("means")).items():
            if rate := rate_of(mean, str(row.get("label", ""))):
                by_name.setdefault(str(name), []).append({**rate, "success": number(row.get("success"))})
    return [
        {"name": name, "rows": rows, "picture": dots(f"{name}, mean with 95 % interval", [dot_of(row) for row in rows])}
        for name, rows in by_name.items()
        if any(row["value"] != row["success"] for row in rows)  # else it is success once more
    ]


def _distances(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [
        rate
        for row in map(mapping, sequence(mapping(given.get("distances")).get("rows")))
        if (rate := rate_of(row.get("distance_nats"), str(row.get("label", ""))))
    ]
    title = "Distance to the model that sees the context, nats a token"
    return [{"name": title, "rows": rows, "picture": dots(title, [dot_of(row) for row in rows])}] if rows else []


def ranking(result: Any, most: int = 12) -> dict[str, Any] | None:
    """The contexts that competed on select, the best ``most`` of them; None if the result holds no ranking."""
    rows = []
    for row in map(mapping, sequence(mapping(result).get("ranking"))):
        if rate := rate_of(row, str(row.get("context", ""))):
            rows.append(rate)
    if not rows:
        return None
    shown = [dot_of({**row, "label": row["label"][:12]}, f"n={row['n'] or 0:.0f}") for row in rows[:most]]
    return {
        "rows": rows[:most], "left_out": len(rows) - len(rows[:most]),
        "picture": dots("Score on select tasks, with 95 % intervals", shown),
    }  # fmt: skip


def confirmation(result: Any) -> dict[str, Any] | None:
    """What a context was confirmed against, and the verdict; None if the result holds no confirmation."""
    given = mapping(result)
    given = mapping(given.get("confirmation")) or given
    verdict = given.get("verdict")
    pairs = differences(given.get("against"))
    if not (isinstance(verdict, str) and pairs):
        return None
    rows = [{**pair, "label": f"context - {pair['label']}"} for pair in pairs]
    return {
        "verdict": verdict, "confirmed": given.get("confirmed") is True, "context": str(given.get("context", "")),
        "score": rate_of(given.get("score"), "context"), "level": number(given.get("level")), "rows": rows,
        "picture": dots("Differences on confirm tasks, with 95 % intervals", [dot_of(r) for r in rows], zero=True),
    }  # fmt: skip


def worth(result: Any, most: int = 40) -> dict[str, Any] | None:
    """The items that are worth the most and the least, and how many between them are left out; None without values."""
    rows = values(result)
    shown = rows if len(rows) <= most else [*rows[: most // 2], *rows[-(most // 2) :]]
    return {"rows": shown, "left_out": len(rows) - len(shown)} if rows else None


def values(result: Any) -> list[dict[str, Any]]:
    """What items are worth, by a run of ``knowledge score --method subsets``; the best first."""
    found = []
    for row in map(mapping, sequence(mapping(result).get("values"))):
        value = number(row.get("value"))
        if value is not None:
            rate = {"value": value, "low": number(row.get("low")), "high": number(row.get("high"))}
            found.append(
                {**rate, "item": str(row.get("item", row.get("item_id", ""))), "text": str(row.get("text", ""))}
            )
    return sorted(found, key=lambda row: -row["value"])


def paper_row(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """A result of ``agentopcd reproduce``: its arms, and its claims as a forest plot; None if it is none."""
    arms = [
        {**rate, "paper": number(mapping(given.get("paper")).get(arm)), "tokens": number(
            mapping(given.get("reply_tokens")).get(arm))}
        for arm, one in mapping(given.get("rates")).items() if (rate := rate_of(one, str(arm)))
    ]  # fmt: skip
    seeds, chains = len(sequence(given.get("seeds"))), number(given.get("chains"))
    old = "" if "outcomes" in given else without_outcomes(seeds, None if chains is None else int(chains))
    claims = [
        {**rate, "verdict": old or str(one.get("verdict", "")), "p": number(one.get("p"))}
        for one in map(mapping, sequence(given.get("findings")))
        if (rate := rate_of(one, str(one.get("claim", ""))))
    ]
    if not (arms and isinstance(given.get("row"), str)):
        return None
    return {
        **{name: str(given.get(name, "")) for name in ("title", "row", "env", "model", "size", "floors", "note")},
        "what": str(mapping(given.get("paper")).get("what", "")), "seeds": seeds,
        "arms": arms, "claims": claims,
        "picture": dots("Success on test tasks, with 95 % intervals", [dot_of(arm) for arm in arms]),
        "forest": dots(
            "Claims of the paper: paired differences, with 95 % intervals",
            [dot_of(claim, claim["verdict"]) for claim in claims], zero=True,
        ),
    }  # fmt: skip
