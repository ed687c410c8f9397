"""Shells complete commands, options and values; what they get is theirs alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import typer
from typer.testing import CliRunner

from agentopcd.cli import COMPLETION, app
from agentopcd.cli.completion import BUILT_IN, environments, refs
from agentopcd.core.types import Context
from agentopcd.envs import list_envs
from agentopcd.knowledge import Store

PROGRAM = '#!/bin/sh\nPYTHONPATH="{root}" exec "{python}" -m agentopcd "$@"\n'


@pytest.fixture
def env(root: Path, tmp_path: Path) -> dict[str, str]:
    """A home folder, and a program called agentopcd on the path."""
    program = tmp_path / "bin" / "agentopcd"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(root=root, python=sys.executable))
    program.chmod(0o755)
    return {**os.environ, "HOME": str(tmp_path), "PATH": f"{program.parent}:{os.environ['PATH']}"}


def complete(monkeypatch: pytest.MonkeyPatch, shell: str, line: str) -> str:
    """What the shell gets, in this process."""
    words = line.split(" ")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    asked = {COMPLETION: f"complete_{shell}", "COLUMNS": "1000"}
    done = CliRunner().invoke(app, [], prog_name="agentopcd", env=asked)
    assert done.exit_code == 0
    return done.stdout


def test_values_are_offered(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def offered(line: str) -> list[str]:
        return complete(monkeypatch, "bash", f"agentopcd {line}").split("\n")[:-1]

    assert offered("con") == ["consolidate", "config"]
    assert offered("play --env sok") == [spec.id for spec in list_envs() if spec.id.startswith("sok")]
    assert "gym:" in offered("play --env ")
    assert offered("learn --model ") == list(BUILT_IN)
    assert offered("consolidate --method s") == ["seqkd"]
    assert offered("knowledge score --method ") == ["halving", "uniform", "subsets", "influence"]
    assert offered("play --history ") == ["transcript", "chat"]
    assert "--gradient-checkpointing" in offered("consolidate --"), "options that --help leaves out, too"
    assert offered("consolidate --no-for") == ["--no-force"]
    assert offered("config show e") == ["evaluate"]
    assert offered("consolidate --context ") == [""], "without a store, the shell offers files"
    for work in ("agentopcd-work", "elsewhere"):
        with Store.open(tmp_path / work / "store.db") as store:
            context = Context("look twice")
            store.add_context(context, {"order": "hand"})
            store.move(f"math/{work}", context.id, "person")
    assert offered("consolidate --context ma") == ["math/agentopcd-work"]
    assert offered("play --work elsewhere --context math/") == ["math/elsewhere"]
    older = (root / "tests/fixtures/store-0.1.0/store.db").read_bytes()
    (tmp_path / "elsewhere" / "store.db").write_bytes(older)
    assert offered("play --work elsewhere --context ") == [""]
    assert (tmp_path / "elsewhere" / "store.db").read_bytes() == older, "TAB brings no store up to date"
    (tmp_path / "elsewhere" / "store.db").write_bytes(b"this is no store" * 100)
    assert offered("play --work elsewhere --context ") == [""]


def test_no_help_text_breaks_an_offer(cli_generator: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """zsh shows help texts beside the offers, each on one line."""
    for words, command in cli_generator.commands():
        lines = complete(monkeypatch, "zsh", f"{' '.join(words)} --").splitlines()
        assert any('"--help"' in line for line in lines), words
        names = [name for one in params_of(command) if not one.hidden for name in one.opts + one.secondary_opts]
        assert len(lines) == sum(name.startswith("--") for name in names)
        assert all(line.startswith(('"--', "_arguments ")) for line in lines), words


def params_of(command: Any) -> list[Any]:
    context = command.context_class(command, info_name="x")
    return [one for one in command.get_params(context) if one.param_type_name == "option"]


def test_the_names_offered_are_those_that_there_are() -> None:
    from agentopcd.models.find import BUILT_IN as known

    assert known == BUILT_IN
    assert {name for name, _ in environments()} >= {spec.id for spec in list_envs()}
    assert refs(cast(typer.Context, SimpleNamespace(params={"work": Path("/nowhere")}))) == []


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_works_in_the_shell(shell: str, env: dict[str, str], tmp_path: Path) -> None:
    """Installed as a person does it, sourced by a new shell, whose completion function is then called."""
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    install = ["agentopcd", "--install-completion"]
    asked = subprocess.run([shell, "-c", f"{' '.join(install)}; true"], env=env, capture_output=True, text=True)
    assert f"{shell} completion installed in {tmp_path}" in asked.stdout and asked.stderr == ""
    if shell == "bash":
        script = (
            f"source {tmp_path}/.bash_completions/agentopcd.sh; COMP_WORDS=(agentopcd play --env sokoban-p); "
            'COMP_CWORD=3; _agentopcd_completion agentopcd; echo "${COMPREPLY[@]}"'
        )
    else:
        script = (
            "compdef() { :; }; _arguments() { print -r -- $1; }; words=(agentopcd play --env sokoban-p); CURRENT=4; "
            f"source {tmp_path}/.zfunc/_agentopcd; _agentopcd_completion"
        )
    done = subprocess.run([shell, "-c", script], env=env, capture_output=True, text=True)
    assert "sokoban-paper" in done.stdout and done.stderr == ""


def test_nothing_is_written_beside_the_offers(env: dict[str, str], tmp_path: Path) -> None:
    """A broken store or another shell says nothing in the line that is being typed. The script can be shown."""
    (tmp_path / "agentopcd-work").mkdir()
    (tmp_path / "agentopcd-work" / "store.db").write_bytes(b"this is no store" * 100)
    asked = {**env, COMPLETION: "complete_bash", "COMP_WORDS": "agentopcd play --context ", "COMP_CWORD": "3"}
    done = subprocess.run(["agentopcd"], env=asked, capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("", "")
    done = subprocess.run(["agentopcd"], env=asked | {COMPLETION: "complete_csh"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    done = subprocess.run(["bash", "-c", "agentopcd --show-completion; true"], env=env, capture_output=True, text=True)
    assert f"{COMPLETION}=complete_bash $1" in done.stdout and done.stderr == ""
