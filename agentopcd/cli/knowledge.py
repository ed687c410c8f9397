"""``agentopcd knowledge``: list and show what the store holds, export and import it, move refs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentopcd.cli.help import App
from agentopcd.cli.options import json_option
from agentopcd.core.errors import ConfigError
from agentopcd.core.files import is_dir, path_of, resolved
from agentopcd.core.terminal import emit
from agentopcd.core.text import counted

if TYPE_CHECKING:
    from agentopcd.knowledge import Store

app = App(
    help="Manage what was learned: items, contexts, refs, episodes.",
    epilog="First: agentopcd knowledge list\nThen: agentopcd knowledge show ID",
)

Work = Annotated[
    Path,
    typer.Option(
        "--work", envvar="AGENTOPCD_WORK", help="Workspace folder; the store is its store.db.", callback=path_of
    ),
]
AsJson = Annotated[bool, json_option("Print JSON instead of text.")]
WORK = Path("agentopcd-work")
LEFT_OUT = 10
"""Lines that an import names of those that it leaves out."""


class What(StrEnum):
    """What can be listed."""

    items = "items"
    contexts = "contexts"
    refs = "refs"
    episodes = "episodes"


class Status(StrEnum):
    """Status of an item."""

    pending = "pending"
    active = "active"
    pinned = "pinned"
    retired = "retired"


def open_store(work: Path, *, create: bool = False) -> Store:
    """The store of a workspace, to write to.

    Raises:
        StoreError: there is none, or it cannot be used.
    """
    from agentopcd.knowledge import Store

    return Store.open(work / "store.db", create=create)


def read_store(work: Path) -> Store:
    """The store of a workspace, to read from, even if it is locked or cannot be written.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    from agentopcd.knowledge import Store

    store = Store.open(path_of(work) / "store.db", create=False, to_read=True)
    if store.note:
        print(f"note: {store.note}", file=sys.stderr)
    return store


def _print(rows: list[dict[str, Any]], lines: list[str], as_json: bool, after: str) -> None:
    if as_json:
        emit(rows, indent=1)
        return
    for line in lines:
        print(line)
    print(after)


@app.command("list", epilog="Example: agentopcd knowledge list items --status pending")
def list_(
    what: Annotated[What, typer.Argument(help="items, contexts, refs or episodes.")] = What.items,
    status: Annotated[Status | None, typer.Option(help="Items only: show this status.")] = None,
    env: Annotated[str | None, typer.Option(help="Only show this environment.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many, the newest.")] = 50,
    work: Work = WORK,
    as_json: AsJson = False,
) -> None:
    """List what the store holds.

    Example: agentopcd knowledge list items --status pending
    """
    from agentopcd.cli import store_views

    with read_store(work) as store:
        match what:
            case What.items:
                items, total = store.newest_items(limit, status.value if status else None, env)
                rows = [store_views.item_row(item) for item in items]
            case What.contexts:
                rows = store_views.context_rows(store, env)
                rows, total = rows[-limit:], len(rows)
            case What.refs:
                rows = store_views.ref_rows(store, env)
                rows, total = rows[-limit:], len(rows)
            case What.episodes:
                rows, total = store.newest_episodes(limit, env)
                rows = store_views.episode_rows(store, rows)
    after = f"{total} {what.value}" + (f", the newest {limit} shown" if total > limit else "")
    if not total:
        after += (
            "; agentopcd play fills the store" if what is not What.refs else "; contexts get names as they are made"
        )
    else:
        after += "; agentopcd knowledge show ID shows one in full"
    _print(rows, [store_views.line(what.value, row) for row in rows], as_json, after)


@app.command(epilog="Example: agentopcd knowledge show sokoban/best")
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="Item, context or student id (4 digits or more), ref, episode number, or student's folder.",
        ),
    ],
    work: Work = WORK,
    as_json: AsJson = False,
) -> None:
    """Show one item, context or episode in full, with its origin and its scores; or of a student, which sentences it
    has in its weights, and from which episodes.

    Example: agentopcd knowledge show sokoban/best
    """
    from agentopcd.cli import store_views, student_view
    from agentopcd.core.runs import work_flag
    from agentopcd.workspace.lineage.recorded import student_named

    with read_store(work) as store:
        row = student_named(store, work, name) if not store_views.known(store, name) else None
        view = student_view.student_view(store, work, row) if row else store_views.describe(store, name)
    if as_json:
        emit(view, indent=1)
    else:
        print("\n".join(student_view.student_lines(view, work_flag(work))) if row else store_views.text(view))


