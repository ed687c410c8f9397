"""The gap between sampler and trainer: a run stops where replies were not the student's own, whatever the engine."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import AlignmentError
from agentopcd.rollouts.sampling import drawing, same_weights
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from tests import tiny
from tests.training import train


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("untied") / "model", tie=False, hearing=4.0)


def test_the_limit_grows_as_log_probabilities_do_when_the_temperature_falls() -> None:
    assert same_weights.limit_nats(torch.float32, 1.0) == 1e-3
    assert same_weights.limit_nats(torch.float32, 0.5) == 2e-3
    assert same_weights.limit_nats(torch.bfloat16, 2.0) == 0.25
    assert same_weights.limit_nats(torch.bfloat16, 0.0) == 0.25  # greedy replies carry untempered log-probabilities


def test_replies_that_are_not_the_students_stop_the_run_before_it_learns(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that says twice the probability is ln 2 = 0.693 nats off; nothing at its start shows it."""
    exact, stepped = drawing.draw, []

    def off(*asked: Any) -> Any:
        ids, logprobs = exact(*asked)
        return ids, [logprob + math.log(2) for logprob in logprobs]

    monkeypatch.setattr(TransformersSampler, "_fault", lambda *_: "")
    monkeypatch.setattr(drawing, "draw", off)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: stepped.append(1))
    words = r"off by 0\.693 nats a token from the student.s .more than 0\.001."
    with pytest.raises(AlignmentError, match=words) as refused:
        train(model_dir, tmp_path, steps=1)
    assert not stepped and "\n" not in str(refused.value)


def test_the_same_replies_stop_the_sampler_before_they_are_played(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = drawing.draw

    def off(*asked: Any) -> Any:
        ids, logprobs = exact(*asked)
        return ids, [logprob + math.log(2) for logprob in logprobs]

    monkeypatch.setattr(drawing, "draw", off)
    with pytest.raises(AlignmentError, match=r"cannot be sampled here: alone decoding is off by 0\.69"):
        train(model_dir, tmp_path, steps=1)


def test_what_the_first_step_compares_is_written_to_the_run_folder(model_dir: Path, tmp_path: Path) -> None:
    done = train(model_dir, tmp_path, steps=1, share=True)

    found = json.loads((done.run.folder / "shortcuts.json").read_text())
    assert set(found["teacher"]["off_nats"]) == {"head", "together", "branch", "prefix"}
    assert set(found["student"]["off_nats"]) == {"fast decoding", "head", "together", "branch"}
    assert found["student"]["set_aside"] == found["teacher"]["set_aside"] == []
    assert found["student"]["decoding"] == "fast"
    assert 0 < found["student"]["seconds"] < 30
    assert models.shortcuts_of(done.teacher.model) is not models.shortcuts_of(done.student.model)
