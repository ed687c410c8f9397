"""The recipes of the paper as they are shipped: all can be read, at full size too, and what a row may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, LlamaConfig, Qwen2Config, Qwen3Config

from agentopcd.cli.paper.plan import RECIPES as RECIPES_FOLDER
from agentopcd.cli.paper.plan import of_experience, read
from agentopcd.cli.paper.verdicts import FEWEST_CHAINS, FEWEST_SEEDS
from agentopcd.cli.reproduce import reproduce as command
from agentopcd.core.errors import ConfigError
from agentopcd.distillation import memory

RECIPES = sorted(RECIPES_FOLDER.glob("*.toml"))


@pytest.mark.parametrize("size", ["mini", "full"])
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_can_be_read(file: Path, size: str) -> None:
    title, plans = read(file, size)
    assert title and (plans or (file.stem, size) == ("table6", "mini"))
    for plan in plans:
        assert plan.claims and (plan.arms or len(plan.shown) > 1) and len(plan.seeds) >= FEWEST_SEEDS
        assert plan.chains is None or plan.chains >= FEWEST_CHAINS
        assert set(plan.paper) - {"what"} <= {*plan.arms, *plan.untrained}
        for arm in (*plan.shown, *plan.arms):
            config = plan.config(arm, 1)
            assert config.seed == 1 and config.test_tasks >= 256
            known = of_experience(config.context) or Path(config.context).is_file() or config.mix
            assert size == "full" or known


@pytest.mark.parametrize("claims", ['"opcd"', '["opcd"]', '[["opcd"]]', '[["a", "b", "c"]]', "7", "{a = 1}"])
def test_claims_that_are_no_pairs_are_refused_in_one_line(claims: str, tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text(f'title = "t"\n[[row]]\nname = "r"\nclaims = {claims}\n[row.mini.settings]\nenv = "math"\n')
    with pytest.raises(ConfigError, match=r"'r' has the claims .*; wanted pairs of arms"):
        read(file, "mini")


ROW = """
title = "t"
[defaults]
[[row]]
name = "r"
claims = []
[row.paper]
[row.mini]
seeds = [0, 1]
[row.mini.settings]
env = "math"
model = "pocket"
[row.mini.shown]
in-context = "x"
[row.mini.arms.opcd]
[row.mini.probe]
env = "math"
"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("seeds = [0, 1]", "seed = [0, 1]", "the row 'r' of the recipe .* has 'seed'; did you mean 'seeds'"),
        ("[row.paper]", "[row.papers]", "has 'papers'; did you mean 'paper'"),
        ("[defaults]", "[defaults]\nclaim = []", "defaults of the recipe .* has 'claim'; did you mean 'claims'"),
        ("[row.paper]", "[row.full]\nnotes = 'x'\n[row.paper]", "has 'notes'; did you mean 'note'"),
        ("arms.opcd", "arms.base", "'r' has more than one arm 'base'"),
        ("arms.opcd", "arms.in-context", "'r' has more than one arm 'in-context'"),
        ("in-context =", "base =", "'r' has more than one arm 'base'"),
        ('name = "r"', "name = 3", "has 3 as name; wanted a text"),
        ('name = "r"\n', "", "a row without a name has no name; add name = "),
        ("[row.mini.arms.opcd]", "", r"'r' has no arms; add \[row.arms.NAME\]; without training, arms = {}"),
        ("[row.mini.arms.opcd]", "[row.mini.arms]\nopcd = 3", "has 3 as arm 'opcd'; wanted a table"),
        ("settings", "playing", r"'r' has no settings; add \[row.settings\]"),
        ('settings]\nenv = "math"', "settings]", "'r' names no environment; add `env` to its settings"),
        ('probe]\nenv = "math"', "probe]\ntest_tasks = 3", "'r' has a probe without an environment"),
        ("[row.mini.probe]", "[row.mini.probe]\nstepz = 1", "'stepz'"),
        ("[row.paper]", '[row.paper]\nbase = "6.3"', "'r' has '6.3' for 'base' of the paper; wanted a number"),
        ("[row.paper]", "[row.paper]\nwhat = 6.3", "'r' has 6.3 for 'what' of the paper; wanted a text"),
        ("[row.paper]\n", "paper = 5\n", "'r' has 5 as paper; wanted a table"),
        ('in-context = "x"', "in-context = 1", "'r' has 1 shown in 'in-context'"),
        ("seeds = [0, 1]", "seeds = [0, -1]", "seed must be 0 or more"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "wanted each once"),
        ("[[row]]", "[row]", r"has no list of rows; each row begins with \[\[row\]\]"),
        ('title = "t"', "", "has no title; add `title"),
        ('name = "r"', 'name = "\u4e00"', "has no letter a-z and no digit for a file name"),
    ],
)
def test_a_wrong_row_is_refused_in_one_line(old: str, new: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text(ROW)
    assert len(read(file, "mini")[1]) == 1
    assert old in ROW
    file.write_text(ROW.replace(old, new))
    with pytest.raises(ConfigError, match=says) as raised:
        read(file, "mini")
    assert "\n" not in str(raised.value) and "Error(" not in str(raised.value)


def test_two_rows_of_one_file_name_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    second = ROW.partition("[[row]]")[2].replace('"r"', '"R!"')
    file.write_text(f"{ROW}[[row]]{second}")
    with pytest.raises(ConfigError, match="the rows 'r' and 'R!' would write one file; rename one"):
        read(file, "mini")


def test_a_row_starts_from_the_defaults_and_wins_over_them(tmp_path: Path) -> None:
    whole = """
    title = "t"
    [defaults]
    seeds = [0, 1]
    claims = [["opcd", "base"]]
    [defaults.settings]
    env = "math"
    model = "pocket"
    steps = 2
    [defaults.arms.opcd]
    [defaults.full.settings]
    steps = 9
    batch_size = 8
    [defaults.full.arms.seqkd]
    method = "seqkd"
    [[row]]
    name = "both"
    note = "a note"
    [row.settings]
    steps = 3
    [row.mini]
    [row.full.settings]
    batch_size = 7
    [[row]]
    name = "small"
    seeds = [5]
    [row.mini]
    [row.mini.arms.opcd]
    support = 4
    """
    file = tmp_path / "t.toml"
    file.write_text(whole)
    (both, small), (large,) = read(file, "mini")[1], read(file, "full")[1]
    assert (
        both.settings == {"env": "math", "model": "pocket", "steps": 3}
        and both.arms == {"opcd": {}}
        and both.note == "a note"
    )
    assert small.settings == {"env": "math", "model": "pocket", "steps": 2} and small.arms == {"opcd": {"support": 4}}
    assert large.settings == {"env": "math", "model": "pocket", "steps": 3, "batch_size": 7}
    assert large.arms == {"opcd": {}, "seqkd": {"method": "seqkd"}} and large.claims == [("opcd", "base")]
    assert (both.seeds, small.seeds, large.seeds) == ([0, 1], [5], [0, 1])
    file.write_text(whole.replace("[defaults]", "[default]", 1).replace("[defaults.", "[default."))
    with pytest.raises(ConfigError, match="did you mean 'defaults'"):
        read(file, "mini")
    file.write_text("defaults = 3\n" + whole.partition("[defaults]")[0] + "[[row]]\nname = 'x'\n[row.mini]\n")
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        read(file, "mini")


@pytest.mark.slow
def test_every_full_recipe_passes_a_dry_run_once_its_data_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hub ids are answered with small configs of their architecture; the data rows are in the published columns."""

    def config_of(name: str, **_: Any) -> Any:
        kind = Qwen3Config if "Qwen3" in name else Qwen2Config if "Qwen2" in name else LlamaConfig
        return kind(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=512,
        )  # fmt: skip

    monkeypatch.setattr(AutoConfig, "from_pretrained", config_of)
    medical = {f"op{letter}": letter for letter in "abcd"}
    rows = {
        "medmcqa": [{"question": f"Which of {i}?", "cop": i % 4} | medical for i in range(5000)],
        "tweet_eval": [{"text": f"text {i}", "label": str(i % 2)} for i in range(3000)],
        "hatecheck": [{"test_case": f"case {i}", "label_gold": "hateful"} for i in range(1500)],
        "ethos": [{"comment": f"comment {i}", "isHate": "0.2"} for i in range(500)],
        "dapo": [
            {"prompt": [{"role": "user", "content": f"What is {i} + 1?"}], "reward_model": {"ground_truth": str(i + 1)}}
            for i in range(5000)
        ],
        "ifeval": [{"key": 1, "prompt": "No comma.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}],
    }
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="rows cannot run yet"):
        command("system-prompts", size="full", dry_run=True, work=tmp_path / "before")
    assert "no file 'data/medmcqa.jsonl' with questions" in capsys.readouterr().out
    (tmp_path / "data").mkdir()
    for name, found in rows.items():
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, found)) + "\n")
    for name in ("medical", "safety"):
        (tmp_path / "data" / f"{name}.txt").write_text("Answer as you should.\n")
    dapo = tmp_path / "data" / "dapo.jsonl"
    whole = dapo.read_text()
    dapo.write_text("".join(whole.splitlines(keepends=True)[:1100]))
    with pytest.raises(ConfigError, match="1 of 1 rows cannot run yet"):
        command("table6", size="full", dry_run=True, work=tmp_path / "few")
    assert "'Maths, Qwen3-8B' wants 1,000 test tasks and dapo.jsonl has 286; give it more" in capsys.readouterr().out
    dapo.write_text(whole)
    for file in RECIPES:
        command(file.stem, size="full", dry_run=True, work=tmp_path / "after")
        said = capsys.readouterr().out
        arms = sum(len(plan.arms) for plan in read(file, "full")[1])
        assert said.count(" GiB in each process") == said.count(" h a seed") == arms
        assert said.count("without training: base, ") == len(read(file, "full")[1])
        assert said.count("after 300 games on train tasks") == (2 if file.stem == "oel" else 0)
        assert ("not as in the paper's code: " in said) == any(plan.departures for plan in read(file, "full")[1])


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_asked_once_for_each_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def config_of(name: str, **_: Any) -> Any:
        asked.append(name)
        raise OSError("no connection\nand more")

    monkeypatch.setattr(AutoConfig, "from_pretrained", config_of)
    memory._from_hub.cache_clear()
    try:
        command("person", size="full", dry_run=True, work=tmp_path)
    finally:
        memory._from_hub.cache_clear()
    assert asked == ["Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B-Instruct-2507"]
    said = capsys.readouterr().out
    assert said.count("not estimated: cannot read the config of 'Qwen/Qwen3-1.7B': no connection\n") == 4


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_full_size_follows_the_paper_s_code_where_it_can(file: Path) -> None:
    for plan in read(file, "full")[1]:
        if file.stem in ("directions", "divergences", "oel", "placebo", "turn-items"):  # not of the paper's code
            continue
        assert plan.tested(0).top_k == 20 and plan.tested(0).top_p < 1 == plan.config("base", 0).top_p
        assert plan.departures
        if "context-distillation" in plan.arms:
            assert plan.config("context-distillation", 0).answers == "fresh"
        if plan.experience is not None:
            assert plan.gathering().extract_tokens >= 8192
        if plan.probe.get("env") == "ifeval":
            assert plan.probe["template_args"] == {"enable_thinking": False} and plan.probe["max_tokens"] == 1280
        if "dapo" in plan.settings["env"]:
            assert plan.config("base", 0).test_tasks == plan.gathering().select_tasks == 1000