@app.command(epilog="Example: agentopcd knowledge export sokoban/best -o best.txt")
def export(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[REF]", help="Context to export: a ref or an id; or PREFIX/, for a folder of a pool."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Export the whole store.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A .jsonl file keeps origin and history; .txt or .md is text alone, SKILL.md text with its evidence. "
            "Default: print JSON lines. With "
            "PREFIX/: a new folder, which gets SEED/experience_STEP.txt for each ref PREFIX/SEED/STEP.",
        ),
    ] = None,
    episodes: Annotated[bool, typer.Option("--episodes", help="With --all: include episodes and transcripts.")] = False,
    work: Work = WORK,
) -> None:
    """Write a context, or the whole store, to a file.

    Example: agentopcd knowledge export sokoban/best -o best.txt
    """
    from agentopcd.core.errors import ConfigError
    from agentopcd.core.runs import write_text
    from agentopcd.knowledge.dump import dump, to_jsonl
    from agentopcd.knowledge.evidence import skill
    from agentopcd.knowledge.plain import export_text

    if (name is None) is not everything:
        raise ConfigError("give either a REF to export or --all")
    if episodes and not everything:
        raise ConfigError("--episodes goes with --all: a single context is exported without its episodes")
    as_text = output is not None and output.suffix.lower() in (".txt", ".md")
    if as_text and name is None:
        raise ConfigError("the whole store does not fit into a text file; use a name that ends in .jsonl")
    if output is not None:
        output = path_of(output)
        refuse_store(output, work)
    if name is not None and name.endswith("/"):
        return _export_folder(name, output, work)
    with read_store(work) as store:
        context_id = store.resolve(name) if name is not None else None
        if context_id is not None and as_text:
            as_skill = output is not None and output.name == "SKILL.md"
            pieces = iter([skill(store, context_id, name or "") if as_skill else export_text(store, context_id)])
        else:
            pieces = to_jsonl(dump(store, None if context_id is None else [context_id], episodes=episodes))
        if output is None:
            for piece in pieces:
                print(piece, end="")
            return
        write_text(output, pieces)
        system = as_text and context_id is not None and store.get_context(context_id).placement == "system"
    how = f"{shlex.quote(str(output))}{' --placement system' if system else ''}"
    print(f"wrote {output}; agentopcd knowledge import {how} --work OTHER imports it elsewhere")
    if everything:
        print("recordings and the moves of ENV/student stay behind; to move this store whole: agentopcd store backup")


def _export_folder(prefix: str, output: Path | None, work: Path) -> None:
    from agentopcd.core.errors import ConfigError
    from agentopcd.knowledge.plain import export_folder

    if output is None:
        raise ConfigError(f"{prefix} stands for several contexts; give -o a new folder for them")
    with read_store(work) as store:
        written, left_out = export_folder(store, prefix, output)
    others = f"; {left_out} refs have other names and were left out" if left_out else ""
    print(f"wrote {counted(written, 'file')} into {output}{others}")


def refuse_store(output: Path, work: Path) -> None:
    """Refuse to write over the store itself.

    Raises:
        ConfigError: ``output`` is one of the store's files.
    """
    from agentopcd.core.errors import ConfigError

    if resolved(output) in {resolved(work / f"store.db{ending}") for ending in ("", "-wal", "-shm", "-journal")}:
        raise ConfigError(f"{output} is the store itself; give -o another name")


@app.command("import", epilog="Example: agentopcd knowledge import rules.txt --as sokoban/mine")
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="An export (.jsonl); text: items or free text; or a folder of SEED/experience_STEP.txt.",
        ),
    ],
    ref: Annotated[str | None, typer.Option("--as", help="Text only: name the context with this ref.")] = None,
    prefix: Annotated[
        str, typer.Option(help="JSON lines and folders only: prefix of every imported ref, such as sokoban/pool/.")
    ] = "",
    placement: Annotated[
        str, typer.Option(help="Text and folders only: message to place it in, 'user' or 'system'.")
    ] = "user",
    gate: Annotated[
        str, typer.Option(help="JSON lines only: 'review' makes items pending, 'keep' keeps their status.")
    ] = "review",
    work: Work = WORK,
    as_json: AsJson = False,
) -> None:
    """Import an export of another store, a text file, or a folder of text files as the paper's code leaves its runs.

    Example: agentopcd knowledge import rules.txt --as sokoban/mine
    """
    from agentopcd.core.encoding import read_text
    from agentopcd.core.errors import ConfigError, did_you_mean
    from agentopcd.core.runs import work_flag
    from agentopcd.knowledge.exchange import GATES, is_export

    if placement not in ("user", "system"):
        raise ConfigError(f"unknown placement {placement!r}{did_you_mean(placement, ('user', 'system'))}")
    if gate not in GATES:
        raise ConfigError(f"unknown gate {gate!r}{did_you_mean(gate, GATES)}")
    folder = is_dir(file)
    text = "" if folder else read_text(file)
    rows = not folder and (is_export(text) or file.suffix.lower() in (".jsonl", ".ndjson"))
    if ref and (rows or folder):
        raise ConfigError("--as names the context of a text file; use --prefix for the refs of an export or a folder")
    if folder and not prefix:
        raise ConfigError(f"{str(file)!r} is a folder; add --prefix for its refs, such as --prefix sokoban/pool/")
    if prefix and not (rows or folder):
        raise ConfigError("--prefix is for the refs of an export or a folder; --as names the context of a text file")
    if gate == "keep" and not rows:
        raise ConfigError("--gate keep is for exports, which say what was approved; import the text, then approve it")
    if placement == "system" and rows:
        raise ConfigError("--placement is for text and folders; the contexts of an export keep theirs")
    settings = {"file": file.name, "prefix": prefix, "placement": placement, "gate": gate}
    with open_store(work, create=True) as store:
        _, before = store.newest_items(1, "pending")
        result = _import(store, path_of(file) if folder else text, rows, settings, ref)
        _, after = store.newest_items(1, "pending")
    if as_json:
        emit(result)
        return
    print(", ".join(f"{value} {key}" for key, value in result.items() if value) or "nothing new")
    if gate == "review" and after > before:
        shown = f"agentopcd knowledge list items --status pending{work_flag(work)}"
        print(f"imported items are pending; {shown} shows them")


