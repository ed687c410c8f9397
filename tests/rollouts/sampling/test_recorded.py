"""Recorded steps: the same replies as without them, in fewer calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from agentopcd.core.types import Sampling
from agentopcd.rollouts.sampling import continuous, recorded
from agentopcd.rollouts.sampling.continuous import ADMIT_EVERY, Continuous
from agentopcd.rollouts.sampling.recorded import Recorded
from agentopcd.rollouts.sampling.rows import Rows
from tests.rollouts.sampling.test_continuous import load, off_nats, prompts

LONG = Sampling(temperature=1.0, max_tokens=40)


class Tape:
    """Stands for CUDA graphs on a CPU: it plays a step again on the very tensors of its recording."""

    def __init__(self) -> None:
        self.recorded = self.played = 0

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        self.recorded += 1
        out = step()

        def replay() -> None:
            self.played += 1
            out.copy_(step())

        return replay, out


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    made = Tape()
    monkeypatch.setattr(continuous, "Rows", functools.partial(Rows, record=made))
    return made


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
@torch.no_grad()
def test_replies_are_those_of_steps_that_are_not_recorded(name: str, tmp_path: Path, tape: Tape) -> None:
    loaded, asked = load(tmp_path, name), prompts(30)
    replies = Continuous(loaded, torch.float32, rows=12).sample(asked, LONG)
    assert tape.recorded >= 3 and tape.played > 30  # for several numbers of rows
    assert max(off_nats(loaded.model, *pair, LONG) for pair in zip(asked, replies, strict=True)) < 1e-3


@torch.no_grad()
def test_rows_that_grow_are_recorded_anew(tmp_path: Path, tape: Tape) -> None:
    loaded, (one, *others) = load(tmp_path), prompts(9)
    engine = Continuous(loaded, torch.float32, rows=8)
    (alone,) = engine.sample([one], LONG)
    before = tape.recorded
    replies = engine.sample([one, *others], LONG)  # more rows: other memory
    assert before == 1 and tape.recorded > before + 1
    assert replies[0].token_ids == alone.token_ids


@torch.no_grad()
def test_a_model_that_has_no_lean_pass_is_not_recorded(tmp_path: Path, tape: Tape) -> None:
    Continuous(load(tmp_path, "gemma3"), torch.float32, rows=4).sample(prompts(4), LONG)
    assert not tape.recorded


def test_new_requests_wait_until_steps_with_prompts_pay(tmp_path: Path, tape: Tape) -> None:
    engine, (one, other) = Continuous(load(tmp_path), torch.float32, rows=4), prompts(2)
    engine.submit(0, one, LONG)
    engine.advance()
    engine.submit(1, other, LONG)
    waits = 0
    while len([seat for seat in engine._seats if seat]) < 2:
        engine.advance()
        waits += 1
    assert 1 < waits <= ADMIT_EVERY


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once() -> None:
    def fails(step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    steps = Recorded(lambda ids, columns: ids.T.float(), fails, torch.device("cpu"))
    with pytest.warns(UserWarning, match=r"not recorded, so replies take longer: operation not permitted") as heard:
        for _ in range(recorded.AFTER + 3):
            assert steps.read([5, 6], [0, 1], most=4) is None
    assert len(heard) == 1


def test_free_rows_fill_up_a_recording() -> None:
    steps = Recorded(lambda ids, columns: (ids[0] * 100 + columns)[:, None].float(), Tape(), torch.device("cpu"))
    for _ in range(recorded.AFTER):
        assert steps.read([1, 2, 3], [4, 5, 6], most=8) is None
    for ids, columns in (([1, 2, 3], [4, 5, 6]), ([7, 8, 9, 1], [1, 2, 3, 4])):  # three rows and four: one recording
        out = steps.read(ids, columns, most=8)
        assert out is not None and out[:, 0].tolist() == [a * 100 + b for a, b in zip(ids, columns, strict=True)]
    assert list(steps._known) == [4]
    steps.forget()
    assert not steps._known
