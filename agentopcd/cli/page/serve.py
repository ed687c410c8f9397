"""``agentopcd view``: the same pages live, on this machine alone, for reading alone.

The standard library's server is enough here: no body is ever read, nothing is ever written, nobody but this machine is
answered, and one person looks. Each request opens the store anew, for reading, and closes it; a writer never waits.
"""

from __future__ import annotations

import hashlib
import re
import sys
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

from agentopcd.cli.page import render
from agentopcd.cli.page.contexts import order_of
from agentopcd.cli.page.episodes import episode
from agentopcd.cli.page.parts import Limits, Parts
from agentopcd.cli.page.render import Section, page
from agentopcd.core.errors import AgentOpcdError, ConfigError, StoreError
from agentopcd.core.hosts import names_here
from agentopcd.core.text import first_line
from agentopcd.knowledge import Store
from agentopcd.knowledge.evidence import came_of, ungraded

HOST = "127.0.0.1"
LISTED, EPISODES, ON_PAGE = 20, 50, 20
NAV = [("Overview", "/"), ("Runs", "/runs"), ("Contexts", "/contexts"), ("Items", "/items"), ("Episodes", "/episodes")]
TIMEOUT_S = 30


class Missing(Exception):
    """There is no such page."""


class Asked(NamedTuple):
    """One request, with the store open."""

    parts: Parts
    query: dict[str, list[str]]

    @property
    def store(self) -> Store:
        return self.parts.store

    def number(self, name: str) -> int | None:
        """A whole number of the query, up to nine digits."""
        given = self.query.get(name, [""])[0]
        return int(given) if re.fullmatch("[0-9]{1,9}", given) else None


Content = tuple[str, list[Section]]
"""A title and the parts of a page."""


def link(kind: str, id_: Any) -> str:
    """The address of the page about a thing."""
    return f"/{kind}/{quote(str(id_), safe='')}"


def overview(asked: Asked) -> Content:
    parts = asked.parts
    sections = [parts.verdicts(), parts.students(), parts.run_table(), parts.log()]
    paper = parts.paper(parts.work / "reproduce")
    return f"Workspace {parts.work.name}", [*sections, *([paper] if paper else [])]


def runs(asked: Asked) -> Content:
    return "Runs", [asked.parts.run_table()]


def run(asked: Asked, name: str) -> Content:
    row = next((row for row in asked.parts.runs if str(row["id"]) == name), None)
    if row is None:
        raise Missing(f"no run {name}")
    step = asked.number("step")
    tokens = asked.parts.tokens(row, step)
    if tokens:
        addresses = [(at, f"/run/{row['id']}?step={at}") for at in tokens.data["all_steps"]]
        tokens = tokens._replace(data={**tokens.data, "links": addresses})
    title = f"Run {row['id']}: {row['verb']}"
    return title, [asked.parts.run(row), *([tokens] if tokens else [])]


def model(asked: Asked, name: str) -> Content:
    row = next((row for row in asked.store.models(trained=True) if row["id"] == name), None)
    if row is None:
        raise Missing(f"no student {name}")
    skip = asked.number("skip") or 0
    beside = asked.parts.beside(row, skip=skip, next_=f"{link('model', name)}?skip={skip + asked.parts.limits.tasks}")
    return f"Student {name[:12]}", [beside, *run(asked, str(row["run_id"]))[1]]


def contexts(asked: Asked) -> Content:
    order, skip = order_of(asked.store), asked.number("skip") or 0
    return "Contexts", [asked.parts.contexts(order[skip : skip + ON_PAGE], len(order))]


def context(asked: Asked, name: str) -> Content:
    id_ = asked.store.resolve(name)
    held = [item.id for item in asked.store.items(context_id=id_)]
    return f"Context {id_[:12]}", [asked.parts.contexts([id_], 1), asked.parts.items(held, len(held))]


def items(asked: Asked) -> Content:
    newest, total = asked.store.newest_items(ON_PAGE)
    return "Items", [asked.parts.items([item.id for item in newest], total, below=False)]


def item(asked: Asked, name: str) -> Content:
    found = asked.store.prefixed("item", name)
    if len(found) != 1:
        raise Missing(f"no item {name}")
    within = [row["id"] for row in asked.store.contexts(item_id=found[0])][-3:]
    return f"Item {name[:12]}", [asked.parts.items(found, 1), asked.parts.contexts(within, len(within))]


