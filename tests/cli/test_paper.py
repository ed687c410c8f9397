"""Recipes of the paper: a small one runs, is resumed, and says what it saw."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentopcd.cli.paper import run as paper_run
from agentopcd.cli.paper.plan import find_recipe, read
from agentopcd.cli.reproduce import reproduce as command
from agentopcd.core.errors import ConfigError
from agentopcd.core.stats import Rate
from agentopcd.core.types import EMPTY, Context
from agentopcd.envs.scan import no_progress
from agentopcd.knowledge import Store
from agentopcd.knowledge.students import student_moves
from agentopcd.workspace.experience.chains import Gathered
from agentopcd.workspace.session import Session
from recipes.paper import recompute
from tests import tiny

SMALL = """
title = "small"
[[row]]
name = "Sums (tiny)"
claims = [["opcd", "context-distillation"], ["in-context", "base"]]
[row.paper]
what = "nothing"
opcd = 12.5
[row.mini]
seeds = [0, 1]
[row.mini.settings]
env = "math"
model = "MODEL"
context = "hint.txt"
steps = 1
batch_size = 2
max_tokens = 2
select_tasks = 2
test_tasks = 6
compute = "float32"
[row.mini.arms.opcd]
[row.mini.arms.context-distillation]
method = "context-distillation"
[row.mini.probe]
env = "math"
test_tasks = 3
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = tiny.build(tmp_path / "model", tie=False, hearing=4.0)
    (tmp_path / "hint.txt").write_text("Say seven.")
    (tmp_path / "small.toml").write_text(SMALL.replace("MODEL", str(folder)))
    return tmp_path / "small.toml"


