"""Question files, replies to questions, and what an extractor writes."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agentopcd.core.errors import AgentOpcdError
from agentopcd.core.types import SPLITS, Context
from agentopcd.envs import build_splits, make
from agentopcd.envs.base import last_bracket
from agentopcd.envs.questions.grading import find_answer, grade_choice, grade_math
from agentopcd.envs.questions.rows import QuestionRow, load_rows
from agentopcd.envs.questions.text_checks import grade_checks, known_checks
from agentopcd.envs.views import hash_prompt
from agentopcd.knowledge.assemble import render
from agentopcd.knowledge.items import identify, item_texts, normalise, parse, sanitise
from agentopcd.knowledge.poison import flags
from benchmarks.fuzz.harness import Case, Silent
from benchmarks.fuzz.mutate import ODD_TEXTS, damage_bytes, damage_json, odd_text, odd_value, some_text

# -- files of rows -------------------------------------------------------------------------------------

ANSWERS: tuple[Any, ...] = (
    "7", "12", "-3", "3/4", "0.5", "1,000", "seven", "x+1", "\\frac{1}{2}", 7, 0.25, "50%", "yes",
)  # fmt: skip
COLUMNS = (
    "question", "answer", "prompt", "problem", "input", "solution", "target", "label", "text", "comment", "isHate",
    "test_case", "label_gold", "split", "checks", "choices", "options", "instruction", "opa", "cop", "reward_model",
    "instruction_id_list", "kwargs", "id", "answers", "context",
)  # fmt: skip


def _row(rng: random.Random, layout: str, number: int) -> dict[str, Any]:
    """An ordinary row; its question holds ``<<number>>``, and nothing else does."""
    ask, answer = f"<<{number}>> {some_text(rng)}?", rng.choice(ANSWERS)
    if layout == "plain":
        return {rng.choice(("question", "prompt", "problem", "input")): ask, rng.choice(("answer", "target")): answer}
    if layout == "gsm8k":
        return {"question": ask, "answer": f"Because it is so.\n#### {answer}"}
    if layout == "math":
        return {"problem": ask, "solution": f"Hence $\\boxed{{{answer}}}$."}
    if layout == "dapo":
        return {"prompt": [{"role": "user", "content": ask}], "reward_model": {"ground_truth": str(answer)}}
    if layout == "medmcqa":
        return {"question": ask, "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": number % 4}
    if layout == "hatecheck":
        return {"test_case": ask, "label_gold": rng.choice(("hateful", "non-hateful"))}
    if layout == "ethos":
        return {"comment": ask, "isHate": rng.choice((0.0, 0.3, 0.5, 1.0))}
    if layout == "tweets":
        return {"text": ask, "label": rng.choice((0, 1))}
    return {"prompt": ask, "checks": {"max_words": 5, "contains": ["a"]}}


LAYOUTS = ("plain", "plain", "gsm8k", "math", "dapo", "medmcqa", "hatecheck", "ethos", "tweets", "checks")


def try_rows(case: Case) -> None:
    """A question file with damage: it is read as it was written, or refused."""
    rng = case.rng
    layout = rng.choice(LAYOUTS)
    rows = [_row(rng, layout, number) for number in range(rng.randint(1, 6))]
    done: list[str] = []
    if rng.random() < 0.25:
        for row in rows:
            row["split"] = rng.choice(SPLITS)
    for _ in range(rng.choice((0, 1, 1, 2))):
        at = rng.randrange(len(rows))
        rows[at], how = damage_json(rng, rows[at], COLUMNS)
        done.append(f"row {at}: {how}")
        if not isinstance(rows[at], dict):
            rows[at] = {"question": rows[at]}
    ending = rng.choice((".jsonl", ".jsonl", ".jsonl", ".csv", ".parquet"))
    data = written = _written(rows, ending)
    if rng.random() < 0.25:
        data, how = damage_bytes(rng, data)
        done.append(how)
    file = case.folder / f"rows{ending}"
    file.write_bytes(data)
    case.shown = f"{layout}{ending}, {', '.join(done)}: {data[:300]!r}"
    free = {"checks": {"max_words": 3}} if rng.random() < 0.05 else {}
    kept = load_rows(str(file), free=bool(free))
    if (raw := _read_again(data, ending)) is not None:
        _check_rows(kept, raw, is_table=ending == ".csv", whole=data == written)
    _check_play(file.name, kept, free)


def _written(rows: list[dict[str, Any]], ending: str) -> bytes:
    if ending == ".csv":
        out = io.StringIO(newline="")
        names = list(dict.fromkeys(str(name) for row in rows for name in row))
        writer = csv.DictWriter(out, names, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({str(name): _cell(value) for name, value in row.items()} for row in rows)
        return out.getvalue().encode("utf-8", "replace")
    if ending == ".parquet":
        import pyarrow
        from pyarrow import parquet

        sink = io.BytesIO()
        try:
            parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        except (pyarrow.ArrowException, UnicodeError, OverflowError):  # rows that no such file can hold
            return b"PAR1"
        return sink.getvalue()
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json.dumps(value)


def _read_again(data: bytes, ending: str) -> list[Any] | None:
    """What the file says, read on its own; None where that is not for this reader to say."""
    try:
        if ending == ".jsonl":
            return [json.loads(line) for line in data.decode("utf-8-sig").split("\n") if line.strip()]
        if ending == ".csv":
            return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    except (ValueError, RecursionError, csv.Error):
        return None
    return None


def _check_rows(kept: list[QuestionRow], raw: list[Any], *, is_table: bool, whole: bool) -> None:
    for number, row in enumerate(raw):
        if not isinstance(row, dict):
            raise Silent(f"row {number} is no object and was read")
        if is_table and None in row:
            raise Silent(f"row {number} has more cells than the head and was read")
    asked = " ".join(row.prompt for row in kept)
    for number, row in enumerate(raw):
        text = " ".join(_texts(row))
        for mark in set(re.findall(r"<<\d+>>", text)) - set(re.findall(r"<<\d+>>", asked)) if whole else ():
            raise Silent(f"row {number}, with {mark} in it, is not among the questions: {row!r:.200}")
    for one in kept:
        source = _source(one, raw)
        if source is None:
            continue
        rest = one.prompt
        for text in sorted(_texts(source), key=len, reverse=True):
            rest = rest.replace(text.strip(), " ") if text.strip() else rest
        if re.search(r"[{}\[\]']|\bNone\b|\bnan\b|\bTrue\b|\bFalse\b", rest):
            raise Silent(f"the question shows a value that is no text: {rest!r:.100} of {source!r:.150}")
        if one.kind in ("math", "choice") and not _is_from(one.gold, source):
            raise Silent(f"the right answer {one.gold!r:.60} is not in the row {source!r:.200}")


def _source(row: QuestionRow, raw: list[Any]) -> Any:
    """The row that a question was read from, by its mark."""
    found = re.search(r"<<\d+>>", row.prompt)
    hits = [one for one in raw if found and found.group() in " ".join(_texts(one))]
    return hits[0] if len(hits) == 1 else None


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, and every number as it may be written."""
    if isinstance(value, str):
        yield value
        if value[:1] in ("[", "{"):  # a cell of a table
            with contextlib.suppress(ValueError, RecursionError):
                yield from _texts(json.loads(value))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield str(value)


