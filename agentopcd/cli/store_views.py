"""Views of the store for people: rows for lists, and one item, context or episode in full."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agentopcd.core.errors import ConfigError
from agentopcd.core.text import counted, first_line
from agentopcd.core.types import EMPTY, Episode
from agentopcd.knowledge.database import Row
from agentopcd.knowledge.evidence import CHOOSING, Competed, came_of, elsewhere, looked_at, scores, ungraded, unknown
from agentopcd.knowledge.extract import EXTRACTION_VERSION, KINDS, extraction_messages
from agentopcd.knowledge.faults import read_object
from agentopcd.knowledge.items import Item
from agentopcd.knowledge.store import PLACEBO, Store

SCORED = 2
"""Contexts of an item whose scores are shown, the newest; a chain leaves one for each of its steps."""

UNKNOWN = "unknown (written by hand or imported)"


# -- lists -------------------------------------------------------------------------------------------


def item_row(item: Item) -> Row:
    """An item with status and support."""
    return {"id": item.id, "status": item.status, "support": item.support, "text": item.text}


def context_rows(store: Store, env: str | None = None, found: Iterable[Row] | None = None) -> list[Row]:
    """Contexts with their refs, all or those ``found``; with ``env``, only those with a ref of this environment or that
    played in it."""
    names: dict[str, list[str]] = {}
    for name, context_id in store.refs().items():
        names.setdefault(context_id, []).append(name)
    rows, played = [], set() if env is None else store.played_in(env)
    for row in store.contexts() if found is None else found:
        refs = names.get(row["id"], [])
        if recipe_of(row).get("order") == PLACEBO:  # a twin of another context, without content
            continue
        if env is None or row["id"] in played or any(name.startswith(f"{env}/") for name in refs):
            rows.append(
                {"id": row["id"], "items": row["items"], "placement": row["placement"], "refs": refs,
                 "tokens": recipe_of(row).get("tokens"), "text": row["rendered"]}
            )  # fmt: skip
    return rows


def recipe_of(row: Row) -> dict[str, Any]:
    """What a context was made of.

    Raises:
        StoreError: its row is damaged.
    """
    return read_object(row["recipe"], f"the recipe of context {row['id'][:12]}")


def ref_rows(store: Store, env: str | None = None) -> list[Row]:
    """Refs with the reason of their last move."""
    rows = []
    for name, context_id in store.refs(f"{env}/" if env else "").items():
        last = store.log(name)[-1]
        rows.append({"name": name, "context": context_id, **{key: last[key] for key in ("actor", "reason", "at")}})
    return rows


def episode_rows(store: Store, rows: Iterable[Row]) -> list[Row]:
    """Rows of episodes with what came of each as their ``result``."""
    silent = ungraded(store)
    return [{**row, "result": came_of(row, silent)} for row in rows]


def line(what: str, row: Row) -> str:
    """One row of a list as one line."""
    if what == "items":
        return f"{row['id'][:12]}  {row['status']:<8} support {row['support']}  {_short(row['text'])}"
    if what == "contexts":
        label = "empty" if row["id"] == EMPTY.id else _short(first_line(row["text"]))
        names = f"  ({', '.join(row['refs'])})" if row["refs"] else ""
        return f"{row['id'][:12]}  {row['items']:>3} items  {row['placement']:<6} {label}{names}"
    if what == "refs":
        return f"{row['name']}  {row['context'][:12]}  {row['actor']}: {row['reason'] or '-'}"
    return (
        f"{row['id']:>6}  {row['result']:<4} {row['stop']:<9} {counted(row['turns'], 'turn')}  "
        f"{row['env']} {row['split']} task {row['task_key'][:8]}  "
        f"model {row['model_id'][:8]}  context {row['context_id'][:8]}"
    )


def _short(words: str, length: int = 90) -> str:
    return words if len(words) <= length else words[: length - 1] + "…"


# -- one thing ---------------------------------------------------------------------------------------


def describe(store: Store, name: str) -> Row:
    """Return an item, a context or an episode in full, as plain data.

    Args:
        name: an episode number (at most 7 digits), an item or context id of 4 digits or more, a ref.

    Raises:
        StoreError: nothing, or more than one thing, has this name.
    """
    if name.isascii() and name.isdigit() and len(name) < 8 and (row := store.episode(int(name))):
        return episode_view(store, row)
    kind, id_ = store.find(name)
    return item_view(store, id_) if kind == "item" else context_view(store, id_)


def known(store: Store, name: str) -> bool:
    """Whether :func:`describe` knows a name, an ambiguous one included."""
    if name.isascii() and name.isdigit() and len(name) < 8 and store.episode(int(name)):
        return True
    return name == "empty" or store.ref(name) is not None or any(store.prefixed(t, name) for t in ("item", "context"))


def item_view(store: Store, item_id: str) -> Row:
    """Text, status, decisions, origins, the contexts that hold it, the newest with their scores, and its carriers."""
    item = store.item(item_id)
    contexts, competed = [row["id"] for row in store.contexts(item_id=item_id)], Competed(store)
    others, newest = contexts[:-SCORED], contexts[-SCORED:]
    return {
        "kind": "item", "id": item.id, "text": item.text, "status": item.status, "support": item.support,
        "events": [_keep(row, "event", "actor", "reason", "other_id", "at") for row in store.events(item_id)],
        "origins": [origin(store, row) | {"prompt": _prompt(store, row)} for row in store.sources(item_id)],
        "contexts": [{"id": context_id, "scores": scores(store, context_id, competed)} for context_id in newest],
        "other_contexts": others,
        "models": store.carriers(item_id),
    }  # fmt: skip


def origin(store: Store, source: Row) -> Row:
    """Where an item was found: task, run, episode, model and extractor, and its line as it was written."""
    run = store.run(source["run_id"])
    config = read_object(run["config"], f"the config of run {run['id']}")
    played = store.lookup("episode", id=source["episode_id"]) if source["episode_id"] else None
    known = source["task_key"] is not None
    return {
        "env": source["env"], "task": source["task_key"],
        "split": store.split_of(source["env"], source["task_key"]) if known else None,
        "run": run["id"], "verb": run["verb"], "run_seed": run["seed"],
        "episode": source["episode_id"], "seed": played["seed"] if played else None,
        "rep": played["rep"] if played else None, "model": _model(store, played),
        "extractor": _extractor(config) or _model(store, played),
        "shown": source["shown_context_id"], "line": source["line"], "raw": source["raw"],
    }  # fmt: skip


def _extractor(config: Mapping[str, Any]) -> str:
    """The extractor that a run names besides its player; '' if it names none. An imported run may hold anything."""
    given = (config.get(key) for key in ("extractor", "extractor_id"))
    name, id_ = (value if isinstance(value, str) else "" for value in given)
    return f"{name} ({id_[:12]})" if name and id_ else name


def _model(store: Store, played: Row | None) -> str | None:
    model = store.lookup("model", id=played["model_id"]) if played else None
    return f"{model['name']} ({model['id'][:12]})" if model else None


def _prompt(store: Store, source: Row) -> str | None:
    """The extraction prompt, rebuilt from the stored episode; the prompt itself is not stored."""
    if not source["episode_id"]:
        return None
    config = read_object(store.run(source["run_id"])["config"], f"the config of run {source['run_id']}")
    try:
        episode = store.transcript(source["episode_id"])
        shown = store.get_context(source["shown_context_id"]) if source["shown_context_id"] else None
        template = given if isinstance(given := config.get("extract_prompt_text"), str) else ""  # imported: anything
        messages = extraction_messages(episode, kind=_kind(config, episode), earlier=shown, template=template)
    except ConfigError:  # no transcript, or an episode without a turn
        return None
    prompt = "\n\n".join(message["content"] for message in messages)
    version = config.get("template", EXTRACTION_VERSION)
    if version != EXTRACTION_VERSION and not template:
        return f"(asked with template {version}, shown with {EXTRACTION_VERSION})\n{prompt}"
    return prompt


def _kind(config: Mapping[str, Any], episode: Episode) -> Any:
    """The kind that the run records; otherwise an episode with several turns or listed actions is a game."""
    if config.get("kind") in KINDS:
        return config["kind"]
    acts = any(kind == "actions" for turn in episode.turns for kind, _ in turn.parts)
    return "game" if acts or len(episode.turns) > 1 else "single"


def context_view(store: Store, context_id: str) -> Row:
    """Text, recipe, items, refs, scores, leaks, and the models that were trained on the context."""
    row = store.context_row(context_id)
    return {
        "kind": "context", "id": context_id, "placement": row["placement"], "text": row["rendered"],
        "recipe": recipe_of(row), "created_at": row["created_at"],
        "refs": [name for name, target in store.refs().items() if target == context_id],
        "items": [item_row(item) for item in store.items(context_id=context_id)],
        "scores": scores(store, context_id, Competed(store)),
        "looks": [
            _keep(row, "env", "model_id", "setup", "number", "level", "verdict", "at")
            for row in store.looks(context_id=context_id)
        ],
        "leaks": [leak._asdict() for leak in store.leaks(context_id)],
        "models": store.students(context_id),
    }  # fmt: skip


def episode_view(store: Store, row: Row) -> Row:
    """The row of an episode with its result, and all its turns."""
    (row,) = episode_rows(store, [row])
    if store.lookup("transcript", episode_id=row["id"]) is None:
        return {"kind": "episode", **row, "transcript": None}
    episode = store.transcript(row["id"])
    turns = [
        {"saw": [list(part) for part in turn.parts], "prompt": list(turn.messages),
         **({"tools": list(turn.tools)} if turn.tools else {}), "reply": turn.reply,
         "reward": turn.reward, "invalid": turn.invalid, "finish_reason": turn.finish_reason,
         "prompt_tokens": turn.prompt_tokens, "output_tokens": turn.output_tokens}
        for turn in episode.turns
    ]  # fmt: skip
    return {
        "kind": "episode",
        **row,
        "transcript": {"turns": turns, "outcome": [list(p) for p in episode.outcome]},
    }


def _keep(row: Row, *names: str) -> Row:
    return {name: row[name] for name in names or row}


# -- as text -----------------------------------------------------------------------------------------


def text(view: Row) -> str:
    """A view as lines for people."""
    return "\n".join({"item": _item_lines, "context": _context_lines, "episode": _episode_lines}[view["kind"]](view))


def _item_lines(view: Row) -> list[str]:
    lines = [f"item {view['id'][:12]}  {view['status']}  support {view['support']}", f"  {view['text']}"]
    for event in view["events"]:
        lines.append(f"  {event['at'][:19]}  {event['event']} by {event['actor']}  {event['reason'] or ''}".rstrip())
    for origin in view["origins"] or [None]:
        lines += _origin_lines(origin)
    for context in view["contexts"]:
        lines.append(f"in context {context['id'][:12]}")
        lines += _score_lines(context["scores"])
    if others := view["other_contexts"]:
        some = ", ".join(context[:12] for context in others[-5:])
        lines.append(f"in {len(others)} older contexts: {some}{', ...' if len(others) > 5 else ''}")
    lines.append(f"in the weights of: {', '.join(model[:12] for model in view['models']) or 'no model'}")
    return lines


def _origin_lines(origin: Row | None) -> list[str]:
    if origin is None or origin["task"] is None:
        return [f"origin: {UNKNOWN}"]
    lines = [
        f"origin: {origin['env']} {origin['split']} task {origin['task'][:12]}, run {origin['run']} ({origin['verb']})"
    ]
    if origin["episode"] is not None:
        lines.append(
            f"  episode {origin['episode']}, seed {origin['seed']}, rep {origin['rep']}, "
            f"model {origin['model']}, extractor {origin['extractor']}"
        )
    lines.append(f"  raw: {origin['raw']}")
    if origin["prompt"]:
        lines += ["  prompt:", *(f"  | {line}" for line in origin["prompt"].splitlines())]
    return lines


def _context_lines(view: Row) -> list[str]:
    names = ", ".join(view["refs"]) or "no ref"
    lines = [f"context {view['id'][:12]}  {view['placement']}  ({names})", view["text"] or "(empty)"]
    for item in view["items"]:
        lines.append(f"  {item['id'][:12]}  {item['status']:<8} support {item['support']}  {_short(item['text'], 60)}")
    lines += _score_lines(view["scores"])
    lines += [
        f"  {look['env']} look {look['number']} {looked_at(look)}: {look['verdict'] or 'broken off'}"
        for look in view["looks"]
    ]
    lines += [
        f"LEAK: item {leak['item_id'][:12]} came from {leak['split']} task {leak['key'][:12]}" for leak in view["leaks"]
    ]
    lines.append(f"in the weights of: {', '.join(model[:12] for model in view['models']) or 'no model'}")
    return lines


def _score_lines(scores: list[Row]) -> list[str]:
    lines = [f"  {line}" for line in unknown(scores)]
    for row in (row for row in scores if row["graded"]):
        line = (
            f"  {row['env']} {row['split']}: {row['rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}] "
            f"({row['n']} episodes on {row['tasks']} tasks, model {row['model_id'][:8]}"
            f"{', imported' if elsewhere(row) else ''})"
        )
        pair = row.get("to_empty")
        if pair:
            line += f"  {pair['diff']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}] to empty"
        if row["split"] in CHOOSING and row.get("best_of", 0) > 1:
            line += f"  (one of {row['best_of']}; the best one's rate is biased upward)"
        lines.append(line)
    return lines


def _episode_lines(view: Row) -> list[str]:
    lines = [
        line("episodes", view),
        f"seed {view['seed']}, rep {view['rep']}, reward {view['reward']:g}, run {view['run_id']}",
    ]
    if view["transcript"] is None:
        return [*lines, "(stored without its turns)"]
    for number, turn in enumerate(view["transcript"]["turns"], 1):
        lines += ["", f"turn {number}  reward {turn['reward']:g}" + ("  invalid" if turn["invalid"] else "")]
        lines += [f"  {shown}" for kind, part in turn["saw"] for shown in f"[{kind}] {part}".splitlines()]
        lines += [f"  > {said}" for said in turn["reply"].splitlines() or [""]]
    lines += ["", *(f"[{kind}] {part}" for kind, part in view["transcript"]["outcome"])]
    return lines
