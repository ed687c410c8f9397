"""A beginning that is read once gives what every architecture's own forward pass gives, in whatever form it is kept.

The right values are those of ``model(input_ids)``, one row at a time (:func:`agentopcd.models.own_logits`).
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.errors import ModelError
from agentopcd.distillation import losses, prefix
from agentopcd.distillation.samples import Sample, micro_batches
from agentopcd.distillation.teacher import FrozenTeacher, MovingTeacher
from tests.models import architectures
from tests.training import train

FLOAT32 = torch.float32
ASKED = (
    "llama", "llama, linear", "llama, yarn", "llama, llama3", "llama, dynamic", "phi3, longrope", "qwen3", "qwen3_moe",
    "mistral, yarn", "mistral, dynamic", "gemma3", "gemma4", "gpt_oss", "olmo3", "qwen3_next", "qwen3_5", "nemotron_h",
    "granitemoehybrid", "jamba", "bamba", "zamba2", "falcon_h1", "lfm2",
)  # fmt: skip
EVERY = [name if name in ASKED else pytest.param(name, marks=pytest.mark.slow) for name in architectures.ARCHITECTURES]
STEPWISE = {"jamba", "mamba", "falcon_mamba"}
"""Their scan in transformers begins anew at every pass of several tokens."""
UNSHARED = {
    "recurrent_gemma": "no cache to go on from",  # its states are attributes of its modules
    "rwkv": "no cache to go on from",
    "openai-gpt": "no cache to go on from",
    "xlnet": "no cache to go on from",
    "cpmant": "each prompt is read in full",
    "bert": "logits come from whole forward passes",
    "bert, no decoder": "logits come from whole forward passes",
    "roformer": "logits come from whole forward passes",
    "modernbert-decoder": "logits come from whole forward passes",
    "hyperclovax": "logits come from whole forward passes",
    "reformer": "no cache to go on from",
}
"""Architectures whose prompts are read in full, and words of the line that says so."""


def ids(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 290, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


BEGINNING = ids(160, 0)


def load(folder: Path, name: str) -> models.LoadedModel:
    return models.load_model(str(architectures.build(folder / "model", name)))


def pairs_after(beginning: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompts that begin alike: rests of very different length, and three turns of a growing chat."""
    pairs = [((*beginning, *ids(n, n)), ids(replies, n + 1)) for n, replies in ((1, 1), (3, 10), (30, 2), (11, 7))]
    for n, replies in ((4, 3), (5, 2), (1, 6)):
        past = (*pairs[-1][0], *pairs[-1][1]) if len(pairs) > 4 else beginning
        pairs.append(((*past, *ids(n, 50 + n)), ids(replies, 60 + n)))
    return pairs


def samples_of(pairs: Any) -> list[Sample]:
    return [Sample(student_ids=x[-1:], teacher_ids=x, response_ids=y, logprobs=(), turn=0) for x, y in pairs]


@torch.no_grad()
def own(model: Any, pairs: Any) -> torch.Tensor:
    return torch.cat([models.own_logits(model, *pair) for pair in pairs])


@pytest.mark.parametrize("name", EVERY)
def test_a_beginning_that_is_read_once_gives_what_the_own_forward_pass_gives(name: str, tmp_path: Path) -> None:
    loaded = load(tmp_path, name)
    pairs = pairs_after(BEGINNING)
    samples = samples_of(pairs)
    teacher = FrozenTeacher(loaded, loaded, compute=FLOAT32, prefixes=[BEGINNING])
    lines, known = teacher.compare(samples), models.shortcuts_of(teacher.model)
    if name in UNSHARED:
        assert any(UNSHARED[name] in line for line in lines)
        assert not (known.prefix and known.head)
        return
    assert known.prefix and not any("in full" in line for line in lines)
    assert known.at_once == (name not in STEPWISE)
    assert f"reads the {len(BEGINNING)} tokens that its prompts begin with once" in lines[-1]
    assert ("token by token" in lines[-1]) == (name in STEPWISE)
    assert ("in packed rows" in lines[-1]) == models.attends_to_all(teacher.model)
    assert teacher.reads(samples[0]) == len(pairs[0][0]) + 1 - len(BEGINNING)
    torch.testing.assert_close(teacher.score(samples), own(teacher.model, pairs), atol=1e-4, rtol=0)
    # Shorter than the window (8) and the kernel of the convolution (4), a little longer, and longer than a chunk (64).
    for length in (3, 9, len(BEGINNING)):
        pairs = pairs_after(BEGINNING[:length])
        form = prefix.prefix_of(teacher.model, BEGINNING[:length])
        for _ in range(2):  # twice: the state must stay as it was
            with torch.no_grad():
                found = teacher.logits(form.response_hidden(pairs, length))
            torch.testing.assert_close(found, own(teacher.model, pairs), atol=1e-4, rtol=0)


# -- what a state cannot do, and how much is copied -----------------------------------------------------------


