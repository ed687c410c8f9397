"""Writes docs/RESULTS.md and its plots from what `agentopcd reproduce` has left in docs/results: a file for each row.

``python recipes/paper/results.py [FOLDER ...]`` first takes over the files of these folders (WORK/reproduce).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
FOUND = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "RESULTS.md"
PLOTS = ROOT / "docs" / "figures"
SHOWN = {
    "loss_nats": "the loss itself", "kl_nats": "KL to the teacher", "entropy_nats": "entropy",
    "mass_outside_topk": "mass outside the top k",
}  # fmt: skip
HEAD = """# Results

Written by `recipes/paper/results.py` from `docs/results/*.json`, which `make paper-mini` makes: each row by
`agentopcd reproduce RECIPE --size mini`, on two cores, resumable. The page sets what the paper (arXiv:2602.12275)
claims and published for its own models beside what we saw with small ones.

- **Success** is on test tasks, without the context except for `in-context`, over all training seeds, with Wilson's
  95 % interval. The checkpoint was chosen on `select`.
- **A verdict** follows the 95 % interval of the paired difference over test tasks: above 0 "reproduced", below 0
  "refuted", else undecided at this size. It holds for these training seeds and contexts, of which there are one to
  four. Our models, contexts and sizes are not the paper's: a refuted claim is refuted here.
- **The intervals** cover the choice of tasks and hardly that of the training. Two seeds say little about a third, and
  another number of threads, which only changes the rounding, can move a verdict on SmolLM2 ([LOG.md](LOG.md), "The
  same run twice").
- **Entropy and KL** are of the arm's own replies to the first 64 test tasks (first training seed), in nats a token.
  The KL is the reverse one to the base, which is shown no context.
"""


def page(rows: Iterable[Mapping[str, Any]]) -> str:
    """The whole page."""
    rows = list(rows)
    parts, title = [HEAD, summary(rows)], ""
    for row in rows:
        if row["title"] != title:
            title = row["title"]
            parts.append(f"\n## {title}\n")
        parts.append(section(row))
    return "".join(parts)


def summary(rows: Iterable[Mapping[str, Any]]) -> str:
    """Every claim with its verdict, one a line."""
    lines = ["\n## All claims\n", "| row | claim | verdict | difference | pairs |", "|---|---|---|---|---|"]
    for row in rows:
        probes = [("on " + row["probe_env"] + ", not taught: ", one) for one in row["probe_findings"]]
        for place, one in [("", one) for one in row["findings"]] + probes:
            lines.append(
                f"| {row['title'].partition(':')[0]}, {row['row']} | {place}{one['claim']} | {one['verdict']} | "
                f"{interval(one)} | {one['n']} |"
            )
    return "\n".join(lines) + "\n"


def section(row: Mapping[str, Any]) -> str:
    """One row: a table, the claims, the floors, and how the training went."""
    seeds = f"{len(row['seeds'])} training seed" + "s" * (len(row["seeds"]) > 1)
    probe = f" on {row['probe_env']} |" if row["probe"] else ""
    published = row["paper"].get("what", "-")
    lines = [
        f"\n### {row['row']}\n",
        f"`{row['env']}`, `{row['model']}`, {row['tasks']} test tasks, {seeds}. Paper: {published}.\n",
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
    lines += [f"- {claim(one)}" for one in row["findings"]]
    lines += [f"- on {row['probe_env']}, which nobody taught: {claim(one)}" for one in row["probe_findings"]]
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


def claim(one: Mapping[str, Any]) -> str:
    return f"{one['claim']}: **{one['verdict']}**, {interval(one)} (n = {one['n']} pairs on {one['tasks']} tasks)"


def interval(one: Mapping[str, Any]) -> str:
    return f"{one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"


def found() -> list[dict[str, Any]]:
    """Rows that were run before all of it was measured lack some."""
    lacking: dict[str, Any] = {"drift": {}, "curves": {}, "chosen_on_test": {}}
    return [lacking | json.loads(file.read_text()) for file in sorted(FOUND.glob("*.json"))]


if __name__ == "__main__":
    FOUND.mkdir(exist_ok=True)
    for folder in sys.argv[1:]:
        for file in sorted(Path(folder).glob("*.json")):
            shutil.copy(file, FOUND / file.name)
    PAGE.write_text(page(found()))
    for row in found():
        if row["curves"]:
            plot(row)
    print(f"wrote {PAGE} and its plots from {len(found())} rows")
