"""Write a random model of an architecture with windows or states: ``python -m benchmarks.random_model gemma3 FOLDER``.

It has pocket's tokenizer and chat template, 16,384 positions, and 7 to 8 million weights in 8 layers, 256 wide, but
``qwen3-1.7b``, which has 1.4 billion. Its replies mean nothing; how long they take does. ``benchmarks.consolidate
--model FOLDER`` takes it.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 16384, "tie_word_embeddings": True, "bos_token_id": None,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    # Five layers with a window of 512 tokens, then one that attends to all.
    "gemma3": ("gemma3_text", {"head_dim": 32, "sliding_window": 512, "query_pre_attn_scalar": 32}),
    # Three layers with a window, then one that attends to all.
    "olmo3": ("olmo3", {"sliding_window": 512}),
    # Three layers of gated delta nets, then one of attention.
    "qwen3_5": (
        "qwen3_5_text",
        {"head_dim": 32, "linear_num_value_heads": 8, "linear_num_key_heads": 4, "linear_key_head_dim": 32,
         "linear_value_head_dim": 32},
    ),
    # Three layers of Mamba-2, then one of attention.
    "granite_hybrid": (
        "granitemoehybrid",
        {"num_local_experts": 0, "shared_intermediate_size": 768, "mamba_n_heads": 16, "mamba_d_head": 32,
         "mamba_d_state": 64, "mamba_n_groups": 1, "layer_types": [*["mamba"] * 3, "attention"] * 2},
    ),
    "qwen3": ("qwen3", {"head_dim": 32}),
    # The shape of Qwen3-1.7B, with pocket's small vocabulary.
    "qwen3-1.7b": (
        "qwen3",
        {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
         "num_key_value_heads": 8, "head_dim": 128},
    ),
}  # fmt: skip
"""By name: the model type of transformers, and what its config needs beside :data:`SIZES`."""


def write(kind: str, folder: Path) -> int:
    """Write the model; return the number of its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from agentopcd.models import find

    pocket = find.find_model("pocket")
    tokenizer = AutoTokenizer.from_pretrained(pocket)
    name, changes = KINDS[kind]
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(name, **SIZES | {"vocab_size": len(tokenizer)} | ends | changes)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).float()
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(pocket / file, folder)
    return sum(p.numel() for p in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    print(f"{args.folder}: {args.kind}, {write(args.kind, args.folder):,} random weights")


if __name__ == "__main__":
    main()
