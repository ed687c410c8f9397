"""``agentopcd knowledge audit, forget``: what is in a student's weights, whether it stays, and how it is taken out."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentopcd.cli.knowledge import open_store
from agentopcd.cli.options import DRY_RUN, JSON, WORK, Call, goes_on, progress
from agentopcd.core.errors import ConfigError
from agentopcd.core.files import path_of
from agentopcd.core.runs import default_workspace, work_flag
from agentopcd.core.text import SHORT
from agentopcd.workspace.lineage.found import NO_LINES, TURNS

if TYPE_CHECKING:
    from agentopcd.knowledge import Item, Store
    from agentopcd.knowledge.database import Row

STUDENT = "Folder of a student, ENV/student, or the start of an id (4 digits or more)."


def add_to(knowledge: typer.Typer) -> None:
    """Add the commands to ``agentopcd knowledge``."""
    knowledge.command(epilog="Example: agentopcd knowledge audit")(audit)
    knowledge.command(epilog='Example: agentopcd knowledge forget 1f0c9a --reason "wrong since version 2"')(forget)


def audit(
    student: Annotated[
        str, typer.Argument(metavar="[STUDENT]", show_default="the newest student with items", help=STUDENT)
    ] = "",
    item: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Ask also for an item that this student should not have; repeat for more."),
    ] = None,
    lineage: Annotated[
        bool, typer.Option("--lineage", metavar="", help="Audit its ancestors, too, and show what was lost since.")
    ] = False,
    turns: Annotated[int, typer.Option(min=2, help="Stored turns to read for each context.")] = TURNS,
    work: WORK = None,
    as_json: JSON = False,
    dry_run: DRY_RUN = False,
) -> None:
    """Measure which items a student has in its weights: for each, how much of its effect on the teacher the student
    shows without any context, beside the same figure for a placebo. Nothing is played: stored turns are read.

    Example: agentopcd knowledge audit
    """
    from agentopcd.knowledge.lineage import carried, generations
    from agentopcd.workspace.lineage.found import audits, curves, to_audit

    call = Call(work, as_json, dry_run)
    folder = path_of(work) if work else default_workspace()  # which holds a store, or is left alone
    with goes_on(), open_store(folder) as store:
        row = _student(store, folder, student)
        others = [one.id for one in _items(store, item or ())]
        asked = [one.model for one in generations(store, row["id"])[:-1] if carried(store, one.model["id"])]
        students = [*(asked if lineage else []), row]
        plan = [(one["id"][:SHORT], len(to_audit(store, one, others if one is row else ()))) for one in students]
        if dry_run:
            call.show([{"student": name, "items": count} for name, count in plan])
            for name, count in plan:
                call.say(f"plan: student {name}, {count} items, each behind two contexts on up to {turns} stored turns")
            return call.say("dry run: nothing was read; leave out --dry-run to start")
        from agentopcd import models
        from agentopcd.workspace.lineage import audit as module

        models.prepare_process()
        done = [
            module.audit(
                store, folder, one, turns=turns, others=others if one is row else (), say=call.say, progress=progress
            )
            for one in students
        ]
        known = audits(store, row["id"])
    call.show({"audits": [one.to_dict() for one in done], "lineage": [one.to_dict() for one in known]})
    for line in (line for one in done for line in one.lines()):
        call.say(line)
    for line in curves(known):
        call.say(line)


def forget(
    items: Annotated[list[str], typer.Argument(metavar="ID...", help="Items: 4 digits of an id or more.")],
    student: Annotated[str, typer.Option(show_default="the newest that carries them", help=STUDENT)] = "",
    reason: Annotated[str | None, typer.Option(help="Why; kept in the item's history.")] = None,
    server: Annotated[
        str, typer.Option(show_default="as in the first training", help="Address to play at, if a server played.")
    ] = "",
    work: WORK = None,
    as_json: JSON = False,
    dry_run: DRY_RUN = False,
) -> None:
    """Take items out of a student's weights: retire them, and train again without them from the last ancestor that
    never saw them, with the settings of the first trainings. Hashes prove that nothing of the new lineage holds them.

    Example: agentopcd knowledge forget 1f0c9a --reason "wrong since version 2"
    """
    import functools

    from agentopcd import models
    from agentopcd.cli.closing import command, next_is
    from agentopcd.distil import distil_context
    from agentopcd.workspace.lineage import forget as module
    from agentopcd.workspace.lineage.recorded import student_named

    call = Call(work, as_json, dry_run)
    folder = path_of(work) if work else default_workspace()  # which holds a store, or is left alone
    models.prepare_process()
    with goes_on(), open_store(folder) as store:
        found = _items(store, items)
        row = _student(store, folder, student, found)
        if (result := module.forgotten_before(store, folder, row, found, say=call.say)) is None:
            plan = module.plan_of(store, folder, row, found)
            for line in plan.lines():
                call.say(line)
            if dry_run:
                time, ids = module.time_of(store, folder, plan, call.say), [one.id for one in found]
                call.show({"student": row["id"], "items": ids, "plan": [*plan.lines()], "time": time})
                call.say(time)
                return call.say("dry run: nothing was trained or retired; leave out --dry-run to start")
            distil = functools.partial(distil_context, moves=False)  # the forgetting itself moves ENV/student, at last
            result = module.forget(
                store, folder, plan, distil=distil, reason=reason, server=server, say=call.say, progress=progress
            )
        others = [id_ for one in found for id_ in store.carriers(one.id)]
        playing = _playing(store, found)
        left = student_named(store, folder, result.student)  # None: a base, which carries nothing
    call.show(result.to_dict() | {"carriers": sorted({*others})})
    for line in result.lines():
        call.say(line)
    call.say(f"still in the weights of: {', '.join(id_[:SHORT] for id_ in dict.fromkeys(others))}; use none of these")
    for ref, ids in playing.items():
        again = f"knowledge forget {' '.join(ids)} --student {shlex.quote(ref)}"
        call.say(f"warning: {ref} is another student and still has {', '.join(ids)}: {command(call, again, '')}")
    asked = " ".join(f"--item {one.id[:SHORT]}" for one in found)
    if left is not None:
        next_is(call, command(call, f"knowledge audit {result.student[:SHORT]} {asked}", ""))


def _playing(store: Store, items: Sequence[Item]) -> dict[str, list[str]]:
    """The refs of students that have some of the items in their weights, and these items' ids."""
    from agentopcd.knowledge.students import current_student, student_moves, student_ref

    carriers, found = {item.id[:SHORT]: store.carriers(item.id) for item in items}, {}
    for env in sorted({move["env"] for move in student_moves(store)}):
        plays = current_student(store, env)
        if held := [id_ for id_, models in carriers.items() if plays in models]:
            found[student_ref(env)] = held
    return found


