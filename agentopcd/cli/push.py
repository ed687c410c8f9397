"""``agentopcd push``: a student to the model hub."""

from __future__ import annotations

from typing import Annotated

import typer

from agentopcd.cli.options import DRY_RUN, JSON, Call


def push(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="The student's folder, RUN/student.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The repository: OWNER/NAME, or NAME for your own.")],
    private: Annotated[bool, typer.Option("--private", metavar="", help="Make a new repository private.")] = False,
    as_json: JSON = False,
    dry_run: DRY_RUN = False,
) -> None:
    """Upload a student to the model hub, with its card.

    Weights, tokenizer and card, and nothing else of the workspace. The card holds the context in full.

    Example: agentopcd push agentopcd-work/runs/consolidate-math-0123456789/student me/math-student --dry-run
    """
    from agentopcd.models import push as hub

    call = Call(None, as_json, dry_run)
    sent = hub.parcel(student)
    hub.check_name(name)
    for file, size in sent.files.items():
        call.say(f"{size:>13,}  {file}")
    if sent.left_out:
        call.say(f"not of the student, so left out: {', '.join(sent.left_out)}")
    if sent.local_base:
        call.say("warning: the base of this adapter is a local model; others need it, or consolidate with --merge")
    elif (base := hub.public_base(sent.folder)) is not None:
        call.say(f"base: {base}, on the model hub, as the adapter says")  # a path of two parts looks like an id, too
    if "README.md" not in sent.files:
        call.say("warning: there is no card (README.md); students of earlier versions have none")
    result = {"repo": name, "files": sent.files, "left_out": sent.left_out}
    if dry_run:
        call.show(result)
        call.say(f"dry run: {len(sent.files)} files, {sum(sent.files.values()):,} bytes; nothing was uploaded")
        return
    address = hub.push(sent, name, private=private)
    call.show(result | {"url": address})
    call.say(f"pushed {len(sent.files)} files to {address}")
