"""``agentopcd knowledge diff, log, search``: what is different, what happened, and where something stands."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentopcd.cli.knowledge import WORK, AsJson, Status, Work, read_store
from agentopcd.core.terminal import emit
from agentopcd.core.text import counted

if TYPE_CHECKING:
    from agentopcd.knowledge import Store
    from agentopcd.knowledge.changes import Changes

SIDE = "A ref, an id, or 'empty'."


def add_to(knowledge: typer.Typer) -> None:
    """Add the commands to ``agentopcd knowledge``."""
    knowledge.command(epilog="Example: agentopcd knowledge diff sokoban/pool/00/03 sokoban/best")(diff)
    knowledge.command(epilog="Example: agentopcd knowledge log sokoban/best")(log)
    knowledge.command(epilog="Example: agentopcd knowledge search hole corner --status pending")(search)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=SIDE)],
    b: Annotated[str, typer.Argument(metavar="B", help=SIDE)],
    work: Work = WORK,
    as_json: AsJson = False,
) -> None:
    """Show what makes B of A (+ added, - removed, ~ superseded or moved), and scores where both played the same tasks.

    Example: agentopcd knowledge diff sokoban/pool/00/03 sokoban/best
    """
    from agentopcd.knowledge.changes import changes, score_differences
    from agentopcd.knowledge.evidence import elsewhere

    with read_store(work) as store:
        first, second = store.resolve(a), store.resolve(b)
        found, scores = changes(store, first, second), score_differences(store, first, second)
    if as_json:
        emit({"a": first, "b": second, **found.to_dict(), "scores": scores}, indent=1)
        return
    lines = _change_lines(found)
    print(f"{a} ({first[:12]}) -> {b} ({second[:12]})")
    print("\n".join(lines) if lines else "no difference")
    for row in scores:
        print(
            f"{row['env']} {row['split']}: {row['diff']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] from A to B "
            f"({row['pairs']} pairs, model {row['model_id'][:8]}{', imported' if elsewhere(row) else ''})"
        )


def _change_lines(found: Changes) -> list[str]:
    from agentopcd.knowledge.items import escaped

    lines = [f"- {item.id[:12]}  {escaped(item.text)}" for item in found.removed]
    lines += [f"+ {item.id[:12]}  {escaped(item.text)}" for item in found.added]
    for old, new in found.superseded:
        lines += [f"~ {old.id[:12]}  {escaped(old.text)}", f"  -> {new.id[:12]}  {escaped(new.text)}"]
    lines += [f"~ {item.id[:12]}  {start} -> {end}  {escaped(item.text)}" for item, start, end in found.moved]
    lines += [escaped(line) for line in found.text]
    if found.placement[0] != found.placement[1]:
        lines.append(f"~ placement {found.placement[0]} -> {found.placement[1]}")
    return lines


def log(
    ref: Annotated[str, typer.Argument(metavar="REF", help="For example sokoban/best or sokoban/student.")],
    work: Work = WORK,
    as_json: AsJson = False,
) -> None:
    """Show every move of a ref: when, from where to where, by whom, and why.

    Example: agentopcd knowledge log sokoban/best
    """
    from agentopcd.core.runs import work_flag

    with read_store(work) as store:
        rows = _moves(store, ref)
    if as_json:
        emit(rows, indent=1)
        return
    for row in rows:
        start, end = ((row[name] or "nothing")[:12] for name in ("from", "to"))
        run = f" (run {row['run']}, {row['verb']})" if row["run"] else ""
        print(f"{row['at'][:19]}  {start} -> {end}  {row['actor']}: {row['reason'] or '-'}{run}")
    name = shlex.quote(ref)
    back = f"rollback {name} --to STUDENT" if ref.endswith("/student") else f"knowledge move {name} CONTEXT"
    print(f"{counted(len(rows), 'move')}; agentopcd {back}{work_flag(work)} goes back to one")


def _moves(store: Store, ref: str) -> list[dict[str, Any]]:
    """Every move of a ref, oldest first.

    Raises:
        StoreError: there never was such a ref.
    """
    from agentopcd.core.errors import StoreError, did_you_mean
    from agentopcd.knowledge.students import env_of, student_moves

    rows, before = [], None
    of_student = [{**move, "context_id": move["model_id"]} for move in student_moves(store, env_of(ref))]
    for move in of_student or store.log(ref):
        run = store.lookup("run", id=move["run_id"]) if move["run_id"] else None
        rows.append(
            {"at": move["at"], "from": before, "to": move["context_id"], "actor": move["actor"],
             "reason": move["reason"], "run": move["run_id"], "verb": run["verb"] if run else None}
        )  # fmt: skip
        before = move["context_id"]
    if not rows:
        raise StoreError(f"no ref {ref!r}{did_you_mean(ref, store.refs())}")
    return rows


def search(
    words: Annotated[list[str], typer.Argument(metavar="WORDS...", help="Every word must occur, in any case.")],
    env: Annotated[str | None, typer.Option(help="Only items and contexts of this environment.")] = None,
    status: Annotated[Status | None, typer.Option(help="Only items with this status; no contexts then.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many of each, the newest.")] = 50,
    work: Work = WORK,
    as_json: AsJson = False,
) -> None:
    """Find items and contexts by words.

    Example: agentopcd knowledge search hole corner --status pending
    """
    from agentopcd.cli import store_views

    with read_store(work) as store:
        everything = find(store, words, env, status.value if status else None)
    found = {what: rows[-limit:] for what, rows in everything.items()}
    if as_json:
        emit(found, indent=1)
        return
    for what, rows in found.items():
        for row in rows:
            print(store_views.line(what, row))
    newest = f", the newest {limit} of each shown" if everything != found else ""
    found = ", ".join(counted(len(rows), what.removesuffix("s")) for what, rows in everything.items())
    print(f"{found}{newest}; agentopcd knowledge show ID shows one in full")


def find(
    store: Store, words: Sequence[str], env: str | None = None, status: str | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Items and contexts in which every word occurs, oldest first; with ``status``, only items."""
    from agentopcd.cli import store_views

    wanted = [unicodedata.normalize("NFC", word).casefold() for word in words]  # as items are kept

    def fits(text: str) -> bool:
        low = unicodedata.normalize("NFC", text).casefold()
        return all(word in low for word in wanted)

    ids = [row["id"] for row in store.table("item", "created_at, id") if fits(row["text"])]
    held = [] if status else [row for row in store.contexts() if fits(row["rendered"])]
    return {
        "items": [store_views.item_row(item) for item in store.items(status=status, env=env, ids=ids)],
        "contexts": store_views.context_rows(store, env, held),
    }
