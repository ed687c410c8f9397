"""Writes docs/RESULTS.md from what `agentopcd reproduce` has left in docs/results: one JSON file for each row.

``python recipes/paper/results.py [FOLDER ...]`` first takes over the files of these folders (WORK/reproduce).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
FOUND = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "RESULTS.md"
HEAD = """# Results

Written by `recipes/paper/results.py` from `docs/results/*.json`, which `make paper-mini` makes: each row by
`agentopcd reproduce RECIPE --size mini`, on two cores, resumable. What the paper (arXiv:2602.12275) claims, what it
published for its own models, and what we saw with small ones. Success is on test tasks, without the context except for
`in-context`, all training seeds together, with Wilson's 95 % interval; the checkpoint was chosen on `select`. A
verdict follows the 95 % interval of the paired difference over test tasks: above 0 "reproduced", below 0 "refuted",
else undecided at this size. Our models, contexts and sizes are not the paper's: a refuted claim is refuted here.
"""


def page(rows: Iterable[Mapping[str, Any]]) -> str:
    """The whole page."""
    parts, title = [HEAD], ""
    for row in rows:
        if row["title"] != title:
            title = row["title"]
            parts.append(f"\n## {title}\n")
        parts.append(section(row))
    return "".join(parts)


def section(row: Mapping[str, Any]) -> str:
    """One row: a table, the claims, the floors."""
    seeds = f"{len(row['seeds'])} training seed" + "s" * (len(row["seeds"]) > 1)
    probe = f" on {row['probe_env']} |" if row["probe"] else ""
    published = row["paper"].get("what", "-")
    lines = [
        f"\n### {row['row']}\n",
        f"`{row['env']}`, `{row['model']}`, {row['tasks']} test tasks, {seeds}. Paper: {published}.\n",
        f"| | success | 95 % interval | n | paper | reply tokens |{probe}",
        "|---|---|---|---|---|---|" + "---|" * bool(probe),
    ]
    for arm, rate in row["rates"].items():
        paper = f"{row['paper'][arm] / 100:.3f}" if arm in row["paper"] else ""
        beside = f" {row['probe'][arm]['success']:.3f} |" if arm in row["probe"] else " |" * bool(probe)
        lines.append(
            f"| {arm} | {rate['success']:.3f} | [{rate['low']:.3f}, {rate['high']:.3f}] | {rate['n']} | {paper} | "
            f"{row['reply_tokens'][arm]:.1f} |{beside}"
        )
    lines.append("")
    lines += [f"- {claim(one)}" for one in row["findings"]]
    lines += [f"- on {row['probe_env']}, which nobody taught: {claim(one)}" for one in row["probe_findings"]]
    lines.append(f"- floors: {row['floors']}")
    return "\n".join([*lines, *([f"- note: {row['note']}"] if row["note"] else [])]) + "\n"


def claim(one: Mapping[str, Any]) -> str:
    interval = f"{one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
    return f"{one['claim']}: **{one['verdict']}**, {interval} (n = {one['n']} pairs on {one['tasks']} tasks)"


def found() -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(FOUND.glob("*.json"))]


if __name__ == "__main__":
    FOUND.mkdir(exist_ok=True)
    for folder in sys.argv[1:]:
        for file in sorted(Path(folder).glob("*.json")):
            shutil.copy(file, FOUND / file.name)
    PAGE.write_text(page(found()))
    print(f"wrote {PAGE} from {len(found())} rows")
