"""Read question files, and find question and answer in the common column layouts.

========================  =====================================  ==========================================
layout                    question                               right answer
========================  =====================================  ==========================================
DAPO, verl                ``prompt`` (chat messages)             ``reward_model.ground_truth``
GSM8K                     ``question``                           ``answer``, after ``####``
MATH                      ``problem``                            last box of ``solution``
MedMCQA                   ``question``, ``opa`` … ``opd``        ``cop``, counted from 0 or from 1
HateCheck                 ``test_case``                          ``label_gold``: hateful, non-hateful
ETHOS                     ``comment``                            ``isHate``, a share, cut at 0.5
TweetEval (yes or no)     ``text``                               ``label``: 0 or 1
IF-Eval                   ``prompt``                             none: ``instruction_id_list``, ``kwargs``
your own                  first of ``prompt, problem,            first of ``reward_model.ground_truth,
                          question, input``                      answer, solution, target, label``
free text                 the same                               none: ``checks``, see :mod:`.text_checks`
========================  =====================================  ==========================================
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from agentopcd.core.errors import DependencyError, EnvError, TaskLeak
from agentopcd.core.types import SPLITS
from agentopcd.envs.questions.grading import find_answer, same
from agentopcd.envs.questions.text_checks import known_checks
from agentopcd.envs.views import hash_prompt

PROMPT_KEYS = ("prompt", "problem", "question", "input")
ANSWER_KEYS = ("reward_model.ground_truth", "answer", "solution", "target", "label")

COLUMNS = ("prompt", "instruction_id_list", "kwargs")
"""Columns of IF-Eval's published file."""

_LETTER = "Reply with the letter of the right choice like this: <answer>A</answer>."
_YES_NO = "Reply with <answer>yes</answer> or <answer>no</answer>."

Raw = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionRow:
    """One question."""

    prompt: str
    gold: str
    kind: Literal["math", "choice", "checks", "instructions"] = "math"
    actions: str = ""
    """How to answer."""
    split: str = ""
    """The split that the file names; empty if it names none."""
    checks: tuple[tuple[str, Any], ...] = ()
    """For the kinds ``checks`` and ``instructions``: the checks that a reply has to pass, by name.

    See :mod:`.text_checks` and :mod:`agentopcd.envs.questions.ifeval`.
    """
    source: Raw = dataclasses.field(default_factory=dict, compare=False, repr=False)
    """The row as it was read, for graders of the user's own."""


def load_rows(
    path: str, prompt_key: str | None = None, answer_key: str | None = None, *, free: bool = False
) -> list[QuestionRow]:
    """Read a question file; it is read again only if it has changed.

    Args:
        free: rows need no right answer, because the caller has checks for all of them.

    Raises:
        EnvError: a missing, empty or malformed file, or rows that cannot be understood.
        DependencyError: a ``.parquet`` file without pyarrow installed.
    """
    file = Path(path).resolve()
    try:
        stamp = file.stat().st_mtime_ns
    except OSError:
        raise EnvError(f"no file {path!r} with questions") from None
    return _load(str(file), stamp, prompt_key, answer_key, free)


@functools.lru_cache(maxsize=4)
def _load(path: str, _stamp: int, prompt_key: str | None, answer_key: str | None, free: bool) -> list[QuestionRow]:
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(Path(path).suffix)
    if reader is None:
        raise EnvError(f"{path!r} must end in {', '.join(readers)}")
    try:
        return rows_from(reader(Path(path)), prompt_key, answer_key, free=free)
    except EnvError as error:
        raise EnvError(f"{path}: {error}") from None


