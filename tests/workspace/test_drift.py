"""Entropy and drift of a contestant's own replies: as computed without batches, and what is zero by design."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agentopcd.cli.options import Call
from agentopcd.cli.verbs import evaluate as command
from agentopcd.core.config import EvaluateConfig
from agentopcd.core.types import Context
from agentopcd.distillation.positions import response_logits
from agentopcd.workspace.evaluation.drift import Drift, drift_lines, drifts
from agentopcd.workspace.evaluation.table import Contestant, evaluate
from agentopcd.workspace.session import Session
from tests import tiny

CLUE = Context(tiny.CLUE)


@pytest.mark.parametrize("constrain", [False, True])
def test_drift_is_the_mean_over_the_tokens_of_ones_own_replies(tmp_path: Path, constrain: bool) -> None:
    folders = [str(tiny.build(tmp_path / f"m{seed}", seed=seed, tie=False, hearing=4.0)) for seed in (0, 1)]
    config = EvaluateConfig(
        env="frozen-lake-4x4" if constrain else tiny.questions(tmp_path / "rows.jsonl"), model=folders[0], max_steps=2,
        compute="float32", max_tokens=6, temperature=5.0, constrain=constrain,
    )  # fmt: skip
    with Session(config, tmp_path / "w", say=lambda line: None) as session:
        base, other = session.loaded, session.load(folders[1])
        everyone = [
            Contestant(label="base", model=base),
            Contestant(label="in-context", model=base, context=CLUE),
            Contestant(label="student", model=other),
        ]
        tasks = session.tasks("test", 12)
        evaluate(session, everyone, tasks, run_id=session.ledger.begin("evaluate"))
        setup = session.setup(session.player_for(base))
        found = drifts(session, everyone, tasks, setup=setup)
        assert found["base"].kl_nats == 0 and found["base"].episodes == 12
        assert found["in-context"].kl_nats > 1e-6 and found["student"].kl_nats > 1e-6
        # By hand for the student: one reply at a time, no mask but that of the choices.
        entropies, divergences = [], []
        for row in session.store.episodes(model_id=other.id):
            for turn in session.store.transcript(row["id"]).turns:
                pair = [(turn.prompt_ids, turn.response_ids)]
                with torch.no_grad():
                    own, plain = (response_logits(m.model, pair, 0) for m in (other, base))
                for at in range(len(turn.response_ids)):
                    one, two = own[at] / 5.0, plain[at] / 5.0
                    so_far = turn.response_ids[:at]
                    after = {c[at] for c in turn.choices if len(c) > at and c[:at] == so_far} or set(range(len(one)))
                    ids = sorted(after)
                    p, q = one[ids].log_softmax(-1), two[ids].log_softmax(-1)
                    entropies.append(-(p.exp() * p).sum())
                    divergences.append((p.exp() * (p - q)).sum())
        assert found["student"].tokens == len(entropies)
        assert found["student"].entropy_nats == pytest.approx(float(torch.stack(entropies).mean()), rel=1e-3)
        assert found["student"].kl_nats == pytest.approx(float(torch.stack(divergences).mean()), rel=1e-3)


def test_the_evaluate_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.build(tmp_path / "model", tie=False)
    (tmp_path / "clue.txt").write_text(tiny.CLUE)
    config = EvaluateConfig(
        env=tiny.questions(tmp_path / "rows.jsonl"), model=str(model), context=str(tmp_path / "clue.txt"),
        test_tasks=4, max_tokens=2,
    )  # fmt: skip
    command(config, Call(tmp_path / "w", False, False))
    said = capsys.readouterr().out
    assert "base: entropy " in said and "KL to the base 0.000" in said and "in-context: entropy " in said


def test_lines_name_everyone() -> None:
    one = Drift(entropy_nats=1.5, kl_nats=0.25, tokens=30, episodes=4)
    assert drift_lines({"student": one}) == [
        "student: entropy 1.500 nats a token, KL to the base 0.250 (30 tokens of 4 episodes)"
    ]
