"""The weights that ship with the package: they load like any model, play, read contexts and write items."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from agentopcd import models
from agentopcd.core.config import EvaluateConfig, LearnConfig, PlayConfig
from agentopcd.core.types import Context
from agentopcd.knowledge import Store
from agentopcd.learn import learn
from agentopcd.models import find, load
from agentopcd.workspace.evaluation.table import Contestant, Evaluation, evaluate
from agentopcd.workspace.experience.gather import gather
from agentopcd.workspace.session import Session

SIZES = {"pocket": (2e6, 8e6), "pocket-s": (5e5, 1.5e6)}
TRUE = Context("G is the goal. H is a hole, never step on it. All moves work as named.")
SWAPPED = Context("H is the goal. Never step on G. Up and down are swapped. Left and right work as named.")


def quiet(line: str) -> None:
    """Nobody reads along."""


def arms(env: str, work: Path, tasks: int, *contestants: tuple[str, str, Context]) -> Evaluation:
    with Session(EvaluateConfig(env=env, sample_batch=64), work, say=quiet) as session:
        known = {name: session.load(name) for name in {name for _, name, _ in contestants}}
        who = [Contestant(label=label, model=known[name], context=context) for label, name, context in contestants]
        session.use(who[0].model)
        return evaluate(session, who, session.tasks("test", tasks), run_id=session.ledger.begin("evaluate"))


@pytest.mark.parametrize("name", SIZES)
def test_it_ships_small_and_loads_like_any_model(name: str) -> None:
    loaded = models.load_model(name)
    low, high = SIZES[name]
    assert low <= sum(p.numel() for p in loaded.model.parameters()) <= high
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert (loaded.folder / "model.safetensors").stat().st_size <= 16 << 20
    assert (loaded.folder / "README.md").read_text().startswith(f"# {name}")
    assert "hidden rules" in loaded.note
    assert loaded.learning_rate > load.LEARNING_RATE


def test_the_two_sizes_share_their_tokenizer() -> None:
    for file in ("tokenizer.json", "chat_template.jinja"):
        assert len({(find.WEIGHTS / name / file).read_bytes() for name in SIZES}) == 1, file


@pytest.mark.slow
def test_it_wins_only_when_it_is_told_the_rules(tmp_path: Path) -> None:
    found = arms("frozen-lake-4x4", tmp_path, 48, ("base", "pocket", Context()), ("in-context", "pocket", TRUE))
    assert found.rate("base").rate < 0.3
    assert found.rate("in-context").rate > 0.65


@pytest.mark.slow
def test_it_follows_a_context_against_what_is_usual(tmp_path: Path) -> None:
    told = (("swapped", "pocket", SWAPPED), ("usual", "pocket", TRUE))
    found = arms("frozen-lake-4x4-swapped", tmp_path, 32, *told)
    assert found.rate("swapped").rate > 0.6
    assert found.rate("usual").rate < 0.2  # it does what it is told, also where that loses


@pytest.mark.slow
def test_what_it_writes_down_about_letters_is_mostly_true(tmp_path: Path) -> None:
    config = PlayConfig(env="frozen-lake-4x4", model="pocket", episodes=48, chains=8, chain_steps=8, sample_batch=64)
    with Session(config, tmp_path, say=quiet) as session:
        gathered = gather(session, config, run_id=session.ledger.begin("play"))
        # an item counts once for every episode it was read off
        found = [(i.text, len(session.store.sources(i.id))) for i in session.store.items(ids=gathered.items)]
    assert not gathered.flagged and len(found) > 5
    roles = [(text, n) for text, n in found if re.search(r"\b[GH]\b", text)]
    wrong = sum(n for text, n in roles if ("H" in text) == bool(re.search(r"goal|win|Reach|target|box", text)))
    said = sum(n for _, n in roles)
    assert said > 5 and wrong <= said / 4, (wrong, roles)


@pytest.mark.slow  # minutes; `make demo` runs the same circle
@pytest.mark.timeout(900)
def test_the_whole_circle_teaches_it_the_game(tmp_path: Path) -> None:
    config = LearnConfig(
        env="frozen-lake-4x4", model="pocket", episodes_per_round=32, chains=4, chain_steps=8, candidates=4,
        select_tasks=16, confirm_tasks=32, test_tasks=32, steps=6, batch_size=16, select_every=6, save_every=6,
        tokens_per_batch=8192, learning_rate=3e-4, sample_batch=64,
    )  # fmt: skip
    (one,) = learn(config, tmp_path, say=quiet)
    assert one.confirmed and one.distilled is not None and one.distilled.evaluation is not None
    found = one.distilled.evaluation
    gain = found.comparisons["student - base"]
    assert gain.difference.low > 0.1, str(gain.difference)
    with Store.open(tmp_path / "store.db") as store:
        assert store.model_contexts(one.distilled.model_id)