def test_a_recipe_runs_and_a_second_call_repeats_nothing(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(str(small), work=tmp_path / "work")
    said = capsys.readouterr().out
    assert "opcd" in said and " 0.125 " in said and "opcd > context-distillation: " in said
    (file,) = (tmp_path / "work" / "reproduce").glob("*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    assert file.name == "small-mini-sums-tiny.json"
    assert {arm: rate["n"] for arm, rate in found["rates"].items()} == dict.fromkeys(
        ("base", "in-context", "opcd", "context-distillation"), 12
    )
    assert {arm: rate["n"] for arm, rate in found["probe"].items()} == dict.fromkeys(
        ("base", "opcd", "context-distillation"), 6
    )
    assert [one["claim"] for one in found["findings"]] == ["opcd > context-distillation", "in-context > base"]
    for curves in found["curves"].values():
        assert set(curves) == set(paper_run.CURVES) and all(len(steps) == 1 for steps in curves.values())
    assert set(found["drift"]) == set(found["rates"]) and found["drift"]["base"]["kl_nats"] == 0
    assert all(one["tasks"] == 6 and one["n"] == 12 for one in found["findings"])
    assert all(one["verdict"] == "undecided: too few seeds" for one in found["findings"] + found["probe_findings"])
    assert found["chains"] is None and found["compute"] == "float32"
    assert set(found["outcomes"]["arms"]["opcd"]) == {"0", "1"} and len(found["outcomes"]["tasks"]) == 6
    assert len(found["probe_outcomes"]["tasks"]) == 3 and not recompute.checked(file)
    command(str(small), work=tmp_path / "work")
    again = capsys.readouterr().out
    assert again.count("already done") == 4  # two arms, two seeds
    assert json.loads(file.read_text()) == found
    with Store.open(tmp_path / "work" / "store.db") as store:
        assert not student_moves(store) and len(store.models(trained=True)) > 1


def test_a_recipe_names_its_model(small: Path) -> None:
    small.write_text("\n".join(line for line in small.read_text().splitlines() if not line.startswith("model")))
    with pytest.raises(ConfigError, match=r"'Sums \(tiny\)' names no model for 'base'; add `model`"):
        read(small, "mini")


def test_an_arm_with_placebo_is_the_placebo_student_of_its_settings(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = small.read_text().replace('"context-distillation"]', '"placebo"]').replace("Say seven.", "Say seven twice.")
    text = text[: text.index("[row.mini.arms.context-distillation]")] + "[row.mini.arms.placebo]\nplacebo = true\n"
    small.write_text(text)
    command(str(small), work=tmp_path / "work")
    (file,) = (tmp_path / "work" / "reproduce").glob("*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    assert found["rates"]["placebo"]["n"] == 12 and found["findings"][0]["claim"] == "opcd > placebo"
    said = capsys.readouterr().out
    assert said.count("consolidating context") == 4  # two students and two placebo students, each trained once
    with Store.open(tmp_path / "work" / "store.db") as store:
        marked = [json.loads(row["config"]).get("placebo", False) for row in store.runs("consolidate")]
    assert sorted(marked) == [False, False, True, True]
    assert found["curves"]["placebo"]["loss_nats"] != found["curves"]["opcd"]["loss_nats"]


def test_the_papers_report_is_marked_and_never_below_the_honest_one(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = small.read_text().replace("steps = 1\n", "steps = 4\nselect_every = 1\nlearning_rate = 1e-2\n")
    small.write_text(text[: text.index("[row.mini.probe]")])
    command(str(small), report="paper", work=tmp_path / "work")
    said = capsys.readouterr().out
    assert "the paper's report, checkpoints chosen on these test tasks (biased upward): opcd: best " in said
    (file,) = (tmp_path / "work" / "reproduce").glob("*.json")
    found = json.loads(file.read_text())
    for arm, one in found["chosen_on_test"].items():
        assert one["checkpoints"] == 4
        assert one["best"] >= found["rates"][arm]["success"] - 1e-9 and one["best"] >= one["best_three"]
    with pytest.raises(ConfigError, match="did you mean 'paper'"):
        command(str(small), report="papr", work=tmp_path)


def test_the_best_three_are_a_mean_over_seeds() -> None:
    found = paper_run._chosen([[0.1, 0.5, 0.4, 0.3], [0.9, 0.2]])
    assert (found.best, found.checkpoints) == (0.7, 4)
    assert found.best_three == pytest.approx((0.4 + 0.55) / 2)


def test_a_plan_is_printed_and_nothing_is_run(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(str(small), work=tmp_path / "work", dry_run=True)
    said = capsys.readouterr().out
    assert "2 seeds of 1 steps of 2 episodes, at most 2 replies and 4 tokens a seed; 6 test tasks; " in said
    assert " GiB in each process" in said
    assert "Sums (tiny), probe: math, 3 test tasks" in said
    assert not (tmp_path / "work" / "runs").exists()


def test_more_tasks_than_there_are_is_refused_before_anything_is_played(small: Path, tmp_path: Path) -> None:
    text = small.read_text()
    small.write_text(text.replace("test_tasks = 6", "test_tasks = 5000"))
    with pytest.raises(
        ConfigError, match=r"'Sums \(tiny\)' wants 5,000 test tasks and math has [\d,]+; give it more rows"
    ):
        command(str(small), work=tmp_path / "work")
    assert not (tmp_path / "work" / "reproduce").exists()


def test_a_recipe_without_rows_at_a_size_says_at_which_it_has_some(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="table6 has no row at size mini; its rows are at size full"):
        command("table6", work=tmp_path)


def test_test_tasks_may_be_played_otherwise_than_training_tasks(small: Path) -> None:
    small.write_text(small.read_text().replace("[row.mini.probe]", "[row.mini.playing]\ntop_p = 0.8\n[row.mini.probe]"))
    (plan,) = read(small, "mini")[1]
    assert plan.tested(1).top_p == 0.8 and plan.config("opcd", 1).top_p == plan.config("base", 1).top_p == 1
    small.write_text(small.read_text().replace("top_p = 0.8", "top_q = 0.8"))
    with pytest.raises(ConfigError, match="did you mean 'top_p'"):
        read(small, "mini")
    small.write_text(small.read_text().replace("top_q = 0.8", "test_tasks = 5"))
    with pytest.raises(ConfigError, match="has 'test_tasks' in playing; wanted a setting of play, such as top_p"):
        read(small, "mini")


def test_the_row_s_settings_of_its_environment_are_not_the_probe_s(small: Path) -> None:
    text = small.read_text()
    row, probe = text[: (start := text.index("[row.mini.probe]"))], text[start:]
    small.write_text(row.replace('env = "math"', 'env = "math"\nenv_args = { level = 2 }') + probe)
    (plan,) = read(small, "mini")[1]
    assert plan.config("base", 0).env_args == {"level": 2} and plan.probing(0).env_args == {}


def test_what_is_wrong_is_said(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'table2'"):
        find_recipe("tabel2")
    with pytest.raises(ConfigError, match="'mini'"):
        read(small, "mimi")
    with pytest.raises(ConfigError, match="no row of small at size mini"):
        command(str(small), row="chess", work=tmp_path)
    text = small.read_text()
    for old, new, says in (
        ("steps = 1", "stepz = 1", "did you mean 'steps'"),
        ('["opcd", "context-distillation"]', '["opcp", "base"]', "did you mean 'opcd'"),
        ('title = "small"', "", "title"),
    ):
        small.write_text(text.replace(old, new, 1))
        with pytest.raises(ConfigError, match=says):
            read(small, "mini")


def test_no_context_stands_in_for_another(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(OWN.replace('"step 1"', '"step 3"'))
    with pytest.raises(ConfigError, match="wants step 3 of chains that have 2; raise chain_steps"):
        read(file, "mini")
    for seeds in ("[0, 1, 2]", "[0, 2]"):
        file.write_text(OWN.replace("seeds = [0, 1]", f"seeds = {seeds}"))
        with pytest.raises(ConfigError, match=f"seeds {re.escape(seeds)} and 2 chains"):
            read(file, "mini")
    file.write_text(OWN)
    assert len(read(file, "mini")[1]) == 1


OWN = """
title = "own"
[[row]]
name = "Notes"
claims = [["filtered", "base"], ["opcd", "filtered"]]
[row.mini]
seeds = [0, 1]
[row.mini.settings]
env = "sokoban"
model = "pocket"
context = "random"
steps = 1
batch_size = 1
max_tokens = 40
select_tasks = 8
test_tasks = 1
[row.mini.experience]
episodes_per_round = 2
chains = 2
chain_steps = 2
candidates = 4
extract_tokens = 64
[row.mini.shown]
filtered = "best"
test-time = "random"
"raw traces" = "traces"
"1 episode" = "step 1"
[row.mini.arms.opcd]
[row.mini.arms.replay]
method = "prefix-replay"
[row.mini.arms.mixture]
context = ""
mix = 1
force = true
"""


@pytest.mark.slow  # pocket plays: pytest -m slow tests/cli/test_paper.py
def test_a_row_gathers_its_own_experience_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.toml"
    file.write_text(OWN)
    command(str(file), work=tmp_path / "work")
    capsys.readouterr()
    (plan,) = read(file, "mini")[1]
    found = paper_run.gathered(plan, tmp_path / "work", say=print, progress=no_progress)
    assert len(found.chains) == 2 and all(len(chain) == 3 for chain in found.chains)
    assert found.context("random", 0) == found.chains[0][-1] and found.context("random", 1) == found.chains[1][-1]
    assert found.context("random", 2) == found.context("random", 0)
    assert found.context("step 1", 1) == found.chains[1][1]
    assert found.best in {step for chain in found.chains for step in chain}
    with Store.open(tmp_path / "work" / "store.db") as store:
        played = {seed: set() for seed in plan.seeds}
        for row in store.episodes(env="sokoban", split="test"):
            seed = json.loads(store.run(row["run_id"])["config"])["seed"]
            played[seed].add(row["context_id"])
        distilled = [next(iter(store.model_contexts(row["id"]))) for row in store.models(trained=True)]
        assert found.traces not in store.refs().values() and "[" in store.get_context(found.traces).text
        replayed = store.episodes(env="sokoban", split="train")
        assert len(replayed) == 4 and {row["context_id"] for row in replayed} == {EMPTY.id}  # two for each seed
        runs = len(store.table("run", "id"))
    for seed, contexts in played.items():
        wanted = {EMPTY.id, found.traces, *(found.context(kind, seed) for kind in ("best", "random", "step 1"))}
        assert contexts == wanted
    result: dict[str, Any] = json.loads(next((tmp_path / "work" / "reproduce").glob("*.json")).read_text())
    assert result["chains"] == 2 and result["contexts"]["test-time"] == {
        "0": found.chains[0][-1],
        "1": found.chains[1][-1],
    }
    assert set(distilled) == {found.context("random", 0), found.context("random", 1), found.best}  # best: the mixture
    with Store.open(tmp_path / "work" / "store.db") as store:
        assert len(store.table("run", "id")) == runs  # it was read back


def test_a_kind_of_context_wants_an_experience(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    before, _, after = OWN.partition("[row.mini.experience]")
    file.write_text(before + after[after.index("[row.mini.shown]") :])
    with pytest.raises(ConfigError, match="gathers no experience"):
        read(file, "mini")


def test_an_empty_chain_is_told_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both chains are drawn, by another seed each; the second of them has read no item."""
    file = tmp_path / "own.toml"
    file.write_text(OWN)
    (plan,) = read(file, "mini")[1]
    notes, asked = Context("- Push boxes."), []

    def gather(session: Session, config: Any, *, run_id: int) -> Gathered:
        asked.append(run_id)
        session.store.add_context(notes)
        return Gathered(run_id=run_id, rate=Rate(1, 2), items=[], flagged=0, unparsed=0, candidates=[notes])

    def traces(session: Session, budget: int, placement: str, run_id: int) -> Context:
        asked.append(run_id)
        return notes

    ranking = SimpleNamespace(best=SimpleNamespace(context_id=notes.id))
    monkeypatch.setattr(paper_run, "gather", gather)
    monkeypatch.setattr(paper_run, "raw_traces", traces)
    monkeypatch.setattr(paper_run, "choose", lambda *_, **__: (ranking, None))
    for chains in ([[EMPTY.id, notes.id], [EMPTY.id, EMPTY.id]], [[EMPTY.id, EMPTY.id], [EMPTY.id, notes.id]]):
        monkeypatch.setattr(paper_run, "chains_of", lambda *_, chains=chains: chains)
        with pytest.raises(ConfigError, match=r"'Notes': the context 'random' of 'opcd' with seed \d is empty: "):
            paper_run.gathered(plan, tmp_path / "work", say=print, progress=no_progress)
    monkeypatch.setattr(paper_run, "chains_of", lambda *_: [[EMPTY.id, notes.id]] * 2)
    assert paper_run.gathered(plan, tmp_path / "work", say=print, progress=no_progress).traces == notes.id
    assert len(set(asked)) == 1  # the raw traces are those of the row's own play


def test_curves_go_on_where_one_seed_stopped_early(tmp_path: Path) -> None:
    files = []
    for seed, losses in enumerate(([0.4, 0.2, 0.1], [0.6])):
        files.append(tmp_path / f"{seed}.jsonl")
        steps = [{"step": step, "loss/value_nats": loss} for step, loss in enumerate([9.0, *losses])]
        files[-1].write_text("".join(json.dumps(step) + "\n" for step in steps))
    assert paper_run._curves(files) == {"loss_nats": [0.5, 0.2, 0.1]}


def test_a_result_of_another_recipe_is_not_written_over(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "work" / "reproduce" / "small-mini-sums-tiny.json"
    out.parent.mkdir(parents=True)
    for title, row in (("Another", "Sums (tiny)"), ("small", "Sums tiny")):
        out.write_text(json.dumps({"title": title, "row": row}))
        with pytest.raises(ConfigError, match="holds the result of another recipe"):
            command(str(small), work=tmp_path / "work", dry_run=True)
    out.write_text(json.dumps({"title": "small", "row": "Sums (tiny)"}))
    command(str(small), work=tmp_path / "work", dry_run=True)
