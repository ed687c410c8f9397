"""Question files: find question and right answer of every row, in the common layouts; a file may mix them.

========================  =====================================  ==========================================
layout                    question                               right answer
========================  =====================================  ==========================================
DAPO, verl                ``prompt`` (chat messages)             ``reward_model.ground_truth``
GSM8K                     ``question``                           ``answer``, after ``####``
MATH                      ``problem``                            last box of ``solution``
MedMCQA                   ``question``, ``opa`` … ``opd``        ``cop``, counted from 0 or from 1
MMLU, ARC, RACE           ``question``, ``choices`` or           letter, text or number of the choice, see
                          ``options``, or ``A`` … ``D``          :mod:`.choices`
HateCheck                 ``test_case``                          ``label_gold``: hateful, non-hateful
ETHOS                     ``comment``                            ``isHate``, a share, cut at 0.5
TweetEval, "offensive?"   ``text``, without a question           ``label``: 0 or 1
IF-Eval                   ``prompt``                             none: ``instruction_id_list``, ``kwargs``
your own                  first of ``prompt, problem,            first of ``reward_model.ground_truth,
                          question, input, instruction``         answer, solution, target, label, answers``
free text                 the same                               none: ``checks``, see :mod:`.text_checks`
========================  =====================================  ==========================================

A row may hold what the environment says after the reply, in words meant for the player, such as ``"feedback": {"right":
"Good.", "wrong": "Too long: one sentence was wanted."}``; it must not tell the right answer.

An ``instruction`` beside the question stands before it, and so does the ``passage`` (``context``, ``article``,
``paragraph``) that a ``question`` is about. A right answer may be text, a number, true or false (yes or no), a list of
texts that are all right, or an object that holds one of these. The rest is refused, with the number of its row.

A ``text`` with a ``label`` of 0 or 1 and no question is read as TweetEval's; give other such files, film reviews for
example, a column ``question``. It stands below the text, unless the text is a copy of question and answer.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from agentopcd.core.errors import EnvError, TaskLeak
from agentopcd.core.types import SPLITS
from agentopcd.envs.questions import choices
from agentopcd.envs.questions.answers import same
from agentopcd.envs.questions.files import Raw, read_rows, row_files
from agentopcd.envs.questions.grading import find_answer, grade_choice
from agentopcd.envs.questions.text_checks import known_checks
from agentopcd.envs.questions.values import absent, answers_of, blank, cell_at, missing, plain, question_of, unlike
from agentopcd.envs.views import hash_prompt

PROMPT_KEYS = ("prompt", "problem", "question", "input", "instruction")
ANSWER_KEYS = ("reward_model.ground_truth", "answer", "solution", "target", "label", "answers")
PASSAGE_KEYS = ("passage", "context", "article", "paragraph")
"""Columns with the text that a ``question`` is about."""

COLUMNS = ("prompt", "instruction_id_list", "kwargs")
"""Columns of IF-Eval's published file."""

_YES_NO = "Reply with <answer>yes</answer> or <answer>no</answer>."
_FLAGS = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}


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
    also: tuple[str, ...] = ()
    """Other answers that are as right as ``gold``."""
    feedback: tuple[str, str] = ("", "")
    """What the environment says to the player after a wrong and after a right reply; '': nothing."""
    source: Raw = dataclasses.field(default_factory=dict, compare=False, repr=False)
    """The row as it was read, for graders of the user's own."""


Reader = Callable[[Raw], QuestionRow]


def load_rows(
    path: str, prompt_key: str | None = None, answer_key: str | None = None, *, free: bool = False
) -> list[QuestionRow]:
    """Read a question file, or several with commas between their names; a file is read again only if it has changed.

    Args:
        free: rows need no right answer, because the caller has checks for all of them.

    Raises:
        EnvError: a missing, empty or malformed file, or rows that cannot be understood.
        DependencyError: a parquet file without pyarrow installed.
    """
    files = row_files(path)
    try:
        states = [Path(file).stat() for file in files]
    except (OSError, ValueError) as error:
        missed = error.filename if isinstance(error, OSError) else path
        raise EnvError(f"no file {missed!r} with questions") from None
    stamps = tuple((state.st_mtime_ns, state.st_size) for state in states)
    return list(_load(files, stamps, prompt_key, answer_key, free))