def _items(store: Store, names: Sequence[str]) -> list[Item]:
    found = {}
    for name in names:
        kind, id_ = store.find(name)
        if kind != "item":
            raise ConfigError(f"{name!r} is a context; name an item")
        found[id_] = store.item(id_)
    return list(found.values())


def _student(store: Store, work: Path, name: str, items: Sequence[Item] = ()) -> Row:
    """The student that is named, or the newest one that carries all of ``items``, or any item if there are none.

    Raises:
        ConfigError: there is none.
    """
    from agentopcd.knowledge.lineage import carried
    from agentopcd.workspace.lineage.recorded import student_named

    if name:
        if (row := student_named(store, work, name)) is None:
            raise ConfigError(f"{name!r} is no student of this workspace; agentopcd status{work_flag(work)} lists them")
        return row
    wanted = {item.id for item in items}
    for row in store.models(trained=True):
        held = {entry.item.id for entry in carried(store, row["id"])}
        if held and wanted <= held:
            return row
    if items:
        raise ConfigError(
            "no student of this workspace carries all of these items; agentopcd knowledge show "
            f"{items[0].id[:SHORT]}{work_flag(work)} lists who carries that one"
        )
    if not store.models(trained=True):
        raise ConfigError("this workspace has no students yet; agentopcd consolidate and agentopcd learn make them")
    raise ConfigError(f"no student of this workspace carries items: {NO_LINES}")
