"""Settings files: a section for each verb, all settings to edit, and those of a command to give back."""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentopcd.cli.config import init
from agentopcd.core.config import VERBS, ConfirmConfig, ConsolidateConfig, PlayConfig, ScoreConfig, about
from agentopcd.core.config.toml import saved, template
from agentopcd.core.errors import ConfigError

SECTIONS = """
env = "math"
seed = 3
env_args = { level = 1 }

[play]
episodes = 5
seed = 4

[consolidate]
steps = 7
env_args = { level = 2 }

[confirm]
context = "math/best"
"""


def made(cls: Any, **given: Any) -> Any:
    return cls(**given)


def test_a_section_is_for_its_verb_and_wins_over_what_stands_above(tmp_path: Path) -> None:
    file = tmp_path / "all.toml"
    file.write_text(SECTIONS)
    play = PlayConfig.load(file)
    assert (play.env, play.seed, play.episodes, play.env_args) == ("math", 4, 5, {"level": 1})
    student = ConsolidateConfig.load(file)
    assert (student.seed, student.steps, student.env_args) == (3, 7, {"level": 2})
    assert ConfirmConfig.load(file).context == "math/best"
    score = ScoreConfig.load(file)  # confirm is a setting of score and a section: the file has the section
    assert score == ScoreConfig(env="math", seed=3, env_args={"level": 1}) and score.confirm
    assert ConsolidateConfig.load(file, steps=9).steps == 9


@pytest.mark.parametrize(
    ("section", "flags", "wanted"),
    [
        ("", {"env_args": {"level": 3}}, {"level": 3, "size": 4}),
        ("env_args = { level = 3 }", {}, {"level": 3, "size": 4}),
        ("env_args = { level = 3 }", {"env_args": {"wet": True}}, {"level": 3, "size": 4, "wet": True}),
        ('env = "math"', {"env_args": {"level": 3}}, {"level": 3, "size": 4}),
        ('env = "other"\nenv_args = { wet = true }', {}, {"wet": True}),
        ("", {"env": "other", "env_args": {"wet": True}}, {"wet": True}),
    ],
)
def test_arguments_are_added_by_name_but_to_those_of_another_environment(
    section: str, flags: dict[str, Any], wanted: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "all.toml"
    both = 'env = "math"\nenv_args = { level = 2, size = 4 }\ntemplate_args = { a = 1 }\n'
    file.write_text(f"{both}[play]\n{section}\n")
    play = PlayConfig.load(file, **flags, template_args={"b": 2})
    assert (play.env_args, play.template_args) == (wanted, {"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[consolidat]\nsteps = 3", r"unknown section \[consolidat\] in the settings; did you mean '\[consolidate\]'"),
        ("[consolidate]\nstesp = 3", r"unknown setting 'stesp' in \[consolidate\]; did you mean 'steps'"),
        ("episods = 3", "unknown setting 'episods' for `play`; did you mean 'episodes'"),
        ("steps = 3", r"steps is no setting of `play`; write it under \[consolidate\] or \[learn\]"),
        ("steps = 3\n[play]\nseed = 1", r"steps is no setting of `play`; write it under"),
        ("[play]\nepisodes = 'x'", "episodes is 'x'; wanted a value like 64"),
        ("[play.episodes]\nx = 1", "episodes is {'x': 1}; wanted a value like 64"),
        ("[episodes]\nx = 1", "episodes is {'x': 1}; wanted a value like 64"),
        ("[[play]]\nseed = 1", "unknown setting 'play'"),
    ],
)
def test_an_unknown_section_or_key_is_one_line_with_the_nearest_name(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(f"env = 'math'\n{text}\n")
    with pytest.raises(ConfigError, match=words) as error:
        PlayConfig.load(tmp_path / "run.toml")
    assert "\n" not in str(error.value)


def test_the_written_file_has_every_setting_of_every_verb_as_a_comment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my all.toml"
    init(file)
    assert shlex.split(capsys.readouterr().out)[-4:] == ["agentopcd", "play", "--config", str(file)]
    with pytest.raises(ConfigError, match=r"all\.toml is there already and is left as it is"):
        init(file)
    text = file.read_text()
    assert text == template() and max(map(len, text.splitlines())) <= 100
    assert tomllib.loads(text) == {verb: {} for verb in VERBS}
    live = re.sub(r"(?m)^#(?=\w+ = )", "", text)
    content = tomllib.loads(live)
    for verb, cls in VERBS.items():
        assert {field.name for field in dataclasses.fields(cls)} == {n for n in content if n not in VERBS} | {
            *content[verb]
        }
        file.write_text(live.replace('env = ""', 'env = "math"'))
        assert cls.load(file) == made(cls, env="math")
        assert f"# == agentopcd {'knowledge ' if verb in ('score', 'confirm') else ''}{verb} =" in text


def test_a_documentation_says_what_an_empty_text_or_a_0_stands_for() -> None:
    assert about(ConsolidateConfig, "loss_temperature") == (
        "Divides both models' logits in the loss.",
        "as --temperature",
    )
    assert about(ConsolidateConfig, "steps")[1] == ""
    assert about(ConsolidateConfig, "divergence")[0].endswith("One of: tail, full, renorm, raw, stopgrad.")
    may_be_empty = {"grader", "judge"}  # their documentation says what they are for; without them nothing is graded so
    for cls in VERBS.values():
        config = made(cls, env="math")
        for field in dataclasses.fields(cls):
            if getattr(config, field.name) == "" and field.name not in may_be_empty:
                assert about(cls, field.name)[1] or (cls, field.name) == (ConfirmConfig, "context"), field.name


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.booleans() | st.integers(-(2**31) + 1, 2**31 - 1) | st.floats(-1e30, 1e30, allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(words, values, max_size=3), words, st.integers(0, 2**63 - 1), st.floats(0.01, 5))
def test_saved_settings_give_an_equal_object_back(args: dict[str, Any], text: str, seed: int, heat: float) -> None:
    given = ConsolidateConfig(env=text or "x", env_args=args, context=text, seed=seed, temperature=heat, clip_norm=inf)
    notes = {"model": f"{text}\n#\x00\x7f"}
    written, left_out = saved(given, notes)
    assert left_out == []
    content = tomllib.loads(written)
    assert list(content) == ["consolidate"] and ConsolidateConfig(**content["consolidate"]) == given


def test_what_a_settings_file_must_not_or_cannot_hold_is_named(tmp_path: Path) -> None:
    config = PlayConfig(env="math", server="http://ann:pw@host:8000", env_args={"x": [None]}, model="m")
    text, left_out = saved(config, {"rules": "here: full", "model": "not a default"})
    assert "pw" not in text and '# server = "http://***@host:8000"' in text
    assert left_out == [
        "env_args (TOML has no null; give it with --env-arg)",
        "server (it holds a password; give it with --server)",
    ]
    assert 'rules = ""  # here: full' in text and 'model = "m"\n' in text
    (tmp_path / "x.toml").write_text(text)
    assert PlayConfig.load(tmp_path / "x.toml", server=config.server, env_args=config.env_args) == config
    score = ScoreConfig(env="math", pool="http://a:b@c/")
    assert saved(score)[1] == ["pool (it holds a password; write it into the file)"]
    assert saved(score)[0].startswith(
        "# Settings of a command; give them back with: agentopcd knowledge score --config"
    )