@functools.lru_cache(maxsize=4)
def _load(
    files: tuple[str, ...], _stamps: object, prompt_key: str | None, answer_key: str | None, free: bool
) -> list[QuestionRow]:
    raw: list[tuple[str, Raw, Raw]] = []
    for file in files:
        try:
            found = read_rows(Path(file))
        except EnvError as error:
            raise EnvError(f"{file}: {error}") from None
        if not found:
            raise EnvError(f"{file}: there are no rows")
        raw += [(f"{file}: row {number}", row, row) for number, row in enumerate(found, 1)]
    return _questions(raw, prompt_key, answer_key, free=free)


def rows_from(
    raw: Sequence[Raw], prompt_key: str | None = None, answer_key: str | None = None, *, free: bool = False
) -> list[QuestionRow]:
    """Turn raw rows into questions and drop repeats; see :func:`load_rows`.

    Raises:
        EnvError: there are no rows, no column with questions or answers is known, or a right answer is empty or
            would not be accepted by the grader.
        TaskLeak: the ``split`` column puts one question into two splits.
    """
    for number, row in enumerate(raw, 1):
        if not isinstance(row, Mapping):
            raise EnvError(f"row {number} must be a mapping of columns to cells, got {type(row).__name__}")
    named = [(f"row {number}", row, plain(row)) for number, row in enumerate(raw, 1)]
    return _questions(named, prompt_key, answer_key, free=free)


def _questions(
    raw: Sequence[tuple[str, Raw, Raw]], prompt_key: str | None, answer_key: str | None, *, free: bool
) -> list[QuestionRow]:
    """The questions of rows, each with its name, which stands in every message about it, as given and as read."""
    if not raw:
        raise EnvError("there are no rows")
    own = _own(prompt_key, answer_key, free=free) if free or prompt_key or answer_key else None
    readers = _readers([row for _, _, row in raw], (answer_key,) if answer_key else choices.RIGHT)
    rows: dict[str, QuestionRow] = {}
    conflicting, other = 0, ""
    cased: list[str] = []
    for name, given, entry in raw:
        try:
            row = _with_choices(own(entry), entry, readers) if own else _reader(entry, readers)(entry)
            row = _checked(_below_text(row, entry) if own and not prompt_key else row, entry)
            row = dataclasses.replace(row, source=given, feedback=_feedback(entry.get("feedback"), row))
        except EnvError as error:
            raise EnvError(f"{name}: {error}") from None
        key = hash_prompt(row.prompt)
        kept = rows.setdefault(key, row)
        if not kept.split and row.split:  # it was met first without a split
            kept = rows[key] = dataclasses.replace(kept, split=row.split)
        if row.split and kept.split != row.split:
            raise TaskLeak(f"{name} puts a question of {kept.split!r} in {row.split!r}: it is in both")
        if {kept.gold, *kept.also} != {row.gold, *row.also}:
            conflicting += kept.prompt == row.prompt
            cased += [name] if kept.prompt != row.prompt else []
        other = other or ("checks" if kept.checks != row.checks else unlike(kept.source, row.source) if free else "")
    if other:
        warnings.warn(f"some repeated questions have another {other!r}; the first row of each counts", stacklevel=2)
    if cased:
        told = f"{len(cased)} questions with another answer (the first: {cased[0]}) differ from an earlier one only in"
        warnings.warn(f"{told} capitals or spaces, which makes one task of them; the first counts", stacklevel=2)
    if conflicting:
        warnings.warn(f"{conflicting} repeated questions have another answer; the first counts", stacklevel=2)
    elif (repeated := len(raw) - len(rows) - len(cased)) > len(rows):
        warnings.warn(f"{repeated} of {len(raw)} rows repeat a question and were left out", stacklevel=2)
    return list(rows.values())


def _feedback(cell: Any, row: QuestionRow) -> tuple[str, str]:
    """What is said after a wrong and after a right reply. Lessons are drawn from it, so it must not tell the answer."""
    if blank(cell):
        return "", ""
    said = {k: v for k, v in cell.items() if not blank(v)} if isinstance(cell, Mapping) else None
    if said is None or set(said) - {"right", "wrong"} or not all(isinstance(text, str) for text in said.values()):
        raise EnvError(
            f'feedback must be an object such as {{"right": "Good.", "wrong": "Too long."}}, got {cell!r:.60}; rename '
            "the column if it is no feedback to the player"
        )
    for text, gold in itertools.product(said.values(), (row.gold, *row.also)):
        _check_characters("feedback", text)
        named = re.search(rf"(?<!\w){re.escape(gold)}(?!\w)", text, re.IGNORECASE)
        if gold and (grade_choice(text, gold).right if row.kind == "choice" else named):  # a letter may be a word, too
            raise EnvError(f"its feedback {text!r:.60} tells the right answer {gold!r:.40}; say what was wrong instead")
    return said.get("wrong", ""), said.get("right", "")


