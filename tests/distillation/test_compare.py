"""Shortcuts of scoring are kept where they give what the own forward pass gives, else set aside with a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import ModelError
from agentopcd.distillation import compare, positions
from agentopcd.distillation.prefix import SharedPrefix
from agentopcd.distillation.samples import Sample
from agentopcd.distillation.teacher import FrozenTeacher
from tests import tiny
from tests.models import architectures

FLOAT32 = torch.float32


def ids(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 290, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


CONTEXT = ids(80, 0)
PAIRS = [((*CONTEXT, *ids(n, n)), ids(10, n + 1)) for n in (5, 40, 23)]


def load(name: str, folder: Path) -> models.LoadedModel:
    return models.load_model(str(architectures.build(folder / "model", name)))


@torch.no_grad()
def own(model: Any, pairs: Any = PAIRS) -> torch.Tensor:
    return torch.cat([model(input_ids=torch.tensor([[*x, *y]])).logits[0, len(x) - 1 : -1] for x, y in pairs])


@torch.no_grad()
def compared(model: Any, **settings: Any) -> list[str]:
    return compare.compare(model, PAIRS, tiny.PAD, FLOAT32, name="m", **settings)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", ["llama", "mpt", "bloom", "falcon, alibi", "gpt_neo", "mistral"])
def test_a_teacher_scores_as_its_own_forward_pass_whatever_tells_it_positions(
    name: str, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:  # the comparison alone must find out
        monkeypatch.setattr(models, "attends_to_all", lambda model: True)
    loaded = load(name, tmp_path)
    samples = [
        Sample(student_ids=prompt[-5:], teacher_ids=prompt, response_ids=reply, logprobs=(), turn=0)
        for prompt, reply in PAIRS
    ]
    teacher = FrozenTeacher(loaded, loaded, compute=FLOAT32, prefixes=[CONTEXT])
    lines = teacher.compare(samples)
    torch.testing.assert_close(teacher.score(samples), own(loaded.model), atol=1e-4, rtol=0)
    shares = models.shortcuts_of(teacher.model).prefix
    assert shares == (known or name == "llama")
    assert (teacher.reads(samples[0]) == len(samples[0].teacher_ids) + 10) == (not shares)
    apart = [line for line in lines if compare.INSTEAD["branch"] in line]
    assert bool(apart) == (not known and name != "llama")
    (line,) = [line for line in lines if line not in apart]
    assert "the teacher" in line and "\n" not in line
    assert ("each prompt is read in full" in line) == (not shares)
    assert ("in packed rows" in line) == (name == "llama")
    assert ("on copies of its state" in line) == (shares and name != "llama")


def test_a_model_that_pads_wrongly_reads_each_sequence_alone(tmp_path: Path) -> None:
    """RWKV has no attention mask: a state goes through the padding."""
    model = load("rwkv", tmp_path).model
    (line,) = compared(model)
    assert "each sequence is read alone" in line
    found = positions.response_logits(model, PAIRS, tiny.PAD)
    torch.testing.assert_close(found, own(model), atol=1e-4, rtol=0)


def test_what_agrees_is_kept_without_a_word(tmp_path: Path) -> None:
    model = load("llama", tmp_path).model
    assert compared(model, prefix=True) == []
    known = models.shortcuts_of(model)
    assert known.head and known.together and known.branch and known.prefix
    assert set(known.off_nats) == {"head", "together", "branch", "prefix"}
    assert max(known.off_nats.values()) < 1e-6
    assert known.spent_s > 0


def wrong_mask(monkeypatch: pytest.MonkeyPatch) -> str:
    """The rows after a shared prefix see each other."""
    monkeypatch.setattr(torch, "block_diag", lambda *parts: torch.ones(sum(map(len, parts)), sum(map(len, parts))))
    return "prefix"


def blind(monkeypatch: pytest.MonkeyPatch) -> str:
    """Prompts that begin alike and stand in one row see each other's ends."""
    monkeypatch.setattr(
        positions.Row, "sees", lambda self: torch.ones(len(self.tokens), len(self.tokens)).tril().bool()
    )
    return "branch"


