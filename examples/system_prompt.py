"""A system prompt into the weights, without a grader: the model learns to answer as if it were shown the prompt.

    python examples/system_prompt.py                              # pocket-s: shows the steps, knows no English
    python examples/system_prompt.py Qwen/Qwen3-1.7B 16 32        # model, steps, LoRA rank: a run worth having

The result is a distance, in nats a token, to the model that sees the prompt, on conversations that were held out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from agentopcd import ConsolidateConfig, Session, distil_context, find_context
from agentopcd.workspace.evaluation.table import lines

PROMPT = """You answer for a parcel service. Answer in one short sentence. Never promise a day.
If you do not know where a parcel is, say so, and ask for its number."""
ASKED = (
    "Where is parcel {}?",
    "When will parcel {} be here?",
    "Parcel {} is broken.",
    "Can I change the address of {}?",
)


def write(folder: Path) -> tuple[Path, Path]:
    """The prompt, and conversations as logs have them: only what people asked. Nobody graded anything."""
    folder.mkdir(parents=True, exist_ok=True)
    prompt, chats = folder / "PROMPT.md", folder / "chats.jsonl"
    asked = [question.format(number) for number in range(40) for question in ASKED]
    rows = [{"messages": [{"role": "user", "content": question}]} for question in asked]
    prompt.write_text(PROMPT, encoding="utf-8")
    chats.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return prompt, chats


def main(model: str = "pocket-s", steps: int = 2, lora_rank: int = 0, work: Path = Path("prompt-work")) -> str:
    """Distil the prompt; the student's folder."""
    prompt, chats = write(work)
    small = model == "pocket-s"
    config = ConsolidateConfig(
        env=str(chats), context=str(prompt), placement="system", model=model, lora_rank=lora_rank,
        steps=steps, batch_size=4 if small else 16, max_tokens=8 if small else 128, select_tasks=4 if small else 24,
        select_every=max(1, steps // 2), test_tasks=8 if small else 40,
        template_args={"enable_thinking": False},  # else Qwen3 thinks, and its 128 tokens hold nothing but that
    )  # fmt: skip
    with Session(config, work) as session:
        distilled = distil_context(session, config, find_context(session, config))
    if distilled.evaluation is not None:
        print(*lines(distilled.evaluation), sep="\n")
    return distilled.folder


if __name__ == "__main__":
    name, steps, rank = [*sys.argv[1:], *("pocket-s", "2", "0")[len(sys.argv) - 1 :]]
    main(name, int(steps), int(rank))
