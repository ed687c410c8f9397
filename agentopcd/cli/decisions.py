"""``agentopcd knowledge approve, pin, retire, edit, tidy``: what a person decides about items."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentopcd.cli.knowledge import WORK, AsJson, Work, open_store, read_store
from agentopcd.core.encoding import read_text
from agentopcd.core.errors import AgentOpcdError, ConfigError
from agentopcd.core.runs import work_flag
from agentopcd.core.terminal import emit
from agentopcd.core.text import counted

if TYPE_CHECKING:
    from agentopcd.knowledge import Item, Store
    from agentopcd.knowledge.decide import Decision
    from agentopcd.knowledge.edit import Edited
    from agentopcd.knowledge.similar import Offer, Pair

Names = Annotated[
    list[str], typer.Argument(metavar="ID...", help="Items (4 digits or more), or contexts, for their pending items.")
]
Items = Annotated[list[str], typer.Argument(metavar="ID...", help="Items: 4 digits of an id or more.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Why; kept in the item's history.")]


def add_to(knowledge: typer.Typer) -> None:
    """Add the commands to ``agentopcd knowledge``."""
    for command in (approve, pin, retire, edit, tidy):
        knowledge.command(epilog=_example(command.__doc__))(command)


def _example(doc: str | None) -> str:
    return (doc or "").strip().rpartition("\n")[2].strip()


def approve(names: Names, reason: Reason = None, work: Work = WORK, as_json: AsJson = False) -> None:
    """Let items be used: those that wait, and those that were retired. Their text is printed first.

    Example: agentopcd knowledge approve sokoban/pool/00/03
    """
    _decide("approve", names, reason, work, as_json)


def pin(names: Names, reason: Reason = None, work: Work = WORK, as_json: AsJson = False) -> None:
    """Mark items as sure: approved, and kept by a pool that drops items by their values.

    Example: agentopcd knowledge pin 1f0c9a
    """
    _decide("pin", names, reason, work, as_json)


def retire(names: Items, reason: Reason = None, work: Work = WORK, as_json: AsJson = False) -> None:
    """Take items out of use. A context that holds one cannot be trained on until it is approved again or left out.

    Example: agentopcd knowledge retire 1f0c9a --reason "wrong since version 2"
    """
    _decide("retire", names, reason, work, as_json)


def _decide(decision: Decision, names: Sequence[str], reason: str | None, work: Path, as_json: bool) -> None:
    from agentopcd.knowledge.decide import BECOMES, decide, targets
    from agentopcd.knowledge.items import escaped

    with open_store(work) as store:
        found = targets(store, decision, names)
        if not as_json:
            for item, flags in found:
                marks = f"  [flags: {escaped(', '.join(flags))}]" if flags else ""
                print(f"{item.id[:12]}  {item.status:<8} {escaped(item.text)}{marks}", flush=True)
        changed = decide(store, decision, found, reason)
    before = {target.item.id: target.item for target in found}
    if as_json:
        rows = [{"id": item.id, "text": item.text, "flags": flags, "was": item.status} for item, flags in found]
        emit([row | {"is": BECOMES[decision]} for row in rows], indent=1)
        return
    if not changed:
        why = f"already {BECOMES[decision]}" if found else "no item of it waits"
        print(f"nothing was changed: {why}")
        return
    undo = _undo(decision, [before[item.id] for item in changed], work)
    print(f"{len(changed)} of {counted(len(found), 'item')} {BECOMES[decision]} now; {undo}")


def _undo(decision: Decision, before: Iterable[Item], work: Path, then: Sequence[str] = ()) -> str:
    """The commands that take the decision back, one for each status that the items had; and what none brings back.

    Args:
        then: the commands after them.
    """
    from agentopcd.knowledge.decide import back

    groups: dict[Decision | None, list[str]] = {}
    for item in before:
        groups.setdefault(back(item, decision), []).append(item.id[:12])
    waited = groups.pop(None, [])
    commands = [f"agentopcd knowledge {word} {' '.join(ids)}{work_flag(work)}" for word, ids in groups.items()]
    lost = f"{', '.join(waited)} had not been approved and cannot wait again" if waited else ""
    undo = [f"undo with: {' && '.join([*commands, *then])}"] if commands or then else []
    return "; ".join([*([lost] if lost else []), *undo])


def edit(
    ref: Annotated[str, typer.Argument(metavar="REF", help="The ref to edit, for example sokoban/best.")],
    reason: Reason = None,
    work: Work = WORK,
    as_json: AsJson = False,
) -> None:
    """Open a context in $VISUAL or $EDITOR, one item a line. What is saved becomes a new context, and REF moves to it.

    Example: agentopcd knowledge edit sokoban/best
    """
    from agentopcd.knowledge.edit import apply_edit, to_edit

    with open_store(work) as store:
        before, text = to_edit(store, ref)
        file = _edited(text)
        copy = shlex.quote(f"cp {shlex.quote(str(file))}")
        again = f"EDITOR={copy} agentopcd knowledge edit {shlex.quote(ref)}{work_flag(work)}"
        try:
            result = apply_edit(store, ref, before, read_text(file), reason)
        except AgentOpcdError as error:
            raise ConfigError(
                f"{error}; nothing was stored, your text is kept in {file}: mend it, then {again}"
            ) from error
    file.unlink(missing_ok=True)
    if as_json:
        emit(None if result is None else _edit_row(result), indent=1)
    elif result is None:
        print(f"no change: {ref} stays at {before[:12]}")
    else:
        _say_edit(ref, before, result, work)


def _edited(text: str) -> Path:
    """Let the person edit a text; return the file that was saved.

    Raises:
        ConfigError: no editor is set, or it cannot be started or fails. What was saved by then is kept.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        raise ConfigError("no editor is set; name one, for example: export EDITOR=nano")
    number, name = tempfile.mkstemp(prefix="agentopcd-edit-", suffix=".txt")
    with open(number, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    try:
        code = subprocess.run([*shlex.split(editor), name]).returncode
    except (OSError, ValueError) as error:
        os.unlink(name)
        raise ConfigError(f"cannot start the editor {editor!r} ({error}); set VISUAL or EDITOR to another") from error
    if code:
        kept = f"; what you saved is kept in {name}" if Path(name).read_bytes() != text.encode() else ""
        if not kept:
            os.unlink(name)
        raise ConfigError(f"the editor {editor!r} ended with exit code {code}, so nothing was changed{kept}")
    return Path(name)


def _edit_row(result: Edited) -> dict[str, Any]:
    return {
        "context": result.context_id,
        "added": [item.id for item in result.added],
        "removed": [item.id for item in result.removed],
        "superseded": [{"old": old.id, "new": new.id} for old, new in result.superseded],
    }


def _say_edit(ref: str, before: str, result: Edited, work: Path) -> None:
    from agentopcd.knowledge.items import escaped

    for sign, items in (("+", result.added), ("-", result.removed)):
        for item in items:
            print(f"{sign} {item.id[:12]}  {escaped(item.text)}")
    for old, new in result.superseded:
        print(f"~ {old.id[:12]} retired, {new.id[:12]} in its place: {escaped(new.text)}")
    back = f"agentopcd knowledge move {shlex.quote(ref)} {before[:12]}{work_flag(work)}"
    approved = " ".join(item.id[:12] for item in result.approved)
    out = [f"agentopcd knowledge retire {approved}{work_flag(work)}"] if approved else []
    undo = _undo("retire", [old for old, _ in result.superseded if old.status != "retired"], work, [*out, back])
    print(f"{ref} -> {result.context_id[:12]} (was {before[:12]}); {undo}")


def tidy(
    supersede: Annotated[
        str | None, typer.Option(metavar="OLD", help="Retire this item; --by takes its place.")
    ] = None,
    by: Annotated[str | None, typer.Option("--by", metavar="NEW", help="The item that takes its place.")] = None,
    distinct: Annotated[
        tuple[str, str], typer.Option(metavar="A B", help="Both items are needed: do not offer this pair again.")
    ] = ("", ""),
    reason: Reason = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many pairs, the most alike.")] = 50,
    work: Work = WORK,
    as_json: AsJson = False,
) -> None:
    """Offer pairs of items that seem to repeat (dup?) or contradict (conflict?) each other. Nothing is merged unasked.

    Example: agentopcd knowledge tidy --supersede 1f0c9a --by 77ab01
    """
    if (supersede is None) is not (by is None) or (supersede and any(distinct)):
        raise ConfigError("give --supersede OLD with --by NEW, or --distinct A B, or none of them to see the pairs")
    with (open_store if supersede or any(distinct) else read_store)(work) as store:
        if supersede and by:
            return _supersede(store, supersede, by, reason, work, as_json)
        if any(distinct):
            return _distinct(store, distinct, reason, as_json)
        from agentopcd.knowledge.similar import similar

        items = [item for item in store.items() if item.status != "retired"]
        offer = similar(items, store.decided_pairs())
    if as_json:
        emit([_pair_row(pair) for pair in offer.pairs[:limit]], indent=1)
    else:
        _say_pairs(offer, limit, len(items), work)


def _one_item(store: Store, name: str) -> Item:
    kind, id_ = store.find(name)
    if kind != "item":
        raise ConfigError(f"{name!r} is a context; name an item")
    return store.item(id_)


def _supersede(store: Store, old: str, new: str, reason: str | None, work: Path, as_json: bool) -> None:
    first, second = _one_item(store, old), _one_item(store, new)
    if first.id == second.id:
        raise ConfigError(f"{old} and {new} are the same item; name two")
    if second.status == "retired":
        raise ConfigError(
            f"{new} is retired, so it cannot take a place; agentopcd knowledge approve {new}{work_flag(work)}"
        )
    with store.write():
        store.event(first.id, "supersede", "person", reason, other=second.id)
    if as_json:
        emit({"old": first.id, "new": second.id}, indent=1)
        return
    undo = _undo("retire", [first] if first.status != "retired" else [], work)
    print("; ".join(filter(None, [f"{first.id[:12]} retired, {second.id[:12]} in its place", undo])))


def _distinct(store: Store, names: tuple[str, str], reason: str | None, as_json: bool) -> None:
    first, second = (_one_item(store, name) for name in names)
    if first.id == second.id:
        raise ConfigError(f"{names[0]} and {names[1]} are the same item; name two")
    with store.write():
        store.event(first.id, "distinct", "person", reason, other=second.id)
    if as_json:
        emit({"distinct": [first.id, second.id]}, indent=1)
        return
    print(f"{first.id[:12]} and {second.id[:12]} are both needed: this pair is not offered again")


def _pair_row(pair: Pair) -> dict[str, Any]:
    sides = {
        name: {"id": item.id, "status": item.status, "text": item.text}
        for name, item in (("first", pair.first), ("second", pair.second))
    }
    return {"kind": pair.kind, "ratio": pair.ratio, **sides}


def _say_pairs(offer: Offer, limit: int, items: int, work: Path) -> None:
    from agentopcd.knowledge.items import escaped

    for pair in offer.pairs[:limit]:
        print(f"{pair.kind}  {pair.ratio} % alike")
        for item in (pair.first, pair.second):
            print(f"  {item.id[:12]}  {item.status:<8} support {item.support}  {escaped(item.text)}")
    shown = f", the {limit} most alike shown" if offer.total > limit else ""
    print(f"{counted(offer.total, 'pair')} among {counted(items, 'item')}{shown}")
    if offer.pairs:
        a, b = offer.pairs[0].first.id[:12], offer.pairs[0].second.id[:12]
        print(
            f"next: agentopcd knowledge tidy --supersede {a} --by {b}{work_flag(work)}, or: ... tidy --distinct {a} {b}"
        )
