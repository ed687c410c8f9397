"""The pages in a browser: nothing of a stranger runs, nothing is asked for elsewhere, keys reach everything.

Needs Chromium and playwright: ``make test-browser``.
"""

from __future__ import annotations

import importlib.util
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentopcd.cli.page.report import report
from agentopcd.cli.page.serve import server_of
from agentopcd.core.types import MARKER, Context
from agentopcd.knowledge import Store
from tests.cli.page.made import STUDENT, build
from tests.cli.page.payloads import PAYLOADS, safe_for_store

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LACKS = "" if CHROMIUM else "no Chromium here"
if importlib.util.find_spec("playwright") is None or importlib.util.find_spec("axe_playwright_python") is None:
    LACKS = "no playwright or no axe-playwright-python here"

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(LACKS), reason=LACKS)]

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any) -> Iterator[Open]:
    """Opens a page; in the end, none has complained, asked for another address, or run what a stranger wrote."""
    contexts, heard, asked, pages = [], [], [], []

    def open_(address: str, **how: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}} | how)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
        page.on("popup", lambda popup: heard.append(f"a new window: {popup.url}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        contexts.append(context)
        pages.append((page, address.split("#")[0]))
        return page

    yield open_
    for page, address in pages:
        assert page.evaluate("window.ran") is None
        if address.startswith("file:"):
            assert asked.count(address) >= 1 and set(asked) <= {address for _, address in pages}
        else:
            assert all(url.startswith("http://127.0.0.1:") for url in asked), asked
    assert heard == []
    for context in contexts:
        context.close()


def written(work: Path, name: str = "") -> str:
    file = work / "page.html"
    with Store.open(work / "store.db") as store:
        file.write_text(report(store, work, name), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("made") / "lake-work")


@pytest.fixture(scope="module")
def file(work: Path) -> str:
    return written(work)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A workspace of its own and the address of its pages."""
    work = build(tmp_path / "live")
    with server_of(work, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield work, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


# -- texts of strangers -------------------------------------------------------------------------------


def test_nothing_that_a_stranger_wrote_runs(opened: Open, tmp_path: Path) -> None:
    names = [name for name in PAYLOADS if name not in ("long", "deep")]
    payload = " ".join(safe_for_store(PAYLOADS[name]) for name in names)
    work = build(tmp_path / "work", lambda plain: f"{plain} {payload}")
    page = opened(written(work))
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    page.mouse.move(300, 300)
    for key in ("Tab", "Enter", "ArrowRight", "Tab", "Tab", "Enter", "Tab"):
        page.keyboard.press(key)
    foreign = (
        "script, style, img, iframe, object, embed, base, link, form, input, video, animate, foreignObject, math, b"
    )
    found = page.evaluate(f"[...document.querySelectorAll('{foreign}')].map((one) => one.tagName)")
    assert found == ["STYLE", "SCRIPT"]
    assert page.evaluate("[...document.querySelectorAll('*')].filter((e) => [...e.attributes].some("
                         "(a) => /^on|^style$|^src/.test(a.name))).length") == 0  # fmt: skip
    assert page.evaluate("getComputedStyle(document.body).display") != "none"
    text = page.evaluate("document.body.textContent")
    assert "<script>window.ran=1</script>" in text and "{{ 7 * 7 }}" in text and "\\u202egnp.exe" in text


def test_nor_live(opened: Open, tmp_path: Path) -> None:
    payload = " ".join(safe_for_store(PAYLOADS[name]) for name in PAYLOADS if name != "long")
    work = build(tmp_path / "work", lambda plain: f"{plain} {payload}")
    with server_of(work, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        page = opened(f"http://127.0.0.1:{server.server_address[1]}/run/2")
        page.wait_for_timeout(3500)  # it has asked for news, and taken them
        with Store.open(work / "store.db") as store:
            store.add_context(Context(f"{MARKER} {payload}"))
        for path in ("/", "/items", "/episode/1", f"/model/{STUDENT}"):
            page.goto(f"http://127.0.0.1:{server.server_address[1]}{path}")
            assert page.locator("script").count() == 1
        server.shutdown()
        thread.join()


def test_the_policy_stops_what_gets_past_the_first_wall(chromium: Any, file: str) -> None:
    """An element that a fault of ours let through would still not run, load or lead anywhere."""
    page = chromium.new_page()
    came, stopped = [], []
    page.on("requestfinished", lambda request: came.append(request.url))
    page.on("requestfailed", lambda request: stopped.append((request.url, request.failure)))
    page.goto(file)
    page.evaluate(
        """async () => {
          const hole = document.createElement("div");
          document.body.append(hole);
          hole.innerHTML = "<img src='http://stranger.invalid/x' onerror='window.ran=1'><p style='color:red' id=p>x</p>"
            + "<iframe srcdoc='<script>parent.ran=1</script>'></iframe><svg onload='window.ran=1'></svg>";
          const script = document.createElement("script");
          script.textContent = "window.ran=1";
          document.body.append(script);
          await new Promise((done) => setTimeout(done, 300));
        }"""
    )
    assert page.evaluate("window.ran") is None and came == [file]
    assert stopped == [("http://stranger.invalid/x", "csp")]  # before it left
    assert page.evaluate("getComputedStyle(document.getElementById('p')).color") != "rgb(255, 0, 0)"
    page.close()


# -- what a person does -------------------------------------------------------------------------------


def test_links_lead_to_what_they_name(opened: Open, file: str) -> None:
    page = opened(file)
    for address in sorted(set(page.evaluate("[...document.querySelectorAll('main a, nav a')].map((a) => a.hash)"))):
        page.evaluate("(hash) => document.querySelector(`a[href='${hash}']`).click()", address)
        aim = page.locator(f'[id="{address[1:]}"]')
        assert aim.evaluate("(one) => one.checkVisibility()"), address  # what was closed around it is open


def test_keys_reach_everything(opened: Open, file: str) -> None:
    page = opened(file)
    wanted = page.evaluate(
        "[...document.querySelectorAll('a[href], summary, select, .scroll, .tokens > [tabindex=\"0\"]')]"
        ".filter((one) => one.checkVisibility()).length"
    )
    reached = set()
    for _ in range(3 * wanted):
        page.keyboard.press("Tab")
        here = page.evaluate(
            "(window.all ??= [...document.querySelectorAll('*')], [all.indexOf(document.activeElement),"
            " getComputedStyle(document.activeElement).outlineStyle])"
        )
        if here[0] in reached or page.evaluate("document.activeElement === document.body"):
            break
        assert here[1] == "solid"  # where the keys are can be seen
        reached.add(here[0])
    assert len(reached) == wanted


def test_arrows_move_over_tokens_and_their_figures_are_told(opened: Open, file: str) -> None:
    page = opened(file)
    tokens = page.locator(".tokens").first
    tokens.locator(".t").first.focus()
    told = page.locator(".turn .told").first
    assert told.text_content().startswith("“ go” 0.001 nats: student 49.7 %")
    page.keyboard.press("ArrowRight")
    assert told.text_content().startswith("“\\n” 0.050 nats")
    page.keyboard.press("End")
    assert (
        told.text_content()
        == "“ end” 4.000 nats: student 49.7 %, teacher 24.7 %, the teacher's likeliest “ right” 74.1 %"
    )
    page.keyboard.press("ArrowRight")  # nothing comes after the last
    assert page.evaluate("document.activeElement.textContent") == " end"
    assert tokens.locator("[tabindex='0']").count() == tokens.locator("[aria-selected=true]").count() == 1
    tokens.locator(".t").nth(2).hover()
    assert told.text_content().startswith("“ left” 0.300 nats")


def test_the_filter_shows_tasks_by_who_won_and_without_script_all_are_there(opened: Open, file: str) -> None:
    page = opened(file)
    row = page.locator(".filter").first
    row.locator("select").select_option("in-context won")
    assert row.locator("output").text_content() == "1 of 6 shown"
    assert page.locator(".task:visible").count() == 1
    row.locator("select").focus()
    page.keyboard.press("Home")
    assert page.locator(".task:visible").count() == 6
    bare = opened(file, java_script_enabled=False)
    assert bare.locator(".task:visible").count() == 6 and bare.locator(".filter:visible").count() == 0


def test_news_come_without_losing_place_focus_or_what_was_opened(opened: Open, live: tuple[Path, str]) -> None:
    work, address = live
    page = opened(address)
    link = page.locator("#runs a").last
    link.scroll_into_view_if_needed()
    link.focus()
    before = link.evaluate("(one) => one.getBoundingClientRect().top")
    href = link.get_attribute("href")
    with Store.open(work / "store.db") as store:
        for _ in range(4):
            store.start("play", {"env": "a new world"}, 0)
    page.locator("#runs >> text=a new world").first.wait_for()
    assert page.evaluate("document.activeElement.getAttribute('href')") == href
    page.locator("#news >> text=Changed at").wait_for()
    after = page.evaluate("document.activeElement.getBoundingClientRect().top")
    assert abs(after - before) < 2  # four rows came above it


def test_what_was_opened_stays_open_when_news_come(opened: Open, live: tuple[Path, str]) -> None:
    work, address = live
    page = opened(f"{address}/contexts")
    second = page.locator("details.context").nth(1)
    second.locator("summary").focus()
    page.keyboard.press("Enter")
    id_ = second.get_attribute("id")
    with Store.open(work / "store.db") as store:
        context = Context(f"{MARKER} A third one.")
        store.add_context(context)
        store.move("mine", context.id, "person", "to see")
    page.locator("text=A third one.").first.wait_for(state="attached")
    assert page.evaluate(f"document.getElementById('{id_}').open")
    assert page.evaluate("document.activeElement.parentElement.id") == id_


# -- who cannot see, or sees little -------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_axe_finds_nothing_serious(scheme: str, width: int, opened: Open, file: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened(file, color_scheme=scheme, viewport={"width": width, "height": 800})
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    found = Axe().run(page).response["violations"]
    bad = [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]
    assert bad == []


@pytest.mark.parametrize("path", ["/", "/run/2", "/contexts", "/items", "/episodes", "/episode/1", f"/model/{STUDENT}"])
def test_axe_finds_nothing_serious_live(path: str, opened: Open, live: tuple[Path, str]) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened(live[1] + path, viewport={"width": 320, "height": 800})
    found = Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize("width", [320, 1280])
def test_the_page_never_scrolls_sideways(width: int, opened: Open, file: str, tmp_path: Path) -> None:
    long = written(build(tmp_path / "long", lambda text: text + "W" * 3000))
    for address in (file, long):
        page = opened(address, viewport={"width": width, "height": 800})
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
