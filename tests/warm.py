"""Commands from a warm process: one that has already imported what commands import, and becomes each by a fork.

A start of ``python -m agentopcd`` that needs a model takes 9 s of a slow processor, nearly all of it for imports. Where
a test is about what a command does, it takes the warm start: a process of its own, with its own folder, variables and
streams, that ends as Python ends. A real start is for what a fork cannot show: variables that are read at an import
(the warm process has one thread and stays off the hub), a hash seed of its own, what an import says or costs, flags of
Python, terminals, and output that is read while the command runs.

Real starts that load a model: the README's game in ``tests/test_stranger.py``; in ``tests/invariants``, what the killed
commands are compared with, and a missing model. ``tests/test_wheel.py`` has the program that an installation makes.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOADED = (
    "agentopcd.cli", "agentopcd.learn", "agentopcd.distil", "agentopcd.envs.games.gym_bridge",
    "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama",
)  # fmt: skip
"""What the warm process imports. Everything else is imported by the command itself, as in a real start."""
CODE = "from tests import warm; warm.serve(); import runpy; runpy.run_module('agentopcd', {}, '__main__', True)"
"""The warm process. Only a command leaves ``serve``; it is then at the top of a program, whose end is Python's own."""
FORKS = sys.platform == "linux"
"""Whether a fork is a safe way to begin a process. Elsewhere every start is a real one."""
LOOK_S = 0.01
"""Seconds between two looks at whether a command has ended."""


class Warm:
    """A command from the warm process, with the members of :class:`subprocess.Popen` that tests use."""

    def __init__(self, words: tuple[str, ...], cwd: Path, env: Mapping[str, str], typed: str) -> None:
        self.args = words
        self.returncode: int | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        files = [Path(self._folder.name) / name for name in ("in", "out", "err")]
        files[0].write_text(typed, encoding="utf-8")
        self._said = files[1:]
        asked = {"words": words, "cwd": str(cwd), "env": dict(env), "files": [str(file) for file in files]}
        self.pid: int = _ask(asked)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(LOOK_S)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it wrote to stdout and to stderr."""
        self.wait(timeout)
        return self._told

    @functools.cached_property
    def _told(self) -> tuple[str, str]:
        out, err = (file.read_text(encoding="utf-8") for file in self._said)
        self._folder.cleanup()
        return out, err


def start(
    *words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, typed: str = "", real: bool = False
) -> Warm | subprocess.Popen[str]:
    """Start a command.

    Args:
        words: those after ``agentopcd``.
        cwd: its working folder; by default that of the tests.
        env: all its variables; by default those of the tests.
        typed: its stdin.
        real: start Python anew.
    """
    env = os.environ if env is None else env
    if FORKS and not real:
        return Warm(words, cwd or Path.cwd(), env, typed)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stdin:
        stdin.write(typed)
        stdin.seek(0)
        return subprocess.Popen(
            [sys.executable, "-m", "agentopcd", *words],
            cwd=cwd, env=env, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


def run(*words: str, timeout: float | None = None, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Args:
        words: those after ``agentopcd``.
        timeout: seconds after which it is killed and the test fails.
        how: see :func:`start`.
    """
    process = start(*words, **how)
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(words, process.wait(), out, err)


# -- the warm process ----------------------------------------------------------------------------------


@functools.cache
def server() -> subprocess.Popen[str]:
    """The warm process of this test process, started when the first test wants it."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # a process with threads must not be forked
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(process.communicate)  # it ends where its stdin does
    return process


def _ask(asked: Any) -> Any:
    process = server()
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(asked) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, "the warm process ended; what it said is on stderr of the first test that started a command"
    return json.loads(answer)


def serve() -> None:
    """Start a command for each line of stdin, or, if it is a number, say how the command of that number ended.

    Returns in the command's process alone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, and for the command that runs
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # else the end of each command looks at all of it, which copies it
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"the warm process has {len(threads)} threads, which a fork would lose"
    while line := sys.stdin.readline():
        asked = json.loads(line)
        if isinstance(asked, int):
            pid, status = os.waitpid(asked, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif not (answer := os.fork()):
            return _become(**asked)
        print(json.dumps(answer), flush=True)
    os._exit(0)


def _become(words: list[str], cwd: str, env: dict[str, str], files: list[str]) -> None:
    """Give this process all that a command has of its own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    for fd, file in enumerate(files):
        opened = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(opened, fd)
        os.close(opened)
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        old, mode = getattr(sys, name), "w" if fd else "r"
        new = open(fd, mode, 1 if fd == 2 else -1, old.encoding, old.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    os.chdir(cwd)
    named = [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [os.getcwd(), *named, *(entry for entry in sys.path[1:] if entry not in named)]
    sys.argv = ["agentopcd", *words]
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # Python's own generator is seeded anew by the fork
