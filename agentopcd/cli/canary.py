"""``agentopcd canary``: whether a canary becomes what is served."""

from __future__ import annotations

from typing import Annotated

import typer

from agentopcd.cli.knowledge import WORK, Work, open_store, read_store
from agentopcd.cli.options import DRY_RUN, JSON, NOT_PROMOTED, Call


def canary(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The recording, as given to serve --record.")],
    by: Annotated[
        str, typer.Option("--by", help="What sessions are compared by: success, reward, or a metric of the ratings.")
    ] = "success",
    work: Work = WORK,
    as_json: JSON = False,
    dry_run: DRY_RUN = False,
) -> None:
    """Compare the newest canary of a recording with what was served beside it.

    Rated sessions are compared. If the canary did better, it takes the place of the other: recorded:NAME/student moves
    to its model, or recorded:NAME/best to its context.

    The exit code is 0 if it was promoted, and 3 if not. Each comparison is a look, and later looks ask for more.

    Example: agentopcd canary shop
    """
    from agentopcd.workspace.canary import decide

    call = Call(work, as_json, dry_run)
    with read_store(work) if dry_run else open_store(work) as store:
        found = decide(store, name.removeprefix("recorded:"), by, look=not dry_run)
    call.show(found.to_dict())
    if dry_run:
        call.say(found.lines()[0])
        call.say("dry run: no look was spent; leave out --dry-run to compare")
        return
    for line in found.lines():
        call.say(line)
    if found.verdict != "pass" or found.overtaken:
        raise typer.Exit(NOT_PROMOTED)
