"""The last lines of a command can be copied: they quote, and carry every setting that matters, and the workspace."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd import models
from agentopcd.cli import closing
from agentopcd.cli.options import Call
from agentopcd.core.config import (
    ConsolidateConfig,
    EvaluateConfig,
    ForecastConfig,
    LearnConfig,
    PlayConfig,
    ScoreConfig,
    flags_for,
)
from agentopcd.core.runs import write_json
from agentopcd.core.stats import Comparison, Mean, compare
from agentopcd.distil import Distilled
from agentopcd.learn import Round
from agentopcd.models import find
from agentopcd.workspace.evaluation.spoken import Distances
from agentopcd.workspace.evaluation.table import Evaluation
from tests import tiny
from tests.cli.test_status import settings_of

PLAYER: dict[str, Any] = {
    "env": "./my rows.jsonl", "env_args": {"level": 2, "say": "it's"}, "grader": "g.py:grade", "model": "a/b",
    "seed": 3,
}  # fmt: skip
WORK = Path("my work")


class Heard(Call):
    """A call whose lines are kept."""

    def say(self, line: str) -> None:
        HEARD.append(line)


HEARD: list[str] = []


@pytest.fixture
def call() -> Call:
    HEARD.clear()
    return Heard(WORK, False, False)


def last() -> Any:
    """The settings of the command in the last line, which must name the workspace."""
    assert HEARD[-1].startswith("next: agentopcd ") and HEARD[-1].endswith("--work 'my work'")
    return settings_of(HEARD[-1].removeprefix("next: "))


def test_what_two_verbs_share_is_kept() -> None:
    config = ScoreConfig(**PLAYER, by="reward", select_tasks=8, pool="p/", method="uniform", confirm=False)
    flags = flags_for(config, ConsolidateConfig)
    assert settings_of(f"agentopcd consolidate {flags}") == ConsolidateConfig(**PLAYER, by="reward", select_tasks=8)


@pytest.mark.parametrize(
    ("verdict", "words", "more"),
    [
        ("pass", "consolidate", {}), ("overtaken", "consolidate", {"context": "abcd"}),
        ("incumbent stays", "consolidate", {"context": "abcd"}), ("not better", "play", {}),
    ],
)  # fmt: skip
def test_after_the_gate(verdict: str, words: str, more: dict[str, Any], call: Call) -> None:
    class Outcome:
        passed, overtaken, ref = verdict in ("pass", "overtaken"), verdict == "overtaken", "x/best"

    Outcome.verdict = verdict  # type: ignore[attr-defined]
    closing.after_gate(call, ScoreConfig(**PLAYER), "abcd", Outcome())  # type: ignore[arg-type]
    kind = ConsolidateConfig if words == "consolidate" else PlayConfig
    assert last() == kind(**PLAYER, **more)


@pytest.mark.parametrize(
    ("given", "note"),
    [
        ({"temperature": 0.0}, "is without --temperature 0.0"),
        ({"top_p": 0.9, "top_k": 4}, "is without --top-p 0.9 and --top-k 4"),
        ({"engine": "api", "server": "http://localhost:1"}, "a/b behind an API has no weights here"),
    ],
)
def test_what_a_training_cannot_take_over_is_left_out_and_told(given: dict[str, Any], note: str, call: Call) -> None:
    class Passed:
        passed, overtaken = True, False

    model = "MODEL" if "engine" in given else PLAYER["model"]
    named: dict[str, Any] = PLAYER | {"model": model}
    score, wanted = ScoreConfig(**PLAYER, **given), ConsolidateConfig(**named)
    closing.after_gate(call, score, "abcd", Passed())  # type: ignore[arg-type]
    assert note in HEARD[-2] and last() == wanted
    if "engine" in given:
        return
    closing.after_forecast(call, ForecastConfig(**PLAYER, **given), "abcd", "train")
    assert note in HEARD[-2] and last() == dataclasses.replace(wanted, context="abcd")
    closing.after_evaluation(call, EvaluateConfig(**PLAYER, **given), evaluation(places(20), places(1)))
    assert note in HEARD[-2] and last() == LearnConfig(**PLAYER)


def test_after_a_ranking_alone_the_winner_is_to_be_confirmed(call: Call) -> None:
    closing.after_gate(call, ScoreConfig(**PLAYER), "abcd" * 16, None)
    assert last().context == "abcd" * 3 and last().grader == "g.py:grade"


@pytest.mark.parametrize(
    ("waiting", "candidates", "graded", "said"),
    [
        (0, 4, True, "next: agentopcd knowledge score --env"),
        (2, 0, True, "next: agentopcd knowledge list items --status pending --work 'my work'"),
        (2, 4, True, "next: agentopcd knowledge score --env"),
        (0, 0, True, "next: agentopcd knowledge list episodes --work 'my work'"),
        (0, 4, False, "next: agentopcd consolidate --context FILE --env"),
    ],
)
def test_after_play(waiting: int, candidates: int, graded: bool, said: str, call: Call) -> None:
    closing.after_play(
        call, PlayConfig(**PLAYER), waiting=waiting, candidates=candidates, items=waiting or candidates, graded=graded
    )
    assert HEARD[-1].startswith(said)
    assert any("2 items wait for a person" in line for line in HEARD) == (waiting == 2)


def test_after_a_forecast_where_nothing_is_graded_another_text_is_tried(call: Call) -> None:
    closing.after_forecast(call, ForecastConfig(**PLAYER), "abcd", "do not", graded=False)
    assert HEARD[-1].startswith("next: agentopcd forecast --context FILE --env")


def evaluation(student: dict[str, bool], base: dict[str, bool]) -> Evaluation:
    found = compare(student, base, {key: key for key in student})
    return Evaluation(
        env="e", split="test", rows=[], comparisons={"student - base": found}, floors=None, overlap=(0, 0.0),
        protocol="disjoint", recovered=None, notes=[], graded=True, seen=(0, []), header=["student: s 1234"],
    )  # fmt: skip


def places(wins: int) -> dict[str, bool]:
    return {str(number): number < wins for number in range(20)}


@pytest.mark.parametrize(("wins", "word"), [(20, "better"), (10, "no difference"), (0, "worse")])
def test_the_verdict_is_a_word_with_its_evidence(wins: int, word: str) -> None:
    table = evaluation(places(wins), places(10))
    found = table.comparisons["student - base"]
    assert isinstance(found, Comparison)
    assert closing.verdict(table) == (
        f"verdict: {word}, the student against its base on test tasks: {found.difference}"
    )


def test_the_verdict_where_nothing_is_graded() -> None:
    table = dataclasses.replace(evaluation(places(1), places(1)), graded=False)
    assert closing.verdict(table) == ""
    closed = Distances(rows={}, closed=Mean(0.5, 0.4, 0.6, 9))
    assert closing.verdict(dataclasses.replace(table, distances=closed)).startswith(
        "verdict: closer, the student closed"
    )


def distilled(folder: Path) -> Distilled:
    return Distilled(
        folder=str(folder), model_id="m", parent_id="p", teacher_id="p", context_id="c", best_step=2, steps=4,
        skipped=0, evaluation=evaluation(places(20), places(10)),
    )  # fmt: skip


def test_after_training_the_student_can_be_used(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "a student"
    folder.mkdir()
    closing.after_training(call, ConsolidateConfig(**PLAYER, test_tasks=9), distilled(folder))
    assert HEARD[0] == "student: s 1234"
    assert f"load it: from transformers import pipeline; chat = pipeline('text-generation', '{folder}')" in HEARD
    assert f"serve it: agentopcd serve --model '{folder}'" in HEARD
    assert f"with vLLM: vllm serve '{folder}'" in HEARD
    assert last() == EvaluateConfig(**PLAYER, test_tasks=9)
    closing.after_training(call, ConsolidateConfig(**PLAYER, test_tasks=0), distilled(folder))
    assert last() == EvaluateConfig(**PLAYER), "which needs test tasks"
    renamed: dict[str, Any] = PLAYER | {"model": "lake/student"}
    closing.after_training(call, ConsolidateConfig(**renamed), distilled(folder))
    assert last().model == "", "what was lake/student is its parent now, which evaluate finds"
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "own/base"}))
    line = f"with vLLM: vllm serve own/base --enable-lora --lora-modules {shlex.quote(f'student={folder}')}"
    loading, _, serving = closing.use(folder)
    assert serving == line
    assert loading.endswith("# fetches own/base from the hub; with --merge a student needs nothing else")


@pytest.mark.parametrize(("rank", "most"), [(8, 0), (16, 0), (17, 32), (64, 64), (100, 128)])
def test_vllm_is_told_of_a_rank_that_it_does_not_expect(rank: int, most: int, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "own/base", "r": rank}))
    wanted = f" --max-lora-rank {most}" if most else ""
    assert f"with vLLM: vllm serve own/base --enable-lora{wanted} --lora-modules" in closing.use(tmp_path)[2]


def test_an_adapter_is_loaded_with_the_base_that_it_carries(tmp_path: Path) -> None:
    from peft import PeftModel

    loaded, student = models.load_model(str(tiny.build(tmp_path / "base"))), tmp_path / "student"
    models.add_adapter(loaded, 2, torch.float32, 0)
    models.save_model(loaded, student, parent_id=loaded.id, facts={})
    shutil.move(tmp_path / "base", student / find.CARRIED)
    write_json(student / find.ADAPTER, find.read_json(student / find.ADAPTER) | {"base_model_name_or_path": None})
    loading, _, serving = closing.use(student)
    assert f"vllm serve {student / find.CARRIED} --enable-lora --lora-modules student={student}" in serving
    names: dict[str, Any] = {}
    exec(loading.removeprefix("load it: "), names)
    assert isinstance(names["model"], PeftModel)


@pytest.mark.parametrize("base", ["first", None])
def test_an_adapter_that_others_cannot_load_says_so(base: str | None, tmp_path: Path) -> None:
    """PEFT would leave the first of two adapters out, and the base from a .gguf file has no name."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / find.ADAPTER).write_text("{}")
    named = base and str(tmp_path / base)
    (tmp_path / find.ADAPTER).write_text(json.dumps({"base_model_name_or_path": named, "r": 2}))
    for line in closing.use(tmp_path)[::2]:
        assert "pipeline" not in line and "vllm serve" not in line
        assert line.endswith("with --merge a student needs nothing else")