class Counted:
    """How many passes a model makes, and of how many rows and tokens."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, ...]] = []
        model.get_decoder().register_forward_pre_hook(self._seen, with_kwargs=True)

    def _seen(self, _: Any, args: Any, kwargs: Any) -> None:
        self.shapes.append(tuple(kwargs["input_ids"].shape))


@pytest.mark.parametrize("name", ["gemma3", "granitemoehybrid"])
def test_a_state_is_shared_whole_or_not_at_all(name: str, tmp_path: Path) -> None:
    loaded = load(tmp_path, name)
    beginning = BEGINNING[:40]
    teacher = FrozenTeacher(loaded, loaded, compute=FLOAT32, prefixes=[beginning])
    (shared,) = teacher.prefixes
    begin_alike = pairs_after(beginning)
    other = ((*beginning[:39], 5, 6), (7, 8))  # its last shared token is missing
    assert shared.shared_by(begin_alike) == 40
    assert shared.shared_by([(beginning, (7,))]) == 0  # the last token of a prompt predicts, so it is read again
    assert shared.shared_by([*begin_alike, other]) == 0
    samples = samples_of([*begin_alike, other])
    assert teacher.reads(samples[0]) == 2 and teacher.reads(samples[-1]) == 43
    seen = Counted(teacher.model)
    torch.testing.assert_close(teacher.score(samples), own(teacher.model, [*begin_alike, other]), atol=1e-4, rtol=0)
    assert len([shape for shape in seen.shapes if shape[0] > 1]) == teacher.passes(samples) == 1
    assert max(columns for _, columns in seen.shapes) > 40  # read in full


def test_what_is_copied_of_a_window_is_the_window_alone(tmp_path: Path) -> None:
    form = prefix.prefix_of(load(tmp_path, "gemma3").model, BEGINNING)
    with torch.no_grad():
        held = [(layer.keys, layer.values) for layer in form.state.layers]
    for tensor in itertools.chain(*held):
        assert tensor.shape == (1, 2, 7, 8)  # heads, the window but for the next token, width
        assert tensor.untyped_storage().nbytes() == 2 * 7 * 8 * 4


@pytest.mark.parametrize(("name", "at_once"), [("qwen3_next", True), ("jamba", False)])
def test_copies_are_bounded_and_passes_are_counted(
    name: str, at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(tmp_path, name)
    teacher = FrozenTeacher(loaded, loaded, compute=FLOAT32, prefixes=[BEGINNING])
    models.shortcuts_of(teacher.model).at_once = at_once
    pairs = pairs_after(BEGINNING)
    samples = samples_of(pairs)  # five sequences: three of the seven turns are one chat
    one = sum(t.numel() * t.element_size() for t in prefix._tensors(teacher.prefixes[0].state))
    exact = own(teacher.model, pairs)
    seen = Counted(teacher.model)
    for copies, rows in ((0, [1] * 5), (2.5, [2, 2, 1]), (9, [5])):
        monkeypatch.setattr(prefix, "COPIED_BYTES", int(copies * one))
        seen.shapes.clear()
        torch.testing.assert_close(teacher.score(samples), exact, atol=1e-4, rtol=0)
        assert teacher.passes(samples) == len(seen.shapes)
        steps = [count for count, columns in seen.shapes for _ in range(columns)]
        assert [count for count, _ in itertools.groupby(steps)] == [key for key, _ in itertools.groupby(rows)]
        assert {columns == 1 for _, columns in seen.shapes} == {not at_once}
        assert max(columns for _, columns in seen.shapes) <= 32  # the rests alone
        seen.shapes.clear()
        teacher.hidden(samples, passes=teacher.passes(samples) + 2)  # in step with another process
        assert len(seen.shapes) == teacher.passes(samples) + 2


def test_token_by_token_a_beginning_must_be_much_longer_than_the_rest(tmp_path: Path) -> None:
    loaded = load(tmp_path, "jamba")
    form = prefix.CopiedPrefix(loaded.model, BEGINNING[:80])
    pairs = [((*BEGINNING[:80], *ids(n, n)), (5,)) for n in (19, 4)]  # rests of 20 and 5 tokens
    models.shortcuts_of(loaded.model).at_once = False
    assert form.shared_by(pairs) == 80
    assert form.shared_by([*pairs, ((*BEGINNING[:80], *ids(20, 1)), (5,))]) == 0
    models.shortcuts_of(loaded.model).at_once = True
    assert form.shared_by([*pairs, ((*BEGINNING[:80], *ids(99, 1)), (5,))]) == 80


@pytest.mark.parametrize(("name", "rests"), [("jamba", (20, 21)), ("llama", (80, 81))])
def test_a_beginning_that_is_not_shared_counts_among_the_tokens_of_a_batch(
    name: str, rests: tuple[int, int], tmp_path: Path
) -> None:
    loaded = load(tmp_path, name)
    teacher = FrozenTeacher(loaded, loaded, compute=FLOAT32, prefixes=[BEGINNING[:80]])
    models.shortcuts_of(teacher.model).at_once = False
    short, long = samples_of([((*BEGINNING[:80], *ids(n - 1, n)), (5,)) for n in rests])
    assert (teacher.reads(short), teacher.reads(long)) == (rests[0], 80 + rests[1])
    batches = list(micro_batches([long] * 3, [1.0] * 3, 2 * (80 + rests[1]), teacher.reads))
    assert [len(chosen) for chosen, _ in batches] == [2, 1]


def test_what_is_said_of_a_beginning_holds_for_prompts_that_are_read_together(tmp_path: Path) -> None:
    loaded = load(tmp_path, "llama")
    teacher = FrozenTeacher(loaded, loaded, compute=FLOAT32, prefixes=[BEGINNING])
    have = samples_of([((*BEGINNING, *ids(n, n)), (5, 6)) for n in (3, 9)])
    others = samples_of([((7, *BEGINNING[1:], *ids(n, n)), (5, 6)) for n in (4, 8)])  # another system message
    assert "reads the 160 tokens that its prompts begin with once" in teacher.compare(have)[-1]
    assert "in full; the 0 tokens that they share are too few" in teacher.compare([*have, *others])[-1]
    apart = [dataclasses.replace(sample, context="other") for sample in others]
    assert "reads the 160 tokens that 2 of 4 prompts begin with once" in teacher.compare([*have, *apart])[-1]


# -- teachers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma3", "qwen3_next", "granitemoehybrid", "lfm2"])
def test_bfloat16_products_after_a_state_are_as_near_as_those_of_whole_prompts(name: str, tmp_path: Path) -> None:
    loaded = load(tmp_path, name)
    samples = samples_of(pairs_after(BEGINNING))
    plain = FrozenTeacher(loaded, loaded, compute=torch.bfloat16)
    shared = FrozenTeacher(loaded, loaded, compute=torch.bfloat16, prefixes=[BEGINNING])
    assert "once" in shared.compare(samples)[-1]
    exact = own(loaded.model, pairs_after(BEGINNING))
    off = [float(losses.full_kl(exact, teacher.score(samples)).mean()) for teacher in (plain, shared)]
    assert 0 < off[1] < 1.5 * off[0] + 0.002


@pytest.mark.parametrize("name", ["gemma3", "qwen3_next"])
def test_a_teacher_that_moves_reads_its_beginning_again(name: str, tmp_path: Path) -> None:
    loaded = load(tmp_path, name)
    pairs = pairs_after(BEGINNING[:50])
    teacher = MovingTeacher(loaded, kind="live", compute=FLOAT32, prefixes=[BEGINNING[:50]])
    before = teacher.score(samples_of(pairs))
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight.mul_(1.1)
    teacher.follow(loaded.model, 1)
    after = teacher.score(samples_of(pairs))
    torch.testing.assert_close(after, own(loaded.model, pairs), atol=1e-4, rtol=0)
    assert (after - before).abs().max() > 0.1


@pytest.mark.parametrize("name", ["gemma3", "granitemoehybrid"])
def test_an_adapter_is_off_while_a_beginning_is_read(name: str, tmp_path: Path) -> None:
    loaded = load(tmp_path, name)
    pairs = pairs_after(BEGINNING[:50])
    exact = own(loaded.model, pairs)
    models.add_adapter(loaded, 4, FLOAT32, 0)
    with torch.no_grad():
        for weight_name, weight in loaded.model.named_parameters():
            if "lora" in weight_name:
                weight.normal_()
    teacher = FrozenTeacher(loaded, loaded, compute=FLOAT32, prefixes=[BEGINNING[:50]])
    torch.testing.assert_close(teacher.score(samples_of(pairs)), exact, atol=1e-4, rtol=0)
    assert (own(loaded.model, pairs) - exact).abs().max() > 0.1


def test_a_prompt_beyond_the_positions_is_refused(tmp_path: Path) -> None:
    loaded = load(tmp_path, "mistral, dynamic")
    long = ((*BEGINNING, *ids(1880, 1)), ids(9, 2))
    form = prefix.prefix_of(loaded.model, BEGINNING)
    with pytest.raises(ModelError, match=r"2049 tokens.*reads 2048"):
        form.response_hidden([long], len(BEGINNING))


@pytest.mark.parametrize("name", ["gpt_oss", "qwen3_5"])
def test_a_run_says_once_how_its_contexts_are_read_and_learns_the_same(name: str, tmp_path: Path) -> None:
    folder = architectures.build(tmp_path / "model", name)
    settings: dict[str, Any] = {"steps": 2, "batch_size": 4, "compute": "float32"}
    plain = train(folder, tmp_path / "plain", **settings)
    shared = train(folder, tmp_path / "shared", share=True, **settings)
    said = [line for line in shared.lines if "copies of its state" in line]
    assert len(said) == 1 and "\n" not in said[0]
    assert not any("copies of its state" in line for line in plain.lines)
    for one, other in zip(plain.steps, shared.steps, strict=True):
        assert other["loss/value_nats"] == pytest.approx(one["loss/value_nats"], rel=1e-3, abs=1e-5)
