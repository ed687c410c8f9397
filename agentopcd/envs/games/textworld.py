"""The generated text games of TextWorldExpress: ``twx:coin``. They run in one Java process, see :mod:`.java`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from agentopcd.core.errors import DependencyError, EnvError, did_you_mean
from agentopcd.core.text import after_thinking
from agentopcd.envs.base import TextEnv, last_bracket
from agentopcd.envs.games import java
from agentopcd.envs.views import hash_text

FOLDS = ("train", "dev", "test")
"""The package's own word lists: things and rooms of one fold do not occur in another."""
MAX_STEPS = {"cookingworld": 100}
"""Replies per episode where the package's own player needs more than :data:`USUAL_STEPS`."""
USUAL_STEPS = 50

_MOST_SEED = 2**31 - 1
_TRIES = 8
"""Games of the package's own player, of which the shortest is the solution; it explores at random."""
_WITH_ROOMS = {"cookingworld", "twc", "coin", "mapreader"}
_SHARED = {"sorting"}
"""Games whose things are made once for each Java process, so that a new game takes them out of an older one."""
_LAST: dict[str, Any] = {}
"""Such a game → the interface that has its things now. Another one plays its own actions again before it goes on."""
_NO_ACTION = "Your reply names no action that is possible now."
_UNKNOWN = re.compile(r"Unrecognized property name \(([^)]*)\)\.\s+Known properties: ([^.]*)\.")


def spec_fields(game: str) -> dict[str, Any]:
    """Return the fields of the spec of ``twx:GAME``."""
    return {"max_steps": MAX_STEPS.get(game, USUAL_STEPS), "play_format": "[{}]"}