def episodes(asked: Asked) -> Content:
    rows, total = asked.store.newest_episodes(EPISODES)
    silent = ungraded(asked.store)
    data = {"rows": [{**row, "result": came_of(row, silent)} for row in reversed(rows)], "all": total}
    return "Episodes", [Section("episodes", "Episodes", "episodes.html", data)]


def one_episode(asked: Asked, name: str) -> Content:
    row = asked.store.episode(int(name)) if re.fullmatch("[0-9]{1,15}", name) else None
    if row is None:
        raise Missing(f"no episode {name}")
    return f"Episode {name}", [Section("episode", "What happened", "episode.html", episode(asked.store, row))]


PAGES: dict[str, Callable[[Asked], Content]] = {
    "": overview, "runs": runs, "contexts": contexts, "items": items, "episodes": episodes,
}  # fmt: skip
THINGS: dict[str, Callable[[Asked, str], Content]] = {
    "run": run, "model": model, "context": context, "item": item, "episode": one_episode,
}  # fmt: skip


def answer(work: Path, path: str, query: dict[str, list[str]]) -> tuple[int, str]:
    """The status and the HTML for an address.

    Args:
        path: without its first slash, not decoded.
        query: the parameters after the question mark.
    """
    from urllib.parse import unquote

    kind, _, name = path.partition("/")
    try:
        with Store.watch(work / "store.db") as store, store.read():
            limits = Limits(runs=LISTED if kind == "" else 1000, moves=LISTED, tasks=ON_PAGE)
            asked = Asked(Parts(store, work, limits), query)
            if not name and kind in PAGES:
                title, sections = PAGES[kind](asked)
            elif name and kind in THINGS:
                title, sections = THINGS[kind](asked, unquote(name))
            else:
                raise Missing("no such page")
    except Missing as error:
        return 404, _notice("Not found", str(error))
    except StoreError as error:
        return 404 if name else 503, _notice("Cannot be shown", str(error))
    except AgentOpcdError as error:
        return 503, _notice("Cannot be shown", str(error))
    return 200, page(title, sections, link, live=True, nav=NAV)


def _notice(title: str, words: str) -> str:
    return page(title, [Section("notice", title, "notice.html", words)], link, live=True, nav=NAV)


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    server_version, sys_version, protocol_version = "agentopcd", "", "HTTP/1.1"
    timeout = TIMEOUT_S
    work: Path

    def do_GET(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # every other method
            return lambda: self._send(405, "", {"Allow": "GET, HEAD", "Connection": "close"})
        raise AttributeError(name)

    def _respond(self) -> None:
        host = self.headers.get_all("Host") or []
        if len(host) != 1 or not names_here(host[0]):
            self._send(403, "", {"Connection": "close"})
            return
        try:
            address = urlsplit(self.path)
        except ValueError:
            self._send(400, "", {"Connection": "close"})
            return
        if address.path == "/favicon.ico":
            self._send(204, "")
            return
        try:
            status, body = answer(self.work, address.path.lstrip("/"), parse_qs(address.query))
        except Exception as error:  # a fault of ours must not end the server; its place goes to the terminal
            traceback.print_exc()
            status, body = 500, _notice("Cannot be shown", f"{type(error).__name__}: {first_line(error, 'no reason')}")
        tag = f'"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'
        if status == 200 and self.headers.get("If-None-Match") == tag:
            self._send(304, "", {"ETag": tag})
        else:
            self._send(status, body, {"ETag": tag})

    def _send(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
        data = body.encode()
        self.send_response(status)
        fixed = {
            "Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(data)), "Cache-Control": "no-store",
            "Content-Security-Policy": f"{render.policy(True)}; frame-ancestors 'none'", "X-Frame-Options": "DENY",
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
        }  # fmt: skip
        for name, value in {**fixed, **(headers or {})}.items():
            if not (status in (204, 304) and name in ("Content-Length", "Content-Type")):
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are not logged: an address may hold whatever a stranger put into it."""


class Server(ThreadingHTTPServer):
    """Does not complain about a reader that has gone."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def server_of(work: Path, port: int) -> Server:
    """A server of the pages about a workspace, which listens and does not answer yet.

    Args:
        port: on this machine; 0: a free one.

    Raises:
        StoreError: there is no store, or it cannot be read.
        ConfigError: the port cannot be used.
    """
    Store.watch(work / "store.db").close()
    answer(work, "runs", {})  # templates and libraries are ready before anybody asks
    handler = type("Handler", (Handler,), {"work": work})
    try:
        return Server((HOST, port), handler)
    except OSError as error:
        raise ConfigError(f"port {port} cannot be used ({error.strerror}); name another one with --port") from error
