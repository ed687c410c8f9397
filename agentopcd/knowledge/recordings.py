"""Recordings: what a served model was asked by programs outside, what it answered, and how that was rated.

Requests of one session are one episode. A request belongs to

1. the session that its header ``X-Agentopcd-Session`` names, whatever its messages are;
2. else the session that it continues: its messages begin with all messages of the session's last request and the reply
   to it. Only the last request counts, and of several sessions the oldest one. One that goes on from an earlier request
   is a branch, and begins a session of its own; so does the second of two requests that go on from the same place while
   the first is being answered;
3. else a new session. A sub-agent with a system prompt of its own has its own session, and an agent that shortens or
   edits what was said before begins a new one; a header keeps them in one.

Messages are compared as :func:`agentopcd.core.messages.read_messages` reads them: by role, text without spaces around
it, and calls with their arguments. The ids of calls, and fields that say nothing, make no difference.

A session that nobody has rated has no result. It is never a loss.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from agentopcd.core.errors import StoreError
from agentopcd.core.transcript import UNREADABLE, pack, unpack
from agentopcd.core.types import Message, Tool
from agentopcd.knowledge.database import Database, Row, now
from agentopcd.knowledge.faults import REPAIR


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """One finished request, as it was sampled."""

    name: str
    """The id that the client was given."""
    key: str = ""
    """The client's own name of the request; empty: it sent none."""
    asked: str
    """sha256 of what was asked; a retry asks the same."""
    model_id: str
    """Whose weights answered."""
    context_id: str
    """What the model was shown besides, which the client does not see."""
    messages: list[Message]
    """The prompt as the client sent it, without the context."""
    tools: list[Tool] = dataclasses.field(default_factory=list)
    prompt_ids: tuple[int, ...]
    """The prompt that the model answered, context included; empty if redacted."""
    response_ids: tuple[int, ...]
    """What was sampled, the end token included; empty if redacted."""
    logprobs: tuple[float, ...]
    """Of each sampled token, under the sampling distribution; empty if redacted."""
    reply: str
    """The response as text, its thinking included; never tokenised again."""
    message: Message
    """The reply as the client got it: cut at a stop string, its calls read, without its thinking."""
    finish_reason: str
    """As the client got it: ``stop``, ``length`` or ``tool_calls``."""
    sampling: dict[str, Any]
    """How it was drawn: temperature, top_p, top_k, max_tokens, seed, stop, engine."""
    prompt_tokens: int
    output_tokens: int
    redacted: bool = False
    """A rule replaced text of it, so it is not as it was sampled, and cannot be learned from as such."""
    begun_at: str
    at: str = ""
    """When it was stored."""


BODY = ("messages", "tools", "prompt_ids", "response_ids", "logprobs", "reply", "message", "finish_reason", "sampling")
"""What of a request stands in its body; the rest are columns."""


class Rating(NamedTuple):
    """What was said about a session: of each figure, the last word. What nobody said is None, or not in the metrics."""

    success: bool | None = None
    reward: float | None = None
    metrics: Mapping[str, float] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """One session of a recording."""

    id: int
    key: str
    """The client's name of the session, or one made for it."""
    task: str | None
    """The client's name of the task, if it sent one."""
    model_id: str
    context_id: str
    arm: str
    """Which of several served models it was dealt to; empty: there was one."""
    started_at: str
    requests: list[Answered]
    """In the order in which they were finished."""
    rating: Rating


class Place(NamedTuple):
    """Where a request belongs."""

    recording: str
    session: str
    task: str | None = None
    arm: str = ""


def chain(messages: Sequence[Message]) -> list[str]:
    """For each message, a hash of the conversation up to it."""
    hashes: list[str] = []
    for message in messages:
        calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", ())]
        said = [message["role"], message["content"].strip(), calls]
        text = json.dumps([*hashes[-1:], said], sort_keys=True)
        hashes.append(hashlib.sha256(text.encode()).hexdigest())
    return hashes


