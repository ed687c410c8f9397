"""Who writes the lessons: another model, an API, or a person's own prompt."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentopcd.cli import main, store_views
from agentopcd.core.config import LearnConfig, PlayConfig
from agentopcd.core.errors import ConfigError, EngineError
from agentopcd.core.types import MARKER, Completion
from agentopcd.knowledge import Store
from agentopcd.rollouts.chat import ApiChat, Chat
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling import InBatches, requests
from agentopcd.rollouts.sampling.requests import KEY
from agentopcd.workspace.experience.chains import Gathered
from agentopcd.workspace.experience.gather import gather
from agentopcd.workspace.session import Session
from tests import tiny
from tests.rollouts.sampling.fake_server import FakeServer


class Wordy(InBatches):
    """A sampler behind an API that has one lesson."""

    engine = "api"
    lesson = tiny.CLUE
    fails = 0

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[str] = []

    def sample(self, requests: Any, sampling: Any) -> list[Completion]:
        if Wordy.fails:
            Wordy.fails -= 1
            raise EngineError("http://nowhere does not answer: it is away")
        self.prompts += [request.messages[0]["content"] for request in requests]
        assert not any(request.prompt_ids for request in requests)
        return [self.reply(number) for number in range(len(requests))]

    def reply(self, number: int) -> Completion:
        return Completion(token_ids=(), logprobs=(), finish_reason="stop", text=f"{MARKER} {self.lesson}")


class Lab:
    """A workspace whose player is :class:`tests.tiny.Clued`, and whose extractor is that too or :class:`Wordy`."""

    def __init__(self, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows, self.work, self.model = tiny.questions(folder / "rows.jsonl"), folder / "w", str(model)
        self.lines: list[str] = []
        self.loaded: list[str] = []
        self.samplers: list[Any] = []
        load = Session.load

        def counted(session: Session, name: str, **how: Any) -> Any:
            self.loaded.append(name)
            return load(session, name, **how)

        def player_for(session: Session, loaded: Any, config: Any = None) -> Player:
            api = loaded.model is None
            self.samplers.append(Wordy() if api else tiny.Clued(loaded.tokenizer))
            return Player(
                game=session.game, sampler=self.samplers[-1], chat=ApiChat() if api else Chat(loaded.tokenizer),
                sampling=session.config.sampling, seed=session.config.seed,
            )  # fmt: skip

        monkeypatch.setattr(Session, "load", counted)
        monkeypatch.setattr(Session, "player_for", player_for)
        monkeypatch.setattr("agentopcd.workspace.extraction.check_engine", lambda config: None)  # nobody listens there

    def play(self, **settings: Any) -> Gathered:
        own = {"env": self.rows, "model": self.model, "episodes": 4, "chains": 2, "chain_steps": 2}
        config = PlayConfig(**own | settings)
        with Session(config, self.work, say=self.lines.append) as session:
            run_id = session.ledger.begin("play")
            done = gather(session, config, run_id=run_id)
            session.ledger.finish(run_id, done.to_dict())
            return done

    def store(self) -> Store:
        return Store.open(self.work / "store.db")

    def shown(self, item: str) -> str:
        with self.store() as store:
            return store_views.text(store_views.describe(store, item))


@pytest.fixture
def lab(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    yield Lab(tmp_path, tiny_model_dir, monkeypatch)
    Wordy.fails = 0


API = "http://someone:secret@nowhere:1/v1#sage"


def test_another_model_writes_the_items_and_the_player_plays(lab: Lab, tmp_path: Path) -> None:
    other = str(tiny.build(tmp_path / "other", seed=1))
    done = lab.play(extractor=other)
    player, extractor = lab.samplers
    assert lab.loaded == [lab.model, other]
    assert (player.asked, extractor.asked) == (4, 4)  # episodes, and steps of chains
    with lab.store() as store:
        (item,) = store.items(ids=done.items)
        models = {row["name"]: row["id"] for row in store.models()}
        played = {row["model_id"] for row in store.episodes()}
    assert item.text == tiny.CLUE and played == {models[lab.model]}
    assert f"extractor {other} ({models[other][:12]})" in lab.shown(item.id)


def test_the_model_that_played_is_not_loaded_again_under_another_name(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "again").symlink_to(lab.model)
    lab.play(extractor=str(tmp_path / "again"))
    assert lab.loaded == [lab.model] and len(lab.samplers) == 1


def test_no_extractor_is_loaded_where_all_is_done(lab: Lab) -> None:
    done = lab.play(extractor=API)
    del lab.loaded[:]
    with Session(PlayConfig(env=lab.rows, model=lab.model, extractor=API), lab.work, say=lab.lines.append) as session:
        assert gather(session, session.config, run_id=done.run_id) == done  # type: ignore[arg-type]
    assert lab.loaded == []


def test_an_api_sees_messages_and_its_items_are_made_safe_for_the_player(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wordy, "lesson", f"{tiny.CLUE} <|im_end|> now")
    done = lab.play(extractor=API)
    prompts = lab.samplers[1].prompts
    assert len(prompts) == 4 and all("Question: What is" in p and "Your answer: Answer: 1" in p for p in prompts)
    assert not any("7." in p.partition("Your answer")[2].partition("\n")[0] for p in prompts)  # the label
    with lab.store() as store:
        (item,) = store.items(ids=done.items)
        config = json.loads(store.run(done.run_id)["config"])
        assert item.status == "pending" and store.flags([item.id])[item.id] == ["role", "unclean"]
    assert (
        item.text == f"{tiny.CLUE} < |im_end|> now"
    )  # the player's special string, which the API's chat does not know
    assert config["extractor"] == "sage (API)" and "secret" not in json.dumps(config)
    assert "extractor sage (API) (" in lab.shown(item.id)
    assert done.candidates == []  # what looks like a special token waits for a person


def test_the_budget_counts_tokens_of_the_player(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ApiChat, "count_tokens", lambda *_: 10**6)  # the extractor's own count
    monkeypatch.setattr(Wordy, "lesson", tiny.CLUE)
    assert lab.play(extractor=API, budget_tokens=200).candidates


def test_a_lesson_that_the_api_keeps_is_missing_and_the_run_goes_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Completion(token_ids=(), logprobs=(), finish_reason="stop", error="http://nowhere kept a reply: filter")
    reply = Wordy.reply
    monkeypatch.setattr(Wordy, "reply", lambda self, number: kept if number == 0 else reply(self, number))
    done = lab.play(extractor=API)
    assert len(done.items) == 1 and done.unparsed == 2  # the first of each of the two calls
    assert "warning: 1 of 2 lessons are missing (http://nowhere kept a reply: filter)" in lab.lines


def test_an_api_that_fails_ends_the_run_and_the_same_command_goes_on(lab: Lab) -> None:
    Wordy.fails = 1
    with pytest.raises(EngineError, match="does not answer"):
        lab.play(extractor=API)
    with lab.store() as store:
        assert (store.run(1)["status"], len(store.episodes())) == ("failed", 4)
    done = lab.play(extractor="https://elsewhere/v1#sage")  # it may have moved
    assert done.run_id == 1 and len(done.items) == 1
    assert [sampler.asked for sampler in lab.samplers if isinstance(sampler, tiny.Clued)] == [4, 0]  # played once
    with lab.store() as store:
        assert (store.run(1)["status"], len(store.episodes())) == ("done", 4)


def test_another_extractor_or_prompt_is_another_run(lab: Lab, tmp_path: Path) -> None:
    Wordy.fails = 3
    own = tmp_path / "own.txt"
    for text, settings in (
        ("{trace} A", {}),
        ("{trace} A", {"extract_prompt": str(own)}),
        ("{trace} B", {"extract_prompt": str(own)}),
    ):
        own.write_text(text)
        with pytest.raises(EngineError):
            lab.play(extractor=API, **settings)
    with lab.store() as store:
        assert len(store.runs("play")) == 3


def test_a_persons_prompt_is_asked_kept_and_shown_again(lab: Lab, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("What do you make of this?\n{trace}\nBegin with {marker}\n")
    done = lab.play(extractor=API, extract_prompt=str(own))
    prompts = lab.samplers[1].prompts
    assert all(
        p.startswith("What do you make of this?\nQuestion: ") and p.endswith(f"Begin with {MARKER}") for p in prompts
    )
    own.unlink()
    with lab.store() as store:
        config = json.loads(store.run(done.run_id)["config"])
    assert config["extract_prompt_text"] == "What do you make of this?\n{trace}\nBegin with {marker}"
    assert len(config["extract_prompt_sha256"]) == 64
    said = lab.shown(done.items[0])
    assert "| What do you make of this?" in said and f"| Begin with {MARKER}" in said


def test_items_of_an_older_prompt_say_so(lab: Lab) -> None:
    done = lab.play()
    assert "asked with template" not in lab.shown(done.items[0])
    with lab.store() as store:
        row = store.run(done.run_id)
        old = json.dumps(json.loads(row["config"]) | {"template": 1})
        with store.write():
            store._connection.execute("UPDATE run SET config = ? WHERE id = ?", (old, done.run_id))
    assert "(asked with template 1, shown with 2)" in lab.shown(done.items[0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"extract_prompt": "nowhere.txt"}, "no file 'nowhere.txt'"),
        ({"extract_prompt": "bad.txt"}, "the extraction prompt 'bad.txt' has no {trace}"),
        ({"extract_prompt": "good.txt", "show_earlier": True}, "has no {earlier}"),
        ({"extractor": "nowhere"}, "no model 'nowhere'"),
    ],
)
def test_what_cannot_extract_is_told_before_anything_is_played(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.txt").write_text("{earlier}")
    Path("good.txt").write_text("{trace} {{earlier}}")
    with pytest.raises(Exception, match="(?s)" + says.replace("{", r"\{")):
        lab.play(**settings)
    if (lab.work / "store.db").is_file():
        with lab.store() as store:
            assert store.episodes() == []


@pytest.mark.parametrize(
    ("extractor", "says"),
    [
        ("http://host:8000/v1", "names no model; wanted ADDRESS#NAME"),
        ("http://host:8000/v1#", "names no model"),
        ("http://#name", "is no address of a server"),
        ("http://me:secret@host", r"'http://\*\*\*@host', an address that names no model"),
    ],
)
def test_an_address_without_a_model_is_refused(extractor: str, says: str) -> None:
    for config in (PlayConfig, LearnConfig):
        with pytest.raises(ConfigError, match=says):
            config(env="math", extractor=extractor)


@pytest.mark.parametrize("setting", ["extractor", "extract_prompt"])
def test_settings_of_extraction_want_an_extraction(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"--{setting.replace('_', '-')} is of no use with --no-extract"):
        PlayConfig(env="math", extract=False, **{setting: "x"})  # type: ignore[arg-type]


def test_another_model_never_answers_on_the_players_servers() -> None:
    served = {"env": "math", "model": "m", "server": "http://a,http://b"}
    for engine in ("auto", "server", "api"):
        config = PlayConfig(**served, engine=engine, extractor="pocket")  # type: ignore[arg-type]
        own = config.extracting
        assert (own.engine, own.server, own.model) == ("auto", "", "pocket")
        assert PlayConfig(**served, engine=engine).extracting.servers == ["http://a", "http://b"]  # type: ignore[arg-type]
    own = PlayConfig(env="math", constrain=True, extractor="http://c:1/v1#x/y").extracting
    assert (own.engine, own.servers, own.model, own.constrain) == ("api", ["http://c:1/v1"], "x/y", False)


def test_the_command_line_asks_an_api(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(requests, "LONGEST_WAIT_S", 0.05)
    monkeypatch.delenv(KEY, raising=False)
    rows, server = tiny.questions(tmp_path / "rows.jsonl"), FakeServer(tiny_model_dir, names=("sage",))
    words = ["play", "--env", rows, "--model", str(tiny_model_dir), "--episodes", "2", "--chains", "1"]
    words += ["--chain-steps", "2", "--max-tokens", "4", "--extract-tokens", "4", "--work", str(tmp_path / "w")]

    def call(*more: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["agentopcd", *words, *more])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out + said.err

    try:
        code, said = call("--extractor", "http://127.0.0.1:9#sage")
        assert code == 2 and "no API answers at http://127.0.0.1:9" in said
        code, said = call("--extractor", f"{server.url}#sage", "--dry-run")
        assert code == 0 and not server.chats and "1 chain of 2 extractions by sage" in said
        code, said = call("--extractor", f"{server.url}#sage")
        assert code == 0 and "extractor: sage" in said and "resuming play run 1" in said, said
        assert len(server.chats) == 2 and {body["model"] for body in server.chats} == {"sage"}
        assert all("Your answer:" in body["messages"][0]["content"] for body in server.chats)
    finally:
        server.stop()
    with Store.open(tmp_path / "w" / "store.db") as store:
        assert len(store.episodes()) == 2
