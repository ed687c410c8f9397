"""Stands in for the package verifiers in tests: what the worker uses of it. A test lays it beside its venv's packages.

A rollout asks for two replies; the first may say ``die``, ``raise`` or ``row``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

__version__ = "0.0 (fake)"


class Client:
    def __init__(self, inner: Any) -> None:
        assert inner is None

    async def to_native_prompt(self, prompt: Any) -> Any:
        return prompt, {}

    async def to_native_tools(self, tools: Any) -> Any:
        return tools


def _module(name: str, **content: Any) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module


__path__: list[str] = []
_module("verifiers.clients", __path__=[])
_module("verifiers.clients.openai_chat_completions_client", OpenAIChatCompletionsClient=Client)
_module("verifiers.types", Response=SimpleNamespace, ResponseMessage=SimpleNamespace, ToolCall=SimpleNamespace)


def load_environment(env_id: str, **arguments: Any) -> Any:
    print("printed")
    subprocess.run(["echo", "printed by a child"], check=True)
    if env_id == "missing":
        raise ValueError("could not import it") from ModuleNotFoundError("No module named 'missing'")
    return Env(**arguments)


class Env:
    def __init__(self, rows: int = 4, evaluation: bool = False, tools: bool = False) -> None:
        self.rows, self.evaluation = [{"prompt": "p", "answer": str(n)} for n in range(rows)], evaluation
        self.tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}] if tools else None

    def get_dataset(self) -> Any:
        if self.evaluation:
            raise ValueError("dataset is not set")
        return self.rows

    def get_eval_dataset(self) -> Any:
        return self.rows[:2]

    async def run_rollout(self, row: Any, client: Any, model: str, sampling: Any) -> Any:
        asked = [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "Go."}]},
        ]
        first = (await client.get_response(asked, model, sampling, self.tools, state=row)).message
        if first.content == "die":
            print("dying", file=sys.stderr, flush=True)
            os._exit(7)
        if first.content == "raise":
            return {"error": {"error": "Error", "error_chain_repr": "Error('as told')"}}
        if first.content == "picture":
            asked = [{"role": "user", "content": [{"type": "image_url"}]}]
        called = [vars(call) for call in first.tool_calls or []]
        said: dict[str, Any] = {"role": "assistant", "content": first.content}
        back: dict[str, Any] = {"role": "user", "content": f"You said {first.content}"}
        if called:
            said["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for call in called
            ]
            back = {"role": "tool", "tool_call_id": called[0]["id"], "content": f"{called}"}
        asked = [*asked, said, back]
        second = (await client.get_response(asked, model, sampling, self.tools, state=row)).message
        reward = float(second.content == row["answer"])
        return {"reward": reward, "metrics": {"right": reward, "note": "x"}, "stop_condition": "max_turns_reached"}