def continued(store: Database, recording: str, messages: Sequence[Message], taken: Collection[str] = ()) -> str | None:
    """The key of the session that these messages continue; None: they begin a new one. See the rules above.

    Args:
        taken: keys of sessions that another request, not finished yet, continues.
    """
    begun = chain(messages)[:-1]
    rows = store.query(
        "SELECT s.key, r.tail FROM json_each(?) b JOIN request r ON r.tail = b.value JOIN session s"
        " ON s.id = r.session_id WHERE s.recording = ? AND r.pos = (SELECT max(pos) FROM request"
        " WHERE session_id = s.id) ORDER BY b.key DESC, s.id",
        (json.dumps(begun), recording),
    )
    return next((row["key"] for row in rows if row["key"] not in taken), None)


def known_answer(store: Database, recording: str, key: str) -> tuple[str, Answered] | None:
    """The request that was stored under a client's own name, and its session's key."""
    rows = store.query(
        "SELECT s.key AS session, r.* FROM request r JOIN session s ON s.id = r.session_id"
        " WHERE s.recording = ? AND r.key = ?",
        (recording, key),
    )
    return (rows[0].pop("session"), _answered(rows[0])) if rows else None


def record(store: Database, place: Place, answered: Answered) -> bool:
    """Store a finished request, and its session if it is the first one, in one transaction.

    Returns:
        Whether it was stored: False if the client's own name of it is there already.

    Raises:
        StoreError: the session has another task, or model or context are not in the store.
    """
    with store.write():
        if answered.key and known_answer(store, place.recording, answered.key):
            return False
        session = session_row(store, place.recording, place.session)
        if session is None:
            row = {
                "recording": place.recording, "key": place.session, "task": place.task, "arm": place.arm,
                "model_id": answered.model_id, "context_id": answered.context_id, "started_at": answered.begun_at,
            }  # fmt: skip
            session = row | {"id": store.insert("session", row)}
        elif place.task not in (None, session["task"]):
            raise StoreError(
                f"session {place.session!r} is about task {session['task'] or '(none)'!r} and got a request about "
                f"{place.task!r}; a session is one episode, so begin another one"
            )
        (next_,) = store.query(
            "SELECT COALESCE(max(pos) + 1, 0) AS pos FROM request WHERE session_id = ?", (session["id"],)
        )
        data = dataclasses.asdict(answered)
        columns = {name: value for name, value in data.items() if name not in BODY}
        columns |= {"key": answered.key or None, "redacted": int(answered.redacted), "at": now()}
        columns["tail"] = chain([*answered.messages, answered.message])[-1]
        body = pack({name: data[name] for name in BODY})
        store.insert("request", {**columns, **next_, "session_id": session["id"], "body": body})
        return True


def rate(
    store: Database, recording: str, session: str, *,
    success: bool | None = None, reward: float | None = None, metrics: Mapping[str, float] | None = None,
) -> bool:  # fmt: skip
    """Append a rating of a session; of each figure, the last word counts.

    Args:
        session: its key, or the name of one of its requests.

    Returns:
        Whether there is such a session.

    Raises:
        StoreError: nothing is said.
    """
    if success is None and reward is None and not metrics:
        raise StoreError("a rating says success, reward or metrics, and this one says nothing")
    with store.write():
        row = session_row(store, recording, session) or _session_of(store, recording, session)
        if row is None:
            return False
        rating = {
            "session_id": row["id"], "success": None if success is None else int(success),
            "reward": None if reward is None else float(reward),
            "metrics": json.dumps(dict(metrics), sort_keys=True) if metrics else None, "at": now(),
        }  # fmt: skip
        store.insert("feedback", rating)
        return True


def sessions(store: Database, recording: str, *, since: str = "", until: str = "") -> Iterator[Recorded]:
    """The sessions of a recording with their requests and ratings, oldest first.

    Sessions without a request are left out: an older repair has kept those that had lost all of theirs.

    Args:
        since: only sessions with a request or a rating at or after this time, UTC as the store writes it; empty: all.
        until: only sessions that began before this time; empty: all.

    Raises:
        StoreError: a request is damaged.
    """
    rows = store.query(
        "SELECT * FROM session s WHERE recording = :recording AND (:until = '' OR started_at < :until)"
        " AND (:since = '' OR EXISTS (SELECT 1 FROM request r WHERE r.session_id = s.id AND r.at >= :since)"
        " OR EXISTS (SELECT 1 FROM feedback f WHERE f.session_id = s.id AND f.at >= :since)) ORDER BY id",
        {"recording": recording, "since": since, "until": until},
    )
    for row in rows:
        requests = store.query("SELECT * FROM request WHERE session_id = ? ORDER BY pos", (row["id"],))
        del row["recording"]
        if answered := [_answered(request) for request in requests]:
            yield Recorded(**row, requests=answered, rating=_rating(store, row["id"]))