class TextWorldExpress(TextEnv):
    """One game of TextWorldExpress; a new game for every seed.

    Observation: ``rules`` (the task, first one only), ``state`` (the room, when it is new or looked at), ``feedback``
    (what an action did), ``actions`` (all that are possible now); at the end ``outcome``.
    Action: the last bracketed action after the thinking, or a reply that is an action and nothing else. Any other reply
    is ``invalid``, and nothing happens.
    Reward: the change of the game's score, which ends at 1 if the task is solved; ``metrics["score"]`` is the score.
    Success: what the game says. Episode end: solved or failed, as the game says.
    Info: ``choices``, the commands that it understands here; ``action``, the one that was understood.
    Task key: all rooms with what is in them, seen or not, the inventory, the task, and what the game wants.
    Seeds: 0 to 2,147,483,647. The package's own generator makes the game from seed and fold.
    Version: textworld-express 1.1.

    Args:
        game: one of the package's games, such as ``coin``.
        fold: ``train``, ``dev`` or ``test``: the package's word lists.
        **parameters: whole numbers for the package's generator, such as ``numLocations=3``.
    """

    packages = ("textworld-express",)

    def __init__(self, game: str, *, fold: str = "train", **parameters: int | bool) -> None:
        _check_game(game)
        if fold not in FOLDS:
            raise EnvError(f"twx:{game}: fold is {fold!r}{did_you_mean(str(fold), FOLDS)}")
        for name, value in parameters.items():
            if not isinstance(value, int):
                raise EnvError(f"twx:{game}: {name} must be a whole number, got {value!r}")
        self._name, self._label, self._fold = game, f"twx:{game}", fold
        self._parameters = {name: int(value) for name, value in parameters.items()}
        self._game: Any = None
        self._actions: dict[str, str] = {}
        self._done: list[str] = []
        self._seed, self._score, self._over = 0, 0.0, True
        java.world()  # what is missing is told here
        with java.calling(self._label):
            self._check_kept()  # a wrong argument fails here, not in the middle of a run

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self._seed = int(self.np_random.integers(_MOST_SEED)) if seed is None else seed
        if self._seed > _MOST_SEED:
            raise EnvError(f"{self._label} takes seeds up to {_MOST_SEED:,}, got {self._seed:,}")
        with java.calling(self._label):
            self._game, told = self._generated(self._seed)
            task = _plain(self._game.getTaskDescription())
            key = self._key(told, task)
        self._score, self._over, self._done = 0.0, False, []
        parts = self._parts(told)
        if self._name == "mapreader":  # its task differs from game to game, so it is no rule
            parts["state"] = f"{task}\n\n{parts['state']}"
        else:
            parts["rules"] = task
        text, info = self.first(key=key, **parts)
        return text, {**info, **self._listed()}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._over:
            raise EnvError("the game is over (or was never started); call reset()")
        chosen = self._chosen(action)
        if chosen is None:
            turn = self.turn(feedback=_NO_ACTION, actions=self._how, invalid=True)
            turn[4].update(self._listed())
            return turn
        with java.calling(self._label):
            if self._name in _SHARED and _LAST.get(self._name) is not self._game:
                self._game, _ = self._generated(self._seed)
                for earlier in self._done:
                    self._game.stepJSON(earlier)
            told = json.loads(self._game.stepJSON(chosen), strict=False)
        self._done.append(chosen)
        score = float(told["score"])
        reward, self._score = score - self._score, score
        self._over = bool(told["tasksuccess"] or told["taskfailure"])
        parts: dict[str, Any] = {**self._parts(told)}
        solved = bool(told["tasksuccess"]) if self._over else None
        if self._over:
            parts |= {"actions": "", "outcome": "You solved the task." if solved else "You failed the task."}
        turn = self.turn(success=solved, reward=reward, metrics={"score": score}, **parts)
        if not self._over:
            turn[4].update(self._listed())
        turn[4]["action"] = f"[{chosen}]"
        return turn

    def close(self) -> None:
        self._game = None  # Java forgets it with that

    def solution(self) -> list[str] | None:
        """Return replies that win from the reset state: the shortest game of the package's own player, if one won."""
        if self._game is None:
            return None
        found: list[list[str]] = []
        with java.calling(self._label):
            package, generator_of_draws = java.world()
            for number in range(_TRIES):
                game = self._generated(self._seed)[0].game()
                kind = str(game.getClass().getSimpleName()).removesuffix("Game")
                player = getattr(package.goldagent, f"{kind}GoldAgent")(game)
                made = player.mkGoldPath(generator_of_draws(number))
                if made._1():
                    found.append(self._until_won(list(made._2())))
        return min(filter(None, found), key=len, default=None)

    def _until_won(self, actions: list[str]) -> list[str]:
        """Return the replies up to the one that wins, for that player sometimes goes on; none if they do not win."""
        game, _ = self._generated(self._seed)
        for number, action in enumerate(actions, start=1):
            if json.loads(game.stepJSON(action), strict=False)["tasksuccess"]:
                return [f"[{action}]" for action in actions[:number]]
        return []

    def _generated(self, seed: int) -> tuple[Any, dict[str, Any]]:
        """Return an interface with the game of a seed, and the package's first answer; an interface holds one game."""
        package, _ = java.world()
        game = package.runtime.PythonInterface()
        refused = game.load(self._name, ",".join(f"{name}={n}" for name, n in self._parameters.items()))
        if refused:
            raise EnvError(_reason(self._label, str(refused)))
        told = json.loads(game.generateNewGameJSON(seed, self._fold, False), strict=False)
        _LAST[self._name] = game
        return game, told

    def _check_kept(self) -> None:
        """Refuse arguments that the generator refuses, or reads as another number, as it does with a flag of 7."""
        game, _ = self._generated(0)
        kept = json.loads(game.getGenerationPropertiesJSON())
        for name, value in self._parameters.items():
            if kept.get(name, value) != value:
                raise EnvError(f"{self._label}: {name}={value} was read as {kept[name]}; give it another value")

    def _key(self, told: Mapping[str, Any], task: str) -> str:
        """Return the key of the game that was just made, from its whole state."""
        game = self._game.game()
        made = json.loads(self._game.getGenerationPropertiesJSON())
        facts = [
            self._name, task, told["observation"],
            json.dumps({name: value for name, value in made.items() if name != "seed"}, sort_keys=True),
        ]  # fmt: skip
        if self._name == "simonsays":
            facts += [*game.goldActionSequence(), *sorted(game.possibleActions())]
        else:
            rooms = game.locations() if self._name in _WITH_ROOMS else [game.agentLocation()]
            facts += [room.toJSON() for room in [*rooms, game.agentInventory()]]
        if self._name == "peckingorder":
            facts += [thing.name() for thing in game.objectOrder()]
        return hash_text("\n".join(map(str, facts)))

    def _parts(self, told: Mapping[str, Any]) -> dict[str, str]:
        """Return the package's answer as parts, and take over the actions that are possible now."""
        # The package shuffles them; in one order, games that are the same look the same.
        self._actions = {action.casefold(): action for action in sorted(told["validActions"])}
        seen, look = _plain(told["observation"]), _plain(told["look"])
        kind = "state" if not look or seen == look else "feedback"
        return {kind: seen, "actions": self._how}

    @property
    def _how(self) -> str:
        return f"Answer with one action in brackets: {', '.join(f'[{action}]' for action in self._actions.values())}."

    def _listed(self) -> dict[str, list[str]]:
        listed = [f"[{action}]" for action in self._actions.values()]
        return {"choices": listed}

    def _chosen(self, reply: str) -> str | None:
        said = last_bracket(reply, self._actions) or after_thinking(reply).strip().casefold()
        return self._actions.get(said)


def _check_game(game: str) -> None:
    try:
        from textworld_express.constants import GAME_NAMES
    except ImportError:
        raise DependencyError(f"twx: needs textworld-express; {java.INSTALL}") from None
    if game not in GAME_NAMES:
        raise EnvError(f"TextWorldExpress has no game {game!r}{did_you_mean(game, GAME_NAMES)}")


def _reason(label: str, refused: str) -> str:
    """Return what the package says against the arguments, in our words if one of them has a wrong name."""
    unknown = _UNKNOWN.search(refused)
    if unknown is None:
        return f"{label}: {' '.join(refused.split())}"
    name, known = unknown[1], unknown[2].split(", ")
    return f"{label} takes no argument {name!r}{did_you_mean(name, [*known, 'fold'])}"


def _plain(text: str) -> str:
    """Return the text without the package's trailing and doubled spaces, and without empty lines."""
    lines = (" ".join(line.split()) for line in str(text).splitlines())
    return "\n".join(line for line in lines if line)
