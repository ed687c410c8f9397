"""Freed memory goes back to the machine when much of it is kept."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agentopcd.models import process

HOLES = """
import torch
from agentopcd.models.process import SPARE_BYTES, FreedMemory, keep_freed_memory, resident_bytes
keep_freed_memory()
freed = FreedMemory()
before = freed.held
blocks = [torch.ones(1 << 18) for _ in range(1200)]  # 1 MiB each; every second one stays
blocks = blocks[::2]
full = resident_bytes() - before
freed.look()
left = resident_bytes() - before
print(full >> 20, left >> 20, (freed.held - before) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_holes_between_what_is_in_use_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    full, left, held = map(int, done.stdout.split())
    assert full > 1100 and 550 < left < 700 and abs(held - left) < 20


def test_little_growth_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100 << 20, 600 << 20, 613 << 20, 200 << 20, 700 << 20])
    monkeypatch.setattr(process, "resident_bytes", lambda: next(sizes))
    calls = []
    monkeypatch.setattr(process, "give_back_memory", lambda: calls.append(1))
    freed = process.FreedMemory()
    freed.look()  # 500 MiB more: within bounds
    assert not calls
    freed.look()
    assert calls == [1] and freed.held == 200 << 20
    freed.look()
    assert calls == [1], "counted from what was held after the last time"