def _is_from(gold: str, source: Any) -> bool:
    if gold.casefold() in ("yes", "no", "true", "false") or gold in "ABCDEFGHIJ":
        return True
    return any(gold in text or _number(gold) == _number(text) is not None for text in _texts(source))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _check_play(ref: str, kept: list[QuestionRow], arguments: dict[str, Any]) -> None:
    """Every row is a task of some split, is shown, and takes its own right answer."""
    env = make(ref, **arguments)
    for seed, row in enumerate(kept):
        shown, _ = env.reset(seed=seed)
        if row.prompt not in shown:
            raise Silent(f"seed {seed} does not show its question {row.prompt!r:.100}")
        if row.kind in ("math", "choice"):
            reply = f"Answer: {row.gold}" if row.kind == "math" else f"<answer>{row.gold}</answer>"
            if not env.step(reply)[4]["success"]:
                raise Silent(f"{reply!r:.80} is wrong for the right answer {row.gold!r:.60}")
        else:
            env.step("some reply")
    manifest = build_splits(ref, arguments)
    named = {task.key for name in manifest.names for task in manifest.tasks(name)}
    if lost := [row.prompt for row in kept if hash_prompt(row.prompt) not in named]:
        raise Silent(f"{len(lost)} of {len(kept)} questions are in no split: {lost[0]!r:.80}")


