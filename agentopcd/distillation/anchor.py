"""The anchor: neutral prompts among a step's samples, so that the student stays near its base where nothing is taught.

The teacher of such a sample is shown no context, so the divergence is that from the student to the teacher as it is:
with a frozen teacher, a KL penalty to the model before training, on replies of the student's own.
"""

from __future__ import annotations

import functools
import random
from importlib.resources import files
from typing import Literal

from agentopcd.core.config import TrainConfig
from agentopcd.core.types import EMPTY, Message, Sampling
from agentopcd.distillation.samples import Sample
from agentopcd.models.parallel.ranks import Ranks
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling import request_seed


@functools.cache
def neutral_prompts(part: Literal["train", "test"]) -> tuple[str, ...]:
    """32 everyday requests that no environment asks; those to train on and those to measure with are distinct."""
    lines = (files("agentopcd.distillation") / "neutral.txt").read_text(encoding="utf-8").splitlines()
    return tuple(lines[part == "test" :: 2])


def neutral_samples(
    player: Player, prompts: dict[int, str], *, seed: int, what: str, max_tokens: int, temperature: float,
    cut_replies: str = "keep",
) -> dict[int, Sample]:  # fmt: skip
    """The student's replies to neutral prompts, by the prompts' numbers; empty replies are left out.

    Args:
        prompts: the prompts by number. Number, seed and ``what`` fix the noise of a reply.
        max_tokens: longest reply.
        cut_replies: ``drop``: replies that were cut at ``max_tokens`` are left out, too.
    """
    said = {place: [Message(role="user", content=text)] for place, text in prompts.items()}
    asked = {
        place: player.chat.request(messages, seed=request_seed(seed, what, place)) for place, messages in said.items()
    }
    judge = player.chat.teacher or player.chat
    sampling = Sampling(temperature=temperature, top_p=1.0, top_k=0, max_tokens=max_tokens)
    replies = player.sampler.sample(list(asked.values()), sampling)
    return {
        place: Sample(
            student_ids=request.prompt_ids, teacher_ids=judge.render(said[place]),
            response_ids=reply.token_ids, logprobs=reply.logprobs, turn=0, context=EMPTY.id,
        )
        for (place, request), reply in zip(asked.items(), replies, strict=True)
        if reply.token_ids and not (cut_replies == "drop" and reply.finish_reason == "length")
    }  # fmt: skip


def anchors(player: Player, step: int, config: TrainConfig, ranks: Ranks) -> dict[int, Sample]:
    """This process's share of the neutral samples of a step: ``config.anchor`` times as many as there are episodes."""
    count = round(config.anchor * config.batch_size)
    known, drawn = neutral_prompts("train"), random.Random(f"{config.seed}:anchor:{step}")
    prompts = {place: drawn.choice(known) for place in range(count)}
    mine = {place: prompts[place] for place in ranks.mine(list(prompts))}
    if not mine:
        return {}
    return neutral_samples(
        player, mine, seed=config.seed, what=f"anchor:{step}", max_tokens=config.max_tokens,
        temperature=config.temperature, cut_replies=config.cut_replies,
    )  # fmt: skip
