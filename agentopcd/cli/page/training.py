"""A training to look at: its curves, and the tokens of some turns with what the loss saw at each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentopcd.cli.page.marks import Series, curves, number, short
from agentopcd.cli.page.results import mapping, sequence
from agentopcd.core.errors import ConfigError
from agentopcd.core.runs import METRICS_FILE, TOKENS_FILE, read_records

BANDS = (0.01, 0.1, 0.5, 2.0)
"""Where the bands of divergence begin, in nats: a token in the lowest is left plain."""
POINTS = 200
"""The most points of a curve that are drawn: of more steps, evenly many."""

FIGURES: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("Loss, nats a token", {"loss": "loss/value_nats", "full KL": "loss/kl_full_sampled_nats"}),
    ("Distance to the teacher on select tasks, nats a token", {"student": "select/distance_nats"}),
    ("Score on select tasks", {"student": "select/score"}),
    ("Success", {"on select tasks, without the context": "select/success", "while training": "rollout/success"}),
    ("Entropy, nats a token", {"student": "kl/student_entropy_nats", "teacher": "kl/teacher_entropy_nats"}),
    ("Length of replies, tokens",
     {"mean": "rollout/response_tokens_mean", "95th percentile": "rollout/response_tokens_p95"}),
)  # fmt: skip
"""Pictures of a training: title, and the key in the log for each curve."""


def curves_of(folder: Path) -> dict[str, Any]:
    """The curves of a run's log.

    Returns:
        ``pictures``, the ``steps`` logged so far, and a ``note`` if the log cannot be read.
    """
    try:
        records = read_records(folder / METRICS_FILE)
    except (ConfigError, OSError) as error:
        return {"pictures": [], "steps": 0, "note": str(error)}
    last = max((record.get("step", 0) for record in records), default=0)
    apart = math.ceil(len(records) / POINTS) or 1
    kept = [
        record for n, record in enumerate(records) if n % apart == 0 or "select/n" in record or n == len(records) - 1
    ]
    found = [curves(title, [_series(label, key, kept) for label, key in keys.items()]) for title, keys in FIGURES]
    return {"pictures": [picture for picture in found if picture], "steps": last, "note": ""}


def _series(label: str, key: str, records: Sequence[Mapping[str, Any]]) -> Series:
    points, bars = [], []
    for record in records:
        value = number(record.get(key))
        if value is not None:
            points.append((float(record.get("step", 0)), value))
            low, high = number(record.get("select/low")), number(record.get("select/high"))
            known = key.startswith("select/") and low is not None and high is not None
            bars.append((low, high) if known else None)
    return Series(label, points, bars)


def band(nats: float) -> int:
    """The band of a divergence, 0 to 4; a negative one, which the form ``raw`` can give, counts by its size."""
    return sum(abs(nats) >= at for at in BANDS)


def tokens_of(folder: Path, *, most: int, step: int | None = None) -> dict[str, Any]:
    """The turns that were kept of a training, step by step.

    Args:
        most: the most tokens to return. The first and the last step come first, then the others from the newest on.
        step: only turns of this step.

    Returns:
        ``steps`` with their ``turns``, the numbers of ``all_steps``, the tokens ``left_out``, and a ``note`` if the
        file cannot be read.
    """
    try:
        records = read_records(folder / TOKENS_FILE)
    except (ConfigError, OSError) as error:
        return {"steps": [], "all_steps": [], "left_out": 0, "note": str(error)}
    by_step: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        by_step.setdefault(record.get("step", 0), []).append(record)
    numbers = sorted(by_step)
    order = [*dict.fromkeys([*numbers[:1], *numbers[-1:], *reversed(numbers)])] if step is None else [step]
    room, left_out, found = most, 0, []
    for at in order:
        turns = []
        for record in by_step.get(at, []):
            turn = _turn(record)
            if len(turn["tokens"]) > room:
                left_out += len(turn["tokens"]) - max(0, room)
                turn["tokens"] = turn["tokens"][: max(0, room)]
            room -= len(turn["tokens"])
            if turn["tokens"]:
                turns.append(turn)
        if turns:
            found.append({"step": at, "turns": turns})
    found.sort(key=lambda one: one["step"])
    return {"steps": found, "all_steps": numbers, "left_out": left_out, "note": ""}


def _turn(record: Mapping[str, Any]) -> dict[str, Any]:
    tokens = [_token(mapping(token)) for token in sequence(record.get("tokens"))]
    nats = [token["nats"] for token in tokens]
    return {
        "turn": int(number(record.get("turn")) or 0), "prompt": str(record.get("prompt", "")),
        "prompt_tokens": number(record.get("prompt_tokens")), "teacher_tokens": number(record.get("teacher_tokens")),
        "cut": int(number(record.get("tokens_left_out")) or 0), "held_to": int(number(record.get("held_to")) or 0),
        "by_teacher": record.get("by_teacher") is True,
        "tokens": tokens, "mean": sum(nats) / len(nats) if nats else 0.0,
        "most": max(nats, key=abs) if nats else 0.0,
        "largest": "; ".join(token["said"] for token in sorted(tokens, key=lambda one: -abs(one["nats"]))[:3]),
    }  # fmt: skip


def _token(given: Mapping[str, Any]) -> dict[str, Any]:
    nats, text, other = number(given.get("nats")) or 0.0, str(given.get("text", "")), str(given.get("likeliest", ""))
    student, teacher, best = (_chance(given.get(name)) for name in ("student", "teacher", "likeliest_logprob"))
    instead = "the teacher's likeliest, too" if other == text else f"the teacher's likeliest {_named(other)} {best}"
    return {
        "nats": nats, "band": band(nats), "visible": text.replace("\n", "↵\n"),
        "said": f"{_named(text)} {nats:.3f} nats: student {student}, teacher {teacher}, {instead}",
    }  # fmt: skip


def _named(text: str) -> str:
    """A token in quotation marks, cut, with its line ends and tabs spelled out."""
    spelled = short(text, 40).replace("\n", "\\n").replace("\t", "\\t")
    return f"“{spelled}”"


def _chance(logprob: Any) -> str:
    at = number(logprob)
    return "unknown" if at is None else f"{100 * math.exp(min(at, 0.0)):.3g} %"
