"""Train ``pocket`` or ``pocket-s`` from nothing: ``python -m recipes.pocket.train --size pocket``.

The same command continues after a kill. Every line of ``log.jsonl`` has the hash of all token ids trained on so
far, so two runs can be compared line by line. ``--device cuda`` was never run.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from agentopcd import envs
from agentopcd.models.compute import pick_compute
from agentopcd.rollouts.chat import Chat, framed
from recipes.pocket import corpus, packing, tokenizer, worlds
from recipes.pocket.tokenizer import PreTrainedTokenizerFast as Tokenizer

SIZES: dict[str, dict[str, Any]] = {
    "pocket": {"hidden_size": 192, "num_hidden_layers": 6, "intermediate_size": 512, "num_attention_heads": 6},
    "pocket-s": {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 352, "num_attention_heads": 4},
}
SEED = "pocket-1"
"""Names the corpus; another name is another corpus."""
EXAMINED = 320
"""Samples that :func:`examine` reads."""
ROWS, ROW_TOKENS = 8, 512
"""Sequences of a batch and their length; samples share a row without seeing each other."""
# Each swapped world beside its plain one: so for every text held out the one with the letters exchanged is held out,
# too, and no role becomes rarer than another.
TESTED = ("frozen-lake-4x4", "frozen-lake-4x4-swapped", "sokoban", "sokoban-swapped", "instructions")


def held_out() -> frozenset[str]:
    """First texts of every task in a split that a figure is made on: none of them may occur in training."""
    texts = set()
    for name in TESTED:
        env = envs.make(name)
        manifest = envs.build_splits(name)
        for split in ("test", "confirm", "select"):
            for seed, _ in manifest.splits[split]:
                observation, info = env.reset(seed=seed)
                parts = dict(envs.parts_of(observation, info))
                texts.add(parts["state"])
    return frozenset(texts)


def make_tokenizer() -> Tokenizer:
    """The tokenizer, trained on the first samples of a corpus of its own."""

    def texts():  # type: ignore[no-untyped-def]
        for number in range(8000):
            made = corpus.sample(f"{SEED}:tokenizer", number, corpus.LAST)
            yield framed(made.context) + "\n" + made.turns[-1][0][-1]["content"]
            yield made.turns[-1][1]

    return tokenizer.build(texts())


def make_model(size: str, tok: Tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    ends: Any = {"eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    config = LlamaConfig(
        vocab_size=-(-len(tok) // 64) * 64, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=None, attention_bias=False, **ends,
        initializer_range=0.05, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **SIZES[size],
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("plain")
    embeddings: Any = model.get_input_embeddings()
    related_start(embeddings.weight, tok)
    return model


@torch.no_grad()
def related_start(weight: torch.Tensor, tok: Tokenizer) -> None:
    """A letter starts near its other spellings and its cell, a square near its row and its column."""

    def id_of(text: str) -> int:
        ids = tok(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == 1, (text, ids)
        return ids[0]

    for x in "P" + worlds.LETTERS:
        for other in (f" {x}", f"|  {x}  "):
            weight[id_of(other)] = 0.8 * weight[id_of(x)] + 0.6 * weight[id_of(other)]
    rows, columns = (torch.randn(8, weight.shape[1]) * weight.std() for _ in range(2))
    for r in range(8):
        for c in range(8):
            weight[id_of(f" {worlds.square((r, c))}")] += rows[r] + columns[c]


class Batches:
    """Batches in a fixed order: batch ``n`` is always the same, so a resumed run goes on where it stopped."""

    def __init__(self, tok: Tokenizer, seed: str, steps: int, forbidden: frozenset[str]) -> None:
        self.tok, self.chat, self.seed, self.steps, self.forbidden = tok, Chat(tok), seed, steps, forbidden
        self.number = 0
        self.dropped = 0
        """Samples of one turn that do not fit into a row."""
        self.digest = hashlib.sha256()
        self.left: list[tuple[str, packing.Packed]] = []

    def next(self, step: int) -> tuple[dict[str, torch.Tensor], list[str]]:
        """The next batch and the kind of each learned token in it."""
        stage = corpus.stage_at(step / self.steps)
        rows = [self._row(stage) for _ in range(ROWS)]
        for row in rows:
            for _, made in row:
                self.digest.update(torch.tensor(made.ids, dtype=torch.int32).numpy().tobytes())
        pad: Any = self.tok.pad_token_id
        batch = packing.collate([packing.joined([made for _, made in row]) for row in rows], pad)
        return batch, [kind for row in rows for kind, made in row for _ in made.learned]

    def _row(self, stage: corpus.Stage) -> list[tuple[str, packing.Packed]]:
        """Samples that fill a row: those that were too long for the last one first."""
        row: list[tuple[str, packing.Packed]] = []
        room, waiting, self.left = ROW_TOKENS, self.left, []
        while len(self.left) < 10:  # ten did not fit: the row is as full as it gets
            if waiting:
                made = waiting.pop(0)
            else:
                drawn = corpus.sample(self.seed, self.number, stage, self.forbidden)
                made = (drawn.kind, self.packed(drawn))
                self.number += 1
            if len(made[1]) <= room:
                row.append(made)
                room -= len(made[1])
            elif len(made[1]) <= ROW_TOKENS:
                self.left.append(made)
            else:
                self.dropped += 1
        self.left += waiting
        return row

    def packed(self, made: corpus.Sample) -> packing.Packed:
        end = [self.tok.eos_token_id]
        turns = [
            (self.chat.render(messages, made.context), self.tok(reply, add_special_tokens=False)["input_ids"] + end)
            for messages, reply in made.turns
        ]
        while len(packed := packing.pack(turns)) > ROW_TOKENS and len(turns) > 1:
            turns.pop(0)  # of a long game the first ones: others begin like them
        return packed


def plain_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor,
    scaling: float, **_: object,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention without a fused kernel; query, key and value [B, H, T, D], mask [B, 1, T, T], all of one dtype.

    On two CPU cores, at rows of 512 tokens, it takes less time than PyTorch's (``docs/LOG.md``). Under autocast the
    scores are bfloat16.
    """
    heads, width = query.shape[:2], query.shape[2]
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))
    seen = mask.expand(*heads, width, width).flatten(0, 1)
    weights = torch.baddbmm(seen, query, key.transpose(1, 2), alpha=scaling).softmax(-1)
    return torch.bmm(weights, value).unflatten(0, heads).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register("plain", plain_attention)


