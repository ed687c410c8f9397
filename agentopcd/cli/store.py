"""``agentopcd store``: check, repair and back up the file that holds what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from agentopcd.cli.help import App
from agentopcd.cli.knowledge import WORK, AsJson, Work, read_store, refuse_store
from agentopcd.core.files import path_of
from agentopcd.core.terminal import emit

app = App(help="Look after the store's file: check it, repair it, back it up.", epilog="First: agentopcd store check")


@app.command(epilog="Example: agentopcd store check")
def check(work: Work = WORK) -> None:
    """Read every row and transcript and say what is wrong. The exit code is 1 if anything is.

    Example: agentopcd store check
    """
    from agentopcd.core.runs import work_flag
    from agentopcd.knowledge import care

    with read_store(work) as store:
        problems = care.problems(store)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{len(problems)} problems; next: agentopcd store repair{work_flag(work)}")
        raise typer.Exit(1)
    print(f"{work / 'store.db'} is sound")


@app.command(epilog="Example: agentopcd store repair")
def repair(work: Work = WORK) -> None:
    """Copy every row that can be read into a new store, which takes the place of the old one. The old one is kept.

    Example: agentopcd store repair
    """
    from agentopcd.knowledge.repair import repair as mend

    result = mend(path_of(work) / "store.db")
    for line in result.lost:
        print(line)
    print(f"{work / 'store.db'} was written anew; the damaged files are kept as {result.kept}")
    if not result.lost:
        print("nothing was lost")


@app.command(epilog="Example: agentopcd store backup -o store-monday.db")
def backup(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file. Default: store-DATE.db in the workspace.")
    ] = None,
    work: Work = WORK,
) -> None:
    """Copy the store into one file, while others go on using it. To go back, put that file in the place of store.db.

    Example: agentopcd store backup -o store-monday.db
    """
    from agentopcd.knowledge import care
    from agentopcd.knowledge.database import now

    target = path_of(output) if output else path_of(work) / f"store-{now()[:19].replace(':', '')}.db"
    refuse_store(target, work)
    with read_store(work) as store:
        care.backup(store, target)
    print(f"wrote {target}")


NEWEST = 50
"""Sessions that are listed if no number is given."""


@app.command("recordings", epilog="Example: agentopcd store recordings shop")
def list_recordings(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A recording, whose sessions are listed, the newest last.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"With NAME: show at most this many, the newest [default: {NEWEST}].")
    ] = None,
    work: Work = WORK,
    as_json: AsJson = False,
) -> None:
    """List what `agentopcd serve --record` has kept: sessions, how many of them are rated, and requests. With NAME, the
    sessions of one recording.

    Example: agentopcd store recordings shop
    """
    from agentopcd.core.config import RECORDED
    from agentopcd.core.errors import ConfigError, StoreError
    from agentopcd.knowledge.recordings import newest_sessions, recordings

    if limit is not None and not name:
        raise ConfigError("--limit is for the sessions of one recording: agentopcd store recordings NAME --limit N")
    shown = NEWEST if limit is None else limit
    try:
        store = read_store(work)
    except StoreError as error:
        raise StoreError(str(error).replace("play first", "agentopcd serve --record NAME makes one")) from error
    wanted = name.removeprefix(RECORDED) if name else ""
    with store:
        found = recordings(store)
        rows, total = newest_sessions(store, wanted, shown) if name else (found, len(found))
    if name and not rows:
        known = ", ".join(row["name"] for row in found) or "none"
        raise ConfigError(f"nothing is recorded under {wanted!r} in {work / 'store.db'} (recordings: {known})")
    if as_json:
        return emit(rows, indent=1)
    for row in rows:
        print(_session_line(row) if name else _recording_line(row))
    if name:
        print(f"{total} sessions of {wanted}" + (f", the newest {shown} shown" if total > shown else ""))
    elif not rows:
        print("nothing is recorded; next: agentopcd serve --model pocket --record NAME")


def _recording_line(row: dict[str, Any]) -> str:
    return f"{row['name']}: {row['sessions']} sessions, {row['rated']} of them rated, {row['requests']} requests"


def _session_line(row: dict[str, Any]) -> str:
    given = row["rating"]
    rating = [] if given["success"] is None else ["success" if given["success"] else "failure"]
    rating += [] if given["reward"] is None else [f"reward {given['reward']:g}"]
    rating += [f"{name} {value:g}" for name, value in sorted(given["metrics"].items())]
    parts = [
        row["session"], f"{row['requests']} requests", ", ".join(rating) or "not rated",
        f"task {row['task']}" if row["task"] else "",
        f"model {row['model'][:8]}" + (f" ({row['arm']})" if row["arm"] else ""), row["started_at"][:19],
    ]  # fmt: skip
    return "  ".join(part for part in parts if part)
