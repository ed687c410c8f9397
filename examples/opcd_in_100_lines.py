"""On-policy context distillation (arXiv:2602.12275) in 100 lines of plain PyTorch and transformers.

A model that is told the rules of a game plays it well. This file trains the model to play as well without being told.
The model plays without the context. A frozen copy of it, the teacher, sees the context and scores the very tokens that
the model played. The model, the student, moves towards these scores.

    python examples/opcd_in_100_lines.py

`agentopcd/consolidate.py` is the same loop with all that a long run needs. A test compares the two: same prompts, same
loss, same gradient. Capital letters at the end of a tensor's name are its shape: N response tokens, V words of the
vocabulary, K of these, B rows, T positions, H numbers of a hidden state.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentopcd import envs

MODEL = str(files("agentopcd.models") / "weights" / "pocket")  # 3 million weights; it can plan, and knows no rules
ENV = "frozen-lake-4x4"
# The game's own rules say what the letters mean. The player gets this line instead, so that only the context tells it.
RULES = "You control P on a grid. Reach the goal in as few moves as you can, one move per reply."
CONTEXT = "G is the goal. H is a hole, never step on it. All moves work as named."
TEMPERATURE, TOP_K, LEARNING_RATE, CLIP_NORM = 0.7, 256, 3e-4, 1.0
ROWS = 4  # turns in one forward pass; does not change the result

Turn = tuple[str, list[int]]  # what was asked, without the context, and the token ids of the reply


# ---------------------------------------------------------------------------------------------------------------- play


def prompt_ids(tokenizer: Any, question: str, context: str = "") -> list[int]:
    """The prompt of one turn. Student and teacher differ in the context, and in nothing else."""
    messages = [{"role": "user", "content": f"{context}\n\n{question}" if context else question}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def sample(model: Any, tokenizer: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    """One reply to each prompt, its end token included: ending at the right place is learned, too."""
    batch = tokenizer.pad({"input_ids": list(prompts)}, padding_side="left", return_tensors="pt")
    # top_k and top_p are off: the loss is an expectation over all that the student may say.
    out = model.generate(**batch, do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, max_new_tokens=128)
    rows, end = out[:, batch["input_ids"].shape[1] :].tolist(), tokenizer.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def play(model: Any, tokenizer: Any, seeds: Sequence[int], context: str = "") -> tuple[int, list[Turn]]:
    """Play one game for each seed, all of them side by side; games won, and every turn."""
    games = [envs.make(ENV) for _ in seeds]
    seen = [dict(game.reset(seed=seed)[1]["parts"]) for game, seed in zip(games, seeds, strict=True)]
    logs, live, won, turns, number = [[RULES] for _ in games], list(range(len(games))), 0, [], 0
    while live:
        number, questions = number + 1, {}
        for i in live:  # the log of the game so far, then the board, then how to answer
            logs[i] += [seen[i]["feedback"]] if number > 1 else []
            board = [f"Turn {number}:", seen[i]["state"]]
            questions[i] = "\n\n".join([*logs[i], *(board if number > 1 else board[1:]), seen[i]["actions"]])
            logs[i] += board
        replies = sample(model, tokenizer, [prompt_ids(tokenizer, questions[i], context) for i in live])
        for i, response in zip(list(live), replies, strict=True):
            turns.append((questions[i], response))
            reply = tokenizer.decode(response, skip_special_tokens=True)
            _, reward, over, cut, info = games[i].step(reply)
            logs[i].append(f"You answered: {info.get('action') or reply.strip()[:300] or '(nothing)'}")
            seen[i] = dict(info["parts"])
            won += float(reward) >= 1
            if over or cut:
                live.remove(i)
    return won, turns


# --------------------------------------------------------------------------------------------------------------- learn


def response_logits(model: Any, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> Tensor:
    """Logits ``[N, V]`` that predict the tokens of the responses, one response after the other."""
    rows = [torch.tensor(prompt + response) for prompt, response in zip(prompts, responses, strict=True)]
    # Padding on the right needs no mask: a causal model never looks at what comes later.
    hidden_BTH = model.base_model(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)).last_hidden_state
    # Position t predicts token t + 1. After X tokens of prompt, the Y tokens of the response are predicted by the
    # positions X-1 to X+Y-2. The context makes X longer for the teacher, so each model counts from its own prompt.
    places = [slice(len(x) - 1, len(x) + len(y) - 1) for x, y in zip(prompts, responses, strict=True)]
    hidden_NH = torch.cat([hidden_TH[place] for hidden_TH, place in zip(hidden_BTH, places, strict=True)])
    return model.get_output_embeddings()(hidden_NH)  # of those positions only: logits of whole prompts are large


def outcomes(logits_NV: Tensor, support_NK: Tensor) -> Tensor:
    """Log-probabilities of K tokens, and of all the others together as one more outcome, the tail."""
    log_NV = (logits_NV / TEMPERATURE).log_softmax(-1)
    # The tail is added up from its own tokens. 1 minus the sum of the K would be lost to rounding where K hold it all.
    tail_N = log_NV.scatter(-1, support_NK, -torch.inf).logsumexp(-1)
    return torch.cat([log_NV.gather(-1, support_NK), tail_N[:, None]], -1)


def loss_of(student_NV: Tensor, teacher_NV: Tensor, weights_N: Tensor) -> Tensor:
    """Reverse KL from student p to teacher q: the sum over K + 1 outcomes of p (log p - log q), summed with weights."""
    support_NK = student_NV.detach().topk(TOP_K).indices  # reverse KL weighs by p, so p chooses what is looked at
    log_p, log_q = outcomes(student_NV, support_NK), outcomes(teacher_NV, support_NK)
    return ((log_p.exp() * (log_p - log_q)).sum(-1) * weights_N).sum()


def learn(student: Any, teacher: Any, tokenizer: Any, turns: Sequence[Turn]) -> float:
    """Add the gradient of the loss over all these turns to the student's parameters, and return the loss in nats."""
    turns, total = sorted(turns, key=lambda turn: len(turn[0])), 0.0  # rows of like length: little padding
    for start in range(0, len(turns), ROWS):
        questions, responses = zip(*turns[start : start + ROWS], strict=True)
        # Both models score the tokens that the student sampled, each after its own prompt.
        with torch.no_grad():
            told = [prompt_ids(tokenizer, question, CONTEXT) for question in questions]
            teacher_NV = response_logits(teacher, told, responses)
        student_NV = response_logits(student, [prompt_ids(tokenizer, question) for question in questions], responses)
        # Every reply has one vote, however long it is, and the votes of the whole step add up to one.
        weights_N = torch.cat([torch.full((len(y),), 1 / (len(turns) * len(y))) for y in responses])
        loss = loss_of(student_NV, teacher_NV, weights_N)
        loss.backward()
        total += loss.item()
    return total


