"""The command line as a person uses it: processes, exit codes, and a workspace folder."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentopcd.knowledge import Store
from tests import tiny, warm

ENV = "slow_env.py:SLOW"
PATIENCE_S = 120
"""How long a process may take to come to the point where it is killed."""


@dataclasses.dataclass
class Desk:
    """A folder with the tiny model, an environment file and texts, from which commands are called."""

    folder: Path
    real: bool = False
    """Whether commands are started anew, with a hash seed of their own, instead of from the warm process."""

    @property
    def anew(self) -> Desk:
        """The same desk, from which every start is a real one."""
        return dataclasses.replace(self, real=True)

    def start(self, *arguments: str, **variables: str) -> warm.Warm | subprocess.Popen[str]:
        return warm.start(*arguments, **self._how(variables))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return warm.run(*arguments, timeout=PATIENCE_S, **self._how({}))

    def _how(self, variables: dict[str, str]) -> dict[str, Any]:
        own = {"OMP_NUM_THREADS": "1", "COLUMNS": "80", "HF_HUB_OFFLINE": "1", **variables}
        return {"cwd": self.folder, "env": os.environ | own, "real": self.real}

    def ok(self, *arguments: str) -> str:
        """Run, expect success, and return stdout."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def kill_when(self, ready: Callable[[], bool], *arguments: str, **variables: str) -> None:
        """Start a command and kill it (SIGKILL) as soon as ``ready``; it must not have ended by then."""
        process = self.start(*arguments, **variables)
        deadline = time.monotonic() + PATIENCE_S
        try:
            while not ready():
                assert process.poll() is None, f"ended before it could be killed: {process.communicate()}"
                assert time.monotonic() < deadline, "never came to the point where it is killed"
                time.sleep(0.01)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL

    def query(self, work: str, sql: str) -> list[dict[str, Any]]:
        """Rows of a workspace's store; none while there is no store yet."""
        path = self.folder / work / "store.db"
        if not path.exists():
            return []
        with Store.open(path, create=False) as store:
            return store.query(sql)

    def count(self, work: str, table: str) -> int:
        rows = self.query(work, f"SELECT count(*) AS n FROM {table}")
        return rows[0]["n"] if rows else 0


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    tiny.build(folder / "tiny", tie=False, hearing=4.0)
    shutil.copy(Path(__file__).with_name("slow_env.py"), folder)
    (folder / "context.txt").write_text("Say the same thing twice.\n")
    (folder / "empty.txt").write_text("\n")
    (folder / "unknown.toml").write_text("stepps = 3\n")
    return Desk(folder)
