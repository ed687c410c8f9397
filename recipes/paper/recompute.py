"""Computes every rate, interval and verdict of result files again from the outcomes in them, and compares.

``python -m recipes.paper.recompute docs/results/*.json`` (files of `agentopcd reproduce`). Exit code 0: all figures
agree; 1: one does not; 2: a file cannot be read, or none of the files has outcomes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from math import isclose
from pathlib import Path
from typing import Any

from agentopcd.cli.paper.verdicts import recomputed
from agentopcd.core.errors import AgentOpcdError, ConfigError
from agentopcd.core.runs import read_json


def differences(stands: Any, again: Any, where: str = "") -> Iterator[str]:
    """Every figure that stands in a file and comes out otherwise."""
    if isinstance(again, dict) and isinstance(stands, dict):
        for name in sorted(again.keys() | stands.keys()):
            yield from differences(stands.get(name), again.get(name), f"{where} {name}".strip())
    elif isinstance(again, list) and isinstance(stands, list) and len(again) == len(stands):
        for number, (one, other) in enumerate(zip(stands, again, strict=True)):
            yield from differences(one, other, f"{where} {other.get('claim', number)}")
    elif isinstance(again, float) and isinstance(stands, int | float):
        if not isclose(stands, again, rel_tol=1e-6, abs_tol=1e-9):
            yield f"{where}: {stands} stands there, {again} comes out"
    elif stands != again:
        yield f"{where}: {stands!r} stands there, {again!r} comes out"


def checked(file: Path) -> list[str] | None:
    """What does not agree in a file; None if it holds no outcomes.

    Raises:
        ConfigError: it is no result of `agentopcd reproduce`.
    """
    row = read_json(file, "name a result of `agentopcd reproduce`")
    if not isinstance(row, dict) or "findings" not in row:
        raise ConfigError(f"{file} is no result of `agentopcd reproduce`")
    if "outcomes" not in row:
        return None
    try:
        again = recomputed(row)
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"the outcomes of {file} cannot be read: {error!r}; run the recipe again") from error
    return list(differences({name: row.get(name) for name in again}, again))


def main(files: Sequence[str]) -> int:
    found = {}
    for file in map(Path, files):
        found[file] = checked(file)
        if found[file] is None:
            print(f"{file}: no outcomes by seed and task, so nothing can be computed again")
        else:
            print(f"{file}: " + ("; ".join(found[file] or []) or "every figure comes out again"))
    if all(one is None for one in found.values()):
        raise ConfigError("no file with outcomes was given; name results of `agentopcd reproduce`")
    return int(any(found.values()))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except AgentOpcdError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
