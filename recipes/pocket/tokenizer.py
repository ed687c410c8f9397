"""The tokenizer of ``pocket``: one token for each cell of a board, each move, letter, digit and square.

Cells that merged into pieces of varying width kept an earlier model from learning the boards at all.
Fixed sentences of the games and of the package's own prompts are one token each, which keeps prompts short;
any other text falls into byte-level pieces, so nothing is ever unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from agentopcd.core.types import MARKER
from agentopcd.knowledge import extract
from agentopcd.rollouts.chat import EXPERIENCE_FRAME
from recipes.pocket import corpus, worlds

SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PIECES = r" ?[A-Za-z]+| ?[0-9]|\n+| ?[^\sA-Za-z0-9]|\s+"
VOCABULARY = 1536
"""Byte-level pieces at most; the tokens below come on top."""


def phrases() -> list[str]:
    """Everything that is one token by decision, in a fixed order."""
    found = [corpus.THINK, corpus.END_THINK, MARKER, EXPERIENCE_FRAME, corpus.RULES, corpus.HOW_TO_MOVE]
    found += [f"[{move}]" for move in worlds.MOVES]
    found += [f" {worlds.square((r, c))}" for r in range(8) for c in range(8)]
    found += ["|     ", *(f"|  {x}  " for x in "P" + worlds.LETTERS), *(f"| P/{x} " for x in worlds.LETTERS)]
    for size in range(2, 7):
        border = "+" + "+".join(["-----"] * size) + "+"
        found += [border, f"|\n{border}"]
    found += ["Current Board:\n\n", "\n\nYou answered: ", "\n\nTurn ", ". You saw:\n", "\nYou answered: ",
              "\n\nEnd of the round:\n", " to position (", "% of the journey to the goal.",
              "You fell into a hole! Game over. You completed ", "Congratulations! You reached the goal!",
              "Congratulations! You have solved the Sokoban puzzle!", "You pushed a box while moved ",
              "You cannot move into a wall!", "Invalid move - cannot move to that position.",
              "What you know already; do not repeat it, but say so where it proves wrong:\n"]  # fmt: skip
    found += [text for text in worlds.INVALID.split("{}") if text]
    for template in (extract.TEMPLATES["game"], extract.TEMPLATES["question"]):
        found += [text.strip("\n") for text in re.split(r"\{\w+\}", template) if len(text) > 20]
    return list(dict.fromkeys(found))


def build(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train the pieces on ``texts`` and put the fixed tokens on top."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    fixed = [AddedToken(text, normalized=False) for text in phrases()]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=3, show_progress=False, special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    marks = re.compile("|".join(re.escape(t) for t in sorted(phrases(), key=len, reverse=True)))
    every = [f" {x}" for x in worlds.LETTERS + "P"] + list(worlds.LETTERS) + [f" {d}" for d in range(10)]
    pieces = [piece for text in texts for piece in marks.split(text)] + every * 100
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.add_tokens(fixed)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=TEMPLATE, eos_token="<|end|>", pad_token="<|pad|>",
        additional_special_tokens=list(SPECIAL[2:]), clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )  # fmt: skip
