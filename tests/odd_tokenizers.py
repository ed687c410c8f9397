"""Small tokenizers of several kinds, for tests of how they are loaded and of what prompts they make."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import tiny

WORDS = ["What is 3 + 4? Answer: 7 USER ASSISTANT: <|assistant|> <|user|> ? ?", "move the box to the goal, left, right"]


def tokenizer(
    template: str | None = tiny.TEMPLATE, *, sentencepiece: bool = False, eos: str = "<|im_end|>",
    special: Sequence[str] = (), plain: Sequence[str] = (),
) -> Any:  # fmt: skip
    """A small BPE tokenizer.

    Args:
        sentencepiece: put a space mark before the first word, as SentencePiece does; else byte level.
        special: more special tokens.
        plain: more added tokens, which are not flagged special.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw: Any = Tokenizer(models.BPE(byte_fallback=sentencepiece))
    if sentencepiece:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        raw.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = [*map(chr, range(10, 127)), "▁"]
        more = [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        alphabet, more = pre_tokenizers.ByteLevel.alphabet(), []
    trainer = trainers.BpeTrainer(
        vocab_size=400 + len(more), special_tokens=[*tiny.SPECIAL, *special, *more], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    raw.train_from_iterator(WORDS * 20, trainer)
    if more:  # bytes are ordinary tokens
        settings = json.loads(raw.to_str())
        settings["added_tokens"] = [token for token in settings["added_tokens"] if token["content"] not in more]
        raw = Tokenizer.from_str(json.dumps(settings))
    made: Any = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=eos, pad_token="<|endoftext|>", extra_special_tokens=["<|im_start|>", *special],
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made.add_tokens([AddedToken(word, special=False, normalized=False) for word in plain])
    made.chat_template = template
    return made


def model(folder: Path, made: Any, *, rows: int = 0, seed: int = 0, tie: bool = True, **config: Any) -> Path:
    """Write a random Llama with this tokenizer into ``folder``; ``rows`` pads its vocabulary."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048,
        }  # fmt: skip
        ends = {"bos_token_id": None, "eos_token_id": made.eos_token_id, "pad_token_id": made.pad_token_id}
        settings: Any = sizes | ends | {"vocab_size": rows or len(made), "tie_word_embeddings": tie} | config
        net = LlamaForCausalLM(LlamaConfig(**settings)).float()
    net.generation_config = GenerationConfig(eos_token_id=made.eos_token_id, pad_token_id=made.pad_token_id)
    net.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file, which is made if it is missing."""
    before = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(before | changes))