def _read_jsonl(path: Path) -> list[Raw]:
    rows: list[Raw] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise EnvError(f"line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise EnvError(f"line {number} must be an object, got {type(row).__name__}")
            rows.append(row)
    return rows


def _read_csv(path: Path) -> list[Raw]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline()
        file.seek(0)
        delimiter = ";" if head.count(";") > head.count(",") else ","
        return list(csv.DictReader(file, delimiter=delimiter))


def _read_parquet(path: Path) -> list[Raw]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DependencyError("reading .parquet needs pyarrow; run: pip install pyarrow") from None
    try:
        return parquet.read_table(path).to_pylist()
    except Exception as error:
        raise EnvError(f"cannot be read as parquet: {error}") from error


def rows_from(
    raw: Sequence[Raw], prompt_key: str | None = None, answer_key: str | None = None, *, free: bool = False
) -> list[QuestionRow]:
    """Turn raw rows into questions and drop repeats; see :func:`load_rows`.

    Raises:
        EnvError: there are no rows, no column with questions or answers is known, or a right answer is empty or
            would not be accepted by the grader.
        TaskLeak: the ``split`` column puts one question into two splits.
    """
    if not raw:
        raise EnvError("there are no rows")
    custom = free or prompt_key or answer_key or any("checks" in entry for entry in raw)
    read = _own_layout(prompt_key, answer_key, free=free) if custom else _layout(raw)
    rows: dict[str, QuestionRow] = {}
    repeated = conflicting = 0
    for number, entry in enumerate(raw):
        row = _checked(number, read(entry), entry)
        key = hash_prompt(row.prompt)
        kept = rows.setdefault(key, row)
        if kept.split != row.split:
            raise TaskLeak(f"row {number} puts a question of {kept.split!r} in {row.split!r}: it is in both")
        repeated += kept is not row
        conflicting += kept.gold != row.gold
    if conflicting:
        warnings.warn(f"{conflicting} repeated questions have another answer; the first counts", stacklevel=2)
    elif repeated > len(rows):
        warnings.warn(f"{repeated} of {len(raw)} rows repeat a question and were left out", stacklevel=2)
    return list(rows.values())


def _checked(number: int, row: QuestionRow, raw: Raw) -> QuestionRow:
    if not row.prompt.strip():
        raise EnvError(f"row {number} has an empty question")
    if row.kind in ("math", "choice") and not row.gold.strip():
        raise EnvError(f"row {number} has an empty answer")
    if row.kind == "math":
        answer = find_answer(f"Answer: {row.gold}")
        if answer is None or not same(answer, row.gold):
            raise EnvError(f"row {number}: the grader would not accept its own answer {row.gold!r}")
    split = str(raw.get("split") or row.split)
    if split and split not in SPLITS:
        raise EnvError(f"row {number} is in split {split!r}; splits are {', '.join(SPLITS)}")
    return dataclasses.replace(row, split=split, source=raw)


def _layout(raw: Sequence[Raw]) -> Callable[[Raw], QuestionRow]:
    """Choose the reader by the columns of the first row."""
    keys = set(raw[0])
    if set(COLUMNS) <= keys:
        return _ifeval
    if {"opa", "opb", "opc", "opd", "cop"} <= keys:
        offset = _choice_offset(raw)
        return lambda row: _medmcqa(row, offset)
    if {"test_case", "label_gold"} <= keys:
        return lambda row: _yes_no(row, "test_case", row["label_gold"] == "hateful", "hateful")
    if {"comment", "isHate"} <= keys:
        return lambda row: _yes_no(row, "comment", float(row["isHate"]) >= 0.5, "hateful")
    if {"text", "label"} <= keys and {str(row.get("label")) for row in raw} <= {"0", "1"}:
        return lambda row: _yes_no(row, "text", str(row["label"]) == "1", "offensive")
    return _own_layout(None, None, free=False)


def _choice_offset(raw: Sequence[Raw]) -> int:
    """Return the number that ``cop`` counts from; copies of this data set differ."""
    found = {int(row["cop"]) for row in raw}
    if found & {-1}:
        raise EnvError("some rows have cop = -1: this is a test file without answers")
    if found <= {0, 1, 2, 3} and 0 in found:
        return 0
    if found <= {1, 2, 3, 4} and 4 in found:
        return 1
    raise EnvError(f"cop holds {sorted(found)}: cannot tell whether it counts from 0 or from 1")


def _ifeval(row: Raw) -> QuestionRow:
    """Read a row of IF-Eval. All rows are ``test``: nothing is ever trained on them."""
    ids, settings = row["instruction_id_list"], row["kwargs"]
    if not isinstance(ids, list) or not isinstance(settings, list) or len(ids) != len(settings):
        raise EnvError(f"instruction_id_list and kwargs must be lists of one length, got {ids!r:.50}, {settings!r:.50}")
    checks = tuple(zip(ids, settings, strict=True))
    return QuestionRow(prompt=str(row["prompt"]), gold="", kind="instructions", split="test", checks=checks)


def _medmcqa(row: Raw, offset: int) -> QuestionRow:
    choices = "\n".join(f"{letter}. {row['op' + letter.lower()]}" for letter in "ABCD")
    gold = "ABCD"[int(row["cop"]) - offset]
    return QuestionRow(prompt=f"{row['question']}\n{choices}", gold=gold, kind="choice", actions=_LETTER)


def _yes_no(row: Raw, key: str, yes: bool, word: str) -> QuestionRow:
    actions = f"Is this text {word}? {_YES_NO}"
    return QuestionRow(prompt=str(row[key]), gold="yes" if yes else "no", kind="choice", actions=actions)


def _own_layout(prompt_key: str | None, answer_key: str | None, *, free: bool) -> Callable[[Raw], QuestionRow]:
    prompts = (prompt_key,) if prompt_key else PROMPT_KEYS
    answers = (answer_key,) if answer_key else ANSWER_KEYS

    def read(row: Raw) -> QuestionRow:
        prompt = _first(row, prompts, "question", "prompt_key")
        if free or "checks" in row:
            checks = known_checks(row["checks"]) if "checks" in row else {}
            return QuestionRow(prompt=_as_prompt(prompt), gold="", kind="checks", checks=tuple(checks.items()))
        gold = _first(row, answers, "answer", "answer_key")
        return QuestionRow(prompt=_as_prompt(prompt), gold=_as_gold(gold))

    return read


def _first(row: Raw, keys: Sequence[str], what: str, argument: str) -> Any:
    for key in keys:
        value: Any = row
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    raise EnvError(
        f"no {what} in a row with the keys {', '.join(map(str, row))}; looked for {', '.join(keys)};"
        f" name it with --env-arg {argument}=KEY"
    )


def _as_prompt(value: Any) -> str:
    """Return the text of a question, which may be a list of chat messages."""
    if isinstance(value, str):
        return value
    try:
        return "\n\n".join(str(message["content"]) for message in value)
    except (TypeError, KeyError):
        raise EnvError(f"a question must be text or chat messages, got {value!r:.80}") from None


def _as_gold(value: Any) -> str:
    """Return the right answer, extracted from a worked solution if it is one."""
    text = str(value)
    if "####" in text:
        return text.rpartition("####")[2].strip()
    if "\\boxed" in text:
        return find_answer(text) or ""
    return text.strip()
