"""``agentopcd view``: whom it answers, with what, and that no writer waits for it."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentopcd.cli.page import serve
from agentopcd.cli.page.serve import server_of
from agentopcd.core.errors import ConfigError, StoreError
from agentopcd.core.types import MARKER, Context
from agentopcd.knowledge import Store
from tests.cli.page.made import STUDENT, build
from tests.cli.page.test_report import Seen


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("made") / "lake-work", episodes=25)


@pytest.fixture(scope="module")
def port(work: Path) -> Iterator[int]:
    with server_of(work, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def ask(port: int, path: str = "/", method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    given = {"Host": f"127.0.0.1:{port}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=given)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def links_of(body: str) -> set[str]:
    return {value for tag, name, value in Seen(body).attributes if (tag, name) == ("a", "href") and value != "#main"}


def test_every_page_leads_to_pages_that_are_there(port: int) -> None:
    seen, waiting = set(), {"/"}
    while waiting:
        path = waiting.pop()
        seen.add(path)
        answer, body = ask(port, path)
        assert answer.status == 200, path
        waiting |= links_of(body) - seen
    kinds = {path.split("/")[1] for path in seen}
    assert kinds == {"", "runs", "run", "contexts", "context", "items", "item", "episodes", "episode", "model"}
    assert f"/model/{STUDENT}?skip=20" in seen and "/run/2?step=2" in seen


def test_details_come_on_demand(port: int) -> None:
    assert "Reach the goal." not in ask(port)[1]
    assert "5 of 25" in " ".join(ask(port, f"/model/{STUDENT}?skip=20")[1].split())
    assert "Reach the goal." in ask(port, "/episode/1")[1]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_it_only_reads(method: str, port: int) -> None:
    answer, body = ask(port, "/", method)
    assert (answer.status, answer.headers["Allow"], body) == (405, "GET, HEAD", "")


def test_head_is_get_without_the_page(port: int) -> None:
    head, body = ask(port, "/", "HEAD")
    whole, _ = ask(port)
    assert body == "" and (head.status, head.headers["ETag"]) == (200, whole.headers["ETag"])
    assert head.headers["Content-Length"] == whole.headers["Content-Length"]


@pytest.mark.parametrize(
    "host", ["stranger.invalid", "127.0.0.1.stranger.invalid", "localhost:80@stranger.invalid", ""]
)
@pytest.mark.parametrize("path", ["/", "/runs", "/favicon.ico"])
def test_a_stranger_s_name_for_this_machine_is_refused(host: str, path: str, port: int) -> None:
    answer, body = ask(port, path, Host=host)
    assert (answer.status, body) == (403, "")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "[::1]:8642", "127.0.0.1", "127.0.0.2"])
def test_names_of_this_machine_are_answered(host: str, port: int) -> None:
    assert ask(port, Host=host)[0].status == 200


def test_headers_keep_the_page_to_itself(port: int) -> None:
    for path in ("/", "/run/99", "/nothing"):
        answer, _ = ask(port, path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/run/99", "/run/x", "/run/1/2", "/episode/0", "/episode/99999999999999999999", "/context/nothing",
     "/item/ffff", "/model/ffff", "//stranger.invalid/", "/../store.db", "/%2e%2e/store.db", "/run/%00", "/context/%ff",
     "/run/<script>window.ran=1</script>", "/static/page.css"],
)  # fmt: skip
def test_other_addresses_are_no_pages_and_are_not_repeated_raw(path: str, port: int) -> None:
    answer, body = ask(port, path.replace("<", "%3C"))
    assert answer.status in (200, 404) and (answer.status == 404 or path == "//stranger.invalid/")
    assert Seen(body).tags["script"] == 1


def test_what_did_not_change_is_not_sent_again(work: Path, port: int) -> None:
    answer, _ = ask(port)
    again, body = ask(port, If_None_Match=answer.headers["ETag"])
    assert (again.status, body) == (304, "")
    with Store.open(work / "store.db") as store:
        store.start("play", {"env": "a new world"}, 0)
    fresh, body = ask(port, If_None_Match=answer.headers["ETag"])
    assert fresh.status == 200 and "a new world" in body


def test_no_writer_waits_for_a_reader_and_no_reader_for_a_writer(work: Path, port: int) -> None:
    with Store.watch(work / "store.db") as reader, reader.read():
        runs = len(reader.runs())
        with Store.open(work / "store.db") as writer, writer.write():
            writer.start("play", {"env": "in between"}, 0)
            assert ask(port)[0].status == 200  # in the middle of a transaction
        assert len(reader.runs()) == runs  # its view is of one moment
        with Store.open(work / "store.db") as writer:
            writer.start("play", {"env": "after"}, 0)


def test_a_store_that_is_looked_at_cannot_be_written(work: Path) -> None:
    before = (work / "store.db").read_bytes()
    with Store.watch(work / "store.db") as store:
        with pytest.raises(StoreError, match="readonly"):
            store.add_context(Context(f"{MARKER} no"))
        with pytest.raises(StoreError, match="readonly"):
            store.change("DELETE FROM run")
    assert (work / "store.db").read_bytes() == before


@pytest.mark.parametrize(("version", "remedy"), [(1, "`agentopcd knowledge list` brings it"), (99, "install a newer")])
def test_a_store_of_another_schema_is_refused_and_left_as_it_is(version: int, remedy: str, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.db") as store:
        store.change(f"PRAGMA user_version = {version}")
    before = (tmp_path / "store.db").read_bytes()
    with pytest.raises(StoreError, match=remedy):
        server_of(tmp_path, 0)
    assert (tmp_path / "store.db").read_bytes() == before


def test_mistakes_are_one_line(work: Path, tmp_path: Path, port: int) -> None:
    with pytest.raises(StoreError, match="no knowledge store"):
        server_of(tmp_path, 0)
    with pytest.raises(ConfigError, match=f"port {port} cannot be used"):
        server_of(work, port)


def test_a_store_that_goes_away_does_not_end_the_server(tmp_path: Path) -> None:
    work = build(tmp_path / "gone")
    (work / "store.db").rename(work / "elsewhere.db")
    for log in work.glob("store.db-*"):
        log.unlink()
    status, body = serve.answer(work, "", {})
    assert status == 503 and "no knowledge store" in body


def test_a_fault_of_ours_is_a_page_too(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("<script>window.ran=1</script>")

    monkeypatch.setattr(serve, "answer", broken)
    answer, body = ask(port)
    assert answer.status == 500 and "KeyError" in body and Seen(body).tags["script"] == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_address_that_is_none_is_answered(port: int, capfd: pytest.CaptureFixture) -> None:
    answer, body = ask(port, "http://[")
    assert answer.status == 400 and not body and "Traceback" not in capfd.readouterr().err
    assert ask(port)[0].status == 200


def test_what_another_store_has_played_is_marked_on_the_page_of_a_context(tmp_path: Path) -> None:
    work = build(tmp_path / "lake-work", episodes=25)
    with Store.open(work / "store.db") as store:
        store.change("DROP TRIGGER episode_frozen")
        store.change("UPDATE episode SET setup = 'imported:' || setup")
    with server_of(work, 0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        port = server.server_address[1]
        with Store.open(work / "store.db") as store:
            pages = [ask(port, f"/context/{row['id']}")[1] for row in store.contexts()]
        server.shutdown()
    scored = [body for body in pages if "How it did" in body]
    assert scored and all(", imported</th>" in body for body in scored)
