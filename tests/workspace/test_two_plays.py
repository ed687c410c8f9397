"""Two plays at once in one workspace: each has as many episodes as it was asked for."""

from __future__ import annotations

from typing import Any

import pytest

from agentopcd.knowledge import Bench
from tests.workspace import test_experience

lab = test_experience.lab


@pytest.mark.parametrize("before", [0, 2])
def test_a_play_whose_tasks_another_one_takes_meanwhile_plays_others(
    before: int, lab: test_experience.Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one plays from start to end before the first one has begun, or when it has two of four episodes."""
    play, second = Bench.play_missing, []

    def meanwhile(self: Bench, label: str, jobs: Any) -> int:
        if not second:
            second.append(None)
            play(self, label, jobs[:before])
            second[0] = lab.play(seed=0, chains=1)
        return play(self, label, jobs)

    monkeypatch.setattr(Bench, "play_missing", meanwhile)
    first = lab.play()
    assert (first.rate.n, second[0].rate.n) == (4, 4)
    with lab.open() as session:
        places = [{(row["task_key"], row["rep"]) for row in session.store.episodes(run_id=id_)}
                  for id_ in (first.run_id, second[0].run_id)]  # fmt: skip
    assert not places[0] & places[1]
    assert not any("broke" in line for line in lab.lines)
