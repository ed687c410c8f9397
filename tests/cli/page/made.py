"""A workspace made without a model: two runs, a student, contexts with items, episodes of three arms, kept tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentopcd.core.runs import METRICS_FILE, TOKENS_FILE
from agentopcd.core.types import EMPTY, MARKER, Context, Episode, Task, Turn
from agentopcd.knowledge import Found, Store
from agentopcd.knowledge.students import move_student

ENV, BASE, STUDENT = "lake", "b" * 64, "5" * 64
TEST_TASKS = 6
FOLDER = "consolidate-lake-0123456789"

Word = Callable[[str], str]
"""Makes the text of a stranger: given a plain one, what stands in its place."""


def plain(text: str) -> str:
    return text


def build(work: Path, word: Word = plain, episodes: int = 0) -> Path:
    """A workspace with whatever a page shows.

    Args:
        word: gets every text that a stranger may have written.
        episodes: test tasks of each arm; 0: :data:`TEST_TASKS`.
    """
    work.mkdir(parents=True, exist_ok=True)
    env, tasks = word(ENV), [Task(n, f"{n:02d}" + "f" * 62) for n in range(episodes or TEST_TASKS)]
    earlier = Context(f"{MARKER} {word('Go left.')}")
    context = Context(f"{MARKER} {word('Go left.')}\n{MARKER} {word('H is a hole.')}")
    with Store.open(work / "store.db") as store:
        play = store.start("play", {"env": env, "model": word("pocket")}, 0)
        store.add_tasks(env, tasks, "test")
        store.add_tasks(env, ["e" * 64], "extract")
        store.add_model(BASE, word("pocket"), word("models/pocket"))
        for text, flags in (("Go left.", ()), ("H is a hole.", (word("an order"),))):
            found = [Found(word(text), raw=f"{MARKER} {word(text)}", flags=flags)]
            (id_,) = store.add_items(play, found, env=env, task_key="e" * 64)
            store.event(id_, "approve", "person", word("I have read it"))
        for text in (earlier, context):
            store.add_context(text, {"order": "chain", "made": word("by hand")})
        for target in (earlier, context):
            store.move(f"{ENV}/best", target.id, "confirm", word("better than nothing"), run_id=play)
        store.finish(play, {"success": 0.25, "low": 0.1, "high": 0.4, "n": 40, "items": [], "env_error_samples": [word(
            "Traceback: ValueError")]})  # fmt: skip
        settings = {"env": env, "model": word("pocket"), "context_id": context.id, "folder": f"elsewhere/runs/{FOLDER}"}
        run = store.start("consolidate", settings, 0)
        store.add_model(STUDENT, word("a student"), f"runs/{FOLDER}/student", BASE, run, {context.id: 1.0})
        for model, shown, wins in ((BASE, EMPTY, 1), (BASE, context, 3), (STUDENT, EMPTY, 2)):
            store.add_episodes(
                run, model, "s" * 64, [_episode(env, task, shown, task.seed % 4 < wins, word) for task in tasks]
            )
        store.finish(run, _result(word))
        move_student(store, env, STUDENT, "gate", word("it won"), run)
    _logs(work / "runs" / FOLDER, context, word)
    (work / "reproduce").mkdir()
    (work / "reproduce" / "table.json").write_text(json.dumps(_paper(word)))
    return work


def _episode(env: str, task: Task, shown: Context, won: bool, word: Word) -> Episode:
    turn = Turn(
        parts=[("rules", word("Reach the goal.")), ("state", word("P . G"))], messages=[], prompt_ids=(1, 2),
        response_ids=(3,), logprobs=(-0.1,), reply=word("[left]"), finish_reason="stop", reward=float(won),
        invalid=not won,
    )  # fmt: skip
    return Episode(
        env=env, task=task, rep=0, context_id=shown.id, turns=[turn], outcome=[("outcome", word("Over."))],
        success=won, reward=float(won), stop_reason="solved" if won else "failed",
        error=word("Traceback") if won else None,
    )  # fmt: skip


def _result(word: Word) -> dict[str, Any]:
    def row(label: str, rate: float) -> dict[str, Any]:
        score = {"mean": rate / 2, "low": 0.0, "high": 0.6, "n": 6}
        return {"label": label, "success": rate, "low": rate / 2, "high": min(1.0, rate + 0.2), "n": 6, "tasks": 6,
                "reply_tokens": 12.5, "means": {word("game_reward"): score}}  # fmt: skip

    pair = {"difference": 0.25, "low": -0.1, "high": 0.5, "n": 6, "tasks": 6, "wins": 2, "losses": 1, "p": 0.25}
    return {
        "folder": "x", "model": STUDENT, "parent": BASE, "best_step": 2, "steps": 4,
        "promotion": {"verdict": "promoted", "lines": [word("the gate of lake/student"), word("verdict: promoted")]},
        "evaluation": {
            "env": word(ENV), "split": "test", "notes": [word("a note")],
            "rows": [row("base", 0.25), row("in-context", 0.75), row("student", 0.5)],
            "differences": {"student - base": pair, word("a - b"): pair}, "recovered": 0.5, "overlap": [0, 0.0],
            "seen": {"tasks": 2, "runs": [1]},
            "floors": {"random": 0.01, "blind": 0.2, "blind_moves": ["left"], "solvable": 1.0, "n": 6},
        },
    }  # fmt: skip


def _logs(folder: Path, context: Context, word: Word) -> None:
    folder.mkdir(parents=True)
    steps = [{"step": 0, "select/success": 0.2, "select/n": 5, "select/low": 0.1, "select/high": 0.6}]
    for step in range(1, 5):
        evaluated = {"select/success": 0.1 * step, "select/n": 5, "select/low": 0.0, "select/high": 0.7}
        steps.append({
            "step": step, "loss/value_nats": 0.5 / step, "kl/student_entropy_nats": 0.4, "kl/teacher_entropy_nats": 0.3,
            "rollout/response_tokens_mean": 20 + step, "rollout/success": 0.2, **(evaluated if step % 2 == 0 else {}),
        })  # fmt: skip
    (folder / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in steps))
    turns = [
        {"step": step, "turn": n, "context": context.id, "prompt": word("Where to?"), "prompt_tokens": 9,
         "teacher_tokens": 19, "tokens_left_out": 0, "held_to": 0, **({"by_teacher": True} if n else {}),
         "tokens": [{"text": word(text), "nats": nats, "student": -0.7, "teacher": -1.4, "likeliest": word(" right"),
                     "likeliest_logprob": -0.3} for text, nats in ((" go", 0.001), ("\n", 0.05), (" left", 0.3),
                                                                   ("!", 1.0), (" end", 4.0))]}
        for step in (1, 2, 4) for n in range(2)
    ]  # fmt: skip
    (folder / TOKENS_FILE).write_text("".join(json.dumps(line) + "\n" for line in turns))


def _paper(word: Word) -> dict[str, Any]:
    rate = {"success": 0.5, "low": 0.4, "high": 0.6, "n": 100}
    finding = {
        "claim": word("opcd > base"),
        "verdict": "reproduced",
        "difference": 0.3,
        "low": 0.2,
        "high": 0.4,
        "p": 1e-5,
    }
    return {
        "title": word("Table 2"), "row": word("arithmetic"), "env": word("math"), "model": word("pocket"),
        "size": "mini", "paper": {"what": word("their rates"), "opcd": 51.0}, "seeds": [0],
        "rates": {"base": rate, "opcd": rate}, "reply_tokens": {"base": 10.0},
        "findings": [finding, {**finding, "verdict": "refuted", "difference": -0.3, "low": -0.4, "high": -0.2}],
        "floors": word("uniform random 0.1"), "note": word("a note"), "outcomes": {},
    }  # fmt: skip