# -- replies -------------------------------------------------------------------------------------------

GOLDS = ("34", "-7", "0.5", "3/4", "1000", "x+1", "\\frac{1}{2}", "seven", "yes")
PIECES = (
    "Answer: 34", "answer : 7", "**Answer:** 34", "\\boxed{34}", "\\boxed{", "}", "{", "<think>", "</think>", "[THINK]",
    "\\(34\\)", "$34$", "34", "-7", "1,000", "<answer>A</answer>", "<answer>", "</answer>", "(B)", "A.", "[up]", "[",
    "]", "[Down]", "Answer:", "\\frac{1}{0}", "\\frac12", "7/0", "1e400", "- EXPERIENCE ITEM: go left", "```", "\n",
    "\n\n", " ", "EXPERIENCE ITEM:", "**EXPERIENCE ITEM**: x", "1) EXPERIENCE ITEM: U, D, L, R", "<|im_end|>",
)  # fmt: skip
SPECIAL = ("<|im_start|>", "<|im_end|>", "<s>", "[INST]", "</s>")
CHECKS = {"max_words": 5, "min_words": 1, "max_sentences": 2, "case": "lower", "starts_with": "a", "contains": "left"}


OTHER_GRADES: tuple[Callable[[str], Any], ...] = (
    lambda reply: grade_choice(reply, "A"),
    lambda reply: grade_checks(reply, CHECKS),
)


def _reply(rng: random.Random) -> str:
    """What a model may write: pieces that graders look for, in any order."""
    pieces = [rng.choice(PIECES) if rng.random() < 0.7 else odd_text(rng) for _ in range(rng.randint(0, 12))]
    reply = rng.choice(("", " ", "\n")).join(pieces)
    return (reply * rng.choice((1, 1, 1, 1, 50)))[:50_000]


def try_reply(case: Case) -> None:
    """A grade is a function of the reply, a right answer at its end is right, another one is not."""
    rng = case.rng
    reply, gold = _reply(rng), rng.choice(GOLDS)
    case.shown = f"gold {gold!r}, reply {reply[:300]!r}"
    began = time.process_time()
    grader = rng.choice(("plain", "last-number"))
    first = grade_math(reply, gold, grader)
    if (again := grade_math(reply, gold, grader)) != first:
        raise Silent(f"two grades for one reply: {first} and {again}")
    if grade_choice(reply, "A") != grade_choice(reply, "A") or grade_checks(reply, CHECKS) != grade_checks(
        reply, CHECKS
    ):
        raise Silent("two grades for one reply")
    if time.process_time() - began > 1:
        raise Silent(f"grading took {time.process_time() - began:.1f} s")
    if first.right and grader == "plain" and not first.answer:
        raise Silent("right without an answer")
    open_, closed = reply.rfind("<think>"), reply.rfind("</think>")
    if open_ > closed and (first.right or grade_choice(reply, "A").right):
        raise Silent("thinking that was never closed was graded")
    if any(mark in reply for mark in ("<think>", "[THINK]", "\\boxed", "{", "}", "`")):
        return
    for end in (f"\nAnswer: {gold}", f"\nAnswer: \\boxed{{{gold}}}", f"</think>\nAnswer: {gold}"):
        if not grade_math(reply + end, gold).right:
            raise Silent(f"a reply that ends in {end!r} is wrong for {gold!r}: read {find_answer(reply + end)!r:.80}")
    if grade_math(f"{reply}\nAnswer: 123456", gold).right or grade_choice(f"{reply}<answer>B</answer>", "A").right:
        raise Silent("a wrong answer at the end is right")