def losses(
    model: LlamaForCausalLM, batch: dict[str, torch.Tensor], compute: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy in nats and whether the likeliest token is right, for each learned token [N]."""
    device = model.device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    with torch.autocast(device.type, dtype=compute, enabled=compute != torch.float32):
        mask = batch["mask"].to(compute)
        hidden = model.model(
            input_ids=batch["ids"], attention_mask=mask, position_ids=batch["positions"], use_cache=False
        ).last_hidden_state
        logits = model.lm_head(hidden[batch["rows"], batch["places"]]).float()
    return F.cross_entropy(logits, batch["targets"], reduction="none"), logits.argmax(-1) == batch["targets"]


def optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, fused AdamW for embeddings and norms."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    made = [
        torch.optim.Muon(inner, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        # Embeddings are the output layer too, so they move gently.
        torch.optim.AdamW(rest, lr=rate / 2, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    for one in made:
        for group in one.param_groups:
            group["initial_lr"] = group["lr"]
    return made


def rate_at(step: int, steps: int) -> float:
    """Share of the learning rate: a short warm-up, constant, then straight to zero over the last 40 %."""
    return min(1.0, step / 200, (steps - step + 1) / (0.4 * steps))


@torch.no_grad()
def examine(model: LlamaForCausalLM, batches: Batches, compute: torch.dtype) -> dict[str, float]:
    """Share of reply tokens that are likeliest, given the right ones before, on samples drawn with another seed."""
    right: dict[str, list[float]] = defaultdict(list)
    for number in range(EXAMINED):
        made = corpus.sample("examine", number, corpus.LAST, batches.forbidden)
        row = batches.packed(made)
        _, hit = losses(model, packing.collate([row], 0), compute)
        told = "told" if made.told == 4 else "part" if made.told else "blind"
        name = f"{made.kind}/{told}" if made.kind in ("lake", "room") else made.kind
        right[name].append(float(hit.float().mean()))
    return {name: round(sum(values) / len(values), 4) for name, values in sorted(right.items())}


@dataclasses.dataclass
class Run:
    """What training changes, and the folder that keeps it."""

    folder: Path
    tok: Tokenizer
    model: LlamaForCausalLM
    optimizers: list[torch.optim.Optimizer]
    batches: Batches
    settings: dict[str, float]

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    def resume(self, refuse: Callable[[str], NoReturn]) -> int:
        """The step that was saved last, with everything as it was after it; 0 where nothing was saved."""
        if not (self.folder / "state.pt").is_file():
            return 0
        state = torch.load(self.folder / "state.pt", weights_only=True)
        if state.get("settings") != self.settings:  # a state of an older version names none
            refuse(f"{self.folder} was begun with {state.get('settings')}, now {self.settings}; name another --out")
        self.model.load_state_dict(state["model"])
        for one, saved in zip(self.optimizers, state["optimizers"], strict=True):
            one.load_state_dict(saved)
        done = state["step"]
        for step in range(done):  # nothing is trained, only drawn, so that the hash covers everything
            self.batches.next(step)
        if state["corpus"] != self.batches.digest.hexdigest():
            refuse(f"{self.folder} was begun on another corpus; name another --out")
        self.log.touch()  # killed before the first line
        lines = [line for line in self.log.read_text().splitlines() if json.loads(line)["step"] <= done]
        self.log.write_text("".join(f"{line}\n" for line in lines))
        return done

    def learn(self, step: int, compute: torch.dtype) -> tuple[int, dict[str, float]]:
        """Take step ``step``; return the places computed (padding, too) and the loss of each kind in nats."""
        batch, kinds = self.batches.next(step - 1)
        loss, _ = losses(self.model, batch, compute)
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for one in self.optimizers:
            for group in one.param_groups:
                group["lr"] = group["initial_lr"] * rate_at(step, self.batches.steps)
            one.step()
            one.zero_grad(set_to_none=True)
        by_kind: dict[str, list[float]] = defaultdict(list)
        for kind, value in zip(kinds, loss.detach().tolist(), strict=True):
            by_kind[kind].append(value)
        return batch["ids"].numel(), {kind: sum(values) / len(values) for kind, values in by_kind.items()}

    def save(self, step: int) -> None:
        """All that :meth:`resume` reads, and the model as a folder of its own."""
        state = {"step": step, "settings": self.settings, "corpus": self.batches.digest.hexdigest(),
                 "model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]}  # fmt: skip
        torch.save(state, self.folder / "state.tmp")
        (self.folder / "state.tmp").rename(self.folder / "state.pt")
        save(self.model, self.tok, self.folder / "model")


class Tally:
    """Losses, places and seconds of the steps since the last line of the log."""

    def __init__(self) -> None:
        self.nats: dict[str, list[float]] = defaultdict(list)
        self.places, self.steps, self.started = 0, 0, time.perf_counter()

    def add(self, places: int, nats: dict[str, float]) -> None:
        self.places += places
        self.steps += 1
        for kind, value in nats.items():
            self.nats[kind].append(value)

    def record(self, step: int, batches: Batches) -> dict[str, Any]:
        """The line of the log after ``step``."""
        spent = time.perf_counter() - self.started
        return {"step": step, "nats": {k: round(sum(v) / len(v), 4) for k, v in sorted(self.nats.items())},
                "places_per_s": round(self.places / spent), "samples": batches.number, "dropped": batches.dropped,
                "s_per_step": round(spent / self.steps, 3), "corpus": batches.digest.hexdigest()[:16]}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="pocket")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, default=Path("pocket-work"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stop", type=int, default=0, help="stop after this step, as a kill would")
    args = parser.parse_args(arguments)
    folder = args.out / args.size
    folder.mkdir(parents=True, exist_ok=True)
    tok = make_tokenizer()
    model = make_model(args.size, tok).to(args.device)
    compute = pick_compute("auto", torch.device(args.device))
    run = Run(
        folder, tok, model, optimizers(model, args.rate), Batches(tok, SEED, args.steps, held_out()),
        settings={"steps": args.steps, "rate": args.rate},
    )  # fmt: skip
    done = run.resume(parser.error)
    tally = Tally()
    for step in range(done + 1, args.steps + 1):
        tally.add(*run.learn(step, compute))
        if step % 200 == 0 or step == args.steps:
            record = tally.record(step, run.batches)
            if step % 1000 == 0 or step == args.steps:
                record["right"] = examine(model, run.batches, compute)
            with run.log.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(json.dumps(record), flush=True)
            tally = Tally()
        if step % 250 == 0 or step in (args.stop, args.steps):
            run.save(step)
        if step == args.stop:
            return


def save(model: LlamaForCausalLM, tok: Tokenizer, folder: Path) -> None:
    """An ordinary Hugging Face folder in bfloat16."""
    weights = {name: p.detach().to("cpu", torch.bfloat16) for name, p in model.state_dict().items()}
    weights.pop("lm_head.weight", None)  # tied
    model.generation_config.eos_token_id = tok.eos_token_id
    model.generation_config.pad_token_id = tok.pad_token_id
    copy: Any = LlamaForCausalLM(model.config)
    copy.to(torch.bfloat16)
    copy.load_state_dict(weights, strict=False)
    copy.generation_config = model.generation_config
    copy.save_pretrained(folder)
    tok.save_pretrained(folder)
    note = "trained by this project for its own games, with hidden rules; it knows nothing else"
    facts = {"learning_rate": 3e-4, "note": note, "corpus": corpus.fingerprint(SEED)}
    (folder / "agentopcd.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
