"""Environments of the package verifiers for tests; runs in a Python that has it, not in ours."""

from __future__ import annotations

import os
import subprocess

import verifiers as vf
from datasets import Dataset


def load_environment(kind: str = "sums", size: int = 8) -> vf.Environment:
    """The environment of one kind.

    Args:
        kind: ``sums`` (one turn), ``number`` (several), ``tools``, ``group`` (scored in groups) or ``broken``.
        size: rows.
    """
    print("printed while it is loaded")
    subprocess.run(["echo", "printed by a child"], check=True)
    return {"sums": sums, "number": Number.load, "tools": tools, "group": group, "broken": Broken.load}[kind](size)


async def right(completion, answer, **_) -> float:
    print("printed while it is scored")
    return float(str(completion[-1]["content"]).strip(" []") == answer)


async def short(completion, **_) -> float:
    return float(len(str(completion[-1]["content"])) < 10)


def sums(size: int) -> vf.Environment:
    rows = {"question": [f"What is {n} + 1?" for n in range(size)], "answer": [str(n + 1) for n in range(size)]}
    rubric = vf.Rubric(funcs=[right, short], weights=[1.0, 0.0])
    return vf.SingleTurnEnv(dataset=Dataset.from_dict(rows), system_prompt="Give the number only.", rubric=rubric)


def group(size: int) -> vf.Environment:
    async def best(completions, answers=None, **_) -> list[float]:
        return [1.0 for _ in completions]

    rows = {"question": [f"Say {n}." for n in range(size)], "answer": [str(n) for n in range(size)]}
    return vf.SingleTurnEnv(dataset=Dataset.from_dict(rows), rubric=vf.Rubric(funcs=[best]))


class Number(vf.MultiTurnEnv):
    """Find a number that only the answer tells."""

    @classmethod
    def load(cls, size: int) -> vf.Environment:
        rows = {"question": ["Find my number, 1 to 100."] * size, "answer": [str(n) for n in range(1, size + 1)]}
        return cls(eval_dataset=Dataset.from_dict(rows), rubric=vf.Rubric(funcs=[right]), max_turns=4)

    async def env_response(self, messages, state, **_):
        said = str(messages[-1]["content"]).strip(" []")
        if said == state["answer"]:
            state["final_env_response"] = []
            return []
        high = said.isdecimal() and int(said) > int(state["answer"])
        return [{"role": "user", "content": "Too high." if high else "Too low, or no number."}]


class Broken(vf.SingleTurnEnv):
    """Its process dies, or its own code raises, as the reply says."""

    @classmethod
    def load(cls, size: int) -> vf.Environment:
        async def dies(completion, **_) -> float:
            said = completion[-1]["content"]
            if said == "die":
                os._exit(7)
            return 1.0

        rows = {"question": [f"Task {n}" for n in range(size)], "answer": [""] * size}
        return cls(dataset=Dataset.from_dict(rows), rubric=vf.Rubric(funcs=[dies]))

    async def setup_state(self, state, **_):
        if state["prompt"][-1]["content"] == "Task 3":
            raise vf.Error("row 3 is broken")
        return state


async def double(x: int) -> int:
    """Twice a number.

    Args:
        x: the number.
    """
    return 2 * x


def tools(size: int) -> vf.Environment:
    rows = {"question": [f"What is twice {n}?" for n in range(size)], "answer": [str(2 * n) for n in range(size)]}
    return vf.ToolEnv(dataset=Dataset.from_dict(rows), tools=[double], rubric=vf.Rubric(funcs=[right]), max_turns=5)
