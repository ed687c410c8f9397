"""One table of both arms of the demo on real weights: ``python recipes/demo_real_table.py demo-real-work``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agentopcd.knowledge import Store


def main(work: Path) -> None:
    newest_last = sorted(work.glob("runs/consolidate-*/result.json"), key=lambda file: file.stat().st_mtime)
    results = [json.loads(file.read_text()) for file in newest_last]
    with Store.open(work / "store.db") as store:
        recipes = {r["context"]: json.loads(store.context_row(r["context"])["recipe"]) for r in results}
    arms: dict[str, Any] = {"a": None, "b": None}
    for result in results:
        arms["b" if recipes[result["context"]].get("order") == "file" else "a"] = result["evaluation"]
    table = Table(title="math, level 1 (add or subtract two numbers up to 20), test tasks")
    for column in ("arm", "success", "95 % interval", "n", "reply tokens", "paired difference to base"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    notes: set[str] = set()
    for arm, name in (("a", "own experience"), ("b", "a person's line")):
        found = arms[arm]
        if found is None:
            table.add_row(f"({arm}) {name}", "-", "-", "-", "-", "nothing consolidated")
            continue
        notes |= set(found["notes"])
        for row in found["rows"]:
            labels = {"base": "base", "in-context": f"({arm}) in-context: {name}", "student": f"({arm}) student"}
            if row["label"] == "base" and table.row_count and arm == "b" and arms["a"] is not None:
                continue
            gap = found["differences"].get(f"{row['label']} - base")
            paired = f"{gap['difference']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]" if gap else ""
            interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
            figures = (f"{row['success']:.3f}", interval, str(row["n"]), f"{row['reply_tokens']:.1f}", paired)
            table.add_row(labels[row["label"]], *figures)
    Console(width=118).print(table)
    for arm, found in arms.items():
        if found and found["recovered"] is not None:
            print(f"({arm}) recovered {found['recovered']:.0%} of the in-context gain, without the context")
    if arms["a"] is None:
        print("(a) nothing the model wrote for itself beat the empty context on confirm tasks: nothing was distilled")
    for note in sorted(notes):
        print(f"note: {note}")


main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-real-work"))
