"""The games that several tests of pocket's corpus read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.recipes.pocket_readers import Drawn


@pytest.fixture(scope="session")
def games() -> list[Drawn]:
    """Lakes and rooms in equal parts, 6,000 in all, and the worlds they were played in."""
    from tests.recipes.pocket_readers import draw_games

    return draw_games()
