"""Questions with choices: the choices of a row, and which of them is right."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from agentopcd.core.errors import EnvError
from agentopcd.envs.questions.answers import same_choice
from agentopcd.envs.questions.files import Raw
from agentopcd.envs.questions.values import blank, cell_at, question_of, whole

ACTIONS = "Reply with the letter of the right choice like this: <answer>A</answer>."

LISTS = ("choices", "options")
COLUMNS = ("{0}", "option_{1}", "option_{0}", "option{0}", "Option {0}", "choice_{1}", "op{1}")
"""Names of columns with one choice each; ``{0}`` is its capital letter, ``{1}`` the small one."""
RIGHT = (
    "answerKey", "answer_key", "answer_idx", "answer", "correct_answer", "answer_index", "label", "target", "solution",
    "reward_model.ground_truth",
)  # fmt: skip
"""Where the right choice may be named: by its letter, its text or its number."""

_LETTERS = string.ascii_uppercase


class Choice(NamedTuple):
    """A question with its choices below it, and the letter of the right one."""

    prompt: str
    letter: str


class Listed(NamedTuple):
    """The choices of a row, and the labels that the row gives them, if any."""

    texts: list[str]
    labels: list[str]


def is_medmcqa(row: Raw) -> bool:
    """Whether a row has the columns of MedMCQA."""
    return "cop" in row and all(not blank(row.get(name)) for name in ("question", "opa", "opb", "opc", "opd"))


def medmcqa(row: Raw, counts_from: Callable[[], int]) -> Choice:
    """The question of a row of MedMCQA; ``counts_from`` returns the number that ``cop`` counts from in its file."""
    number = whole(row["cop"], "cop")
    texts = [_text(row["op" + letter.lower()], letter) for letter in "ABCD"]
    lettered = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", texts, strict=True))
    return Choice(f"{question_of(row['question'])}\n{lettered}", "ABCD"[number - counts_from()])


def medmcqa_offset(rows: Iterable[Raw]) -> int:
    """The number that ``cop`` counts from; copies of this data set differ.

    Raises:
        EnvError: the numbers do not tell, or the file is the one without answers.
    """
    found = {number for row in rows if is_medmcqa(row) and (number := _number(row["cop"])) is not None}
    if -1 in found:
        raise EnvError("some rows have cop = -1: this is a test file without answers")
    if found <= {0, 1, 2, 3} and 0 in found:
        return 0
    if found <= {1, 2, 3, 4} and 4 in found:
        return 1
    raise EnvError(f"cop holds {sorted(found)}: cannot tell whether it counts from 0 or from 1")


def _number(value: Any) -> int | None:
    try:
        return whole(value, "")
    except EnvError:
        return None


def listed(row: Raw) -> Listed | None:
    """The choices of a row; ``None`` if it has none.

    Raises:
        EnvError: a choice is empty or no text, or there are more than 26.
    """
    value = next((row[name] for name in LISTS if not blank(row.get(name))), None)
    found = _in_columns(row) if value is None else _in_cell(value)
    if found is None or not found.texts:
        return None
    if len(found.texts) > len(_LETTERS) or len(found.texts) < 2:
        raise EnvError(f"a question has 2 to {len(_LETTERS)} choices, got {len(found.texts)}")
    return found


def _in_columns(row: Raw) -> Listed | None:
    for pattern in COLUMNS:
        names = [pattern.format(letter, letter.lower()) for letter in _LETTERS]
        filled = [i for i, name in enumerate(names) if not blank(row.get(name))]
        if filled[:2] == [0, 1]:
            return Listed([_text(row.get(names[i]), names[i]) for i in range(filled[-1] + 1)], [])
    return None


def _in_cell(value: Any) -> Listed:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise EnvError(f"choices must be a list of texts, got the text {value[:60]!r}") from None
    if isinstance(value, Mapping) and isinstance(value.get("text"), Sequence) and not isinstance(value["text"], str):
        named: Any = value.get("label") or ()
        if not isinstance(named, Sequence):
            raise EnvError(f"the labels of choices must be a list, got {named!r:.60}")
        value, labels = value["text"], [str(label).strip() for label in named]
    elif isinstance(value, Mapping):
        filled = {str(label).strip(): text for label, text in value.items() if not blank(text)}
        value, labels = list(filled.values()), list(filled)
    elif isinstance(value, Sequence) and value and all(isinstance(one, Mapping) for one in value):
        labels = [str(one["label"]).strip() for one in value if not blank(one.get("label"))]
        value = [one.get("text") for one in value]
    else:
        labels = []
    if not isinstance(value, Sequence) or (labels and len(labels) != len(value)):
        raise EnvError(f"choices must be a list of texts, got {value!r:.60}")
    return Listed([_text(one, _LETTERS[i % 26]) for i, one in enumerate(value)], labels)


def _text(value: Any, name: str) -> str:
    if blank(value) or isinstance(value, bool) or not isinstance(value, str | int | float):
        raise EnvError(f"choice {name} must be text, got {value!r:.40}")
    return str(value)


class Counted(NamedTuple):
    """What the numbers of a file's right choices are."""

    first: int | None
    """The number that they count choices from, 0 or 1; None: they do not tell."""
    places: bool
    """Whether they count choices in any case: one of them is the text of no choice of its row."""


