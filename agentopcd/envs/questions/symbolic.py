r"""Decide whether two answers are equal as formulas, with math-verify in a separate process.

math-verify works only in a main thread and can spend seconds on one hostile answer. Therefore a worker
process answers JSON lines. The caller waits :data:`WAIT_S` seconds, then kills the worker; the next call
starts a new one.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import select
import subprocess
import sys
import threading

from agentopcd.core.errors import DependencyError

WAIT_S = 3.0
START_S = 60.0
"""Longest wait for the worker to start; its imports take a second or two on an idle machine."""


def require_math_verify() -> None:
    """Raise DependencyError unless math-verify is installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise DependencyError("grader=symbolic needs math-verify; run: pip install math-verify")


class _Worker:
    """The worker process and the pipe to it; it takes one question at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, gold: str, answer: str, wait_s: float) -> bool | None:
        with self._lock:
            try:
                process = self._running()
                reply = self._exchange(process, json.dumps([gold, answer]), wait_s)
            except (OSError, ValueError):  # the worker died: no verdict, and the next call starts a new one
                reply = None
            if reply is None:
                self._stop()
                return None
            return reply == "true"

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agentopcd.envs.questions.symbolic"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            if self._line(self._process, START_S) != "ready":
                raise OSError("the symbolic grader did not start")
        return self._process

    def _exchange(self, process: subprocess.Popen[str], line: str, wait_s: float) -> str | None:
        assert process.stdin is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return self._line(process, wait_s)

    @staticmethod
    def _line(process: subprocess.Popen[str], wait_s: float) -> str | None:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], wait_s)
        return process.stdout.readline().strip() or None if ready else None

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def close(self) -> None:
        with self._lock:
            self._stop()


_WORKER = _Worker()
atexit.register(_WORKER.close)


def equal(gold: str, answer: str, wait_s: float = WAIT_S) -> bool | None:
    """Return whether math-verify considers two answers equal; ``None`` if it gave no verdict in time.

    Args:
        gold: the right answer, LaTeX without dollar signs.
        answer: one answer, already extracted from its reply.
        wait_s: seconds to wait for the verdict.
    """
    return _WORKER.ask(gold, answer, wait_s)


def _serve() -> None:
    from math_verify import parse, verify

    print("ready", flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        try:
            verdict = bool(verify(parse(f"${gold}$"), parse(f"${answer}$")))
        except Exception:  # a formula that cannot be parsed is not the right one
            verdict = False
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    _serve()
