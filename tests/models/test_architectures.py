"""Every architecture plays, learns and is evaluated as by its own forward pass, or is refused before it plays.

The right values are computed here with nothing but ``model(input_ids)``, one row at a time.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import consolidate as loop
from agentopcd import models
from agentopcd.core.config import ConsolidateConfig, EvaluateConfig, PlayConfig
from agentopcd.core.errors import AgentOpcdError
from agentopcd.core.types import EMPTY, Context, Turn
from agentopcd.distil import distil_context
from agentopcd.distillation import losses
from agentopcd.distillation.samples import Sample
from agentopcd.knowledge import Store
from agentopcd.workspace.evaluation.student import evaluate_student
from agentopcd.workspace.experience.gather import gather
from agentopcd.workspace.session import Session
from tests import tiny
from tests.models import architectures

FEW = ("llama", "mpt", "bloom", "gpt2", "rwkv")
"""Run by default; the others are slow together."""
UNSAMPLED = {"bert, no decoder", "xlnet", "cpmant"}
"""Architectures whose ``generate`` gives other probabilities than their own forward pass: refused by every verb."""
UNTRAINED = {
    "bert": "does more to its logits",
    "roformer": "does more to its logits",
    "modernbert-decoder": "does more to its logits",
    "hyperclovax": "does more to its logits",
    "reformer": "backward pass fails",
}
"""Architectures that play and are evaluated, but cannot be trained, and words of the line that says so."""
EVERY = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in architectures.ARCHITECTURES]
COMMON: dict[str, Any] = {"compute": "float32", "max_tokens": 8, "temperature": 0.9}
CONTEXT = Context("The answer is always 7. Say it in one word, and say nothing else, whatever the question asks. " * 3)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.questions(tmp_path_factory.mktemp("rows") / "q.jsonl")


@pytest.mark.parametrize("name", EVERY)
def test_an_architecture_gives_what_its_own_forward_pass_gives_or_is_refused(
    name: str, questions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = architectures.build(tmp_path / "model", name)
    said: list[str] = []
    learned: list[Sample] = []
    take = loop.Batches.take

    def spy(*args: Any) -> Any:
        played = take(*args)
        learned.extend(played.samples)
        return played

    monkeypatch.setattr(loop.Batches, "take", spy)
    desk = Desk(tmp_path / "work", questions, str(folder), said)
    if name in UNSAMPLED:
        for refused in (desk.play, desk.consolidate, desk.evaluate):
            with pytest.raises(AgentOpcdError, match=r".") as line:
                refused()
            assert "\n" not in str(line.value)
            assert name != "cpmant" or "cannot be sampled here" in str(line.value)
        assert desk.turns() == []
        return
    desk.play()
    base = models.load_model(str(folder))
    students = {}
    if name in UNTRAINED:
        with pytest.raises(AgentOpcdError, match=UNTRAINED[name]):
            desk.consolidate()
    else:
        record = desk.consolidate()
        assert record["loss/value_nats"] == pytest.approx(loss(base.model, learned), abs=2e-4)
        assert record["engine/logprob_gap_mean_nats"] < 1e-3
        (student,) = (desk.work / "runs").glob("consolidate-*/student")
        students = {"student": models.load_model(str(student))}
    entropies = desk.evaluate()
    for model in (base, *students.values()):
        assert off_nats(model.model, desk.turns(model_id=model.id)) < 1e-3
    assert set(entropies) == {"base", *(["in-context", "student"] if students else [])}
    for label, value in entropies.items():
        model, shown = students.get(label, base), CONTEXT if label == "in-context" else EMPTY
        turns = desk.turns(model_id=model.id, context_id=shown.id, split="test")
        assert value == pytest.approx(entropy(model.model, turns), abs=2e-3), label


@torch.no_grad()
def loss(model: Any, samples: Sequence[Sample]) -> float:
    """The mean divergence of the first step, at which student and teacher have the same weights."""
    values = []
    for s in samples:
        student, teacher = (models.own_logits(model, ids, s.response_ids) for ids in (s.student_ids, s.teacher_ids))
        form, k = ConsolidateConfig(env="math").divergence, ConsolidateConfig(env="math").support
        values.append(losses.divergence(student, teacher, form=form, k=k, temperature=COMMON["temperature"]).value_N)
    return float(torch.cat(values).mean())


@dataclasses.dataclass
class Desk:
    """The verbs on one model, in one workspace."""

    work: Path
    env: str
    model: str
    said: list[str]

    def play(self) -> None:
        config = PlayConfig(env=self.env, model=self.model, episodes=2, extract=False, **COMMON)
        self._run(config, lambda session: gather(session, config, run_id=session.ledger.begin("play")))

    def consolidate(self) -> dict[str, Any]:
        """The record of the one step."""
        config = ConsolidateConfig(
            env=self.env, model=self.model, steps=1, batch_size=3, select_tasks=2, test_tasks=3, **COMMON
        )
        self._run(config, lambda session: distil_context(session, config, self._known(session)))
        (metrics,) = (self.work / "runs").glob("consolidate-*/metrics.jsonl")
        records = [json.loads(line) for line in metrics.read_text().splitlines()]
        return next(record for record in records if record["step"] == 1)

    def evaluate(self) -> dict[str, float]:
        """The entropy of each contestant's replies."""
        config = EvaluateConfig(env=self.env, model=self.model, test_tasks=3, **COMMON)
        _, drift = self._run(config, lambda session: evaluate_student(session, config))
        return {label: value.entropy_nats for label, value in drift.items()}

    def turns(self, **where: Any) -> list[Turn]:
        with Store.open(self.work / "store.db") as store:
            found = [store.transcript(row["id"]) for row in store.episodes(**where)]
        return [turn for episode in found for turn in episode.turns]

    def _run(self, config: Any, act: Callable[[Session], Any]) -> Any:
        """What ``act`` returns. If it is refused, nothing was played."""
        before = len(self.turns()) if (self.work / "store.db").exists() else 0
        self.work.mkdir(exist_ok=True)
        try:
            with Session(config, self.work, say=self.said.append) as session:
                return act(session)
        except AgentOpcdError:
            assert len(self.turns()) == before
            raise

    @staticmethod
    def _known(session: Session) -> Context:
        session.store.add_context(CONTEXT)
        return CONTEXT


@torch.no_grad()
def off_nats(model: Any, turns: Sequence[Turn]) -> float:
    """How far the log-probabilities of stored replies are off those of the model's own forward pass."""
    gaps = []
    for turn in turns:
        logprobs = (models.own_logits(model, turn.prompt_ids, turn.response_ids) / COMMON["temperature"]).log_softmax(
            -1
        )
        own = logprobs.gather(1, torch.tensor(turn.response_ids)[:, None])[:, 0]
        gaps.append((own - torch.tensor(turn.logprobs)).abs())
    return float(torch.cat(gaps).mean())


@torch.no_grad()
def entropy(model: Any, turns: Sequence[Turn]) -> float:
    """The mean entropy of the tokens of these replies, in nats."""
    logits = torch.cat([models.own_logits(model, turn.prompt_ids, turn.response_ids) for turn in turns])
    logprobs = (logits / COMMON["temperature"]).log_softmax(-1)
    return float(-(logprobs.exp() * logprobs).sum(-1).mean())
