"""Writes docs/RESULTS.md and its plots from what `agentopcd reproduce` has left in docs/results: a file for each row.

``python recipes/paper/results.py [FOLDER ...]`` first takes over the files of these folders (WORK/reproduce).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from agentopcd.cli.paper.plan import RECIPES, read
from agentopcd.cli.paper.verdicts import judged

ROOT = Path(__file__).resolve().parent.parent.parent
FOUND = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "RESULTS.md"
PLOTS = ROOT / "docs" / "figures"
SHOWN = {
    "loss_nats": "the loss itself", "kl_nats": "KL to the teacher", "entropy_nats": "entropy",
    "mass_outside_topk": "mass outside the top k",
}  # fmt: skip
BEFORE = FOUND / "before" / "verdicts.json"
"""The verdicts as they stood when intervals were over tasks alone."""
OPCD_CD = "opcd > context-distillation"
DECIDED = ("reproduced", "refuted")
WITHDRAWN = """
## Withdrawn

- Table 6 in small (in-context > raw traces, "reproduced", +0.691). The row showed pocket 920 tokens of raw traces; it
  was trained on rows of 512, and one game can take 460 of them. Forty copies of true sentences win nothing either
  ([LOG.md](LOG.md), "Verdicts that took tasks for everything"). The other claims of the row were those of Table 2. At
  full size the row stands.
"""
HEAD = """# Results

Written by `recipes/paper/results.py` from `docs/results/*.json`, which `make paper-mini` makes: each row by
`agentopcd reproduce RECIPE --size mini`, on two cores, resumable. The page sets what the paper (arXiv:2602.12275)
claims and published for its own models beside what we saw with small ones.

- **Success** is on test tasks, over all training seeds. `base` and students are shown no context; `in-context`,
  `filtered` and `N episodes` are the base with one. The checkpoint was chosen on `select`.
- **Intervals** (95 %) are over training seeds and test tasks together: other seeds and other tasks could have been
  drawn. Where each seed draws another chain of experience, they are over chains and tasks. Where neither arm was
  trained, a seed is only a repetition, with other noise in the replies. Own notes and chains of a row all come from one
  run of play (one seed), so no interval covers another run. How: `agentopcd/core/crossed.py`; how often such an
  interval is wrong: `python -m benchmarks.false_verdicts`.
- **A verdict** takes four training seeds, eight chains where seeds draw chains, and five tasks. Above 0 it is
  "reproduced", below 0 "refuted", else undecided. Our models, contexts and sizes are not the paper's: a refuted claim
  is refuted here.
- **Files from before outcomes were kept** have intervals over tasks alone, marked †. They decide nothing: with seeds
  enough, the verdict is "undecided: outcomes by seed were not kept". They are also older than the recipes, which now
  take four seeds, and eight chains where seeds draw chains: the command gives other figures today. How many seeds a
  file has stands with each row. Three files hold the first seed of a run that was stopped, as their notes say.
- **Anyone can compute it again**: `python -m recipes.paper.recompute docs/results/*.json`. The files hold who won what,
  by arm, seed and task; those marked † do not.
- **Entropy and KL** are of the arm's own replies to the first 64 test tasks (first training seed), in nats a token.
  The KL is the reverse one to the base, which is shown no context.
- **Precision**: where a row says float32 or bfloat16, its matrix products were in it; weights, logits and loss are
  float32. No row was run in both, so no difference between them is known here.

## What holds by construction

`pocket` and `pocket-s` are no language models. This project trained them, from nothing, on generated games whose rules
stand in a context or nowhere ([what they are](../agentopcd/models/weights/pocket/README.md)). So these say nothing of
the paper:

- in-context > base, with true sentences: following a context is what pocket was trained for; without one it guesses;
- a student > base: it follows from the one above, if distillation works at all;
- success near 1 on the 3x3 lake: it has 19 boards, the same in train and test.

