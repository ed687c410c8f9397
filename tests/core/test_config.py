"""Settings: defaults, then the file, then the flags; what cannot be right fails before anything is loaded."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import typer

from agentopcd.cli.config import show
from agentopcd.cli.options import Call, configured, parse_env_args
from agentopcd.core.config import (
    VERBS,
    ConfirmConfig,
    ConsolidateConfig,
    EvaluateConfig,
    LearnConfig,
    PlayConfig,
    PlayerConfig,
    ScoreConfig,
    ServeConfig,
    choices,
    field_docs,
    flag_of,
    has_flag,
    panels,
    pick,
    player_flags,
)
from agentopcd.core.config.flags import FILE_ONLY, PANELS
from agentopcd.core.errors import ConfigError

ALL = [PlayConfig, ScoreConfig, ConfirmConfig, ConsolidateConfig, EvaluateConfig, LearnConfig]


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('env = "math"\nsteps = 7\nseed = 3\n[env_args]\nlevel = 1\n')
    config = ConsolidateConfig.load(tmp_path / "run.toml", seed=5, model=None)
    assert (config.env, config.steps, config.seed, config.env_args) == ("math", 7, 5, {"level": 1})
    assert config.batch_size == ConsolidateConfig(env="math").batch_size


def test_an_unknown_key_names_the_close_one(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('env = "math"\nlearning_rat = 1\n')
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        ConsolidateConfig.load(tmp_path / "run.toml")


@pytest.mark.parametrize("text", ["env = ", None])
def test_a_file_that_cannot_be_read_is_a_config_error(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ConfigError, match="cannot read settings"):
        PlayConfig.load(tmp_path / "run.toml")


WRONG_TYPES = [
    "seed = 'x'", "steps = '3'", "steps = 2.5", "steps = true", "env_args = 3", "temperature = 'hot'", "model = 5",
    "force = 'no'",
]  # fmt: skip


@pytest.mark.parametrize("value", WRONG_TYPES)
def test_a_value_of_another_type_is_a_config_error(value: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(f"env = 'math'\n{value}\n")
    with pytest.raises(ConfigError):
        ConsolidateConfig.load(tmp_path / "run.toml")


WRONG: list[tuple[type[PlayerConfig], dict[str, Any], str]] = [
    (PlayConfig, {"env": ""}, "--env"),
    (PlayConfig, {"max_tokens": 0}, "max_tokens"),
    (PlayConfig, {"sample_batch": 0}, "sample_batch"),
    (PlayConfig, {"temperature": -0.1}, "temperature"),
    (PlayConfig, {"top_p": 0.0}, "top_p"),
    (PlayConfig, {"top_p": 1.1}, "top_p"),
    (PlayConfig, {"top_k": -1}, "top_k"),
    (PlayConfig, {"history": "chatt"}, "did you mean 'chat'"),
    (PlayConfig, {"compute": "float16"}, "compute"),
    (PlayConfig, {"placement": "sistem"}, "did you mean 'system'"),
    (PlayConfig, {"episodes": 0}, "episodes"),
    (PlayConfig, {"split": "train"}, "--no-extract"),
    (PlayConfig, {"split": "test", "extract": False}, "split"),
    (ScoreConfig, {"candidates": 0}, "candidates"),
    (ScoreConfig, {"method": "best"}, "method"),
    (ConfirmConfig, {"confirm_tasks": 0}, "confirm_tasks"),
    (ConsolidateConfig, {"steps": 0}, "steps is 0"),
    (ConsolidateConfig, {"batch_size": 0}, "batch_size"),
    (ConsolidateConfig, {"learning_rate": -1e-5}, "learning_rate"),
    (ConsolidateConfig, {"learning_rate": float("nan")}, "learning_rate"),
    (ConsolidateConfig, {"select_every": 0}, "select_every"),
    (ConsolidateConfig, {"save_every": 0}, "save_every"),
    (ConsolidateConfig, {"divergence": "tial"}, "did you mean 'tail'"),
    (ConsolidateConfig, {"reduction": "mean"}, "reduction"),
    (ConsolidateConfig, {"top_p": 0.8}, "top_p 1"),
    (ConsolidateConfig, {"top_k": 20}, "top_k 0"),
    (ConsolidateConfig, {"temperature": 0.0}, "temperature above 0"),
    (ConsolidateConfig, {"loss_temperature": -1.0}, "loss_temperature"),
    (ConsolidateConfig, {"test_tasks": -1}, "test_tasks"),
    (EvaluateConfig, {"test_tasks": 0}, "test_tasks"),
    (ConsolidateConfig, {"context": Path("prompt.txt")}, r"context is .*Path\('prompt.txt'\); wanted a value like ''"),
    (ConsolidateConfig, {"steps": "8"}, "steps is '8'; wanted a value like"),
    (PlayConfig, {"env_args": "a"}, "env_args is 'a'; wanted a value like {}"),
    (LearnConfig, {"rounds": 0}, "rounds"),
    (PlayConfig, {"seed": 2**63}, "seed is 9223372036854775808; it must be at most 9223372036854775807"),
    (LearnConfig, {"seed": 2**63 - 1, "rounds": 2}, "the last round"),
    (PlayConfig, {"episodes": 2**31}, "episodes is 2147483648; it must be at most 2147483647"),
    (PlayConfig, {"temperature": float("nan")}, "temperature is nan; wanted a finite number"),
    (ConsolidateConfig, {"clip_norm": 1e308}, "clip_norm is 1e.308; it must be at most 3.4e.38"),
    (PlayConfig, {"temperature": float("inf")}, "temperature is inf"),
    (PlayConfig, {"temperature": 5e-324}, "temperature is 5e-324; it must be 0, or 1e-30 or more"),
    (PlayConfig, {"top_p": float("nan")}, "top_p is nan"),
    (ConsolidateConfig, {"loss_temperature": 5e-324}, "loss_temperature is 5e-324"),
    (ConsolidateConfig, {"learning_rate": float("inf")}, "learning_rate is inf"),
    (ConsolidateConfig, {"clip_norm": float("nan")}, "clip_norm is nan"),
    (PlayConfig, {"context": "half \ud83d"}, "context holds bytes that are no UTF-8"),
    (
        PlayConfig,
        {"env_args": {"size": datetime.date(1979, 5, 27)}},
        r"env_args: size is 1979-05-27 \(date\); wanted text",
    ),
    (PlayConfig, {"env_args": {"deep": [{"at": datetime.time(7, 32)}]}}, r"deep.at is 07:32:00 \(time\)"),
    (PlayConfig, {"template_args": {"x": [float("nan")]}}, "template_args: x is nan"),
    (PlayConfig, {"env_args": {"x": "\udce9"}}, "env_args: x holds bytes"),
    (PlayConfig, {"server": "http://ann:pw@[::1"}, r"'http://\*\*\*@\[::1' is no address"),
    (PlayConfig, {"server": "http://host:port"}, "no address"),
    (LearnConfig, {"top_p": 0.8}, "top_p 1"),
]


@pytest.mark.parametrize(("cls", "values", "words"), WRONG)
def test_what_cannot_be_right_is_refused(cls: type[PlayerConfig], values: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"env": "math", **values}
    with pytest.raises(ConfigError, match=words):
        cls(**given)


@pytest.mark.parametrize("cls", ALL)
def test_every_setting_has_a_help_text_and_survives_json(cls: type[PlayerConfig]) -> None:
    docs = field_docs(cls)
    config = cls(env="math")
    assert all(docs.get(field.name, "").strip() for field in dataclasses.fields(cls))
    assert cls(**json.loads(config.to_json())) == config


def test_equal_settings_give_equal_json() -> None:
    first = PlayConfig(env="math", env_args={"a": 1, "b": 2})
    assert first.to_json() == PlayConfig(env_args={"b": 2, "a": 1}, env="math").to_json()


def test_the_settings_of_a_round_reach_its_stages() -> None:
    whole = LearnConfig(env="math", steps=3, confirm_tasks=9, seed=4)
    assert pick(whole, ConsolidateConfig).steps == 3
    assert pick(whole, ScoreConfig).confirm_tasks == 9
    assert (whole.method, pick(whole, ScoreConfig).method) == ("opcd", "halving")  # one word, two things
    assert pick(LearnConfig(env="math", method="seqkd"), ConsolidateConfig).method == "seqkd"
    assert pick(whole, PlayConfig, seed=8).seed == 8


def test_sampling_repeats_the_settings() -> None:
    sampling = PlayConfig(env="math", temperature=0.2, top_p=0.9, top_k=5, max_tokens=7).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.2, 0.9, 5, 7)


def test_a_type_that_lists_its_values_is_the_list() -> None:
    known = choices(ConsolidateConfig)
    assert known["method"] == ("opcd", "prefix-replay", "context-distillation", "seqkd", "mixed")
    assert known["placement"] == ("system", "user") and "rules" not in known
    for name in ("compute", "engine", "history", "method", "answers", "teacher_kind", "divergence", "cut_replies"):
        with pytest.raises(ConfigError, match=f"{name} is 'somehow'"):
            ConsolidateConfig.load(None, env="math", **{name: "somehow"})
    assert [ConsolidateConfig.load(None, env="math", method=m).by_teacher for m in known["method"]] == [0, 0, 1, 1, 0]
    assert [ConsolidateConfig.load(None, env="math", method=m).replays for m in known["method"]] == [0, 1, 0, 0, 0]


def test_every_setting_has_one_panel() -> None:
    placed = [name for names in PANELS.values() for name in names]
    fields = {field.name for cls in (*ALL, ServeConfig) for field in dataclasses.fields(cls)}
    assert sorted(placed) == sorted([*fields, "method"]) and fields >= FILE_ONLY  # one word, two things
    named = {title: [field.name for field in own] for title, own in panels(ScoreConfig).items()}
    assert "method" in named["Choosing"] and "method" in {one.name for one in panels(LearnConfig)["Loss and teacher"]}
    for cls in ALL:
        shown = [field.name for own in panels(cls).values() for field in own]
        assert sorted(shown) == sorted(field.name for field in dataclasses.fields(cls))


@pytest.mark.parametrize("verb", VERBS)
def test_the_printed_settings_give_the_defaults_back(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(verb)
    file = tmp_path / "run.toml"
    file.write_text(capsys.readouterr().out)
    cls = VERBS[verb]
    assert cls.load(file, env="math") == cls.load(None, env="math")
    file.write_text(file.read_text().replace('env = ""', 'env = "math"'))
    assert cls.load(file) == cls.load(None, env="math")
    show(verb, as_json=True)
    described = json.loads(capsys.readouterr().out)
    assert {name: one["default"] for name, one in described.items()} == cls.load(None, env="x").to_dict() | {"env": ""}
    with pytest.raises(ConfigError, match="did you mean 'play'"):
        show("plya")


def test_infinity_stays_where_it_means_no_limit() -> None:
    config = ConsolidateConfig(env="math", clip_norm=float("inf"), importance_cap=float("inf"), seed=2**63 - 1)
    assert (config.clip_norm, config.seed) == (float("inf"), 2**63 - 1)


def test_settings_are_utf_8_with_or_without_a_mark_whatever_the_machine_s_encoding_is(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes("\ufeffenv = 'math'\ncontext = 'für'\n".encode())
    assert PlayConfig.load(file).context == "für"
    file.write_bytes("env = 'math'\ncontext = 'für'\n".encode("cp1252"))
    with pytest.raises(ConfigError, match=r"cannot read settings from .*utf-8"):
        PlayConfig.load(file)
    file.write_text("env_args = " + "[" * 100_000)
    with pytest.raises(ConfigError, match="cannot read settings from"):
        PlayConfig.load(file)


def test_a_value_of_an_argument_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(ConfigError, match="--env-arg x is nested too deeply"):
        parse_env_args(["x=" + "[" * 100_000])


def options_of(cls: type[PlayerConfig], words: list[str]) -> Any:
    """The settings that a command gets from these words."""
    found: list[PlayerConfig] = []

    def run(config: PlayerConfig, call: Call) -> None:
        """Example: agentopcd nothing"""
        found.append(config)

    app = typer.Typer()
    app.command()(configured(cls, run))
    app(words, standalone_mode=False)
    return found[0]


def test_a_flag_wins_over_the_file_also_where_it_says_the_default(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("env = 'math'\nsteps = 7\nseed = 3\nforce = true\nclip_norm = 2.0\nenv_args = { level = 1 }\n")
    words = ["--config", str(file)]
    plain = options_of(ConsolidateConfig, words)
    assert plain == ConsolidateConfig(env="math", steps=7, seed=3, force=True, clip_norm=2.0, env_args={"level": 1})
    changed = options_of(ConsolidateConfig, [*words, "--seed", "0", "--no-force", "--env-arg", "level=2"])
    assert changed == dataclasses.replace(plain, seed=0, force=False, env_args={"level": 2})
    assert options_of(PlayConfig, ["--env", "math", "--no-extract", "--constrain"]) == PlayConfig(
        env="math", extract=False, constrain=True
    )


def test_a_flag_is_offered_only_where_more_than_one_value_is_legal() -> None:
    for cls in ALL:
        trains = cls in (ConsolidateConfig, LearnConfig)
        assert has_flag(cls, "top_p") == has_flag(cls, "top_k") == (not trains)
    with pytest.raises(typer.TyperException, match="--top-p"):
        options_of(ConsolidateConfig, ["--env", "math", "--top-p", "0.8"])


def test_the_flags_for_the_next_command_are_flags_that_it_has() -> None:
    config = PlayConfig(
        env="rows.jsonl", env_args={"checks": {"max_words": 3}}, top_p=0.9, temperature=0.2, constrain=True
    )
    flags = "--env rows.jsonl --env-arg 'checks={\"max_words\": 3}' --constrain --temperature 0.2"
    assert player_flags(config, ConsolidateConfig) == flags
    assert player_flags(config) == f"{flags} --top-p 0.9"
    for cls in ALL:
        offered = {flag_of(field.name) for field in dataclasses.fields(cls) if has_flag(cls, field.name)}
        assert {word for word in player_flags(config, cls).split() if word.startswith("--")} <= offered


def test_a_whole_number_of_a_file_is_the_flag_s(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('env = "math"\ntemperature = 1\nsteps = 7\n')
    by_file = ConsolidateConfig.load(tmp_path / "run.toml")
    assert by_file.to_json() == ConsolidateConfig.load(env="math", temperature=1.0, steps=7).to_json()
    assert ConsolidateConfig(env="math", temperature=1, steps=7).to_json() == by_file.to_json()
    assert '"steps": 7,' in by_file.to_json() and '"clip_norm": 1.0,' in by_file.to_json()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "influence", "select_tasks": 8}, "--select-tasks is for --method uniform or subsets"),
        ({"method": "influence", "confirm_tasks": 8}, "--confirm-tasks is for --method halving or uniform"),
        ({"method": "subsets", "confirm": False}, "--confirm is for --method halving or uniform"),
    ],
)
def test_settings_of_scoring_that_would_do_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScoreConfig(env="math", **settings)
