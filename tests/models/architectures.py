"""Tiny random models of many architectures, to play, train and evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests import tiny

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip
HEAD = {**SIZES, "head_dim": 8}
MOE = {**HEAD, "moe_intermediate_size": 16}
GPT = {"n_positions": 2048, "n_embd": 32, "n_layer": 2, "n_head": 4}
BERT = {"bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1}
LOCAL = {**HEAD, "sliding_window": 8}
MAMBA: dict[str, Any] = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "max_position_embeddings": None}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 512,
    "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0],
}  # fmt: skip

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", HEAD),
    "llama, dynamic": ("llama", {**HEAD, "rope_parameters": DYNAMIC}),
    "llama, linear": ("llama", {**HEAD, "rope_parameters": LINEAR}),
    "llama, yarn": ("llama", {**HEAD, "rope_parameters": YARN}),
    "llama, llama3": ("llama", {**HEAD, "rope_parameters": LLAMA3}),
    "mistral": ("mistral", LOCAL),
    "mistral, yarn": ("mistral", {**LOCAL, "rope_parameters": YARN}),
    "mistral, dynamic": ("mistral", {**LOCAL, "rope_parameters": DYNAMIC}),
    "mixtral": ("mixtral", {**HEAD, "num_local_experts": 4}),
    "ministral": ("ministral", LOCAL),
    "qwen2": ("qwen2", SIZES),
    "qwen2_moe": ("qwen2_moe", {**MOE, "num_experts": 4, "shared_expert_intermediate_size": 32}),
    "qwen3": ("qwen3", HEAD),
    "qwen3_moe": ("qwen3_moe", {**MOE, "num_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_next": (
        "qwen3_next",
        {**MOE, "num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 32,
         "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
         "layer_types": ["linear_attention", "full_attention"]},
    ),
    "gemma": ("gemma", HEAD),
    "gemma2": ("gemma2", {**LOCAL, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {**LOCAL, "query_pre_attn_scalar": 8}),
    "vaultgemma": ("vaultgemma", {**LOCAL, "query_pre_attn_scalar": 8}),
    "phi": ("phi", SIZES),
    "phi3": ("phi3", SIZES),
    "phi3, longrope": ("phi3", {**SIZES, "original_max_position_embeddings": 512, "rope_parameters": LONGROPE}),
    "phimoe": ("phimoe", {**SIZES, "num_local_experts": 4}),
    "gpt2": ("gpt2", GPT),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4}),
    "codegen": ("codegen", {**GPT, "n_ctx": 2048, "rotary_dim": 4}),
    "gpt_neo": (
        "gpt_neo",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 2048, "window_size": 8,
         "attention_types": [[["global", "local"], 1]]},
    ),
    "gpt_neox": ("gpt_neox", SIZES),
    "openai-gpt": ("openai-gpt", GPT),
    "opt": (
        "opt",
        {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32},
    ),
    "xglm": ("xglm", {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}),
    "biogpt": ("biogpt", SIZES),
    "ctrl": ("ctrl", {"n_positions": 2048, "n_embd": 32, "dff": 64, "n_layer": 2, "n_head": 4}),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 2048}),
    "falcon": ("falcon", {**SIZES, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, alibi": ("falcon", {**SIZES, "alibi": True}),
    "falcon_h1": (
        "falcon_h1",
        {**SIZES, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
         "mamba_chunk_size": 8, "lm_head_multiplier": 0.1},
    ),
    "falcon_mamba": ("falcon_mamba", MAMBA),
    "mamba": ("mamba", MAMBA),
    "mamba2": (
        "mamba2",
        {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "n_groups": 1,
         "chunk_size": 8},
    ),
    "rwkv": ("rwkv", {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "context_length": 2048}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {**SIZES, "lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
    ),
    "jamba": (
        "jamba",
        {**SIZES, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
         "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    ),
    "bamba": (
        "bamba",
        {**SIZES, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8,
         "mamba_n_groups": 1, "mamba_chunk_size": 8},
    ),
    "zamba2": (
        "zamba2",
        {**SIZES, "num_mem_blocks": 1, "mamba_d_state": 8, "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_ngroups": 1,
         "chunk_size": 8, "layers_block_type": ["mamba", "hybrid"], "hybrid_layer_ids": [1]},
    ),
    "lfm2": ("lfm2", {**SIZES, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    "granite": ("granite", {**SIZES, "logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5}),
    "granitemoe": ("granitemoe", {**SIZES, "num_local_experts": 4, "logits_scaling": 4.0}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {**SIZES, "num_local_experts": 4, "shared_intermediate_size": 32, "layer_types": ["mamba", "attention"],
         "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8},
    ),
    "cohere": ("cohere", {**SIZES, "logit_scale": 0.25}),
    "cohere2": ("cohere2", {**SIZES, "sliding_window": 8, "logit_scale": 0.25}),
    "olmo": ("olmo", SIZES),
    "olmo2": ("olmo2", SIZES),
    "olmo3": ("olmo3", {**SIZES, "sliding_window": 8}),
    "olmoe": ("olmoe", {**SIZES, "num_experts": 4, "num_experts_per_tok": 2}),
    "stablelm": ("stablelm", SIZES),
    "starcoder2": ("starcoder2", SIZES),
    "smollm3": ("smollm3", SIZES),
    "nemotron": ("nemotron", SIZES),
    "persimmon": ("persimmon", SIZES),
    "deepseek_v2": (
        "deepseek_v2",
        {**MOE, "n_routed_experts": 4, "num_experts_per_tok": 2, "kv_lora_rank": 8, "q_lora_rank": 8,
         "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4, "topk_group": 1,
         "n_group": 1, "first_k_dense_replace": 1},
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {**MOE, "n_routed_experts": 4, "num_experts_per_tok": 2, "kv_lora_rank": 8, "q_lora_rank": 8,
         "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4, "topk_group": 1,
         "n_group": 1, "first_k_dense_replace": 1},
    ),
    "glm": ("glm", HEAD),
    "glm4": ("glm4", HEAD),
    "gpt_oss": ("gpt_oss", {**LOCAL, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "helium": ("helium", HEAD),
    "ernie4_5": ("ernie4_5", HEAD),
    "exaone4": ("exaone4", LOCAL),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", HEAD),
    "hyperclovax": ("hyperclovax", {**HEAD, "logits_scaling": 0.5}),
    "seed_oss": ("seed_oss", HEAD),
    "apertus": ("apertus", SIZES),
    "arcee": ("arcee", HEAD),
    "diffllama": ("diffllama", SIZES),
    "doge": ("doge", SIZES),
    "nanochat": ("nanochat", HEAD),
    "llama4": ("llama4_text", {**MOE, "intermediate_size_mlp": 64, "num_local_experts": 2, "attention_chunk_size": 16}),
    "minimax": ("minimax", {**HEAD, "num_local_experts": 4, "block_size": 8}),
    "modernbert-decoder": ("modernbert-decoder", {**SIZES, "local_attention": 8, **BERT}),
    "gemma3n": (
        "gemma3n_text",
        {**LOCAL, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 320, "altup_num_inputs": 2,
         "laurel_rank": 4, "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0],
         "layer_types": ["sliding_attention", "full_attention"], "intermediate_size": [64, 64]},
    ),
    "gemma4": ("gemma4_text", {**LOCAL, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 320}),
    "jetmoe": ("jetmoe", {**SIZES, "kv_channels": 8, "num_local_experts": 4}),
    "dbrx": (
        "dbrx",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 2048,
         "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
         "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}},
    ),
    "nemotron_h": (
        "nemotron_h",
        {**HEAD, "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 8,
         "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
    ),
    "qwen3_5": (
        "qwen3_5_text",
        {**HEAD, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
         "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
    ),
    "glm4_moe": ("glm4_moe", {**MOE, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}),
    "ernie4_5_moe": ("ernie4_5_moe", {**MOE, "moe_num_experts": 4, "moe_k": 2}),
    "dots1": (
        "dots1",
        {**MOE, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    ),
    "lfm2_moe": (
        "lfm2_moe",
        {**SIZES, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "num_experts": 4,
         "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "flex_olmo": ("flex_olmo", {**SIZES, "num_experts": 4, "num_experts_per_tok": 2}),
    "cwm": ("cwm", {**LOCAL, "bos_token_id": 1}),
    "bitnet": ("bitnet", SIZES),
    "zamba": (
        "zamba",
        {**SIZES, "n_mamba_heads": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "attn_layer_period": 2,
         "attn_layer_offset": 1, "layers_block_type": ["mamba", "hybrid"], "use_mamba_kernels": False},
    ),
    "minicpm3": (
        "minicpm3",
        {**SIZES, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
         "num_key_value_heads": 4},
    ),
    "gpt_neox_japanese": ("gpt_neox_japanese", SIZES),
    "roformer": ("roformer", {**SIZES, "is_decoder": True}),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", {**HEAD, "num_experts": 4, "moe_topk": 2}),
    "bart": (
        "bart",
        {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "is_decoder": True},
    ),
    "olmo_hybrid": (
        "olmo_hybrid",
        {**HEAD, "linear_num_value_heads": 4, "linear_num_key_heads": 4, "linear_key_head_dim": 8,
         "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
    ),
    "granite_swa": ("granite_swa", {**SIZES, "sliding_window": 8}),
    "jais2": ("jais2", SIZES),
    "solar_open": (
        "solar_open", {**MOE, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    ),
    "afmoe": ("afmoe", {**MOE, "num_experts": 4, "num_experts_per_tok": 2, "num_dense_layers": 1, "sliding_window": 8}),
    "mimo_v2_flash": (
        "mimo_v2_flash",
        {**MOE, "n_routed_experts": 4, "num_experts_per_tok": 2, "v_head_dim": 8, "sliding_window": 8},
    ),
    "youtu": (
        "youtu",
        {**SIZES, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
         "num_key_value_heads": 4},
    ),
    "cpmant": (
        "cpmant", {"hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 64, "num_hidden_layers": 2}
    ),
    "xlnet": ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}),
    "bert": ("bert", {**SIZES, "is_decoder": True}),
    "bert, no decoder": ("bert", SIZES),
    "reformer": (
        "reformer",
        {"hidden_size": 32, "attn_layers": ["local"], "num_attention_heads": 2, "is_decoder": True,
         "axial_pos_embds": False},
    ),
}  # fmt: skip
"""By name: the model type of transformers, and what its config needs to be tiny."""


def build(folder: Path, name: str) -> Path:
    """Write a random model of this architecture and the tokenizer of ``tests/tiny.py`` into ``folder``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    kind, changes = ARCHITECTURES[name]
    tiny.build(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    common = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": tiny.END, "pad_token_id": tiny.PAD}
    config = AutoConfig.for_model(kind, **common | {"tie_word_embeddings": False} | changes)
    (folder / "model.safetensors").unlink()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config).float().eval()
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "norm" not in parameter_name:
                parameter.mul_(4.0)  # so that attention and experts weigh more than the embeddings
        spread = model(input_ids=torch.randint(3, len(tokenizer), (2, 40))).logits.std()
        model.get_output_embeddings().weight.mul_(2.0 / spread)
    model.generation_config = GenerationConfig(eos_token_id=tiny.END, pad_token_id=tiny.PAD)
    model.save_pretrained(folder)
    return folder
