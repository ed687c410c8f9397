"""A random Llama small enough for every test: byte-level BPE, ChatML-like template, 28,000 weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agentopcd.rollouts.sampling import InBatches

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PAD, _, END = range(3)  # their ids: special tokens come first
LOGIT_STD = 4.0
"""A random model is nearly flat; at this spread its top-k sets hold as much mass as a real model's."""


def build(folder: Path, *, seed: int = 0, tie: bool = True, hearing: float = 1.0, head_dim: int = 8) -> Path:
    """Write model and tokenizer into ``folder``, as ``from_pretrained`` reads them.

    Args:
        folder: made if it is missing.
        seed: of the weights; two seeds give two models with one tokenizer.
        tie: whether the LM head is the embedding matrix.
        head_dim: width of an attention head; vLLM has nothing for 8 on a CPU.
        hearing: multiplies what attention adds, so that earlier tokens (a context, say) weigh more.

    Returns:
        The folder.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    raw.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["the player moves up, down, left, right", "move the box to the goal"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.model_max_length = 2048

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=head_dim,
                max_position_embeddings=2048,
                tie_word_embeddings=tie,
                bos_token_id=None,
                eos_token_id=END,
                pad_token_id=PAD,
            )
        ).float()
        ids = torch.randint(len(SPECIAL), len(tokenizer), (4, 64))
    with torch.no_grad():
        for layer in model.model.layers if hearing != 1.0 else ():
            layer.self_attn.o_proj.weight.mul_(hearing)  # type: ignore[operator]
        model.model.norm.weight.mul_(LOGIT_STD / model(ids).logits.std())
    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PAD)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CLUE = "say seven"
"""What :class:`Clued` must find in its prompt to answer right."""


class Clued(InBatches):
    """A sampler without a model: right where the prompt holds :data:`CLUE`, and it extracts that clue.

    Its questions come from :func:`questions`, whose answer is always 7.
    """

    engine = "clued"

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.asked = 0

    def sample(self, requests: Any, sampling: Any) -> list[Any]:
        return [self._answer(self.tokenizer.decode(list(request.prompt_ids))) for request in requests]

    def _answer(self, prompt: str) -> Any:
        from agentopcd.core.types import MARKER, Completion
        from agentopcd.envs.questions.env import HOW_TO_ANSWER

        self.asked += 1
        is_question = f"{HOW_TO_ANSWER}<|im_end|>" in prompt  # and not a question inside an extraction prompt
        text = f"{MARKER} {CLUE}" if not is_question else "Answer: 7" if CLUE in prompt else "Answer: 1"
        ids = (*self.tokenizer(text, add_special_tokens=False)["input_ids"], END)
        return Completion(token_ids=ids, logprobs=(-1.0,) * len(ids), finish_reason="stop")


def questions(file: Path, n: int = 130) -> str:
    """Write ``n`` questions that all have the answer 7 and return the path: enough to be split."""
    rows = [json.dumps({"question": f"What is {7 + i} - {i}?", "answer": "7"}) for i in range(n)]
    file.write_text("\n".join(rows) + "\n")
    return str(file)
