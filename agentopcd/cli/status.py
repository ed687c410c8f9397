"""``agentopcd status``: what a workspace holds, what is running, and how to go on with what is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from agentopcd.cli.knowledge import WORK, AsJson, Work, read_store
from agentopcd.core.terminal import emit
from agentopcd.core.text import counted
from agentopcd.core.types import EMPTY

if TYPE_CHECKING:
    from agentopcd.workspace.overview import Job, Overview

SHOWN = 20
"""Runs that are shown to people, the newest, besides all that are open or running."""


def status(work: Work = WORK, as_json: AsJson = False) -> None:
    """Say what a workspace holds, and how to go on with what was interrupted.

    Runs and how far they are, students, contexts, sizes, and commands. Nothing is changed, but a store of an
    older version is brought up to date, and another process may be working there.

    Example: agentopcd status --work agentopcd-work
    """
    from agentopcd.core.errors import StoreError
    from agentopcd.core.runs import work_flag
    from agentopcd.workspace.overview import overview

    if not (work / "store.db").exists():
        what = "holds no store" if work.is_dir() else "does not exist"
        raise StoreError(
            f"workspace {str(work)!r} {what}, so there is nothing to tell; `agentopcd play --env NAME"
            f"{work_flag(work)}` begins one, --work FOLDER names another"
        )
    with read_store(work) as store:
        found = overview(store, work, work_flag(work))
    if as_json:
        emit(found.to_dict(), indent=1)
        return
    for line in lines(found):
        print(line)


def lines(found: Overview) -> Iterator[str]:
    """The overview as text."""
    sizes = found.sizes
    yield (
        f"{found.work}: {', '.join(counted(sizes[f'{what}s'], what) for what in ('episode', 'item', 'context'))}; "
        f"store {_bytes(sizes['store_bytes'])}, runs {_bytes(sizes['runs_bytes'])}"
    )
    old = [job for job in found.jobs[:-SHOWN] if not job.open and job.state != "running"]
    shown = [job for job in found.jobs if not any(job is one for one in old)]
    yield ""
    yield "runs" + (f" (and {len(old)} older ones that are over; --json lists all)" if old else "")
    yield from _run_lines(shown) if shown else ["  none yet; agentopcd play --env NAME makes the first"]
    yield ""
    yield "students"
    for student in found.students:
        yield from _student_lines(student, found.contexts)
    if not found.students:
        yield "  none yet; agentopcd consolidate and agentopcd learn make them"
    yield ""
    yield f"contexts ({found.candidates} names of chain steps are not shown)" if found.candidates else "contexts"
    yield from map(_context_line, found.contexts)
    if not found.contexts:
        yield "  none has been scored or given a name yet"
    if waiting := [job for job in found.jobs if job.open and (job.command or job.needs)]:
        yield ""
        yield "to go on"
        for job in waiting:
            yield f"  {_name(job)}: {job.command or job.needs}"
            if job.command and job.needs:
                yield f"    ({job.needs})"


def _run_lines(jobs: Sequence[Job]) -> Iterator[str]:
    cells = [(str(job.number or ""), job.verb, job.env, job.model or "-", job.state, _when(job)) for job in jobs]
    widths = [max(len(row[column]) for row in cells) for column in range(5)]
    for job, row in zip(jobs, cells, strict=True):
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  " + "  ".join([row[0].rjust(widths[0]), *padded[1:], row[5]])
        if job.why:
            yield f"      {job.why}"


def _when(job: Job) -> str:
    """When a job began, in the machine's time, and how long it took so far, and how far it is."""
    began = datetime.fromisoformat(job.started_at).astimezone().strftime("%Y-%m-%d %H:%M") if job.started_at else "-"
    took = "" if job.took_s is None else f", {duration(job.took_s)}"
    stage = f"(a stage of {job.part_of})" if job.part_of else ""
    return "  ".join(part for part in (f"{began}{took}", job.progress, stage) if part)


def duration(seconds: float) -> str:
    """Seconds in words, as exact as a person needs."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def _student_lines(student: dict[str, Any], contexts: Sequence[dict[str, Any]]) -> Iterator[str]:
    refs = {entry["id"]: entry["refs"] for entry in contexts}
    taught = ", ".join(" ".join([*refs.get(id_, [])[:1], id_[:12]]) for id_ in student["contexts"]) or "unknown"
    folder = student["folder"] or "(its folder is gone)"
    names = f"  {', '.join(student['refs'])}" if student["refs"] else ""
    yield f"  {folder}  {student['id'][:12]}  {_bytes(student['bytes'])}{names}"
    yield f"    {student['env']}: from {student['base']} {student['base_id'][:12]}, context {taught}"
    rows = [row for row in student["test"] or [] if row.get("success") is not None]
    if rows:
        figures = [f"{row['label']} {row['success']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for row in rows]
        yield f"    test (n = {max(row['n'] for row in rows)}): {', '.join(figures)}"
    if closed := student["closed"]:
        interval = f"[{closed['low']:.3f}, {closed['high']:.3f}]" if closed["low"] is not None else "(one task)"
        yield f"    distance closed on {closed['n']} test tasks: {closed['mean']:.3f} {interval}"
    elif not rows:
        yield "    no test figures; agentopcd evaluate measures them"


def _context_line(entry: dict[str, Any]) -> str:
    names = ", ".join(entry["refs"]) or "(no name)"
    verdicts = [
        f"{one['verdict'] or 'being confirmed'} (look {one['number']} in {one['env']})" for one in entry["verdicts"]
    ]
    said = "; ".join(verdicts) or ("the empty context" if entry["id"] == EMPTY.id else "never confirmed")
    return f"  {names}  {entry['id'][:12]}  {said}"


def _name(job: Job) -> str:
    return f"{job.verb} run {job.number}" if job.number else f"{job.verb} in {job.env}"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