def _import(store: Store, given: str | Path, rows: bool, settings: dict[str, str], ref: str | None) -> dict[str, Any]:
    """Import inside a run of its own, so that the store records the import: all of it, or that it has failed."""
    from contextlib import suppress

    from agentopcd.core.errors import StoreError
    from agentopcd.knowledge.exchange import from_jsonl, load
    from agentopcd.knowledge.plain import import_folder, import_text

    place = "system" if settings["placement"] == "system" else "user"
    try:
        with store.write():
            run_id = store.start("import", settings, 0)
            if isinstance(given, Path):
                many = import_folder(store, given, prefix=settings["prefix"], run_id=run_id, placement=place)
                result: dict[str, Any] = many._asdict() | {"changed": len(many.changed)}
                result["lines_left_out"] = _say_left_out(many.lines_left_out)
            elif rows:
                lines = given.split("\n")  # not splitlines: JSON strings may hold other line ends
                result = load(store, from_jsonl(lines), settings["prefix"], gate=settings["gate"])
            else:
                found = import_text(store, given, run_id=run_id, placement=place, ref=ref)
                result = {
                    "context": found.context_id,
                    "items": found.items,
                    "changed by sanitising": found.changed,
                    "lines left out": _say_left_out(found.left_out),
                }
            store.finish(run_id, result)
    except Exception:
        with suppress(StoreError), store.write():  # the first error is the one to tell
            store.finish(store.start("import", settings, 0), status="failed")
        raise
    return result


def _say_left_out(lines: Sequence[str]) -> int:
    """Name what a list of items says besides them, which is not imported; return how many lines that are."""
    from agentopcd.knowledge.items import escaped

    if lines:
        print(
            f"note: lines that are no item, left out: {len(lines)}; --context FILE takes a file whole",
            file=sys.stderr,
        )
    for line in lines[:LEFT_OUT]:
        print(f"  {escaped(line):.200}", file=sys.stderr)
    return len(lines)


@app.command(epilog="Example: agentopcd knowledge move sokoban/best sokoban/pool/00/03")
def move(
    ref: Annotated[str, typer.Argument(metavar="REF", help="The ref to move, for example sokoban/best.")],
    context: Annotated[str, typer.Argument(metavar="CONTEXT", help="A ref, an id, or 'empty'.")],
    reason: Annotated[str | None, typer.Option(help="Why; kept in the log.")] = None,
    expect: Annotated[
        str | None, typer.Option(help="Only move if REF points at this context now (a ref, an id, 'empty').")
    ] = None,
    work: Work = WORK,
) -> None:
    """Point a ref at a context: promote it, or roll back to an earlier one.

    Example: agentopcd knowledge move sokoban/best sokoban/pool/00/03
    """
    from agentopcd.core.runs import work_flag
    from agentopcd.knowledge.store import ANY

    if ref.endswith("/student"):
        env = shlex.quote(ref.removesuffix("/student"))
        raise ConfigError(f"{ref} is a model, and this moves contexts; agentopcd rollback {env} --to STUDENT moves it")
    with open_store(work) as store:
        target = store.resolve(context)
        before = store.refs(ref).get(ref)
        store.move(ref, target, "person", reason, expect=store.resolve(expect) if expect else ANY)
    undo = f"agentopcd knowledge move {shlex.quote(ref)} {before[:12]}{work_flag(work)}" if before else ""
    print(f"{ref} -> {target[:12]} " + (f"(was {before[:12]}); undo with: {undo}" if before else "(is new)"))
