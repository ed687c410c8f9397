"""A small model as a ``.gguf`` file, in float32."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import gguf
from safetensors.torch import load_file

LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write(model: Path, file: Path, *, without: Collection[str] = ()) -> Path:
    """Write the Llama in the folder ``model`` to ``file``.

    Args:
        without: the tensors to leave out, by their names in the file.
    """
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _tokenizer(writer, model)
    for name, values in load_file(model / "model.safetensors").items():
        named = _name(name.removesuffix(".weight")) + ".weight"
        if named not in without:
            writer.add_tensor(named, values.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _name(weight: str) -> str:
    if weight in WHOLE:
        return WHOLE[weight]
    _, _, layer, part = weight.split(".", 3)
    return f"blk.{layer}.{LAYER[part]}"


def _tokenizer(writer: Any, model: Path) -> None:
    saved = json.loads((model / "tokenizer.json").read_text())
    ids = saved["model"]["vocab"] | {one["content"]: one["id"] for one in saved["added_tokens"]}
    special = {one["content"] for one in saved["added_tokens"]}
    words = sorted(ids, key=lambda token: ids[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL if word in special else gguf.TokenType.NORMAL for word in words])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in saved["model"]["merges"]])
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template((model / "chat_template.jinja").read_text())