def requests_named(store: Database, names: Sequence[str]) -> list[Answered]:
    """Requests by the ids that clients were given, in the order of these.

    Raises:
        StoreError: one is not there, or damaged.
    """
    rows = store.query(
        "SELECT r.* FROM json_each(?) n JOIN request r ON r.name = n.value ORDER BY n.key", (json.dumps([*names]),)
    )
    if len(rows) < len(names):
        raise StoreError(f"{len(names) - len(rows)} of {len(names)} recorded requests are not in {store.path}")
    return [_answered(row) for row in rows]


def recordings(store: Database) -> list[Row]:
    """Each recording's ``name``, and how many ``sessions``, ``rated`` sessions and ``requests`` it has."""
    return store.query(
        "SELECT recording AS name, count(*) AS sessions,"
        " sum(EXISTS (SELECT 1 FROM feedback f WHERE f.session_id = s.id)) AS rated,"
        " sum((SELECT count(*) FROM request r WHERE r.session_id = s.id)) AS requests"
        " FROM session s GROUP BY recording ORDER BY recording"
    )


def newest_sessions(store: Database, recording: str, limit: int) -> tuple[list[Row], int]:
    """The newest sessions of a recording, the newest last, with how many ``requests`` each has and its ``rating``, and
    the number of all."""
    rows = store.query(
        "SELECT id, key AS session, task, arm, model_id AS model, context_id AS context, started_at,"
        " (SELECT count(*) FROM request r WHERE r.session_id = s.id) AS requests, count(*) OVER () AS total"
        " FROM session s WHERE recording = ? ORDER BY id DESC LIMIT ?",
        (recording, limit),
    )
    total = rows[0]["total"] if rows else 0
    for row in rows:
        row["rating"] = _rating(store, row.pop("id"))._asdict()
        del row["total"]
    return rows[::-1], total


def session_row(store: Database, recording: str, key: str) -> Row | None:
    """A session's row by the session's key; None if there is no such session."""
    rows = store.query("SELECT * FROM session WHERE recording = ? AND key = ?", (recording, key))
    return rows[0] if rows else None


def _session_of(store: Database, recording: str, name: str) -> Row | None:
    """The session of the request that the client knows by this name."""
    rows = store.query(
        "SELECT s.* FROM request r JOIN session s ON s.id = r.session_id WHERE s.recording = ? AND r.name = ?",
        (recording, name),
    )
    return rows[0] if rows else None


def _rating(store: Database, session_id: int) -> Rating:
    rating = Rating()
    for row in store.query("SELECT * FROM feedback WHERE session_id = ? ORDER BY id", (session_id,)):
        rating = Rating(
            rating.success if row["success"] is None else bool(row["success"]),
            rating.reward if row["reward"] is None else row["reward"],
            {**rating.metrics, **json.loads(row["metrics"] or "{}")},
        )
    return rating


def _answered(row: Row) -> Answered:
    columns = {field.name: row[field.name] for field in dataclasses.fields(Answered) if field.name not in BODY}
    try:
        body = unpack(row["body"])
        read = {name: tuple(body[name]) if name in _TUPLES else body[name] for name in BODY}
    except UNREADABLE as error:
        raise StoreError(f"request {row['name']} is damaged ({error}); {REPAIR}") from error
    return Answered(**{**columns, **read, "key": row["key"] or "", "redacted": bool(row["redacted"])})


def odd_request(row: Row) -> str:
    """What in a request's row is not as in its body, or what of the body cannot be read; empty if nothing."""
    try:
        answered = _answered(row)
        if chain([*answered.messages, answered.message])[-1] != row["tail"]:
            return "its tail is not that of its messages"
    except StoreError as error:
        return str(error).partition(";")[0]
    except UNREADABLE as error:
        return f"its messages are damaged: {error}"
    return ""


_TUPLES = ("prompt_ids", "response_ids", "logprobs")