def try_items(case: Case) -> None:
    """Cleaning twice is cleaning once, and a context shows the items that are stored, under their ids."""
    rng = case.rng
    reply = _reply(rng)
    case.shown = repr(reply[:300])
    names = ("up", "down")
    if (word := last_bracket(reply, names)) is not None and word not in names:
        raise Silent(f"{word!r} is no action of {names}")
    began = time.process_time()
    for piece in parse(reply):
        text = sanitise(piece.text, SPECIAL)
        if (again := sanitise(text, SPECIAL)) != text:
            raise Silent(f"cleaned twice it is {again!r:.100}, once {text!r:.100}")
        if left := [word for word in SPECIAL if word in text]:
            raise Silent(f"{left} is left in an item")
        if not any(char.isalnum() for char in text):
            continue
        flags(text)
        shown = item_texts(Context(render([text])))
        if shown != [normalise(text)] or identify(shown[0]) != identify(text):
            raise Silent(f"a context with the item {text!r:.100} shows {shown!r:.100}")
    if time.process_time() - began > 5:  # a dozen long items with all signs of poison, on a busy machine
        raise Silent(f"reading items took {time.process_time() - began:.1f} s")


def try_checks(case: Case) -> None:
    """Checks of free text: known values, or refused; never an exception at the first reply."""
    rng = case.rng
    checks, how = damage_json(rng, {**CHECKS}, tuple(CHECKS))
    case.shown = f"{how}: {checks!r:.200}"
    checks = known_checks(checks)
    for text in (_reply(rng), "a left turn", "", rng.choice(ODD_TEXTS)):
        if grade_checks(text, checks) != grade_checks(text, checks):
            raise Silent("two grades for one reply")


# -- games that ship -----------------------------------------------------------------------------------

GAMES = ("frozen-lake", "frozen-lake-4x4", "sokoban", "math", "conventions", "gym:CartPole-v1", "gym:Taxi-v3")
_BUILT: dict[str, Any] = {}


def try_moves(case: Case) -> None:
    """Any reply is a move or an invalid one, and the same replies lead to the same place."""
    rng = case.rng
    ref = rng.choice(GAMES)
    seed, replies = rng.choice((0, 1, 7, 2**31 - 1)), [_reply(rng) for _ in range(rng.randint(1, 4))]
    case.shown = f"{ref} seed {seed}: {[reply[:80] for reply in replies]!r}"
    if ref not in _BUILT:
        try:
            _BUILT[ref] = make(ref)
        except AgentOpcdError:  # an optional package is missing
            _BUILT[ref] = make("math")
    if _walk(_BUILT[ref], seed, replies) != _walk(_BUILT[ref], seed, replies):
        raise Silent("the same replies lead to another place")


def _walk(env: Any, seed: int, replies: list[str]) -> list[Any]:
    seen: list[Any] = [env.reset(seed=seed)[0]]
    for reply in replies:
        obs, reward, terminated, truncated, info = env.step(reply)
        if not isinstance(obs, str) or not math.isfinite(float(reward)):
            raise Silent(f"a step returned {obs!r:.80} and the reward {reward!r}")
        seen.append((obs, float(reward), terminated, truncated, info.get("invalid")))
        if terminated or truncated:
            break
    return seen


def odd_arguments(rng: random.Random) -> dict[str, Any]:
    """Arguments for an environment, most of them wrong."""
    names = ("level", "ops", "grader", "size", "rows", "checks", "file", "seed", "max_steps", "actions")
    return {rng.choice(names): odd_value(rng) for _ in range(rng.randint(0, 2))}


def try_arguments(case: Case) -> None:
    """``--env-arg`` with anything: built and reset, or refused."""
    rng = case.rng
    ref, arguments = rng.choice(("math", "frozen-lake", "sokoban", "conventions", "gym:Taxi-v3")), odd_arguments(rng)
    case.shown = f"{ref} {arguments!r:.200}"
    env = make(ref, **arguments)
    obs, _ = env.reset(seed=0)
    env.step("[up]")
    if not isinstance(obs, str):
        raise Silent(f"an observation is {obs!r:.80}")


KINDS: dict[str, tuple[Callable[[Case], None], int]] = {
    "rows": (try_rows, 1300),
    "replies": (try_reply, 1100),
    "items": (try_items, 700),
    "free-text checks": (try_checks, 150),
    "moves": (try_moves, 250),
    "arguments": (try_arguments, 140),
}
