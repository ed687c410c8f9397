"""Tokens of pocket, and many prompts in one sequence: nothing is lost, and nothing is seen that should not be."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from agentopcd.rollouts.chat import Chat, framed
from recipes.pocket import corpus, tokenizer, worlds

# ---- tokens -------------------------------------------------------------------------------------


def texts(count: int) -> Iterator[str]:
    for number in range(count):
        made = corpus.sample("tokens", number, corpus.LAST)
        yield framed(made.context) + "\n" + made.turns[-1][0][-1]["content"]
        yield made.turns[-1][1]


@pytest.fixture(scope="module")
def tok() -> Any:
    return tokenizer.build(texts(600))


def pieces(tok: Any, text: str) -> list[str]:
    """The text of each token."""
    return [tok.decode([i]) for i in tok(text, add_special_tokens=False)["input_ids"]]


def test_what_a_game_is_made_of_is_one_token_each(tok: Any) -> None:
    letters = "P" + worlds.LETTERS
    squares = [worlds.square((r, c)) for r, c in itertools.product(range(8), range(8))]
    single = [
        *(f"|  {x}  " for x in letters), "|     ", *(f"| P/{x} " for x in worlds.LETTERS),
        *letters, *(f" {x}" for x in letters), *map(str, range(10)), *(f" {n}" for n in range(10)),
        *(f" {s}" for s in squares), *(f"[{move}]" for move in worlds.MOVES), " #", " _", "#",
        *(f" {move}" for move in worlds.MOVES), corpus.THINK, corpus.END_THINK, corpus.RULES, corpus.HOW_TO_MOVE,
    ]  # fmt: skip
    assert {text: pieces(tok, text) for text in single if len(pieces(tok, text)) != 1} == {}
    ids = [tok(text, add_special_tokens=False)["input_ids"][0] for text in dict.fromkeys(single)]
    assert len(set(ids)) == len(ids)


def test_boards_and_thinking_fall_into_these_tokens_where_they_stand(tok: Any) -> None:
    seen = Counter[str]()
    for number in range(250):
        made = corpus.sample("boards", number, corpus.LAST)
        if made.kind not in ("lake", "room"):
            continue
        messages, reply = made.turns[0]
        board = messages[-1]["content"].partition("Current Board:\n\n")[2].removesuffix(f"\n\n{corpus.HOW_TO_MOVE}")
        found = pieces(tok, messages[-1]["content"])
        if made.kind == "lake":
            wanted = [f"|{cell}" for row in board.split("\n")[1::2] for cell in row.strip("|").split("|")]
            assert [piece for piece in found if re.fullmatch(r"\|.{5}", piece)] == wanted
        else:
            shown = pieces(tok, board)
            assert [piece.strip() for piece in shown if piece.strip()] == board.split()
        squares = re.findall(r" [a-h][1-8]", reply)
        assert [piece for piece in pieces(tok, reply) if re.fullmatch(r" [a-h][1-8]", piece)] == squares
        first, *_, end, move = pieces(tok, reply)
        assert (first, end) == (corpus.THINK, corpus.END_THINK) and move.strip("[]") in worlds.MOVES
        seen[made.kind] += 1
    assert seen["lake"] > 50 and seen["room"] > 50


def test_prompts_and_replies_survive_the_tokenizer(tok: Any) -> None:
    chat, kinds = Chat(tok), set()
    for number in range(300):
        made = corpus.sample("there and back", number, corpus.LAST)
        kinds.add(made.kind)
        for messages, reply in made.turns[-1:]:
            ids = chat.render(messages, made.context)
            assert tok.decode(ids) == chat.text(messages, made.context)
            assert chat.reply_text(tok(reply, add_special_tokens=False)["input_ids"] + [tok.eos_token_id]) == reply
            assert chat.marks.broken(reply) == reply
    assert kinds == set(corpus.KINDS)
    strange = "√ Zażółć\t{gęślą} \\ ☃ 漢字 'X' (Y)!\r\n\n\n  and so on"
    assert tok.decode(tok(strange, add_special_tokens=False)["input_ids"]) == strange  # nothing is unknown


def test_two_builds_are_equal(tok: Any) -> None:
    again = tokenizer.build(texts(600))
    assert again.backend_tokenizer.to_str() == tok.backend_tokenizer.to_str()
    assert again.chat_template == tok.chat_template


# ---- packing ------------------------------------------------------------------------------------

Turn = tuple[list[int], list[int]]
VOCABULARY, PAD = 96, 0


def game(rng: random.Random, turns: int) -> list[Turn]:
    """Prompts as a game has them: the log so far, then what is asked now."""
    log = [rng.randrange(1, VOCABULARY) for _ in range(5)]
    made = []
    for _ in range(turns):
        asked, reply = ([rng.randrange(1, VOCABULARY) for _ in range(n)] for n in (3, 4))
        made.append(([*log, *asked], reply))
        log += [*asked[:2], rng.randrange(1, VOCABULARY)]
    return made


ODD: list[list[Turn]] = [
    [([5, 6, 7], [8, 9])],  # a single turn
    [([5, 6, 7], [8, 9]), ([5, 6, 7], [8, 3])],  # the same prompt twice
    [([5, 6], [8]), ([5, 6, 7, 8, 9], [4, 4]), ([5], [2])],  # one begins another
    [([5, 6, 7], [8]), ([1, 2], [3]), ([4], [5, 6])],  # nothing in common
    [([5, 6, 7, 8], [1, 2]), ([5, 6, 7, 1], [2]), ([5, 6, 7, 8, 1, 2], [3])],  # a prompt that goes on like a reply
]


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            initializer_range=0.3, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        return LlamaForCausalLM(config).float().eval()


def alone(model: Any, turns: Sequence[Turn]) -> list[Any]:
    """Logits of every reply token, one prompt at a time."""
    import torch

    return [model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1] for prompt, reply in turns]


def in_a_batch(model: Any, rows: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
    from recipes.pocket import packing

    batch = packing.collate(rows, PAD)
    out = model(input_ids=batch["ids"], attention_mask=batch["mask"].float(), position_ids=batch["positions"])
    return out.logits[batch["rows"], batch["places"]], batch


def as_packed(turns: Sequence[Turn]) -> list[Turn]:
    return sorted(turns, key=lambda turn: -len(turn[0]))


@pytest.mark.parametrize("attention", ["sdpa", "plain"])
@pytest.mark.parametrize("number", range(len(ODD) + 3))
def test_a_packed_game_has_the_logits_of_its_separate_sequences(number: int, attention: str, model: Any) -> None:
    import torch

    from recipes.pocket import packing, train

    assert "plain" in train.ALL_ATTENTION_FUNCTIONS  # importing it registers the attention that pocket is trained with

    games = [*ODD, *(game(random.Random(n), 2 + 3 * n) for n in range(3))]
    turns = games[number]
    packed = packing.pack(turns)
    assert len(packed.positions) == len(packed) <= sum(len(p) + len(r) for p, r in turns)
    assert len({at for at, _ in packed.learned}) == len(packed.learned)
    with torch.no_grad():
        # beside a longer row and in the middle of a joined one: padding and neighbours must not be seen
        before, after, longer = packing.pack(games[0]), packing.pack(games[-2]), packing.pack(games[-1])
        model.set_attn_implementation(attention)
        logits, batch = in_a_batch(model, [longer, packing.joined([before, packed, after]), packed])
        model.set_attn_implementation("sdpa")
        expected = [*alone(model, as_packed(games[-1])), *alone(model, games[0]), *alone(model, as_packed(turns)),
                    *alone(model, as_packed(games[-2])), *alone(model, as_packed(turns))]  # fmt: skip
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits, torch.cat(expected), atol=1e-4, rtol=0)
    one = [token for _, reply in as_packed(turns) for token in reply]
    assert [token for _, token in packed.learned] == one
    assert batch["targets"][-len(one) :].tolist() == one
    assert not torch.allclose(logits[-1], logits[0], atol=1e-2)  # the model is no constant


def test_games_of_the_corpus_are_packed_whole_and_shorter(tok: Any) -> None:
    from recipes.pocket import packing

    chat, long, short = Chat(tok), 0, 0
    for number in range(120):
        made = corpus.sample("packed", number, corpus.LAST)
        turns = [(list(chat.render(messages, made.context)), tok(reply, add_special_tokens=False)["input_ids"] + [1])
                 for messages, reply in made.turns]  # fmt: skip
        packed = packing.pack(turns)
        learned = tok.decode([token for _, token in packed.learned]).split(tok.decode([1]))[:-1]
        assert sorted(learned) == sorted(reply for _, reply in made.turns)
        for at, token in packed.learned:  # what predicts a token stands right before it, or before its branch
            assert 0 <= at < len(packed) and (packed.ids[at + 1] == token or at + 1 in starts(packed))
        if made.kind in ("lake", "room") and len(turns) > 2:
            long += sum(len(prompt) + len(reply) for prompt, reply in turns)
            short += len(packed)
    assert 0 < short < 0.85 * long


def starts(packed: Any) -> set[int]:
    """Where each stretch of a packed game begins."""
    return set(itertools.accumulate((own for *_, own in packed.sees), initial=0))
