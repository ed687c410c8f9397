"""The benchmark of play: what it counts as CPU time, and which engine its arms are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.core.types import Request, Sampling
from agentopcd.rollouts.sampling import decoding, vllm_engine
from agentopcd.rollouts.sampling.continuous import Continuous
from agentopcd.rollouts.sampling.rows import Rows
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from benchmarks import rollout
from benchmarks.rollout_scene import Scene, jobs_of, player_of

BUSY = "import time\nwhile time.process_time() < 0.5: pass"


def test_the_cpu_time_of_processes_that_play_counts() -> None:
    def do() -> int:
        return subprocess.run([sys.executable, "-c", BUSY], check=True).returncode + 7

    tokens, spent = rollout.timed(do)
    assert tokens == 7 and spent >= 0.5


def refuse(*args: object, **kwargs: object) -> None:
    raise AssertionError("this is ours")


@pytest.mark.parametrize(("where", "name"), [(Rows, "__init__"), (decoding, "packed_linears")])
def test_the_padded_arm_is_not_our_engine(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str
) -> None:
    monkeypatch.setattr(where, name, refuse)
    padded = rollout.Padded(models.load_model(str(tiny_model_dir)), compute=torch.float32)
    replies = padded.sample(
        [Request(prompt_ids=(5, 6), seed=1), Request(prompt_ids=(7,), seed=2)], Sampling(max_tokens=3)
    )
    assert all(1 <= len(reply.token_ids) <= 3 for reply in replies)


def scene_of(folder: Path) -> Scene:
    return Scene(str(folder), "math", 2, 4)


def test_what_the_engine_reads_to_choose_its_way_is_not_counted(tiny_model_dir: Path) -> None:
    scene, loaded = scene_of(tiny_model_dir), models.load_model(str(tiny_model_dir))
    player, jobs = player_of(scene, loaded, torch.float32), jobs_of(scene, loaded, scene.games)
    read, asked, _ = rollout.counted(player, jobs)
    assert (read, len(asked)) == (rollout.counted(player, jobs)[0], 2)


class Engine(TransformersSampler):
    """Stands in for vLLM's."""

    forgot = 0

    def _forget_prefixes(self) -> None:
        self.forgot += 1


def test_the_vllm_arm_has_as_many_sequences_as_ours_and_no_cached_prefixes(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[Engine] = []

    def engine(*args: Any, **kwargs: Any) -> Engine:
        engines.append(Engine(*args, **kwargs))
        return engines[-1]

    monkeypatch.setattr(vllm_engine, "VllmSampler", engine)
    scene, loaded = scene_of(tiny_model_dir), models.load_model(str(tiny_model_dir))
    player, jobs = player_of(scene, loaded, torch.float32), jobs_of(scene, loaded, scene.games)
    arms = rollout.vllm_arms(player, loaded, torch.float32, jobs, [], scene.max_tokens)
    for times in (1, 2):
        assert arms["vllm"]() > 0 and engines[0].forgot == times
    assert isinstance(player.sampler, TransformersSampler) and engines[0].batch_size == player.sampler.rows


def test_the_engine_alone_answers_all_that_play_asks(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, loaded = scene_of(tiny_model_dir), models.load_model(str(tiny_model_dir))
    player, jobs = player_of(scene, loaded, torch.float32), jobs_of(scene, loaded, scene.games)
    _, asked, _ = rollout.counted(player, jobs)
    began: list[int] = []
    usual = Continuous.__init__

    def note(self: Continuous, *args: Any, **kwargs: Any) -> None:
        began.append(args[2])
        usual(self, *args, **kwargs)

    monkeypatch.setattr(Continuous, "__init__", note)
    assert rollout.all_at_once(player, asked) == rollout.play(player, jobs)
    assert isinstance(player.sampler, TransformersSampler)
    assert began == [player.sampler.rows] * 2  # each with nothing read before


def test_vllm_alone_is_asked_for_the_replies_that_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    given: list[Any] = []

    def generate(prompts: Any, params: list[Any], use_tqdm: bool) -> list[Any]:
        given.extend(params)
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[1, 2])]) for _ in prompts]

    fast = SimpleNamespace(_llm=SimpleNamespace(generate=generate), loaded=SimpleNamespace(end_ids=(0,)))
    asked = [Request(prompt_ids=(5,), seed=1, choices=((1, 0), (2, 0))), Request(prompt_ids=(6,), seed=2)]
    assert rollout.bare(fast, asked, 4) == 4
    assert [one.extra_args for one in given] == [{"agentopcd_choices": ((1, 0), (2, 0))}, None]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--old", "/nope"], "--old /nope: no checkout"),
        (["--vllm"], "vLLM is not installed"),
        (["--repeats", "0"], "--repeats must be at least 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_played(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vllm_engine, "installed", lambda: False)
    monkeypatch.setattr(rollout, "run", refuse)
    monkeypatch.setattr(sys, "argv", ["rollout", *words])
    with pytest.raises(SystemExit):
        rollout.main()
    assert said in capsys.readouterr().err


def test_the_output_head_counts_only_where_a_token_is_asked_for(tiny_model_dir: Path) -> None:
    model = models.load_model(str(tiny_model_dir)).model
    head = model.get_output_embeddings().weight.numel()
    assert rollout.products_flop(model, 0, 3) == (0, 6 * head)
    body, none = rollout.products_flop(model, 5, 0)
    assert none == 0 < body <= 10 * sum(p.numel() for p in model.parameters()) - 10 * head
