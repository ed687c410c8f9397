"""The day in a chat template belongs to the workspace: midnight changes no prompt, a killed run goes on next day."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from agentopcd.core.config import ConsolidateConfig, EvaluateConfig
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Context, Message
from agentopcd.distil import distil_context
from agentopcd.knowledge import Store
from agentopcd.rollouts.chat import Chat
from agentopcd.workspace import day as days
from agentopcd.workspace.evaluation.table import Contestant, evaluate
from agentopcd.workspace.session import Session
from tests import tiny
from tests.training import Killed

ASK = [Message(role="user", content="hello")]
DAY = "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %b %Y, %H:%M') + '<|im_end|>\n' }}"
BEFORE, AFTER = datetime.datetime(2026, 1, 31, 23, 59), datetime.datetime(2026, 2, 1, 0, 1)


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    from transformers import AutoTokenizer

    folder = tiny.build(tmp_path / "model", tie=False, hearing=4.0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = DAY + tiny.TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


class Clock:
    """The clock of the templates and of the workspace."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.set(BEFORE)

    def set(self, now: datetime.datetime) -> None:
        class Time(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime.datetime:
                return now

        class Date(datetime.date):
            @classmethod
            def today(cls) -> datetime.date:
                return now.date()

        fake = type("fake", (), {"date": Date, "datetime": Time})
        self.patch.setattr(chat_template_utils, "datetime", Time)
        self.patch.setattr(days, "datetime", fake)
        self.patch.setattr("agentopcd.rollouts.chat.datetime", fake)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def config(model_dir: Path, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "env": tiny.questions(tmp_path / "q.jsonl"),
        "model": str(model_dir),
        "max_tokens": 4,
        "sample_batch": 8,
    } | changes


def test_a_prompt_says_the_same_day_after_midnight(model_dir: Path, clock: Clock) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    chat = Chat(tokenizer)
    before = chat.text(ASK)
    assert "Today: 31 Jan 2026, 00:00" in before  # a clock on the wall would be worse than a day
    clock.set(AFTER)
    assert chat.text(ASK) == before and "Today: 01 Feb 2026" in Chat(tokenizer).text(ASK)
    assert Chat(tokenizer, None, datetime.date(2020, 2, 29)).text(ASK).count("29 Feb 2020") == 1
    assert chat.says_day
    tokenizer.chat_template = tiny.TEMPLATE
    assert not Chat(tokenizer).says_day


def test_a_killed_run_goes_on_the_next_day_and_ends_as_an_unbroken_one(
    model_dir: Path, tmp_path: Path, clock: Clock
) -> None:
    settings = config(
        model_dir, tmp_path, method="context-distillation", steps=3, batch_size=4, select_tasks=2, test_tasks=0,
        save_every=1, select_every=1, force=True, context="",
    )  # fmt: skip
    context = Context("- EXPERIENCE ITEM: say seven")

    def distil(work: str, kill_at: str = "") -> Any:
        def say(line: str) -> None:
            said.append(line)
            if kill_at and line.startswith(kill_at):
                raise Killed

        wanted = ConsolidateConfig(**settings)
        with Session(wanted, tmp_path / work, say=say) as session:
            session.store.add_context(context)
            return distil_context(session, wanted, context)

    said: list[str] = []
    straight = distil("straight")
    assert "note: the chat template says what day it is; in this workspace it stays 2026-01-31" in said
    with pytest.raises(Killed):
        distil("killed", "step 002")
    clock.set(AFTER)
    said.clear()
    done = distil("killed")
    assert "resumed after step 1" in said
    weights = [(Path(run.folder) / "model.safetensors").read_bytes() for run in (straight, done)]
    assert weights[0] == weights[1]


def test_games_of_two_days_are_compared_on_one_day(model_dir: Path, tmp_path: Path, clock: Clock) -> None:
    wanted = EvaluateConfig(**config(model_dir, tmp_path, test_tasks=2))

    def played(work: Path, context: Context) -> set[str]:
        with Session(wanted, work) as session:
            arm = Contestant(label="x", model=session.loaded, context=context)
            evaluate(session, [arm], session.tasks("test", 2), run_id=session.ledger.begin("evaluate"))
            text = session.loaded.tokenizer.decode
            rows = session.store.episodes()
            prompts = [text(list(session.store.transcript(row["id"]).turns[0].prompt_ids)) for row in rows]
        with Store.open(work / "store.db") as store:
            assert len({row["setup"] for row in store.episodes()}) == 1
        return {prompt.split("Today: ")[1][:11] for prompt in prompts}

    assert played(tmp_path / "work", Context()) == {"31 Jan 2026"}
    clock.set(AFTER)
    assert played(tmp_path / "work", Context("Say seven.")) == {"31 Jan 2026"}
    assert played(tmp_path / "other", Context()) == {"01 Feb 2026"}


def test_the_day_is_part_of_the_setup_where_the_template_says_it(model_dir: Path, tmp_path: Path, clock: Clock) -> None:
    wanted = EvaluateConfig(**config(model_dir, tmp_path))
    with Session(wanted, tmp_path / "work") as session:
        assert session.player.setup()["day"] == "2026-01-31"
    plain = tiny.build(tmp_path / "plain", tie=False)
    with Session(EvaluateConfig(**config(plain, tmp_path)), tmp_path / "plain-work") as session:
        assert "day" not in session.player.setup()
    assert not (tmp_path / "plain-work" / "day.txt").exists()


def test_a_day_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "day.txt").write_text("yesterday\n")
    with pytest.raises(ConfigError, match=r"day\.txt must hold a day such as 2026-01-31, got 'yesterday'"):
        days.day_of(tmp_path)
    (tmp_path / "day.txt").write_text("2026-02-28\n")
    assert days.day_of(tmp_path) == datetime.date(2026, 2, 28)
