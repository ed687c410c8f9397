"""Contexts as plain text files, for people: one marker line for each item, or free text.

A folder of them is laid out as the paper's published code leaves its runs: ``SEED/experience_STEP.txt``, or
``experience_STEP.txt`` alone. Such a file is the context after a step, so a folder is a pool.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from agentopcd.core.encoding import read_text
from agentopcd.core.errors import ConfigError, did_you_mean
from agentopcd.core.runs import write_text, writing
from agentopcd.core.types import EMPTY, MARKER, Context, Placement
from agentopcd.knowledge.assemble import render
from agentopcd.knowledge.exchange import IMPORTED
from agentopcd.knowledge.items import besides, parse_text, sanitise
from agentopcd.knowledge.poison import flags
from agentopcd.knowledge.queries import natural
from agentopcd.knowledge.store import Found, Store


class TextImport(NamedTuple):
    """Result of a text import."""

    context_id: str
    items: int
    """Marked items; 0 for free text."""
    changed: bool
    """True if sanitising changed the text, so that an export will not be byte-equal to the file."""
    left_out: tuple[str, ...] = ()
    """What a list of items says besides them, by line: it is not imported."""


def export_text(store: Store, context_id: str) -> str:
    """The context exactly as a model sees it: one marker line per item."""
    return store.get_context(context_id).text


def import_text(
    store: Store, text: str, *, run_id: int, placement: Placement = "user", ref: str | None = None
) -> TextImport:
    """Import a text file as a context. Its items are pending and of unknown origin.

    A text with a marker is a list of items, one per marker line; what else it says is left out, and named in the
    result. A text without a marker is free text: a context without items, kept byte for byte.

    Args:
        ref: a new ref that will point at the context; it must not exist yet.

    Raises:
        ConfigError: the text is empty, or its marker lines hold no item.
        StoreError: the ref exists.
    """
    if not text.strip():
        raise ConfigError("the file is empty; the empty context is named 'empty'")
    context, found = _read(text, placement)
    if found:  # a trailing newline is not an item
        context, text = Context(context.text.rstrip("\n"), placement), text.rstrip("\n")
    with store.write():
        _add(store, run_id, context, found)
        if ref is not None:
            store.move(ref, context.id, IMPORTED, "imported from text", run_id, expect=None)
    left_out = tuple(besides(text)) if found else ()
    return TextImport(context.id, len(found), context.text != text, left_out)


def _read(text: str, placement: Placement) -> tuple[Context, list[Found]]:
    """The context of a file, and its items. Of a list of items, the newlines at its end stay."""
    if MARKER not in text:
        return Context(text, placement), []
    found = []
    for piece in parse_text(text):
        clean = sanitise(piece.text)
        if any(char.isalnum() for char in clean):
            marks = ("imported", *flags(clean, given=piece.text))
            found.append(Found(clean, piece.raw, piece.line, marks))
    if not found:
        raise ConfigError(f"no item in the file: its {MARKER!r} lines are empty")
    end = text[len(text.rstrip("\n")) :]
    return Context(render([item.text for item in found]) + end, placement), found


def _add(store: Store, run_id: int, context: Context, found: list[Found]) -> None:
    store.add_items(run_id, found, actor=IMPORTED)
    store.add_context(context, {"order": "file"}, imported=True)


# -- folders -----------------------------------------------------------------------------------------

_FILE = re.compile(r"experience_([0-9]+)\.txt")
_STEP = re.compile(r"(?:(?!\.{1,2}/)([^/\\]+)/)?([0-9]+)")
"""What a ref of a pool ends in. A seed that is called ``..`` would lead out of the folder."""


class FolderImport(NamedTuple):
    """Result of the import of a folder."""

    refs: int
    """Files, each of which has a ref now."""
    contexts: int
    """Distinct contexts among them."""
    items: int
    """Distinct items among their lines."""
    changed: list[str]
    """Files that an export will not give back byte by byte, because sanitising changed them."""
    left_out: int
    """Other files of the folder."""
    lines_left_out: list[str]
    """What lists of items say besides them, by file and line: it is not imported."""


def import_folder(
    store: Store, folder: Path, *, prefix: str, run_id: int, placement: Placement = "user"
) -> FolderImport:
    """Import every ``experience_STEP.txt`` of a folder, and of the folders in it, as ``PREFIX/SEED/STEP``.

    An empty file is the empty context: the published code writes one where an item did not fit its budget.

    Args:
        prefix: begins the names of the refs, such as ``sokoban/pool/``.

    Raises:
        ConfigError: there is no such file, or one of them cannot be read.
        StoreError: a ref exists and is at another context.
    """
    prefix = _as_prefix(prefix)
    named, others = _experiences(folder)
    if not named:
        raise ConfigError(f"no experience_STEP.txt in {str(folder)!r} or a folder in it; name a file to import one")
    contexts, items, changed, left_out = set(), set(), [], []
    with store.write():
        for name, file in named.items():
            text = read_text(file)
            try:
                context, found = _read(text, placement) if text.strip() else (EMPTY, [])
            except ConfigError as error:
                raise ConfigError(f"{file}: {error}") from None
            _add(store, run_id, context, found)
            if store.ref(prefix + name) != context.id:
                store.move(prefix + name, context.id, IMPORTED, f"imported from {file.name}", run_id, expect=None)
            contexts.add(context.id)
            items |= {item.text for item in found}
            changed += [str(file)] if context.text != text else []
            left_out += [f"{file}, {line}" for line in besides(text)] if found else []
    return FolderImport(len(named), len(contexts), len(items), changed, others, left_out)


def _as_prefix(prefix: str) -> str:
    return prefix.rstrip("/") + "/"


def _experiences(folder: Path) -> tuple[dict[str, Path], int]:
    """The files of a folder by the ends of their refs, in the order of seeds and steps, and the number of others."""
    found, others = {}, 0
    for file in (*folder.glob("*"), *folder.glob("*/*")):
        if not file.is_file():
            continue
        if step := _FILE.fullmatch(file.name):
            found["/".join((*file.relative_to(folder).parts[:-1], step[1]))] = file
        else:
            others += 1
    return dict(sorted(found.items(), key=lambda entry: natural(entry[0]))), others


def export_folder(store: Store, prefix: str, folder: Path) -> tuple[int, int]:
    """Write the contexts of the refs ``PREFIX/SEED/STEP`` and ``PREFIX/STEP`` as :func:`import_folder` reads them.

    Returns:
        How many files were written, and how many refs have other names and were left out.

    Raises:
        ConfigError: no ref has such a name, or the folder has something in it.
    """
    prefix = _as_prefix(prefix)
    refs = store.refs(prefix)
    steps = {name: found for name in refs if (found := _STEP.fullmatch(name[len(prefix) :]))}
    if not steps:
        known = {f"{name.rpartition('/')[0]}/" for name in store.refs() if "/" in name}
        raise ConfigError(f"no ref like {prefix}SEED/STEP{did_you_mean(prefix, known)}")
    with writing(folder):
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{str(folder)!r} is not empty; name a new folder, so that no other run gets mixed in")
        for name, found in steps.items():
            target = folder / (found[1] or "") / f"experience_{found[2]}.txt"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_text(target, export_text(store, refs[name]))
    return len(steps), len(refs) - len(steps)
