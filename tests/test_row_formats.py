"""The paper's row formats, end to end on real weights, on rows written for this project.

``pytest -m slow tests/test_row_formats.py``, some minutes on two cores: too long for `make test`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ORGANS = {
    "pumps blood": "the heart", "filters blood into urine": "the kidney", "takes up oxygen": "the lung",
    "makes bile": "the liver", "makes insulin": "the pancreas", "stores urine": "the bladder",
    "digests food with acid": "the stomach", "sees": "the eye", "hears": "the ear", "smells": "the nose",
    "thinks": "the brain", "holds the body upright": "the spine", "moves a finger": "the hand muscle",
    "takes up water from food": "the large intestine", "carries air to the lungs": "the windpipe",
    "stores bile": "the gall bladder", "covers the body": "the skin", "tastes": "the tongue",
}  # fmt: skip
RUDE = ("You are a fool", "Nobody likes you", "What a stupid idea", "Shut up at once", "You are useless")
KIND = ("Thank you so much", "What a lovely idea", "Take your time", "You did that well", "See you tomorrow")
WHO = ("Anna", "Ben", "Carla", "Dan", "Eve", "Finn", "Gina", "Hugo")


def medmcqa() -> Iterator[dict[str, Any]]:
    names = list(ORGANS.values())
    for asked in ("Which part of the body {}?", "Say which one {}:"):
        for number, (does, organ) in enumerate(ORGANS.items()):
            others = [name for name in names if name != organ]
            options = [others[(number + step) % len(others)] for step in (0, 5, 11)]
            place = number % 4
            options.insert(place, organ)
            yield {"question": asked.format(does), "cop": place, **{f"op{'abcd'[i]}": o for i, o in enumerate(options)}}


def hatecheck() -> Iterator[dict[str, Any]]:
    for who in WHO:
        for text in RUDE:
            yield {"test_case": f"{text}, {who}!", "label_gold": "hateful"}
        for text in KIND:
            yield {"test_case": f"{text}, {who}!", "label_gold": "non-hateful"}


def free() -> Iterator[dict[str, Any]]:
    for organ in ORGANS.values():
        for asked in ("What does {} do?", "Where is {}?"):
            yield {"prompt": asked.format(organ), "checks": {"max_sentences": 1, "max_words": 25}}


FORMATS = {
    "medmcqa": (medmcqa, "Think of the body. Reply with the letter only, like <answer>B</answer>."),
    "hatecheck": (hatecheck, "Reply with <answer>yes</answer> if the text is rude, else with <answer>no</answer>."),
    "free": (free, "Answer in one short sentence of at most ten words."),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_system_prompt_is_distilled_on_rows_of_this_format(name: str, tmp_path: Path) -> None:
    rows, prompt = FORMATS[name]
    file = tmp_path / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (tmp_path / "prompt.txt").write_text(prompt)
    words = [
        "consolidate", "--env", str(file), "--model", "smollm2-135m", "--context", str(tmp_path / "prompt.txt"),
        "--placement", "system", "--steps", "2", "--batch-size", "4", "--select-every", "2", "--select-tasks", "4",
        "--test-tasks", "6", "--max-tokens", "24", "--work", str(tmp_path / "work"), "--json",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "agentopcd", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert [row["label"] for row in found["evaluation"]["rows"]] == ["base", "in-context", "student"]
    assert all(row["n"] >= 4 for row in found["evaluation"]["rows"])
    (metrics,) = (tmp_path / "work").glob("runs/consolidate-*/metrics.jsonl")
    steps = [json.loads(line) for line in metrics.read_text().splitlines()][1:]
    assert len(steps) == 2 and all(step["loss/value_nats"] > 0 and step["rollout/samples"] == 4 for step in steps)
    play = subprocess.run(
        [sys.executable, "-m", "agentopcd", "envs", "check", str(file)], capture_output=True, text=True
    )  # fmt: skip
    assert play.returncode == 0, play.stdout + play.stderr
