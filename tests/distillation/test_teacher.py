"""Positions and the frozen teacher: the three proofs of alignment, and that the teacher never learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from agentopcd import models
from agentopcd.core.errors import AlignmentError, ModelError
from agentopcd.core.types import EMPTY, Context, Message
from agentopcd.distillation import losses
from agentopcd.distillation.positions import response_hidden, response_logits, sequences
from agentopcd.distillation.prefix import SharedPrefix
from agentopcd.distillation.samples import Sample
from agentopcd.distillation.teacher import FrozenTeacher
from agentopcd.rollouts.chat import Chat
from tests import tiny

FLOAT32 = torch.float32
TASK = [Message(role="user", content="What is 3 + 4?")]
LESSONS = Context("- EXPERIENCE ITEM: always go left\n- EXPERIENCE ITEM: the goal is down")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("untied") / "model", tie=False, hearing=4.0)


@pytest.fixture
def student(folder: Path) -> models.LoadedModel:
    return models.load_model(str(folder))


def ids(length: int, seed: int) -> tuple[int, ...]:
    found = torch.randint(3, 290, (length,), generator=torch.Generator().manual_seed(seed))
    return tuple(found.tolist())


RAGGED = [(ids(x, x), ids(y, 100 + y)) for x, y in [(3, 9), (20, 1), (1, 4), (11, 7), (6, 9)]]


def sample(student_ids: tuple[int, ...], teacher_ids: tuple[int, ...], response: tuple[int, ...]) -> Sample:
    return Sample(student_ids=student_ids, teacher_ids=teacher_ids, response_ids=response, logprobs=(), turn=0)


def samples_under(context: Context, loaded: models.LoadedModel) -> list[Sample]:
    student_ids, teacher_ids = Chat(loaded.tokenizer).prompts(TASK, context)
    return [sample(student_ids, teacher_ids, ids(length, length)) for length in (1, 5, 12)]


def student_rows(loaded: models.LoadedModel, samples: list[Sample]) -> torch.Tensor:
    return response_logits(loaded.model, [(s.student_ids, s.response_ids) for s in samples], tiny.PAD)


def test_row_t_holds_the_scores_that_predict_response_token_t(student: models.LoadedModel) -> None:
    prompt, response = RAGGED[3]
    whole = student.model(torch.tensor([[*prompt, *response]])).logits[0]
    rows = response_logits(student.model, [(prompt, response)], tiny.PAD)
    assert torch.allclose(rows, whole[len(prompt) - 1 : -1], atol=1e-4)


def test_a_ragged_batch_equals_its_singles_in_order(student: models.LoadedModel) -> None:
    together = response_logits(student.model, RAGGED, tiny.PAD)
    alone = torch.cat([response_logits(student.model, [pair], tiny.PAD) for pair in RAGGED])
    assert together.shape == (sum(len(response) for _, response in RAGGED), 297)
    assert (together.log_softmax(-1) - alone.log_softmax(-1)).abs().max() < 1e-4


def test_positions_are_counted_from_the_first_real_token() -> None:
    """A model with a learned embedding per position sees whether padding shifted them; rotary ones would not."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=297, n_positions=64, n_embd=32, n_layer=2, n_head=2)).eval()
    together = response_logits(model, RAGGED, tiny.PAD)
    alone = torch.cat([model(torch.tensor([[*x, *y]])).logits[0, len(x) - 1 : -1] for x, y in RAGGED])
    assert torch.allclose(together, alone, atol=1e-4)


def test_a_pad_token_inside_a_response_is_a_token_like_any_other(student: models.LoadedModel) -> None:
    prompt, response = ids(5, 1), (tiny.PAD, 7, tiny.PAD, 8)
    whole = student.model(torch.tensor([[*prompt, *response]])).logits[0]
    rows = response_logits(student.model, [(prompt, response), RAGGED[1]], tiny.PAD)
    assert torch.allclose(rows[:4], whole[4:-1], atol=1e-4)


def test_same_weights_and_no_context_agree(student: models.LoadedModel) -> None:
    samples = samples_under(EMPTY, student)
    teacher_rows = FrozenTeacher(student, student, compute=FLOAT32).score(samples)
    assert losses.full_kl(student_rows(student, samples), teacher_rows).max() < 1e-5


def test_a_context_moves_the_teacher(student: models.LoadedModel) -> None:
    samples = samples_under(LESSONS, student)
    teacher_rows = FrozenTeacher(student, student, compute=FLOAT32).score(samples)
    assert losses.full_kl(student_rows(student, samples), teacher_rows).mean() > 0.3


