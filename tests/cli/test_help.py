"""``--help`` fits any terminal: nothing is cut, the usual options stand first, and ``--help-all`` has the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agentopcd.cli.help import EVERYTHING, REST, laid_out, name_of, print_help
from agentopcd.core.config import USUAL, VERBS, flag_of, has_flag, hints
from agentopcd.core.config.flags import PANELS


class Shown:
    """The help of one command as a terminal of some width shows it."""

    def __init__(self, words: list[str], command: Any, *, everything: bool = False) -> None:
        self.context = command.context_class(command, info_name=" ".join(words))
        if everything:
            self.context.meta[EVERYTHING] = True
        self.params = [one for one in command.get_params(self.context) if not getattr(one, "hidden", False)]
        self.command = command

    def text(self, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        print_help(self.command, self.context)
        return capsys.readouterr().out


def check_whole(text: str, width: int, names: list[str]) -> None:
    """Nothing is cut: no line is too long, there is no ellipsis, and every name begins a line, whole."""
    lines = text.splitlines()
    assert max(map(len, lines)) <= width and "…" not in text
    left = [line.strip("│ ") for line in lines if line.startswith("│")]
    for name in names:
        assert any(line == name or line.startswith(f"{name}  ") for line in left), f"{name} is not whole in:\n{text}"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_help_is_whole_and_fits_on_a_page(
    width: int, cli_generator: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, command in cli_generator.commands():
        shown = Shown(words, command)
        text, usual = shown.text(width, monkeypatch, capsys), getattr(command.callback, "usual", ())
        listed = [one for one in shown.params if not usual or one.name in usual or not one.rich_help_panel]
        names = [name_of(one, shown.context) for one in listed]
        check_whole(text, width, [*names, *getattr(command, "commands", {})])
        assert text.count("Example:") <= 1
        assert (REST in " ".join(text.split())) == bool(usual)
        if width == 80:
            assert len(text.splitlines()) < 70, f"{' '.join(words)} --help has {len(text.splitlines())} lines"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_all_has_every_option_in_a_panel(
    width: int, cli_generator: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verbs = {words[-1]: (words, command) for words, command in cli_generator.commands() if words[-1] in VERBS}
    assert set(verbs) == set(VERBS)
    for verb, (words, command) in verbs.items():
        shown = Shown(words, command, everything=True)
        text, config = shown.text(width, monkeypatch, capsys), VERBS[verb]
        check_whole(text, width, [name_of(one, shown.context) for one in shown.params])
        offered = {name for one in shown.params for name in one.opts}
        assert {flag_of(name) for name in hints(config) if has_flag(config, name)} <= offered
        assert REST not in text
        titles = [line[3:].partition(" ─")[0] for line in text.splitlines() if line.startswith("╭─")]
        assert titles == [title for title in PANELS if title in titles], "the panels are in the order of PANELS"
        assert len(titles) >= 5 and titles[-1] == "Output"


def test_the_usual_settings_of_a_verb_are_settings_with_a_flag() -> None:
    assert set(USUAL) == set(VERBS)
    for verb, names in USUAL.items():
        assert all(has_flag(VERBS[verb], name) and name in hints(VERBS[verb]) for name in names)
        assert 7 <= len(names) <= 13


def test_a_default_that_is_derived_is_told_as_the_code_has_it(
    root: Path, cli_generator: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ""
    for words, command in cli_generator.commands():
        if words[-1] == "consolidate":
            text = " ".join(Shown(words, command).text(300, monkeypatch, capsys).split())
    assert "[default: 3e-4 for pocket" in text and "2e-5 for others, ten times that with LoRA]" in text
    models = root / "agentopcd" / "models"  # read, not imported: that takes seconds
    assert "\nLEARNING_RATE = 2e-5\n" in (models / "load.py").read_text()
    assert '"learning_rate": 0.0003' in (models / "weights" / "pocket" / "agentopcd.json").read_text()
    assert "[default: ENV/best, the confirmed context]" in text and "[default: 24]" in text
    assert "[default: 0.0]" not in text and "[default: ]" not in text and "empty:" not in text and " 0:" not in text


def test_a_name_that_is_too_long_for_its_column_has_a_line_of_its_own() -> None:
    rows = [("--a", "One."), ("--a-name-that-is-long <float>", "Two words and more of them here.")]
    assert list(laid_out(rows, 40)) == [
        "--a  One.",
        "--a-name-that-is-long <float>",
        "     Two words and more of them here.",
    ]


def test_through_the_real_command_line(root: Path) -> None:
    """Without a command: the overview, with the first commands. With one: as above, in the terminal's width."""

    def run(*words: str) -> tuple[int, str]:
        env = {**os.environ, "COLUMNS": "80"}
        done = subprocess.run(
            [sys.executable, "-m", "agentopcd", *words], cwd=root, env=env, capture_output=True, text=True
        )
        assert not done.stderr.strip() and max(map(len, done.stdout.splitlines())) <= 80
        return done.returncode, done.stdout

    for columns in ("0", "5"):
        done = subprocess.run(
            [sys.executable, "-m", "agentopcd", "play", "--help"], cwd=root, env={**os.environ, "COLUMNS": columns},
            capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "") and "--episodes" in done.stdout
    code, text = run()
    assert code == 2 and "Usage: agentopcd [OPTIONS]" in text and "First: agentopcd envs list\n" in text
    assert text.count("\n Then: agentopcd ") == 2 and len(text.splitlines()) < 50
    code, text = run("knowledge")
    assert code == 2 and "First: agentopcd knowledge list" in text
    code, text = run("consolidate", "--help")
    assert code == 0 and "--lora-rank <int>" in text and "--divergence" not in text
    code, text = run("consolidate", "--env", "math", "--help-all")
    assert code == 0 and "--divergence <str>" in text and "╭─ Loss and teacher ─" in text