def main(steps: int = 4, games: int = 12, test_games: int = 48) -> dict[str, float]:
    """Play, distil, play again. Returns the share of held-out games that were won, by name."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    student = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)  # steps this small vanish in bfloat16
    teacher = copy.deepcopy(student).requires_grad_(False)  # the student before training; it never changes
    # Split by board, not by seed: two seeds that make the same board are one task.
    splits = envs.build_splits(ENV).splits
    test, train = ([task.seed for task in splits[name]] for name in ("test", "train"))
    test = test[:test_games]

    def measure(name: str, context: str = "") -> float:
        rate = play(student, tokenizer, test, context)[0] / len(test)
        print(f"{name:<10} won {rate:.3f} of n = {len(test)} held-out games", flush=True)
        return rate

    success = {"before": measure("before"), "in context": measure("in context", CONTEXT)}
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    for step in range(steps):
        # Without the context, and anew in each step: the student learns in the places where its own play takes it.
        won, turns = play(student, tokenizer, [train[i % len(train)] for i in range(step * games, (step + 1) * games)])
        loss = learn(student, teacher, tokenizer, turns)
        torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: loss {loss:.3f} nats, won {won} of {games}", flush=True)
    return success | {"after": measure("after")}


if __name__ == "__main__":
    torch.set_num_threads(1)  # two took three times as long where other programs wanted the second core
    main()
