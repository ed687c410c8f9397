"""Write the questions of this task: ``python recipes/short-answers/make_rows.py`` makes ``rows.jsonl`` beside it.

A small chat model answers such questions with paragraphs or lists. Here only one short sentence counts, which the
question does not say: a reply must pass both checks of its row. After each reply a reviewer says what was wrong or
good about it, which an extractor may read. The rows are all pairs of a thing and a question, shuffled by --seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

THINGS = (
    "an umbrella", "a ladder", "a lighthouse", "a kettle", "a compass", "a hammer", "a mirror", "a bicycle",
    "a blanket", "a bridge", "a candle", "a clock", "a drum", "a fence", "a fountain", "a garden", "a glove",
    "a greenhouse", "a helmet", "a hinge", "a kite", "a lantern", "a library", "a lock", "a magnet", "a map",
    "a mattress", "a microscope", "a museum", "a needle", "a notebook", "an oven", "a paintbrush", "a parachute",
    "a passport", "a pencil", "a piano", "a pillow", "a plough", "a pulley", "a pump", "a raincoat", "a razor",
    "a refrigerator", "a rope", "a rucksack", "a ruler", "a saddle", "a sail", "a saw", "a scarf", "a screwdriver",
    "a shovel", "a signpost", "a sponge", "a stamp", "a suitcase", "a telescope", "a tent", "a thermometer",
    "a timetable", "a toothbrush", "a torch", "a towel", "a tractor", "a trumpet", "a tunnel", "a vase", "a wallet",
    "a watermill", "a wheelbarrow", "a whistle", "a windmill", "a window", "an anchor", "an apron", "an axe",
    "an elevator", "an envelope", "an hourglass",
)  # fmt: skip
QUESTIONS = (
    "What is {}?", "What is {} good for?", "Who needs {}?", "How do people use {}?", "Where would you find {}?",
    "Why would somebody buy {}?", "How would you describe {} to a child?", "What should one know about {}?",
)  # fmt: skip
CHECKS = {"max_sentences": 1, "max_words": 15}
FEEDBACK = {"wrong": "Too long: one short sentence was wanted.", "right": "Good: one short sentence."}


def rows(seed: int, *, silent: bool = False) -> list[dict[str, object]]:
    """All pairs of a thing and a question, in an order drawn by ``seed``; ``silent`` leaves the reviewer out."""
    pairs = list(itertools.product(QUESTIONS, THINGS))
    random.Random(seed).shuffle(pairs)
    said: dict[str, object] = {} if silent else {"feedback": FEEDBACK}
    return [{"question": question.format(thing), "checks": CHECKS, **said} for question, thing in pairs]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="order of the rows")
    parser.add_argument("--silent", action="store_true", help="without the reviewer")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("rows.jsonl"))
    args = parser.parse_args(arguments)
    lines = [json.dumps(row) for row in rows(args.seed, silent=args.silent)]
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{args.out}: {len(lines)} questions")


if __name__ == "__main__":
    main()
