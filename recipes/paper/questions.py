"""Writes questions.jsonl: plain questions for system prompts, made from two lists of this project.

``python recipes/paper/questions.py`` writes it among the package's recipes; a test compares the two.
"""

from __future__ import annotations

import json

from agentopcd.cli.paper.plan import RECIPES

ASKED = (
    "What is {}?", "How does {} work?", "Why is {} useful?", "Can you explain {} to a child?",
    "What should a beginner know about {}?", "What are the drawbacks of {}?", "Who needs {}?",
    "Tell me something surprising about {}.", "How has {} changed over time?", "What would happen without {}?",
    "Where do people meet {} in daily life?", "What is the first step to learn about {}?",
)  # fmt: skip
ABOUT = (
    "a bicycle", "bread baking", "a compass", "rain", "a library", "chess", "a magnet", "the moon", "recycling",
    "a telescope", "electricity", "a vaccine", "a map", "gravity", "a calendar", "photosynthesis", "a bridge",
    "honey", "a thermometer", "the ocean tide", "a submarine", "music theory", "a greenhouse", "paper", "soap",
    "a lighthouse", "wind power", "a passport", "the heart", "a volcano", "sleep", "a fire alarm", "coffee",
    "a dictionary", "the printing press", "glass", "a parachute", "an earthquake", "a savings account", "salt",
    "a microscope", "the metric system", "a lever", "compost", "a rainbow", "an elevator", "the alphabet", "a fossil",
    "a sundial", "yeast", "an umbrella", "a river delta", "the internet", "a vote", "a tunnel", "a pulley",
    "a seed", "a glacier", "a battery", "insulation", "a beehive", "a helmet", "silk", "a clock", "a barometer",
    "cotton", "a candle", "the equator", "a ferry", "fog", "a hammer", "ice", "jazz", "a kite", "a lock", "a mirror",
    "a needle", "olive oil", "a pension", "quartz", "a raft", "a saw", "a tent", "an urn", "vinegar", "a windmill",
    "a zipper", "an anchor", "a barn", "clay", "a dam", "an echo", "a fountain", "a garden", "a harbour", "a lantern",
)  # fmt: skip
FILE = RECIPES / "questions.jsonl"


def text() -> str:
    rows = [{"prompt": asked.format(about)} for about in ABOUT for asked in ASKED]
    return "".join(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    FILE.write_text(text())
    print(f"wrote {FILE}")
