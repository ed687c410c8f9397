"""The environments that come with the package, as plain specs; nothing is imported until one is built."""

from __future__ import annotations

import dataclasses

from agentopcd.envs.spec import EnvSpec
from agentopcd.envs.views import View

_NEUTRAL = "You control P on a grid. Reach the goal in as few moves as you can, one move per reply."
_MOVES = ("[up]", "[down]", "[left]", "[right]")
_OBEDIENCE = "measures whether a model follows a context against what is usual"
_GAME_VIEWS: dict[str, View] = {"full": {}, "hidden": {"rules": _NEUTRAL}, "none": {"rules": None}}


def _paper_seeds(train_steps: int) -> dict[str, tuple[int, ...]]:
    """The seeds of the code released with arXiv:2602.12275, which scores and tests on the same seeds.

    Training draws 64 seeds per step; the formula counts rounds from 0.
    """
    held_out = tuple(468460046 + 1000 * i for i in range(128))
    extract = tuple(468460046 + 1000 * i for i in range(128, 384))
    train = tuple(505209463 - 10_000_000 + 1000 * t for t in range(64 * train_steps))
    return {
        "test": held_out,
        "confirm": held_out,
        "select": held_out,
        "extract": extract,
        "train": train,
    }


_GRID = EnvSpec(
    id="grid",
    entry_point="",
    views=_GAME_VIEWS,
    play_format="[{}]",
    choices=_MOVES,
    model="pocket",
)
"""Fields that TextArena's two grid games share."""

_LAKE = dataclasses.replace(
    _GRID,
    id="frozen-lake",
    entry_point="agentopcd.envs.games.textarena:FrozenLake",
    kwargs={"size": 3, "num_holes": 2},
    max_steps=5,
    seeds=1000,
    summary="TextArena's Frozen Lake, 3x3 with 2 holes: 19 boards in all, so nothing is held out",
)
_LAKE_4X4 = dataclasses.replace(
    _LAKE,
    id="frozen-lake-4x4",
    kwargs={"size": 4, "num_holes": 4},
    max_steps=10,
    seeds=4000,
    split_sizes={"test": 256, "confirm": 127, "select": 64, "extract": 60},
    summary="Frozen Lake, 4x4 with 4 holes: 757 boards, the smallest size with enough boards to hold some out",
)
_SOKOBAN = dataclasses.replace(
    _GRID,
    id="sokoban",
    entry_point="agentopcd.envs.games.textarena:Sokoban",
    kwargs={"dim_room": (6, 6), "num_boxes": 1},
    max_steps=5,
    seeds=2000,
    summary="TextArena's Sokoban, 6x6 with 1 box",
)


def _paper(game: EnvSpec) -> EnvSpec:
    """The game with the seeds of the paper's released code."""
    return dataclasses.replace(
        game,
        id=f"{game.id}-paper",
        split_seeds=_paper_seeds(50),
        seeds=4000,
        summary=f"{game.id} with the seeds of the paper's released code: train and test boards overlap",
    )


SPECS = (
    _LAKE,
    _LAKE_4X4,
    _paper(_LAKE),
    dataclasses.replace(
        _LAKE_4X4,
        id="frozen-lake-4x4-swapped",
        kwargs={**_LAKE_4X4.kwargs, "hole": "G", "goal": "H", "swap": "vertical"},
        summary="frozen-lake-4x4 with G as hole, H as goal, up and down swapped: " + _OBEDIENCE,
    ),
    _SOKOBAN,
    _paper(_SOKOBAN),
    dataclasses.replace(
        _SOKOBAN,
        id="sokoban-swapped",
        kwargs={**_SOKOBAN.kwargs, "box": "O", "target": "X", "swap": "vertical"},
        summary="sokoban with O as box, X as goal, up and down swapped: " + _OBEDIENCE,
    ),
    EnvSpec(
        id="math",
        entry_point="agentopcd.envs.questions.env:Arithmetic",
        max_steps=1,
        history="chat",
        seeds=4000,
        summary="generated integer arithmetic; --env-arg level=1..5",
    ),
    EnvSpec(
        id="instructions",
        entry_point="agentopcd.envs.questions.puzzles:Instructions",
        max_steps=1,
        history="chat",
        seeds=4000,
        model="pocket",
        summary="small instructions with one right answer; --env-arg kinds=repeat,reverse,...",
    ),
    EnvSpec(
        id="conventions",
        entry_point="agentopcd.envs.questions.puzzles:Conventions",
        kwargs={"form": "bracket", "modulus": 7},
        max_steps=1,
        history="chat",
        seeds=4000,
        model="pocket",
        summary="sums under a convention that only a context states; --env-arg form=, modulus=, order=",
    ),
    EnvSpec(
        id="ifeval",
        entry_point="agentopcd.envs.questions.ifeval:IfEval",
        max_steps=1,
        history="chat",
        seeds=541,
        summary="IF-Eval: what training costs elsewhere; --env-arg file=PROMPTS.jsonl; needs agentopcd[ifeval]",
    ),
    EnvSpec(
        id="gym-frozen-lake",
        entry_point="agentopcd.envs.games.gym_bridge:GymFrozenLake",
        max_steps=20,
        play_format="[{}]",
        choices=_MOVES,
        seeds=2000,
        summary="Gymnasium's FrozenLake through the bridge: a new map for every seed, not slippery",
    ),
)