def test_a_teacher_that_is_one_row_off_is_nats_away(student: models.LoadedModel) -> None:
    samples = samples_under(EMPTY, student)
    teacher_rows = FrozenTeacher(student, student, compute=FLOAT32).score(samples)
    for shift in (1, -1):
        off = losses.full_kl(student_rows(student, samples), teacher_rows.roll(shift, dims=0))
        assert off.mean() > 1.0


def test_bfloat16_products_still_give_float32_logits_near_the_exact_ones(student: models.LoadedModel) -> None:
    samples = samples_under(LESSONS, student)
    exact = FrozenTeacher(student, student, compute=FLOAT32).score(samples)
    rough = FrozenTeacher(student, student, compute=torch.bfloat16).score(samples)
    assert rough.dtype == FLOAT32
    assert (rough - exact).abs().max() > 0
    assert losses.full_kl(exact, rough).mean() < 0.01


def test_an_empty_prompt_is_refused(student: models.LoadedModel) -> None:
    with pytest.raises(AlignmentError, match="empty"):
        response_logits(student.model, [(ids(3, 0), ids(2, 0)), ((), ids(2, 0))], tiny.PAD)


def test_the_frozen_teacher_does_not_follow_its_student(student: models.LoadedModel) -> None:
    samples = samples_under(LESSONS, student)
    teacher = FrozenTeacher(student, student, compute=FLOAT32)
    before = teacher.score(samples)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.add_(0.1)
    assert teacher.kind == "frozen"
    assert torch.equal(teacher.score(samples), before)
    teacher.assert_unchanged()


def test_no_gradient_reaches_the_teacher(student: models.LoadedModel) -> None:
    samples = samples_under(LESSONS, student)
    teacher = FrozenTeacher(student, student, compute=FLOAT32)
    teacher_rows = teacher.score(samples)
    losses.full_kl(student_rows(student, samples), teacher_rows).mean().backward()
    assert not teacher_rows.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.model.parameters())


def test_a_teacher_that_moved_is_noticed(student: models.LoadedModel) -> None:
    teacher = FrozenTeacher(student, student, compute=FLOAT32)
    with torch.no_grad():
        next(iter(teacher.model.parameters())).view(-1)[0] += 1e-3
    with pytest.raises(AlignmentError, match="changed"):
        teacher.assert_unchanged()


def test_another_model_can_teach(student: models.LoadedModel, tmp_path: Path) -> None:
    other = models.load_model(str(tiny.build(tmp_path / "other", seed=1, tie=False, hearing=4.0)))
    teacher = FrozenTeacher(other, student, compute=FLOAT32)
    samples = samples_under(EMPTY, student)
    assert teacher.kind == "other"
    assert losses.full_kl(student_rows(student, samples), teacher.score(samples)).mean() > 0.1


def test_a_teacher_with_other_tokens_is_refused(student: models.LoadedModel, folder: Path) -> None:
    from tokenizers.models import BPE

    other = models.load_model(str(folder))
    other.tokenizer.backend_tokenizer.model = BPE({"a": 3, "new": 4}, [])
    with pytest.raises(ModelError, match="vocabular"):
        FrozenTeacher(other, student, compute=FLOAT32)


@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_what_holds_a_token_that_the_teacher_has_no_row_for_is_left_out(
    strength: float, student: models.LoadedModel, folder: Path
) -> None:
    base = models.load_model(str(folder))
    student.tokenizer.add_tokens(["<move>"])
    student.model.resize_token_embeddings(len(student.tokenizer))
    moved = (5, student.tokenizer.convert_tokens_to_ids("<move>"), 6)
    teacher = FrozenTeacher(base, student, compute=FLOAT32, strength=strength)
    assert teacher.fits(sample((5, 6), (5, 6), (7,)))
    assert not teacher.fits(sample((5, 6), (5, 6), moved))
    assert not teacher.fits(sample(moved, moved, (7,)))
    assert teacher.fits(sample(moved, (5, 6), (7,))) == (strength == 1.0)  # the student's prompt is read for a strength


# -- turns of a growing chat are read once ------------------------------------------------------------------


