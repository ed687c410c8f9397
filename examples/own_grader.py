"""Questions with a grader of your own: an estimate counts if it is within a tenth of the right number.

python examples/own_grader.py                                               # writes estimates.jsonl
agentopcd envs check estimates.jsonl --env-arg grader=examples/own_grader.py:near
agentopcd envs try estimates.jsonl --env-arg grader=examples/own_grader.py:near
agentopcd play --env estimates.jsonl --grader examples/own_grader.py:near --model Qwen/Qwen3-1.7B \\
    --template-arg enable_thinking=false
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

UNITS = {
    "kilometres are a mile": 1.609,
    "grams are a pound": 453.6,
    "litres are a gallon": 3.785,
    "metres are a yard": 0.914,
}
NUMBER = re.compile(r"-?\d+(?:,\d+)*(?:\.\d+)?")


def rows() -> list[dict[str, Any]]:
    """Two hundred questions. A grader sees the whole row, so the right number may stand in any column."""
    found = []
    for count in range(2, 52):
        for unit, each in UNITS.items():
            many, _, one = unit.partition(" are a ")
            found.append({"question": f"About how many {many} are {count} {one}s?", "right": round(count * each, 3)})
    return found


def near(row: Mapping[str, Any], reply: str) -> dict[str, float]:
    """Grade a reply: ``success`` decides, and ``error`` becomes a metric: the share by which the estimate is off."""
    numbers = NUMBER.findall(reply)
    if not numbers:
        return {"success": 0, "error": 1}
    error = abs(float(numbers[-1].replace(",", "")) / row["right"] - 1)
    return {"success": error <= 0.1, "error": min(error, 1)}


if __name__ == "__main__":
    written = rows()
    Path("estimates.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in written), encoding="utf-8")
    print(f"estimates.jsonl: {len(written)} questions; first: {written[0]['question']}")