def of_row(question: str, row: Raw, counts: Counted, keys: Sequence[str] = RIGHT) -> Choice:
    """The question with its choices, and the letter of the right one.

    Args:
        keys: where the right choice is named.
        counts: what the numbers of the whole file are.

    Raises:
        EnvError: the row does not tell which choice is right.
    """
    found = listed(row)
    assert found is not None
    value = right_of(row, keys)
    if value is None:
        has = ", ".join(map(str, row))
        raise EnvError(f"no right choice in a row with the keys {has}; looked for {', '.join(keys)}")
    named, number = _named(value, found), _number(value)
    counted = None if number is None or counts.first is None else number - counts.first
    if counted is not None and not 0 <= counted < len(found.texts):
        counted = None
    if counts.places and number is not None and not found.labels:
        named = None  # a choice may hold that number as its text
    if named is not None and counted is not None and named != counted and not found.labels:
        raise EnvError(f"cannot tell whether {value!r} is the text or the number of a choice; write its letter")
    right = counted if named is None else named
    if right is None and number is not None and 0 <= number <= len(found.texts):
        raise EnvError(f"cannot tell whether {value!r} counts the choices from 0 or from 1; write the letter")
    if right is None:
        raise EnvError(f"the right answer {value!r:.60} is none of the choices {', '.join(found.texts)[:120]}")
    return Choice(_shown(question, found.texts), _LETTERS[right])


def right_of(row: Raw, keys: Sequence[str] = RIGHT) -> Any:
    """What a row names as its right choice; ``None`` if nothing."""
    for name in keys:
        value = cell_at(row, name)
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
            value = value[0]
        if not blank(value):
            return value
    return None


def counted_from(rows: Iterable[Raw], keys: Sequence[str] = RIGHT) -> Counted:
    """What the numbers of right choices are, in all rows together."""
    from_0 = from_1 = True
    places = False
    for row in rows:
        try:
            found = listed(row)
        except EnvError:  # refused when its turn comes
            continue
        value = right_of(row, keys)
        number = None if found is None else _number(value)
        if found is None or number is None or (_named(value, found) is not None and found.labels):
            continue
        places = places or _named(value, found) is None
        from_0 = from_0 and 0 <= number < len(found.texts)
        from_1 = from_1 and 1 <= number <= len(found.texts)
    return Counted(None if from_0 == from_1 else 0 if from_0 else 1, places)


def _named(value: Any, found: Listed) -> int | None:
    """The choice whose label, letter or text a value is; ``None`` if it is none or several."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    said = str(value).strip()
    if found.labels:
        at = [i for i, label in enumerate(found.labels) if label.casefold() == said.casefold()]
        if len(at) == 1:
            return at[0]
    fits = [i for i, text in enumerate(found.texts) if same_choice(said, f"{_LETTERS[i]}. {text}")]
    return fits[0] if len(fits) == 1 else None


def with_listed(question: str, row: Raw) -> str:
    """A question that no choice answers by its letter, with the choices of its row below it where it shows none."""
    try:
        found = listed(row)
    except EnvError:  # a column of that name that holds something else
        return question
    if found is None or all(one in question for one in found.texts):
        return question
    return _shown(question, found.texts)


def _shown(question: str, texts: Sequence[str]) -> str:
    """The question with its choices below it, unless it lists them by letter itself."""
    for form in ("{}. {}", "{}) {}", "({}) {}", "{}: {}"):
        if all(form.format(letter, text) in question for letter, text in zip(_LETTERS, texts, strict=False)):
            return question
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in zip(_LETTERS, texts, strict=False))])