What is not built in is which of two students is better, whether the player's own notes are true, and what is forgotten.
SmolLM2-135M is a language model that others trained. Both are far from the sizes of the paper.
"""
PLAYED_AGAIN = {
    "Placebo students, Frozen Lake 4x4, own notes": "Table 2, Frozen Lake 4x4, own notes",
    "Placebo students, Frozen Lake 4x4, a person's sentences": "A person's sentences, Frozen Lake 4x4",
    "Notes per turn, Frozen Lake 4x4, own notes": "Table 2, Frozen Lake 4x4, own notes",
}
"""Rows without outcomes, and the rows of whose first seed they are a repetition: model, context, settings and seed of
the arms that both have are the same, which their figures cannot show."""
Claim = Mapping[str, Any]
"""A claim of a row with its verdict: see :func:`claims`."""
Games = frozenset[tuple[str, str, int, str]]
"""Seed, task, which game of the task, and how it ended."""


class Seen(NamedTuple):
    """What says whether two measurements are the same games."""

    about: tuple[Any, ...]
    figures: tuple[Any, ...]
    games: Sequence[Games] = ()
    """Those of each arm; empty where the file has none."""

    def among(self, other: Seen) -> bool:
        """Whether all of it is in the other one: game by game, or by equal figures where a file has no outcomes."""
        if self.about != other.about:
            return False
        if self.games and other.games:
            return all(mine <= theirs for mine, theirs in zip(self.games, other.games, strict=True))
        return self.figures == other.figures


def games(row: Mapping[str, Any], arms: Iterable[str], kept: str = "outcomes") -> list[Games]:
    """The games of some arms; empty if the file does not have all of them."""
    given, found = row.get(kept) or {"tasks": [], "arms": {}}, []
    for arm in arms:
        played: set[tuple[str, str, int, str]] = set()
        for seed, signs in given["arms"].get(arm, {}).items():
            times: Counter[str] = Counter()
            for task, sign in zip(given["tasks"], signs, strict=True):
                times[task] += 1
                played |= {(seed, task, times[task], sign)} if sign != "-" else set()
        found.append(frozenset(played))
    return found if all(found) else []


def owners(seen: Sequence[Seen]) -> list[int | None]:
    """For each measurement, another one that holds all its games: the first that is in no other; None: none does."""
    holders = [
        [j for j, other in enumerate(seen) if j != i and one.among(other) and (j < i or not other.among(one))]
        for i, one in enumerate(seen)
    ]
    return [next((j for j in some if not holders[j]), None) for some in holders]


def row_name(row: Mapping[str, Any]) -> str:
    return f"{row['title'].partition(':')[0]}, {row['row']}"


def again(row: Mapping[str, Any]) -> str:
    """The row of whose first seed a row is a repetition, if it has no outcomes that say so."""
    return "" if "outcomes" in row else PLAYED_AGAIN.get(row_name(row), "")


def claims(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every claim of all rows; ``on`` names the task that was not taught, and ``same`` the row with the same games."""
    out: list[dict[str, Any]] = []
    seen: list[Seen] = []
    for row in rows:
        measured = set(row["paper"]) - {"what"}
        for name, kept, on in (("findings", "outcomes", ""), ("probe_findings", "probe_outcomes", row["probe_env"])):
            for one in row[name]:
                arms = one["claim"].split(" > ")
                papers = row["title"].startswith(("Table", "Figure"))
                out.append({
                    "row": row_name(row), "on": on, "claim": one["claim"], "verdict": one["verdict"],
                    "paper": papers and (not measured or set(arms) <= measured),
                    "difference": interval(one) + " †" * ("outcomes" not in row),
                    "over": over(one, row), "n": one["n"], "again": again(row),
                })  # fmt: skip
                figures = one["difference"], one["n"], *(figures_of(row, arm) for arm in arms)
                seen.append(Seen((row["env"], row["model"], on, one["claim"]), figures, games(row, arms, kept)))
    known = {(one["row"], one["on"], one["claim"]) for one in out}
    for one, owner in zip(out, owners(seen), strict=True):
        longer = one.pop("again")
        repeated = longer if (longer, one["on"], one["claim"]) in known else ""
        one["same"] = repeated or ("" if owner is None else out[owner]["row"])
    return out


