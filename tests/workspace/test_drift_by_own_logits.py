"""Entropy and drift are the model's own, also where a shortcut is not; and only of replies that the model gave."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd.core.config import EvaluateConfig
from agentopcd.core.errors import AlignmentError
from agentopcd.workspace.evaluation.drift import drifts
from agentopcd.workspace.evaluation.table import Contestant, evaluate
from agentopcd.workspace.session import Session
from tests import tiny
from tests.models import architectures


@dataclasses.dataclass
class Desk:
    session: Session
    lines: list[str]
    run_id: int
    wanted: dict[str, Any]

    def drift(self) -> Any:
        return drifts(self.session, **self.wanted)["base"]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A HyperCLOVAX, which multiplies its logits by a factor that no shortcut knows, has played four tasks."""
    folder, lines = architectures.build(tmp_path / "m", "hyperclovax"), []
    config = EvaluateConfig(
        env=tiny.questions(tmp_path / "rows.jsonl"), model=str(folder), compute="float32", max_tokens=6, temperature=0.7
    )
    with Session(config, tmp_path / "w", say=lines.append) as session:
        base, tasks = Contestant(label="base", model=session.loaded), session.tasks("test", 4)
        run_id = session.ledger.begin("evaluate")
        evaluate(session, [base], tasks, run_id=run_id)
        wanted = {"contestants": [base], "tasks": tasks, "setup": session.setup()}
        yield Desk(session, lines, run_id, wanted)


def test_the_entropy_is_that_of_the_models_own_logits(desk: Desk) -> None:
    found = desk.drift()
    entropies = []
    for row in desk.session.store.episodes():
        for turn in desk.session.store.transcript(row["id"]).turns:
            ids = torch.tensor([[*turn.prompt_ids, *turn.response_ids]])
            with torch.no_grad():
                logits = desk.session.loaded.model(input_ids=ids).logits[0, len(turn.prompt_ids) - 1 : -1]
            logprobs = (logits / 0.7).log_softmax(-1)
            entropies.append(-(logprobs.exp() * logprobs).sum(-1))
    assert found.entropy_nats == pytest.approx(float(torch.cat(entropies).mean()), rel=1e-4)
    (line,) = [line for line in desk.lines if "logits come from whole forward passes" in line]
    assert "\n" not in line
    desk.session.ledger.finish(desk.run_id, {})
    result = json.loads(desk.session.store.run(desk.run_id)["result"])
    assert result["shortcuts"][desk.session.loaded.id]["set_aside"] == ["head"]


def test_replies_that_the_model_did_not_give_stop_the_evaluation(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    read = desk.session.store.transcript

    def tampered(id_: int) -> Any:
        """Replies that were twice as likely: ln 2 = 0.693 nats off."""
        episode = read(id_)
        turns = [dataclasses.replace(t, logprobs=tuple(p + math.log(2) for p in t.logprobs)) for t in episode.turns]
        return dataclasses.replace(episode, turns=turns)

    desk.drift()
    monkeypatch.setattr(desk.session.store, "transcript", tampered)
    with pytest.raises(AlignmentError, match=r"replies of base .* 0\.693 nats a token off") as refused:
        desk.drift()
    assert "\n" not in str(refused.value)