def growing(beginning: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    first = ((*beginning, *ids(4, 1)), ids(3, 2))
    second = ((*first[0], *first[1], *ids(5, 3)), ids(2, 4))
    third = ((*second[0], *second[1], 7), ids(6, 5))
    return [first, second, third]


def test_turns_of_a_growing_chat_are_one_sequence_and_give_the_same_rows(student: models.LoadedModel) -> None:
    pairs = [RAGGED[0], *growing(()), RAGGED[1], *growing((9, 9))]
    assert [len(row.predicting) for row in sequences(pairs)] == [9, 11, 1, 11]
    together = response_hidden(student.model, pairs, tiny.PAD)
    alone = torch.cat([response_hidden(student.model, [pair], tiny.PAD) for pair in pairs])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_a_growing_chat_after_a_shared_prefix_gives_the_same_rows(student: models.LoadedModel) -> None:
    beginning = ids(40, 8)
    pairs = [*growing(beginning), ((*beginning, 5, 6), ids(3, 9)), *growing((*beginning, 11))]
    found = SharedPrefix(student.model, beginning).response_hidden(pairs, 40)
    torch.testing.assert_close(found, response_hidden(student.model, pairs, tiny.PAD), atol=1e-4, rtol=0)


def log_of_a_game(beginning: tuple[int, ...], turns: int = 4) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Each prompt is the one before it but for its end, and shows no reply word for word."""
    log = [*beginning, *ids(24, 31)]
    found = []
    for turn in range(turns):
        found.append(((*log, 7, 8, 9), ids(3 + turn, 40 + turn)))
        log += ids(9, 50 + turn)
    return found


def test_prompts_that_begin_alike_are_read_in_one_row_with_the_same_values_and_gradients(
    student: models.LoadedModel,
) -> None:
    model = student.model
    pairs = [
        RAGGED[0],
        *log_of_a_game(()),
        RAGGED[1],
        *growing((9, 9)),
        *log_of_a_game((5,), 2),
        *log_of_a_game((5,), 1),
    ]
    rows = sequences(pairs, branch=True)
    assert [len(row.predicting) for row in rows] == [9, 18, 1, 11, 10]
    assert len(rows[1].tokens) == 24 + 3 * 9 + sum(3 + 3 + turn for turn in range(4))
    weight_NH = torch.randn(sum(len(response) for _, response in pairs), 32)
    found = {}
    for branch in (True, False):
        model.zero_grad()
        hidden_NH = response_hidden(model, pairs, tiny.PAD, branch=branch)
        (hidden_NH * weight_NH).sum().backward()
        found[branch] = [hidden_NH.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    alone = torch.cat([response_hidden(model, [pair], tiny.PAD) for pair in pairs])
    torch.testing.assert_close(found[True][0], alone, atol=1e-4, rtol=0)
    for one, other in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_the_log_of_a_game_after_a_shared_prefix_gives_the_same_rows(student: models.LoadedModel) -> None:
    beginning = ids(60, 8)
    pairs = [*log_of_a_game(beginning), ((*beginning, 5, 6), ids(3, 9)), *growing((*beginning, 11))]
    prefix = SharedPrefix(student.model, beginning)
    found = prefix.response_hidden(pairs, 60)
    torch.testing.assert_close(found, response_hidden(student.model, pairs, tiny.PAD, branch=False), atol=1e-4, rtol=0)
    assert sum(len(row.tokens) for row in prefix._parts(pairs, 60)) < sum(len(x) + len(y) - 60 for x, y in pairs)
    models.shortcuts_of(student.model).branch = False
    torch.testing.assert_close(prefix.response_hidden(pairs, 60), found, atol=1e-4, rtol=0)


def test_a_prompt_goes_on_in_a_row_where_that_costs_less_than_reading_it_again() -> None:
    long, reply = ids(200, 1), ids(10, 2)
    assert len(sequences([(long, reply), ((*long[:150], 5), reply)], branch=True)) == 1
    assert len(sequences([(long, reply), ((*long[:15], 5), reply)], branch=True)) == 2  # shares too little
    assert len(sequences([(long, reply), (ids(300, 3), reply)], branch=True)) == 2  # shares nothing
    wide = (*long[:20], *ids(400, 4))
    assert len(sequences([(long, reply), (wide, reply)], branch=True)) == 2  # more is masked than is saved
    assert len(sequences([(long, reply), (long, ids(4, 5))], branch=True)) == 1  # two replies to one prompt


def test_a_chat_whose_past_is_shown_otherwise_is_read_turn_by_turn() -> None:
    first, second, _ = growing(())
    changed = ((*first[0], *first[1][:-1], 8, *second[0][7:]), second[1])
    assert len(sequences([first, changed])) == 2
    assert len(sequences([first, first])) == 2
    assert len(sequences([first, ((*first[0], *first[1]), (5,))])) == 2  # nothing new was said


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_rows_that_are_packed_and_rows_that_are_padded_agree_in_values_and_gradients(
    kind: str, student: models.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, Any] = {"vocab_size": 297, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    torch.manual_seed(0)
    model: Any = {
        "llama": lambda: student.model,
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8)).eval(),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**sizes, sliding_window=6)).eval(),
    }[kind]()
    pairs = [*RAGGED, *growing(()), *growing((9, 9))]
    found = {}
    for packed in (False, True):
        monkeypatch.setattr(models, "attends_without_padding", lambda _, packed=packed: packed)
        rows_NH = response_hidden(model, pairs, tiny.PAD)
        weights = torch.randn(rows_NH.shape, generator=torch.Generator().manual_seed(1))
        trained = list(model.get_decoder().parameters())
        found[packed] = (rows_NH, *torch.autograd.grad((rows_NH * weights).sum(), trained))
    for one, other in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * one.abs().max().item(), rtol=1e-4)


def test_padding_is_left_out_on_a_gpu_with_flash_attention_only(
    student: models.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.utils.import_utils.is_flash_attn_2_available", lambda: True)
    models.attend_without_padding(student, torch.bfloat16)
    assert not models.attends_without_padding(student.model)  # a CPU
    student.model.config._attn_implementation = "flash_attention_2"
    assert models.attends_without_padding(student.model)
    student.model.config._attn_implementation = "sdpa"


# -- a shared prefix is read once -------------------------------------------------------------------------

LONG = Context("\n".join(f"- EXPERIENCE ITEM: lesson {n} says to go left" for n in range(12)))


def test_a_shared_prefix_changes_nothing_but_rounding(student: models.LoadedModel) -> None:
    chat = Chat(student.tokenizer)
    asked = ["What is 3 + 4?", "And 20 - 5, if you please?", "7", "What is 3 + 4?"]
    pairs = [(chat.render([Message(role="user", content=text)], LONG), ids(n, n)) for n, text in enumerate(asked, 1)]
    samples = [sample((1,), prompt, response) for prompt, response in pairs]
    plain = FrozenTeacher(student, student, compute=FLOAT32)
    shared = FrozenTeacher(student, student, compute=FLOAT32, prefixes=[chat.prefix(LONG)])
    assert shared.prefixes[0].shared_by(pairs) > 100
    exact = plain.hidden(samples)
    for teacher_rows in (shared.hidden(samples), shared.hidden(samples)):  # twice: the cache must stay as it was
        torch.testing.assert_close(teacher_rows, exact, atol=1e-4, rtol=0)
    assert (exact[0] - exact[1]).abs().max() > 0.1


@pytest.mark.parametrize("shared", [1, 5, 9])
def test_any_part_of_a_prefix_can_be_shared_in_rows_of_any_size(
    shared: int, student: models.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    beginning = ids(9, 3)
    pairs = [((*beginning[:shared], *prompt), response) for prompt, response in RAGGED]
    exact = response_hidden(student.model, pairs, tiny.PAD)
    prefix = SharedPrefix(student.model, beginning)
    for row_tokens in (1, 30, 1000):  # a row for each sample, for some, for all
        monkeypatch.setattr("agentopcd.distillation.prefix.ROW_TOKENS", row_tokens)
        found = prefix.response_hidden(pairs, shared)
        torch.testing.assert_close(found, exact, atol=1e-4, rtol=0)


def test_a_prefix_is_shared_where_all_prompts_have_it_and_it_pays(student: models.LoadedModel) -> None:
    prefix = SharedPrefix(student.model, ids(20, 3))
    same = [((*ids(20, 3), 5), (7, 8)), ((*ids(20, 3), 5, 6), (7,))]
    assert prefix.shared_by(same) == 20
    assert prefix.shared_by([*same, ((*ids(20, 3)[:15], 4), (7,))]) == 15
    assert prefix.shared_by([*same, ((*ids(20, 3)[:7], 4), (7,))]) == 0
    assert prefix.shared_by([(ids(20, 3), (7,))]) == 19  # the last token of a prompt predicts, so it is read again
    assert prefix.shared_by([*same, ((299,), (7,))]) == 0
    assert prefix.shared_by([((*ids(20, 3), *ids(30, 4)), (7,))]) == 0


def test_layers_that_forget_are_known() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    small: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2,
             "num_key_value_heads": 2, "num_hidden_layers": 2}  # fmt: skip
    assert models.attends_to_all(LlamaForCausalLM(LlamaConfig(**small)))
    sliding = Qwen2Config(**small, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert not models.attends_to_all(Qwen2ForCausalLM(sliding))


def test_the_prefix_of_a_context_begins_every_prompt_that_has_it(student: models.LoadedModel) -> None:
    chat = Chat(student.tokenizer)
    for placement in ("user", "system"):
        context = Context(LONG.text, placement)
        prefix, prompt = chat.prefix(context), chat.render(TASK, context)
        assert prompt[: len(prefix)] == prefix
        assert "lesson 11 says to go" in student.tokenizer.decode(prefix)
