"""``agentopcd report``: what the page shows, what it leaves out, and that it takes every text for a text."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentopcd.cli import app
from agentopcd.cli.page import render
from agentopcd.cli.page import report as pages
from agentopcd.cli.page.episodes import RULE
from agentopcd.cli.page.marks import Dot, Series, curves, dots
from agentopcd.cli.page.report import LARGEST_BYTES, report
from agentopcd.cli.page.training import tokens_of
from agentopcd.core.errors import ConfigError, StoreError
from agentopcd.core.runs import METRICS_FILE, TOKENS_FILE
from agentopcd.core.types import MARKER, Context
from agentopcd.knowledge import Store
from agentopcd.knowledge.students import move_student
from tests.cli.page.made import FOLDER, STUDENT, build
from tests.cli.page.payloads import PAYLOADS, safe_for_store


class Seen(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def __contains__(self, words: str) -> bool:
        return words in " ".join(" ".join(self.text).split())


def page_of(work: Path, name: str = "") -> str:
    with Store.open(work / "store.db", create=False, to_read=True) as store:
        return report(store, work, name)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace; read it, do not change it."""
    return build(tmp_path_factory.mktemp("made") / "lake-work")


@pytest.fixture(scope="module")
def whole(work: Path) -> Seen:
    return Seen(page_of(work))


# -- what it shows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "Workspace lake-work",
        "better than nothing",  # why the best context is best
        "0.500 [0.250, 0.700]",  # the student's rate with its interval
        "the gate of lake/student verdict: promoted", "by gate: it won",  # why it plays
        "uniform random 0.010", "best blind sequence 0.200",  # floors
        "+0.250 [-0.100, +0.500]", "2 / 1",  # a paired difference
        "Recovered: 50 % of the gain",
        "Test tasks that earlier runs have played: 2",
        "Loss, nats a token", "Entropy, nats a token", "Length of replies, tokens",
        "added H is a hole.",  # the context as a difference to the one before
        "flagged: an order", "approve by person: I have read it",  # flags and decisions of an item
        "lake extract, run 1",  # where an item was found
        "reproduced", "Claims of the paper: paired differences, with 95 % intervals", "0.510",  # the paper's figure
        "6 of 6 test tasks that base, in-context, student have all played.",
        "in-context won: 1 tasks", "base and in-context and student won: 2 tasks",
        "Turn 1 of its episode: 5 tokens, mean 1.070 nats, largest 4.000",
        "Turn 2 of its episode: 5 tokens, mean 1.070 nats, largest 4.000; the teacher's reply, with the context",
    ],
)  # fmt: skip
def test_the_page_of_a_workspace_shows(words: str, whole: Seen) -> None:
    assert words in whole


def test_a_student_that_was_rolled_back_was_trained_all_the_same(tmp_path: Path) -> None:
    with Store.open(build(tmp_path / "w") / "store.db") as store:
        move_student(store, "lake", None, "rollback")
    seen = Seen(page_of(tmp_path / "w"))
    assert "None, so the base plays; 1 trained and kept." in seen and "None was trained." not in seen


def test_where_nothing_is_right_or_wrong_nobody_wins_or_loses(tmp_path: Path) -> None:
    with Store.open(build(tmp_path / "w") / "store.db") as store:
        run = store.start("evaluate", {"env": "lake"}, 0)
        store.finish(run, {"graded": False})
    seen = Seen(page_of(tmp_path / "w"))
    assert "nothing is won or lost here: 6 tasks" in seen and "student: played" in seen
    assert "nobody won" not in seen and "student: lost" not in seen


def test_tokens_tell_their_figures_without_colour(whole: Seen) -> None:
    told = [value for tag, name, value in whole.attributes if (tag, name) == ("span", "title")]
    assert "“ end” 4.000 nats: student 49.7 %, teacher 24.7 %, the teacher's likeliest “ right” 74.1 %" in told
    assert "“\\n” 0.050 nats" in " ".join(told) and "↵" in whole  # a line end is seen
    bands = Counter(value for tag, name, value in whole.attributes if name == "class" and value.startswith("t b"))
    assert set(bands) == {f"t b{n}" for n in range(5)}


