"""``agentopcd store``: check, repair and back up the file that holds what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentopcd.cli.help import App
from agentopcd.cli.knowledge import WORK, Work, read_store, refuse_store
from agentopcd.core.files import path_of

app = App(help="Look after the store's file: check it, repair it, back it up.", epilog="First: agentopcd store check")


@app.command(epilog="Example: agentopcd store check")
def check(work: Work = WORK) -> None:
    """Read every row and transcript and say what is wrong. The exit code is 1 if anything is.

    Example: agentopcd store check
    """
    from agentopcd.knowledge import care

    with read_store(work) as store:
        problems = care.problems(store)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{len(problems)} problems; next: agentopcd store repair --work {work}")
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


@app.command("recordings", epilog="Example: agentopcd store recordings")
def list_recordings(work: Work = WORK) -> None:
    """List what `agentopcd serve --record` has kept: sessions, how many of them are rated, and requests.

    Example: agentopcd store recordings
    """
    from agentopcd.knowledge.recordings import recordings

    with read_store(work) as store:
        found = recordings(store)
    for row in found:
        print(f"{row['name']}: {row['sessions']} sessions, {row['rated']} of them rated, {row['requests']} requests")
    if not found:
        print("nothing is recorded; next: agentopcd serve --model pocket --record NAME")
