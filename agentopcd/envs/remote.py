"""Run an environment in a separate process, for environments with slow steps (``EnvSpec.slow``)."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import threading
import traceback
from collections.abc import Mapping
from typing import Any

from agentopcd.core.errors import AgentOpcdError, EnvError, GameFault
from agentopcd.core.terminal import guard
from agentopcd.envs.guard import BUILD_LIMIT_S, KNOWN_INFO, SLOW_STEP_LIMIT_S, Hang
from agentopcd.envs.registry import make, registered
from agentopcd.envs.spec import EnvSpec

_CLOSE_S = 5.0
"""Seconds that an environment may take to close before its process is killed."""
_GRACE_S = 5.0
"""Seconds beyond the limit before a process is killed: its own alarm rings at the limit, and that keeps its traceback.
"""


class RemoteEnv:
    """``reset``, ``step`` and ``close`` of an environment that lives in another process; each call waits for it.

    Args:
        ref: a reference, resolved in that process; for an id registered in this process, the spec itself is sent.
        max_steps: replies per episode.
        kwargs: arguments of the environment.
        limit_s: seconds that one reset or step may take; then the process is killed, whatever it does.
    """

    def __init__(self, ref: str, max_steps: int, kwargs: Mapping[str, Any], limit_s: float = SLOW_STEP_LIMIT_S) -> None:
        self._limit_s = limit_s
        self._building_s = BUILD_LIMIT_S  # the first call builds the environment
        ways = multiprocessing.get_all_start_methods()
        # Not fork: it would copy torch and its threads.
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in ways else "spawn")
        context.set_forkserver_preload(["agentopcd.envs"])
        self._pipe, theirs = context.Pipe()
        target = registered().get(ref, ref)
        self._process = context.Process(target=_serve, args=(theirs, target, max_steps, dict(kwargs)), daemon=True)
        self._process.start()
        theirs.close()
        self._calling = threading.Lock()

    def reset(self, *, seed: int) -> tuple[str, dict[str, Any]]:
        return self._call("reset", seed)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return self._call("step", action)

    def close(self) -> None:
        """Close the environment and end its process, from any thread; in the middle of a step, just end the process."""
        built = self._building_s == 0
        if built and self._process.is_alive() and self._calling.acquire(blocking=False):
            try:
                with contextlib.suppress(OSError):  # it ends by itself
                    self._pipe.send(("close", None))
                self._process.join(_CLOSE_S)
            finally:
                self._calling.release()
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        # The pipe is closed with this object: a thread may wait at it, and its number must not become another file's.

    def _call(self, name: str, argument: Any) -> Any:
        """Call a method of the environment and return its result.

        Raises:
            EnvError: the environment cannot be built.
            GameFault: it raised or hung (the message of the cause holds the traceback), or its process died.
        """
        limit_s, self._building_s = self._limit_s + self._building_s, 0.0
        try:
            with self._calling:
                self._pipe.send((name, argument))
                if not self._pipe.poll(limit_s + _GRACE_S):
                    self.close()
                    raise Hang(f"{name} gave no answer within {limit_s:.0f} s; its process was killed")
                status, result, traced = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(1)
            raise GameFault(f"the environment's process died (exit code {self._process.exitcode})") from error
        if status == "refused":
            raise EnvError(result)
        if status == "fault":
            raise GameFault(result) from RuntimeError(f"in the environment's process:\n{traced}")
        return result


def _serve(pipe: multiprocessing.connection.Connection, ref: str | EnvSpec, max_steps: int, kwargs: Any) -> None:
    """Answer calls until the pipe closes or the last one asks to close."""
    guard()  # what the environment prints goes to the same terminal
    # A daemon ends with the program that started it, but may have no children, which an environment may want. Of this
    # setting, the program has its own copy.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    env: Any = None
    try:
        while True:
            name, argument = pipe.recv()
            if name == "close":
                return
            try:
                if env is None:
                    env = make(ref, max_steps=max_steps, **kwargs)
                *values, info = env.reset(seed=argument) if name == "reset" else env.step(argument)
                answer = ("done", (*values, {key: info[key] for key in KNOWN_INFO if key in info}), "")
            except GameFault as fault:
                answer = ("fault", str(fault), traceback.format_exc(limit=-8))
            except AgentOpcdError as error:
                answer = ("refused", str(error), "")
            pipe.send(answer)
    except (EOFError, OSError):  # nobody is there any more
        return
    finally:
        if env is not None:
            env.close()