def test_every_picture_says_its_numbers_and_every_link_leads_somewhere(whole: Seen) -> None:
    pictures = [value for tag, name, value in whole.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(pictures) >= 8
    assert any("student: 0.500 [0.250, 0.700]" in words and "uniform random 0.010" in words for words in pictures)
    ids = [value for _, name, value in whole.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = [value for tag, name, value in whole.attributes if (tag, name) == ("a", "href")]
    assert links and {link[1:] for link in links} <= set(ids)


@pytest.mark.parametrize(
    ("name", "title", "shown", "not_shown"),
    [
        ("2", "Run 2: consolidate", "Episodes side by side", "Why refs moved"),
        (FOLDER, "Run 2: consolidate", "What the loss of run 2 sees", "Why refs moved"),
        ("lake/best", "Context lake/best", "Why refs moved", "What the loss"),
        (STUDENT[:12], f"Student {STUDENT[:12]}", "Episodes side by side", "Why refs moved"),
        (f"somewhere/runs/{FOLDER}/student/", f"Student {STUDENT[:12]}", "What the loss of run 2 sees", "Run 1"),
    ],
)
def test_a_page_is_about_what_was_named(name: str, title: str, shown: str, not_shown: str, work: Path) -> None:
    page = Seen(page_of(work, name))
    assert title in page and shown in page and not_shown not in page


def test_the_command_writes_one_file(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", "2", "-o", str(out), "--work", str(work)], catch_exceptions=False)
    assert done.exit_code == 0 and done.output.startswith(f"wrote {out} (")
    assert out.read_text(encoding="utf-8") == page_of(work, "2")


def test_a_folder_that_was_named_is_that_of_a_run_or_a_student(work: Path, tmp_path: Path) -> None:
    """Both hold JSON files, as a folder with results of reproduce does."""
    run = tmp_path / "moved" / "runs" / FOLDER
    (run / "student").mkdir(parents=True)
    out = tmp_path / "page.html"
    for folder, same in ((run, "2"), (run / "student", STUDENT[:12])):
        (folder / "config.json").write_text('{"env": "lake"}')
        done = CliRunner().invoke(app, ["report", str(folder), "-o", str(out), "--work", str(work)])
        assert done.exit_code == 0, done.exception
        assert out.read_text(encoding="utf-8") == page_of(work, same)


def test_results_of_reproduce_need_no_workspace(root: Path, tmp_path: Path) -> None:
    out, results = tmp_path / "page.html", root / "docs" / "results"
    words = ["report", str(results), "-o", str(out), "--work", str(tmp_path / "none")]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    page = Seen(out.read_text(encoding="utf-8"))
    names = [json.loads(file.read_text())["row"] for file in results.glob("*.json")]
    assert len(names) > 10 and all(name in page for name in names)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing/best"], "unknown context 'nothing/best'"),
        (["-o", "store.db"], "is the store itself"),
        (["-o", "no/such/folder/page.html"], "its folder is not there"),
    ],
)
def test_what_cannot_be_shown_is_one_line(words: list[str], said: str, work: Path) -> None:
    words = [str(work / word) if "." in word else word for word in words]
    with pytest.raises((ConfigError, StoreError), match=re.escape(said)):
        CliRunner().invoke(app, ["report", *words, "--work", str(work)], catch_exceptions=False)


def test_a_folder_without_a_store_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no knowledge store"):
        CliRunner().invoke(app, ["report", "--work", str(tmp_path)], catch_exceptions=False)


# -- what it leaves out -------------------------------------------------------------------------------


def test_of_many_tasks_some_are_shown_by_a_rule_and_the_others_counted(tmp_path: Path) -> None:
    page = Seen(page_of(build(tmp_path / "many", episodes=200), STUDENT[:12]))
    assert "60 of 200 test tasks" in page and RULE in page
    shown = [value for tag, name, value in page.attributes if (tag, name) == ("details", "data-pattern")]
    assert len(shown) == 60
    assert Counter(shown) == {"nobody won": 15, "in-context won": 15, "in-context and student won": 15,
                              "base and in-context and student won": 15}  # fmt: skip


def test_a_large_workspace_stays_below_the_limit_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = build(tmp_path / "large", lambda text: text + "x" * 3000)
    with Store.open(work / "store.db") as store:
        for n in range(60):
            store.add_context(Context(f"{MARKER} rule {n} {'y' * 3000}"))
            store.move(f"mine/{n}", Context(f"{MARKER} rule {n} {'y' * 3000}").id, "person")
    text = page_of(work)
    assert len(text.encode()) < LARGEST_BYTES
    assert "32 more contexts are not shown" in text and re.search(r"… \(\d+ more characters\)", text)
    monkeypatch.setattr(pages, "LARGEST_BYTES", 200_000)
    shorter = page_of(work)
    assert 50_000 < len(shorter.encode()) < 200_000 and re.search(r"\d+ more items are not shown", shorter)
    monkeypatch.setattr(pages, "LARGEST_BYTES", 1000)
    with pytest.raises(StoreError, match="does not fit into 1000 bytes; name one run of it"):
        page_of(work)


def test_a_reply_is_the_teachers_only_where_its_record_says_so(work: Path, whole: Seen) -> None:
    steps = tokens_of(work / "runs" / FOLDER, most=1000)["steps"]
    assert [[turn["by_teacher"] for turn in step["turns"]] for step in steps] == [[False, True]] * 3
    assert "Turn 1 of its episode: 5 tokens, mean 1.070 nats, largest 4.000; the teacher" not in whole


def test_of_many_tokens_the_first_and_the_last_step_come_first(work: Path) -> None:
    found = tokens_of(work / "runs" / FOLDER, most=21)
    assert [(step["step"], [len(turn["tokens"]) for turn in step["turns"]]) for step in found["steps"]] == [
        (1, [5, 5]), (2, [1]), (4, [5, 5])
    ]  # fmt: skip
    assert found["left_out"] == 9 and found["all_steps"] == [1, 2, 4]


@pytest.mark.parametrize("value", [1e18, -1e18, 1e300, 3.0, 0.0])
def test_equal_values_of_any_size_make_a_picture(value: float) -> None:
    drawn = dots("metric", [Dot("a", value, None, None), Dot("b", value, value, value)], zero=False)
    assert drawn is not None and 8 <= drawn["rows"][0]["x"] == drawn["rows"][1]["x"] <= 312
    assert curves("metric", [Series("a", [(0, value), (1, value)])]) is not None


# -- what is damaged, or of another kind --------------------------------------------------------------


ODD = [
    {"evaluation": {"rows": "x", "differences": [1]}},
    {"evaluation": {"rows": [{"label": [], "success": True}]}},
    {"ranking": [{"context": 1, "success": "a"}, 5]},
    {"confirmation": {"verdict": 1}},
    {"values": [{"value": "much"}]},
    {"rows": [{"label": 1, "success": 0.5, "means": 3}], "floors": 1, "overlap": 2, "notes": "x"},
]
"""Results as no version of ours has written them."""


def test_damaged_logs_and_odd_results_are_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    work = build(tmp_path / "odd")
    folder = work / "runs" / FOLDER
    (folder / METRICS_FILE).write_text('{"step": 1}\nnonsense\n')
    (folder / TOKENS_FILE).write_text(
        json.dumps({"step": 1, "turn": "x", "tokens": [1, {"nats": "y", "text": 3}]}) + "\n"
    )
    (work / "reproduce" / "broken.json").write_text("{")
    (work / "reproduce" / "other.json").write_text("[1]")
    with Store.open(work / "store.db") as store:
        for result in ODD:
            run = store.start("evaluate", {"env": ["not", "a", "name"], "folder": "../../.."}, 0)
            store.finish(run, result)
    page = Seen(page_of(work))
    assert "line 2 is damaged" in page and "Run 3: evaluate" not in page and "Claims" in page


# -- texts of strangers -------------------------------------------------------------------------------

TAGS = {
    *("html", "head", "meta", "title", "style", "script", "body", "header", "nav", "main", "section", "footer"),
    *("h1", "h2", "h3", "p", "br", "a", "ul", "ol", "li", "dl", "dt", "dd", "pre", "code", "span", "div", "ins", "del"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary", "figure", "figcaption"),
    *("svg", "path", "text", "tspan", "g", "circle", "select", "option", "label", "output"),
}
GROUPS = [list(PAYLOADS)[n::4] for n in range(4)]


@pytest.mark.parametrize("group", GROUPS, ids=[names[0] for names in GROUPS])
def test_texts_of_strangers_stay_texts(group: list[str], tmp_path: Path) -> None:
    payload = " ".join(safe_for_store(PAYLOADS[name]) for name in group)
    text = page_of(build(tmp_path / "work", lambda plain: f"{plain} {payload}"))
    seen = Seen(text)
    assert set(seen.tags) <= TAGS
    assert (seen.tags["script"], seen.tags["style"], seen.tags["meta"], seen.tags["title"] > 0) == (1, 1, 5, True)
    for tag, name, value in seen.attributes:
        assert not name.startswith("on") and name not in ("src", "srcdoc", "style", "action", "xlink:href"), (tag, name)
        assert name != "href" or value.startswith("#"), value
        assert name != "http-equiv" or value == "Content-Security-Policy"
    assert not render.HARMFUL.search(text) and not render.MISLEADING.search(text) and "\x00" not in text
    assert len(text.encode()) < LARGEST_BYTES and "49" not in seen.text
    for name in group:
        if len(PAYLOADS[name]) < 200:
            wanted = " ".join(render.shown(safe_for_store(PAYLOADS[name])).split())
            assert wanted in seen, name  # it is shown as it is written


def test_the_policy_allows_our_script_and_style_alone() -> None:
    policy = dict(rule.split(" ", 1) for rule in render.policy(False).split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"].startswith("'sha256-") and "unsafe" not in render.policy(True)
    assert "connect-src" not in policy and "connect-src 'self'" in render.policy(True)
