"""The Java process that all games of TextWorldExpress in this process share."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import subprocess
from collections.abc import Iterator
from typing import Any

from agentopcd.core.errors import DependencyError, EnvError, GameFault
from agentopcd.core.text import first_line

INSTALL = "run: pip install textworld-express"
INSTALL_JAVA = "install a Java runtime, 8 or newer, such as openjdk-17-jre-headless, or set JAVA_HOME"

_LIGHT = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
"""Compile quickly and collect garbage in one thread: half the CPU time of a few hundred episodes."""
_PATIENCE_S = 2.0
"""How long a process that closed its connection may take to be gone."""

_GATEWAYS: dict[int, Any] = {}
"""Process id → its gateway: a forked process must not talk through its parent's connection."""


def world() -> tuple[Any, Any]:
    """Return the package ``textworldexpress`` inside Java, and the class of its generators of random numbers.

    The process starts on first use, and again if it died.

    Raises:
        DependencyError: the package or Java is missing.
        EnvError: Java does not start.
    """
    gateway = _GATEWAYS.get(os.getpid())
    if gateway is None or gateway.java_process.poll() is not None:
        gateway = _GATEWAYS[os.getpid()] = _started()
    return gateway.jvm.textworldexpress, gateway.jvm.scala.util.Random


def _started() -> Any:
    try:
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
        from py4j.protocol import Py4JError
        from textworld_express.constants import BASEPATH, JAR_PATH
    except ImportError:
        raise DependencyError(f"twx: needs textworld-express; {INSTALL}") from None
    try:
        port, token, process = launch_gateway(
            classpath=JAR_PATH, cwd=BASEPATH, java_path=None, javaopts=list(_LIGHT), enable_auth=True, die_on_exit=True,
            return_proc=True, create_new_process_group=True,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise DependencyError(f"twx: needs Java, and there is no {error.filename}; {INSTALL_JAVA}") from None
    except (Py4JError, OSError, ValueError) as error:
        raise EnvError(f"twx: Java ended before it was ready (see: java -version); {INSTALL_JAVA}") from error
    logging.getLogger("py4j").setLevel(logging.CRITICAL)  # it logs, once for each object, what calling() raises
    atexit.register(stop, os.getpid())
    return JavaGateway(gateway_parameters=GatewayParameters(port=port, auth_token=token), java_process=process)


def stop(owner: int) -> None:
    """End the Java process that the process with this id started, if that is this one."""
    gateway = _GATEWAYS.pop(owner, None)
    if gateway is None or owner != os.getpid():
        return
    with contextlib.suppress(Exception):
        gateway.shutdown()
    with contextlib.suppress(OSError):
        gateway.java_process.stdin.close()  # py4j's main class waits for this
    with contextlib.suppress(subprocess.TimeoutExpired):
        gateway.java_process.wait(_PATIENCE_S)


@contextlib.contextmanager
def calling(name: str) -> Iterator[None]:
    """Turn what goes wrong in Java into a :class:`GameFault`: it costs the episode, and the run goes on.

    A process that died takes the episodes with it that were under way; :func:`world` starts another.
    """
    from py4j.protocol import Py4JError, Py4JJavaError

    try:
        yield
    except Py4JJavaError as error:
        raise GameFault(f"{name} raised {first_line(Exception(error.java_exception.toString()))}") from error
    except (Py4JError, OSError) as error:
        process = getattr(_GATEWAYS.get(os.getpid()), "java_process", None)
        try:
            code = None if process is None else process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise GameFault(f"{name}: no answer from Java ({first_line(error)})") from error
        raise GameFault(f"{name}: the Java process ended (exit code {code}); the next game starts another") from error
