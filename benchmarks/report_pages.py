"""How long the pages take: the report of 5,000 episodes, and the first page of ``agentopcd view`` with a million.

    python -m benchmarks.report_pages

makes both stores in a temporary folder (1 GB, some minutes), then times the report as a command, start of Python
included, and each page of the live view as a browser asks for it, from the second time on (the first page also from the
first). By the clock and as time of the processor. The median of --repeat.
"""

from __future__ import annotations

import argparse
import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from agentopcd.cli.page.serve import server_of
from agentopcd.knowledge import Store
from benchmarks.million_episodes import build
from tests.cli.page.made import build as workspace

ARMS = 3
PAGES = ("/", "/runs", "/contexts", "/items", "/episodes", "/episode/5")


def main() -> None:
    """Build the stores and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--report-episodes", type=int, default=5_000)
    parser.add_argument("--view-episodes", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument(
        "--store", type=Path, help="a large store to keep, and to use again; by default a temporary one"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = workspace(Path(folder) / "report", episodes=options.report_episodes // ARMS)
        print(f"{'':42s} {'clock':>9s} {'processor':>10s}")
        out = Path(folder) / "page.html"
        command = [sys.executable, "-m", "agentopcd", "report", "-o", str(out), "--work", str(work)]
        figures = [
            _timed(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(options.repeat)
        ]
        said = f"report of {_episodes(work / 'store.db')} episodes"
        _print(f"{said}, {out.stat().st_size / 1e6:.1f} MB", figures)
        path: Path = options.store or Path(folder) / "view" / "store.db"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            build(path, options.view_episodes, 10_000)
        print(f"view of {_episodes(path)} episodes, {path.stat().st_size / 1e9:.2f} GB")
        _view(path.parent, options.repeat)


def _view(work: Path, repeat: int) -> None:
    with server_of(work, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        _print("first page, asked first", [_timed(lambda: _ask(port, "/"))])
        for page in PAGES:
            _print(f"page {page}", [_timed(lambda page=page: _ask(port, page)) for _ in range(repeat)])
        server.shutdown()


def _ask(port: int, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path)
    answer = connection.getresponse()
    if answer.status != 200 or not answer.read().endswith(b"</html>"):
        raise SystemExit(f"{path} answered {answer.status}")


def _episodes(path: Path) -> int:
    with Store.open(path) as store:
        return store.newest_episodes(1)[1]


def _timed(act: Callable[[], object]) -> tuple[float, float]:
    """The seconds that ``act`` takes: by the clock, and of the processor, this process and its children."""

    def used() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    began, before = time.perf_counter(), used()
    act()
    return time.perf_counter() - began, used() - before


def _print(name: str, figures: list[tuple[float, float]]) -> None:
    clock, processor = (statistics.median(column) for column in zip(*figures, strict=True))
    print(f"{name:42s} {clock:7.2f} s {processor:8.2f} s", flush=True)


if __name__ == "__main__":
    main()
