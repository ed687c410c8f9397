"""The README is a transcript: short, its links exist, its commands parse."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SHELL = {"", "bash", "sh", "shell", "console"}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    path = root / "README.md"
    assert path.is_file(), "README.md is missing"
    return path.read_text(encoding="utf-8")


def shell_lines(text: str) -> Iterator[str]:
    """The command lines of the shell blocks: those after ``$ `` where a block has any, else all of them."""
    for language, block in FENCE.findall(text):
        if language not in SHELL:
            continue
        lines = block.replace("\\\n", " ").splitlines()
        prompted = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
        yield from prompted or lines


def commands(text: str) -> Iterator[list[str]]:
    """The words after ``agentopcd`` of every call, also behind ``&&``, pipes and ``NAME=value``."""
    for line in shell_lines(text):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        call: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                while call and re.fullmatch(r"\w+=.*", call[0]):
                    call = call[1:]
                if call and Path(call[0]).name == "agentopcd":
                    yield call[1 : call.index(">") if ">" in call else None]
                call = []
            else:
                call.append(word)


def parse(generator: ModuleType, words: list[str]) -> None:
    """The command that the words name; raises what the command line would raise for them."""
    tree = {tuple(path[1:]): command for path, command in generator.commands()}
    depth = max(n for n in range(len(words) + 1) if tuple(words[:n]) in tree)
    command = tree[tuple(words[:depth])]
    rest = words[depth:]
    if getattr(command, "commands", None):
        assert all(word.startswith("-") for word in rest), f"no such command: agentopcd {' '.join(words)}"
    context = command.context_class(command, info_name=" ".join(words[:depth]))
    values, left, _ = command.make_parser(context).parse_args(list(rest))
    assert not left, f"too many arguments: {left}"
    if "--help" not in rest:
        missing = [p.name for p in command.params if p.required and values.get(p.name) is None]
        assert not missing, f"missing: {missing}"


def test_it_is_short(readme: str) -> None:
    assert len(readme.splitlines()) < 200


def test_relative_links_exist(root: Path, readme: str) -> None:
    prose = FENCE.sub("", readme)
    links = re.findall(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)", prose) + re.findall(r"(?:src|href)=\"([^\"]+)\"", prose)
    local = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    missing = [link for link in local if not (root / link).exists()]
    assert missing == []


def test_every_command_parses(readme: str, cli_generator: ModuleType) -> None:
    found = list(commands(readme))
    assert found, "the README shows no agentopcd command"
    for words in found:
        try:
            parse(cli_generator, words)
        except Exception as error:
            pytest.fail(f"README: agentopcd {shlex.join(words)}\n{type(error).__name__}: {error}")


def test_make_targets_exist(root: Path, readme: str) -> None:
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    targets = [m for line in shell_lines(readme) for m in re.findall(r"(?:^|[;&] *)make ([a-z-]+)", line)]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"README: make {target}"


def test_the_reader_of_commands_sees_what_it_should() -> None:
    text = (
        "```bash\ncd x && A=1 agentopcd play --env math \\\n  --episodes 2 | head  # note\n"
        "agentopcd --version\n```\n"
        "```console\n$ .venv/bin/agentopcd envs list > out.txt\nagentopcd prints this\n```\n"
        "```text\nagentopcd is not called here\n```\n"
    )
    assert list(commands(text)) == [
        ["play", "--env", "math", "--episodes", "2"],
        ["--version"],
        ["envs", "list"],
    ]