def _check_characters(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise EnvError(f"its {what} holds half a surrogate pair, {half!a}, which is no character") from None


def _checked(row: QuestionRow, raw: Raw) -> QuestionRow:
    if not row.prompt.strip():
        raise EnvError("has an empty question")
    for what, text in (("question", row.prompt), *(("answer", gold) for gold in (row.gold, *row.also))):
        _check_characters(what, text)
    for gold in (row.gold, *row.also) if row.kind in ("math", "choice") else ():
        if not gold.strip():
            raise EnvError("has an empty answer")
        answer = find_answer(f"Answer: {gold}")
        if row.kind == "math" and (answer is None or not same(answer, gold)):
            raise EnvError(f"the grader would not accept its own answer {gold!r}")
    split = str(raw["split"]).strip() if _has(raw, "split") else row.split
    if split and split not in SPLITS:
        raise EnvError(f"is in split {split!r}; splits are {', '.join(SPLITS)}")
    return dataclasses.replace(row, split=split)


# -- layouts -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Readers:
    """Readers of the layouts whose meaning only the whole file shows."""

    medmcqa: Reader
    choice: Callable[[str, Raw], QuestionRow]
    tweets: bool
    """Whether every ``text`` with a ``label`` is labelled 0 or 1."""


def _readers(rows: Sequence[Raw], right: Sequence[str]) -> _Readers:
    cop_from = functools.cache(lambda: choices.medmcqa_offset(rows))
    counted_from = functools.cache(lambda: choices.counted_from(rows, right))
    return _Readers(
        medmcqa=lambda row: _choice(choices.medmcqa(row, cop_from)),
        choice=lambda question, row: _choice(choices.of_row(question, row, counted_from(), right)),
        tweets=all(_flag(row["label"]) is not None for row in rows if _has(row, "text", "label")),
    )


def _reader(row: Raw, readers: _Readers) -> Reader:
    """Choose the reader of a row by the columns that it fills."""
    if _has_checks(row):
        return _usual
    if _has(row, *COLUMNS):
        return _ifeval
    if choices.is_medmcqa(row):
        return readers.medmcqa
    if _has(row, "test_case"):
        return _hatecheck
    if _has(row, "comment") and "isHate" in row:
        return _ethos
    asked = any(_has(row, key) for key in PROMPT_KEYS)
    if readers.tweets and _has(row, "text", "label") and not asked:
        return lambda row: _yes_no(row["text"], bool(_flag(row["label"])), "offensive")
    if choices.listed(row) is not None and asked:
        return lambda row: _below_text(readers.choice(_question(row), row), row)
    return _usual


def _usual(row: Raw) -> QuestionRow:
    return _below_text(_own(None, None, free=False)(row), row)


def _with_choices(read: QuestionRow, row: Raw, readers: _Readers) -> QuestionRow:
    """A row of named columns, with the choices that its question does not show."""
    found = choices.listed(row) if read.kind == "math" else None
    return read if found is None or all(one in read.prompt for one in found.texts) else readers.choice(read.prompt, row)


def _has(row: Raw, *columns: str) -> bool:
    return all(not blank(row.get(column)) for column in columns)


def _has_checks(row: Raw) -> bool:
    """Whether a row brings checks. Parquet fills the checks of rows without any with nulls."""
    wanted = row.get("checks")
    return any(not missing(value) for value in wanted.values()) if isinstance(wanted, Mapping) else not blank(wanted)


def _flag(value: Any) -> bool | None:
    return _FLAGS.get(str(value).strip().casefold())


def _ifeval(row: Raw) -> QuestionRow:
    """Read a row of IF-Eval. All rows are ``test``: nothing is ever trained on them."""
    ids, settings = row["instruction_id_list"], row["kwargs"]
    if not isinstance(ids, list) or not isinstance(settings, list) or len(ids) != len(settings):
        raise EnvError(f"instruction_id_list and kwargs must be lists of one length, got {ids!r:.50}, {settings!r:.50}")
    if not all(isinstance(one, Mapping) for one in settings):
        raise EnvError(f"kwargs must be a list of objects, got {settings!r:.50}")
    checks = tuple(zip(ids, settings, strict=True))
    return QuestionRow(prompt=question_of(row["prompt"]), gold="", kind="instructions", split="test", checks=checks)


def _choice(found: choices.Choice) -> QuestionRow:
    return QuestionRow(prompt=found.prompt, gold=found.letter, kind="choice", actions=choices.ACTIONS)


def _below_text(read: QuestionRow, row: Raw) -> QuestionRow:
    """The question below the ``text`` beside it; not if the text is part of it, or a whole example with the answer."""
    if not isinstance(row.get("text"), str) or blank(row["text"]) or not read.prompt.strip():
        return read
    text, asked = question_of(row["text"]), question_of(_first(row, PROMPT_KEYS, "question", "prompt_key"))
    after = text[text.index(asked) + len(asked) :].strip() if asked in text else ""
    whole = after and (read.kind == "choice" or any(gold in after for gold in (read.gold, *read.also)))
    return read if whole or text in read.prompt else dataclasses.replace(read, prompt=f"{text}\n\n{read.prompt}")


def _hatecheck(row: Raw) -> QuestionRow:
    label = str(row.get("label_gold")).strip()
    if label not in ("hateful", "non-hateful"):
        raise EnvError(f"label_gold must be hateful or non-hateful, got {row.get('label_gold')!r:.40}")
    return _yes_no(row["test_case"], label == "hateful", "hateful")


def _ethos(row: Raw) -> QuestionRow:
    try:
        share = float(row["isHate"])
    except (TypeError, ValueError, OverflowError):
        share = -1.0
    if not 0 <= share <= 1:
        raise EnvError(f"isHate must be a share from 0 to 1, got {row['isHate']!r:.40}")
    return _yes_no(row["comment"], share >= 0.5, "hateful")


def _yes_no(text: Any, yes: bool, word: str) -> QuestionRow:
    actions = f"Is this text {word}? {_YES_NO}"
    return QuestionRow(prompt=question_of(text), gold="yes" if yes else "no", kind="choice", actions=actions)


def _own(prompt_key: str | None, answer_key: str | None, *, free: bool) -> Reader:
    answers = (answer_key,) if answer_key else ANSWER_KEYS

    def read(row: Raw) -> QuestionRow:
        prompt = question_of(_first(row, (prompt_key,), "question", "prompt_key")) if prompt_key else _question(row)
        if free or _has_checks(row):
            wanted: Any = row.get("checks")
            if isinstance(wanted, Mapping):
                wanted = {name: value for name, value in wanted.items() if not missing(value)}
            checks = {} if blank(wanted) else known_checks(wanted)
            prompt = choices.with_listed(prompt, row)
            return QuestionRow(prompt=prompt, gold="", kind="checks", checks=tuple(checks.items()))
        gold, *also = answers_of(_first(row, answers, "answer", "answer_key")) or ("",)
        return QuestionRow(prompt=prompt, gold=gold, also=tuple(also))

    return read


def _question(row: Raw) -> str:
    """The question with what belongs to it: an instruction, and the passage that it is about."""
    value = _first(row, PROMPT_KEYS, "question", "prompt_key")
    before = ["instruction"] if value is not row.get("instruction") else []
    if value is row.get("question"):
        before += PASSAGE_KEYS
    text = question_of(value)
    _check_rivals(row, value, text)
    beside = [row[key] for key in before if isinstance(row.get(key), str) and not blank(row[key])]
    return "\n\n".join([*(one for one in beside if one not in text), text])


def _check_rivals(row: Raw, taken: Any, text: str) -> None:
    """Refuse a row with a second question that is neither part of the first nor holds it."""
    for key in PROMPT_KEYS[:-1]:  # an instruction is no second question
        value = row.get(key)
        if blank(value) or value is taken or not isinstance(value, str | list):
            continue
        one, other = (" ".join(question.split()).casefold() for question in (text, question_of(value)))
        if one not in other and other not in one:
            raise EnvError(
                f"has two questions, the second in {key!r}; name the right one with --env-arg prompt_key=KEY"
            )


def _first(row: Raw, keys: Sequence[str], what: str, argument: str) -> Any:
    for key in keys:
        value = cell_at(row, key)
        if not blank(value):
            return value
    if any(isinstance(cell_at(row, key), str) for key in keys):
        raise EnvError(f"has an empty {what}")
    raise absent(row, keys, what, argument)
