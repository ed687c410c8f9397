"""The processes that run environments of other Pythons: one for each environment, for all of its episodes."""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentopcd.core.errors import DependencyError, EnvError, GameFault
from agentopcd.envs.guard import BUILD_LIMIT_S, SLOW_STEP_LIMIT_S, Hang

PYTHON = "AGENTOPCD_VERIFIERS_PYTHON"
"""The environment variable that names the Python with verifiers: a path is no part of what is played."""
_PROGRAM = Path(__file__).with_name("verifiers_worker.py")
_LAST_LINES = 20

_WORKERS: dict[tuple[str, str, str], Worker] = {}
_STARTING = threading.Lock()


def worker_of(env_id: str, arguments: Mapping[str, Any]) -> Worker:
    """The process that runs an environment: the one that is there, or a new one if there is none or it has died.

    Raises:
        DependencyError: no Python with verifiers is named.
        EnvError: the environment cannot be loaded there.
    """
    key = (_python(), env_id, json.dumps(dict(arguments), sort_keys=True))
    with _STARTING:
        if key not in _WORKERS or not _WORKERS[key].alive:
            _WORKERS[key] = Worker(*key)
        return _WORKERS[key]


def _python() -> str:
    named = os.environ.get(PYTHON, "")
    wanted = f"set {PYTHON} to the Python of an environment with verifiers, such as /path/to/venv/bin/python"
    if not named:
        raise DependencyError(f"verifiers does not fit beside agentopcd, so it needs a Python of its own: {wanted}")
    if not os.access(named, os.X_OK):
        raise DependencyError(f"{PYTHON} is {named!r}, no program that can be run; {wanted}")
    return named


class Worker:
    """One process. Its methods may be called from many threads.

    Args:
        python: the program that runs it.
        env_id: the environment, as ``verifiers.load_environment`` takes it.
        arguments: those of the environment, as JSON.

    Raises:
        EnvError: the environment cannot be loaded.
    """

    def __init__(self, python: str, env_id: str, arguments: str) -> None:
        self._python, self._env_id = python, env_id
        self._process = subprocess.Popen(
            [python, "-I", str(_PROGRAM), env_id, arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
        )  # fmt: skip
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._mailboxes: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._first: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._said: deque[str] = deque(maxlen=_LAST_LINES)
        self.alive = True
        self._drain = threading.Thread(target=self._keep_last_lines, daemon=True)
        self._drain.start()
        threading.Thread(target=self._hand_out, daemon=True).start()
        self.rows = self._wait_until_ready()

    def _wait_until_ready(self) -> int:
        """The number of rows that the environment has."""
        try:
            answer = self._first.get(timeout=BUILD_LIMIT_S)
        except queue.Empty:
            answer = {"why": f"it was not loaded within {BUILD_LIMIT_S:.0f} s"}
        except BaseException:  # an alarm, Ctrl-C: nobody else knows of this process
            self._process.kill()
            self.alive = False
            raise
        if answer.get("event") != "ready":
            self._process.kill()
            self.alive = False
            raise EnvError(f"verifiers:{self._env_id} cannot be loaded by {self._python}: {answer['why']}")
        return int(answer["rows"])

    def _hand_out(self) -> None:
        """Put every event into the mailbox of its episode, until the process ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            if "episode" not in event:
                self._first.put(event)
                continue
            with self._lock:
                mailbox = self._mailboxes.get(event["episode"])
            if mailbox is not None:
                mailbox.put(event)
        code = self._process.wait()
        self._drain.join(1)
        why = f"its process died (exit code {code}{f'; {self._said[-1]}' if self._said else ''})"
        with self._lock:
            self.alive = False
            for mailbox in (self._first, *self._mailboxes.values()):
                mailbox.put({"event": "fault", "why": why})

    def _keep_last_lines(self) -> None:
        assert self._process.stderr is not None
        self._said.extend(line.strip() for line in self._process.stderr if line.strip())

    def start(self, row: int) -> int:
        """Begin an episode with a row; return its number. The first event is what :meth:`next` gives.

        Raises:
            GameFault: the process is gone.
        """
        episode = next(self._numbers)
        with self._lock:
            if self.alive:
                self._mailboxes[episode] = queue.SimpleQueue()
        self._tell({"op": "start", "episode": episode, "row": row})
        return episode

    def reply(self, episode: int, text: str, calls: list[dict[str, str]]) -> None:
        """Answer what an episode asks for."""
        self._tell({"op": "reply", "episode": episode, "text": text, "calls": calls})

    def next(self, episode: int) -> dict[str, Any]:
        """The next event of an episode: ``ask`` or ``end``.

        Raises:
            GameFault: its own code raised, it was dropped, the process is gone, or nothing came for too long.
        """
        with self._lock:
            mailbox = self._mailboxes.get(episode)
        if mailbox is None:
            raise GameFault(f"the episode of verifiers:{self._env_id} was dropped")
        try:
            event = mailbox.get(timeout=SLOW_STEP_LIMIT_S)
        except queue.Empty:
            raise Hang(f"verifiers:{self._env_id} gave no answer within {SLOW_STEP_LIMIT_S:.0f} s") from None
        if event["event"] == "fault":
            raise GameFault(f"verifiers:{self._env_id}: {event['why']}")
        return event

    def drop(self, episode: int) -> None:
        """Forget an episode, wherever it is; who waits for it gets a fault."""
        with self._lock:
            mailbox = self._mailboxes.pop(episode, None)
        if mailbox is not None:
            mailbox.put({"event": "fault", "why": "the episode was dropped"})
            if self.alive:
                self._tell({"op": "drop", "episode": episode})

    def _tell(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        line = json.dumps(command) + "\n"
        try:
            with self._lock:
                self._process.stdin.write(line)
                self._process.stdin.flush()
        except OSError:  # the process is gone, which its episodes are told by the thread that reads from it
            self.alive = False