def test_after_rounds(call: Call, tmp_path: Path) -> None:
    config = LearnConfig(**PLAYER, rounds=2, chains=3)
    none = Round(number=1, model="/models/first", played={}, confirmed=False, distilled=None)
    closing.after_rounds(call, config, [none])
    assert HEARD[0] == "round 1: nothing confirmed" and "verdict: nothing confirmed, so there is no student" in HEARD[1]
    more = dataclasses.replace(config, chains=6, episodes_per_round=128, candidates=64)
    assert last() == more
    closing.after_rounds(call, dataclasses.replace(config, show_earlier=True, clip_norm=2.0), [none])
    assert HEARD[-2].endswith("have no flag; add --config FILE with clip_norm = 2.0, show_earlier = true")
    two = Round(number=2, model="x", played={}, confirmed=True, distilled=distilled(tmp_path / "s"))
    wanted: dict[str, Any] = PLAYER | {"model": "/models/first"}
    for model in ("", "lake/student"):  # the latter is another student by then
        HEARD.clear()
        closing.after_rounds(call, dataclasses.replace(config, model=model), [none, two])
        assert f"from the base /models/first to the student {tmp_path / 's'}; both on the same test tasks:" in HEARD
        assert last() == EvaluateConfig(**wanted, student=str(tmp_path / "s"))


def test_after_rounds_whose_student_was_taken_back(call: Call, tmp_path: Path) -> None:
    gone = dataclasses.replace(distilled(tmp_path / "s"), taken_back="math")
    one = Round(number=1, model="x", played={}, confirmed=True, distilled=gone)
    assert one.player == "x"
    closing.after_rounds(call, LearnConfig(**PLAYER), [one])
    assert HEARD[0] == "round 1: consolidated, promoted, taken back since"
    assert "  agentopcd rollback math --to m --work 'my work'" in HEARD
    assert (
        "verdict: no student that passed its gate plays any more, so the model that began plays on; to see why:"
        in HEARD
    )


def test_after_an_evaluation(call: Call) -> None:
    closing.after_evaluation(call, EvaluateConfig(**PLAYER, test_tasks=9), evaluation(places(20), places(1)))
    assert HEARD[0].startswith("verdict: better") and last() == LearnConfig(**PLAYER, test_tasks=9)
    table = dataclasses.replace(evaluation(places(1), places(1)), graded=False)
    closing.after_evaluation(call, EvaluateConfig(**PLAYER), table)
    assert HEARD[-1] == "next: agentopcd status --work 'my work'"
