"""Other people's games through the whole circle, by the command line: check, play, extract, one training step.

Run with `pytest -m games tests/envs/test_games_learned.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.envs.circle import agentopcd, plays_and_learns

pytestmark = [pytest.mark.games, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    "ref",
    [("twx:simonsays", "--env-arg", "gameLength=2"), ("gym:minigrid:MiniGrid-FourRooms-v0",)],
    ids=["textworld-express", "minigrid"],
)
def test_a_game_is_checked_played_and_learned(ref: tuple[str, ...], tmp_path: Path) -> None:
    assert ": ok; " in agentopcd("envs", "check", *ref, "--seeds", "16")
    played = plays_and_learns(ref, tmp_path)
    assert "6 episodes" in played or "(n=6)" in played
    assert "env_error" not in played
