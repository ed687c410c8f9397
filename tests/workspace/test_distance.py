"""Distances between models that play at a temperature of their own: as plain forward passes have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from agentopcd.core.config import EvaluateConfig
from agentopcd.core.types import Context, Job
from agentopcd.distillation.anchor import neutral_prompts, neutral_samples
from agentopcd.models.load import LoadedModel
from agentopcd.workspace.evaluation import neutral
from agentopcd.workspace.evaluation.distance import distances, nats_by_place
from agentopcd.workspace.evaluation.table import Contestant, evaluate
from agentopcd.workspace.session import Session
from tests import tiny
from tests.training import plain_logits

CLUE, TEMPERATURE = Context(tiny.CLUE), 5.0


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Session, LoadedModel, LoadedModel]]:
    """A session, its model, and another one."""
    folders = [str(tiny.build(tmp_path / f"m{seed}", seed=seed, tie=False, hearing=4.0)) for seed in (0, 1)]
    config = EvaluateConfig(
        env=tiny.questions(tmp_path / "rows.jsonl"), model=folders[0], compute="float32", max_tokens=4,
        temperature=TEMPERATURE,
    )  # fmt: skip
    with Session(config, tmp_path / "w", say=lambda line: None) as session:
        yield session, session.loaded, session.load(folders[1])


def logprobs(loaded: LoadedModel, prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
    return (plain_logits(loaded.model, prompt, response) / TEMPERATURE).log_softmax(-1)


def test_neutral_drift_is_the_divergence_to_the_base_on_the_students_replies(
    pair: tuple[Session, LoadedModel, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neutral, "MAX_TOKENS", 4)
    session, base, student = pair
    found = neutral.neutral_drift(session, student, base)
    said = neutral_samples(
        session.player_for(student), dict(enumerate(neutral_prompts("test"))), seed=session.config.seed,
        what="neutral", max_tokens=4, temperature=TEMPERATURE,
    )  # fmt: skip
    nats = []
    for one in said.values():
        p, q = (logprobs(loaded, one.student_ids, one.response_ids) for loaded in (student, base))
        nats.append((p.exp() * (p - q)).sum(-1))
    assert found.rate == pytest.approx(float(torch.cat(nats).mean()), rel=1e-3) and found.rate > 0.01
    assert found.n == len(said) and found.low < found.rate < found.high
    assert neutral.neutral_drift(session, base, base).rate == 0


def test_the_distance_to_a_prompted_model_is_taken_at_the_temperature_of_play(
    pair: tuple[Session, LoadedModel, LoadedModel],
) -> None:
    session, base, other = pair
    student, tasks = Contestant(label="student", model=other), session.tasks("test", 6)
    evaluate(session, [student], tasks, run_id=session.ledger.begin("evaluate"))
    setup, chat = session.setup(session.player_for(other)), session.player_for(base).chat
    by_place, nats, entropies = {}, [], []
    for row in session.store.episodes(model_id=other.id):
        episode = session.store.transcript(row["id"])
        (turn,) = episode.turns
        p = logprobs(other, turn.prompt_ids, turn.response_ids)
        q = logprobs(base, chat.render(turn.messages, CLUE), turn.response_ids)
        nats.append((p.exp() * (p - q)).sum(-1))
        entropies.append(-(p.exp() * p).sum(-1))
        by_place[episode.task.key, episode.task.seed, episode.rep] = float(nats[-1].mean())
    found = distances(session, [student], base, CLUE, tasks, setup=setup).rows["student"]
    assert found.distance.rate == pytest.approx(float(torch.cat(nats).mean()), rel=1e-3) and found.distance.rate > 0.01
    assert found.entropy.rate == pytest.approx(float(torch.cat(entropies).mean()), rel=1e-3)
    jobs = [Job(task) for task in tasks]
    assert nats_by_place(session, student, base, CLUE, jobs, setup=setup) == pytest.approx(by_place, rel=1e-3)