def figures_of(row: Mapping[str, Any], arm: str) -> tuple[Any, ...]:
    """What two arms without outcomes have in common only if they are the same games."""
    rate = row["rates"].get(arm, {})
    return rate.get("success"), rate.get("n"), row["reply_tokens"].get(arm)


def over(one: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What the interval of a claim is over. Without a trained arm, a seed is but a repetition."""
    number, trained = one.get("seeds", 0), row["curves"].keys() & set(one["claim"].split(" > "))
    each = f"{number} {'seed' if trained else 'repetition'}{'s' * (number != 1)}"
    return f"{one['chains']} chains, {one['tasks']} tasks" if one.get("chains") else f"{each}, {one['tasks']} tasks"


def page(rows: Iterable[Mapping[str, Any]], before: Sequence[Claim]) -> str:
    """The whole page."""
    rows = list(rows)
    now = claims(rows)
    parts = [
        HEAD, tally(now, before), fell(now, before),
        table("Claims of the paper", [one for one in now if one["paper"] and not one["same"]]),
        table("Claims of our own", [one for one in now if not one["paper"] and not one["same"]]), twice(rows, now),
        WITHDRAWN, departures(),
    ]  # fmt: skip
    title = ""
    for row in rows:
        if row["title"] != title:
            title = row["title"]
            parts.append(f"\n## {title}\n")
        parts.append(section(row))
    return "".join(parts)


def tally(now: Sequence[Claim], before: Sequence[Claim]) -> str:
    """How many claims are reproduced, refuted and undecided, and how many were."""
    groups = {
        "claims of the paper": lambda one: one["paper"],
        "claims of our own": lambda one: not one["paper"],
        "OPCD > CD, on the task that was taught": lambda one: one["claim"] == OPCD_CD and not one["on"],
        "OPCD > CD, on a task that nobody taught": lambda one: one["claim"] == OPCD_CD and one["on"],
    }
    lines = [
        "\n## Tally\n",
        "Each claim once, whatever number of tables it stands in. The last two lines are of both kinds of claims.\n",
        "| | reproduced | refuted | undecided | before: reproduced | refuted | undecided |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, belongs in groups.items():
        cells = []
        for found in (now, before):
            verdicts = [one["verdict"] for one in found if belongs(one) and not one["same"]]
            decided = [verdicts.count("reproduced"), verdicts.count("refuted")]
            cells += [*decided, len(verdicts) - sum(decided)]
        lines.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def fell(now: Sequence[Claim], before: Sequence[Claim]) -> str:
    """The verdicts that stood on this page when intervals were over tasks alone, and do not stand now."""
    today = {(one["row"], one["on"], one["claim"]): one["verdict"] for one in now}
    lines = [
        "\n## Verdicts that fell\n",
        "They stood here while intervals were over tasks alone, with one to four training seeds.\n",
        "| row | claim | was | is | over |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for one in before:
        is_now = today.get((one["row"], one["on"], one["claim"]), "withdrawn")
        if one["verdict"] in DECIDED and is_now != one["verdict"] and not one["same"]:
            lines.append(
                f"| {one['row']} | {named(one)} | {one['verdict']}, {one['difference']} | {is_now} | {one['over']} |"
            )
    return "\n".join(lines) + "\n"


def named(one: Claim) -> str:
    return f"on {one['on']}, not taught: {one['claim']}" if one["on"] else one["claim"]


def table(title: str, found: Iterable[Claim]) -> str:
    """Claims with their verdicts, one a line."""
    lines = [f"\n## {title}\n", "| row | claim | verdict | difference | over |", "|---|---|---|---|---|"]
    lines += [f"| {one['row']} | {named(one)} | {one['verdict']} | {one['difference']} | {one['over']} |"
              for one in found]  # fmt: skip
    return "\n".join(lines) + "\n"


def twice(rows: Iterable[Mapping[str, Any]], now: Iterable[Claim]) -> str:
    """What stands in several tables and is one measurement."""
    rows = list(rows)
    lines = [
        "\n## Counted once\n",
        "Recipes share what they train. These are the same, or part of the same, games, and not a second sample:\n",
    ]
    lines += [f"- {one['row']}: {named(one)} is that of {one['same']}" for one in now if one["same"]]
    arms = [(row, arm) for row in rows for arm in row["rates"]]
    seen = [Seen((row["env"], row["model"]), figures_of(row, arm), games(row, [arm])) for row, arm in arms]
    shared: dict[tuple[str, str], list[str]] = {}
    for (row, arm), owner in zip(arms, owners(seen), strict=True):
        if owner is not None and (theirs := row_name(arms[owner][0])) != row_name(row):
            shared.setdefault((row_name(row), theirs), []).append(arm)
    lines += [f"- {one}: the figures of {', '.join(some)} are those of {it}" for (one, it), some in shared.items()]
    for row in rows:
        longer = [other for other in rows if row_name(other) == again(row)]
        both = [arm for arm in row["rates"] if any(arm in other["rates"] for other in longer)]
        lines += [f"- {row_name(row)}: {', '.join(both)} are the first seed of {again(row)}, played again"] * bool(both)
    return "\n".join(lines) + "\n"


def departures() -> str:
    """In what the full-size recipes are not the paper's code."""
    lines = [
        "\n## Where full size departs from the paper's code\n",
        "Nothing was run at full size. Those of the paper's tables follow the published amounts and the sampling of "
        "the released code, but:\n",
    ]
    for file in sorted(RECIPES.glob("*.toml")):
        found = dict.fromkeys(one for plan in read(file, "full")[1] for one in plan.departures)
        lines += [f"- {file.stem}: {one}" for one in found]
    return "\n".join(lines) + "\n"


def section(row: Mapping[str, Any]) -> str:
    """One row: a table, the claims, the floors, and how the training went."""
    seeds = f"{len(row['seeds'])} training seed" + "s" * (len(row["seeds"]) > 1)
    probe = f" on {row['probe_env']} |" if row["probe"] else ""
    published = row["paper"].get("what", "-")
    seeds += f", {row['chains']} chains" * bool(row["chains"]) + f", {row['compute']}" * bool(row["compute"])
    old = " Intervals are over tasks alone (†)." * ("outcomes" not in row)
    lines = [
        f"\n### {row['row']}\n",
        f"`{row['env']}`, `{row['model']}`, {row['tasks']} test tasks, {seeds}. Paper: {published}.{old}\n",
        f"| | success | 95 % interval | n | paper | reply tokens | entropy | KL to base |{probe}",
        "|---|---|---|---|---|---|---|---|" + "---|" * bool(probe),
    ]
    for arm, rate in row["rates"].items():
        paper = f"{row['paper'][arm] / 100:.3f}" if arm in row["paper"] else ""
        beside = f" {row['probe'][arm]['success']:.3f} |" if arm in row["probe"] else " |" * bool(probe)
        drift = row["drift"].get(arm)
        moved = f"{drift['entropy_nats']:.3f} | {drift['kl_nats']:.3f}" if drift else "|"
        lines.append(
            f"| {arm} | {rate['success']:.3f} | [{rate['low']:.3f}, {rate['high']:.3f}] | {rate['n']} | {paper} | "
            f"{row['reply_tokens'][arm]:.1f} | {moved} |{beside}"
        )
    lines.append("")
    lines += [f"- {claim(one, row)}" for one in row["findings"]]
    lines += [f"- on {row['probe_env']}, which nobody taught: {claim(one, row)}" for one in row["probe_findings"]]
    lines.append(f"- floors: {row['floors']}")
    lines += [f"- note: {row['note']}"] if row["note"] else []
    for arm, one in row["chosen_on_test"].items():
        lines.append(
            f"- the paper's report, checkpoints chosen on these test tasks (biased upward): {arm}: best "
            f"{one['best']:.3f}, mean of the best three {one['best_three']:.3f}, of {one['checkpoints']}"
        )
    last = {arm: found["select"][-1] for arm, found in row["curves"].items() if found.get("select")}
    if last:
        ends = ", ".join(f"{arm} {value:.3f}" for arm, value in last.items())
        lines.append(f"- the last step, whether it was chosen or not, on select tasks: {ends}")
    if row["curves"]:
        lines += training(row)
        lines.append(f"\n[How the training went](figures/{plot_name(row)})")
    return "\n".join(lines) + "\n"


def training(row: Mapping[str, Any]) -> list[str]:
    """A table: where each arm's training began and where it ended, by what is told of the tokens learned from."""
    shown = [name for name in SHOWN if any(name in found for found in row["curves"].values())]
    lines = [
        "\nMeans over the first and the last quarter of the steps, of the tokens learned from:\n",
        "| | " + " | ".join(SHOWN[name] for name in shown) + " |",
        "|---|" + "---|" * len(shown),
    ]
    for arm, found in row["curves"].items():
        cells = []
        for name in shown:
            values = [value for value in found.get(name, []) if value is not None]
            quarter = max(1, len(values) // 4)
            ends = [fmean(values[:quarter]), fmean(values[-quarter:])] if values else []
            cells.append(" → ".join(f"{value:.2g}" for value in ends))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def plot_name(row: Mapping[str, Any]) -> str:
    words = f"{row['title'].partition(':')[0]} {row['row']}".lower()
    return "results-" + "-".join(re.findall("[a-z0-9]+", words)) + ".png"


def plot(row: Mapping[str, Any]) -> None:
    """Draw a row's curves: one panel for each figure, one line for each arm."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for found in row["curves"].values() for name in found))
    figure = Figure(figsize=(3.4 * len(names), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for number, (arm, found) in enumerate(row["curves"].items()):
            if name in found:
                points = [(step, value) for step, value in enumerate(found[name], start=1) if value is not None]
                axes.plot(*zip(*points, strict=True), color=f"C{number}", lw=1.2, label=arm)
        axes.set(title=name.replace("_", " "), xlabel="step")
        if name not in ("select", "success"):
            axes.set_yscale("symlog", linthresh=1e-4)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    figure.savefig(PLOTS / plot_name(row), dpi=110)


def claim(one: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    won = f"won {one['wins']}, lost {one['losses']} of {one['n']} games; " if "wins" in one else ""
    return f"{one['claim']}: **{one['verdict']}**, {interval(one)} ({won}{over(one, row)})"


def interval(one: Mapping[str, Any]) -> str:
    return f"{one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"


def found() -> list[dict[str, Any]]:
    """All rows, those of the paper first: of two with the same games the first counts. Old ones lack some of it."""
    lacking: dict[str, Any] = {"drift": {}, "curves": {}, "chosen_on_test": {}, "chains": None, "compute": ""}
    rows = [judged(lacking | json.loads(file.read_text())) for file in sorted(FOUND.glob("*.json"))]
    return sorted(rows, key=lambda row: not row["paper"])


if __name__ == "__main__":
    FOUND.mkdir(exist_ok=True)
    for folder in sys.argv[1:]:
        for file in sorted(Path(folder).glob("*.json")):
            shutil.copy(file, FOUND / file.name)
    rows = found()
    PAGE.write_text(page(rows, json.loads(BEFORE.read_text())))
    for row in rows:
        if row["curves"]:
            plot(row)
    print(f"wrote {PAGE} and its plots from {len(rows)} rows")