def wrong_positions(monkeypatch: pytest.MonkeyPatch) -> str:
    usual = positions.Row.add

    def add(self: positions.Row, *args: Any) -> None:
        usual(self, *args)
        self.positions = list(range(len(self.tokens)))

    monkeypatch.setattr(positions.Row, "add", add)
    return "branch"


def wrong_rows(monkeypatch: pytest.MonkeyPatch) -> str:
    usual = compare.response_hidden
    monkeypatch.setattr(compare, "response_hidden", lambda *args, **how: usual(*args, **how).roll(1, dims=0))
    return "together"


def wrong_scale(monkeypatch: pytest.MonkeyPatch) -> str:
    usual = compare.logits_of
    monkeypatch.setattr(compare, "logits_of", lambda *args: usual(*args) * 1.1)
    return "head"


def crash(monkeypatch: pytest.MonkeyPatch) -> str:
    def fail(*_: Any, **__: Any) -> Any:
        raise IndexError("no such head\nand more")

    monkeypatch.setattr(compare, "response_hidden", fail)
    return "together"


@pytest.mark.parametrize("fault", [wrong_mask, blind, wrong_positions, wrong_rows, wrong_scale, crash])
def test_a_shortcut_that_is_off_is_set_aside(
    fault: Callable[[pytest.MonkeyPatch], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("llama", tmp_path).model
    name = fault(monkeypatch)
    lines = compared(model, prefix=True)
    assert not getattr(models.shortcuts_of(model), name)
    assert any(compare.INSTEAD[name] in line for line in lines) and not any("\n" in line for line in lines)


def test_the_rows_that_are_compared_need_padding_and_a_growing_chat() -> None:
    pair = (ids(30, 1), ids(8, 2))
    grown = ((*pair[0], *pair[1], 9, 9), ids(4, 3))
    assert [len(x) for x, _ in compare.few([pair, pair])] == [30, 30, 20]
    assert compare.few([pair, grown])[-2:] == [pair, grown]
    assert compare.few([(ids(5, 1), ())]) == []
    long = (ids(5000, 1), ids(900, 2))
    assert max(len(x) + len(y) for x, y in compare.few([pair, long])) == compare.PROMPT_TOKENS + compare.RESPONSE_TOKENS


# -- rotary scales ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "positions_"), [("phi3, longrope", 512), ("llama, dynamic", 2048), ("llama", 2048)])
def test_a_model_ends_where_its_rotary_scale_begins_to_move(name: str, positions_: int, tmp_path: Path) -> None:
    model = load(name, tmp_path).model
    assert models.positions(model) == positions_
    fits, beyond = (ids(positions_ - 10, 3), ids(10, 4)), (ids(positions_ - 10, 3), ids(11, 4))
    short = (ids(20, 1), ids(10, 2))
    with torch.no_grad():
        beside = positions.response_logits(model, [short, fits], tiny.PAD)[:10]
        torch.testing.assert_close(beside, own(model, [short]), atol=1e-4, rtol=0)
    with pytest.raises(ModelError, match=f"{positions_ + 1} tokens.*reads {positions_}"):
        positions.response_logits(model, [short, beyond], tiny.PAD)
    prefix = SharedPrefix(model, beyond[0][:50])
    with pytest.raises(ModelError, match=f"{positions_ + 1} tokens"):
        prefix.response_hidden([beyond], 50)


def test_beyond_that_length_a_score_would_depend_on_its_neighbours(tmp_path: Path) -> None:
    """Why the models end there: remove this when transformers no longer does it."""
    model = load("phi3, longrope", tmp_path).model
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([ids(20, 1)])).logits[0]
        rows = torch.tensor([(*ids(20, 1), *(tiny.PAD,) * 580), ids(600, 2)])
        beside = model(input_ids=rows).logits[0, :20]
    assert (alone - beside).abs().max() > 0.1
