"""How often was the rule of ``agentopcd forecast`` right about trainings that have been made?

    python -m benchmarks.forecast [WORK ...]

Without a workspace it reads the trained arms of docs/results/*.json, what `agentopcd reproduce` measured, each beside
its row's `in-context` arm. What this can tell, and what it cannot:

- Where a file holds who won what, intervals are those of pairs, over seeds and tasks. Of all files but one, the rates
  alone were kept, so intervals are those of two independent rates (Newcombe's). A forecast has paired ones, which are
  narrower. Where such a row has several training seeds, tasks come again, and that is not counted.
- Both gains are against the same base on the same test tasks: a base that was unlucky makes both look better.
- The placebo in context and the divergence were not measured, so lines 1 and 5 of the rule are not applied.
- Contexts that nobody thought useful are hardly among them. So it tells what the advice *train* is worth, and little
  about the others.
- An arm that stands in several tables with the same figures counts once. One that was played again, with fewer seeds,
  counts again.
- Arms of one row, and of several rows, share a context: the trainings come from a few pairs of a model and a context,
  and the calibration's intervals do not know of it. So the last line counts each pair as one observation.

With workspaces it reads their stores instead, as `agentopcd forecast` does: paired intervals, and the placebo where the
context was confirmed. Prints a line for each training, and the calibration.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from math import hypot
from pathlib import Path
from typing import Any

from agentopcd.cli.paper.plan import RECIPES, read
from agentopcd.cli.paper.verdicts import unpack
from agentopcd.core.calibration import Calibration, Past, rate_given
from agentopcd.core.crossed import contrast
from agentopcd.core.stats import Difference, Rate, ratio, wilson
from agentopcd.knowledge import Store
from agentopcd.workspace.forecast import past_trainings

FOUND = Path(__file__).resolve().parent.parent / "docs" / "results"


def apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> Difference:
    """The difference of two rates, with Newcombe's interval for independent samples."""
    rates = [(given["success"], *wilson(round(given["success"] * given["n"]), given["n"])) for given in (one, other)]
    (first, low1, high1), (second, low2, high2) = rates
    diff = first - second
    return Difference(
        diff, diff - hypot(first - low1, high2 - second), diff + hypot(high1 - first, second - low2), one["n"]
    )


def gained(row: Mapping[str, Any], arm: str) -> Difference:
    """What an arm won more than the base: in pairs, if the file has them."""
    if not row.get("outcomes"):
        return apart(row["rates"][arm], row["rates"]["base"])
    games = unpack(row["outcomes"])
    seen = contrast(games[arm], games["base"])
    return Difference(seen.diff, seen.low, seen.high, seen.n)


def of_results(rows: Iterator[Mapping[str, Any]]) -> list[Past]:
    """The trained arms of the paper's tables, each once."""
    found: dict[tuple[Any, ...], Past] = {}
    for row in rows:
        rates = row["rates"]
        for arm in row.get("curves", {}):
            if arm == "placebo" or "in-context" not in rates:
                continue
            same = [rates[name]["success"] for name in ("base", "in-context", arm)]
            key = (row["env"], row["model"], *same, row["reply_tokens"][arm])  # arms have other names elsewhere
            name = f"{row['title'].partition(':')[0]}, {row['row']}, {arm}"
            gain, student = (gained(row, one) for one in ("in-context", arm))
            base = rate_given(rates["base"])
            found.setdefault(key, Past(name=name, gain=gain, beyond=None, student=student, base=base))
    return [*found.values()]


def results() -> Iterator[Mapping[str, Any]]:
    """What `agentopcd reproduce` has left in docs/results."""
    return (json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOUND.glob("*.json")))


def contexts() -> dict[str, tuple[str, str, str]]:
    """Environment, model and context of each mini row, by the beginning of the names of its trainings."""
    found = {}
    for file in sorted(RECIPES.glob("*.toml")):
        title, plans = read(file, "mini")
        for plan in plans:
            shared = plan.settings
            named = plan.shown.get("in-context", ""), shared["env"], shared["model"]
            found[f"{title.partition(':')[0]}, {plan.name}, "] = named
    return found


def by_context(past: list[Past], named: Mapping[str, tuple[str, ...]]) -> str:
    """What the advice *train* was worth, with each pair of a model and a context as one observation."""

    def pair(one: Past) -> tuple[str, ...]:
        rows = [row for row in named if one.name.startswith(row)]
        return named[max(rows, key=len)] if rows else (one.name,)

    yes = sorted((one for one in past if one.advice == "train"), key=pair)
    groups = [[*ones] for _, ones in groupby(yes, key=pair)]
    if len(groups) < 2:
        return "by context: fewer than two pairs of a model and a context with the advice train"
    all_better = Rate(sum(all(one.gained for one in ones) for ones in groups), len(groups))
    students = [sum(one.student.diff for one in ones) for ones in groups]
    shown = [sum(one.gain.diff for one in ones) for ones in groups]
    gained, low, high = ratio(students, shown)
    return (
        f"by context: the {len(yes)} with the advice train come from {len(groups)} pairs of a model and a context; in "
        f"{all_better.wins} of these every student became better ({all_better.rate:.0%} [{all_better.low:.0%}, "
        f"{all_better.high:.0%}]), and they gained {gained:.2f} [{low:.2f}, {high:.2f}] times what their contexts did"
    )


def of_workspaces(folders: list[str]) -> list[Past]:
    """The trainings of several workspaces."""
    found: list[Past] = []
    for folder in folders:
        with Store.open(Path(folder) / "store.db") as store:
            found += past_trainings(store)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="*", metavar="WORK", help="a workspace; without any, docs/results")
    folders = parser.parse_args(arguments).work
    for folder in folders:
        if not (Path(folder) / "store.db").is_file():
            parser.error(f"{folder} is no workspace: it has no store.db")
    past = of_workspaces(folders) if folders else of_results(results())
    for one in past:
        print(one)
    print("\n".join(Calibration.of(past).lines()))
    if not folders:
        print(by_context(past, contexts()))


if __name__ == "__main__":
    main()
