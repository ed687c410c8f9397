"""A judge: a model behind an API that says whether a reply passes, asked by a person's prompt.

Its answers are kept in a file beside the prompt, ``PROMPT.calls.jsonl``, with what was asked. So a repeated evaluation
asks nothing again, and who gets both files can repeat it without the API. A judge is never the default: it is another
model's opinion.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future, InvalidStateError
from pathlib import Path
from typing import Any

from agentopcd.core.api import api_key, as_api
from agentopcd.core.config.engine import check_address
from agentopcd.core.encoding import read_text
from agentopcd.core.errors import ConfigError, EnvError
from agentopcd.core.files import is_file, path_of
from agentopcd.core.terminal import without_password
from agentopcd.core.text import first_line
from agentopcd.core.types import Message

TIMEOUT_S, RETRIES = 120.0, 5
"""Of one question to the judge."""
PLACES = ("conversation", "reply")
_PLACE = re.compile(r"\{(\w+)\}")
_VERDICT = re.compile(r"(?:score\s*[:=]?\s*)?(yes|no|[01](?:\.\d+)?|0?\.\d+)\W*", re.IGNORECASE)


class Calls:
    """What was asked and answered with a verdict, in a file that threads and processes may add to."""

    def __init__(self, file: Path) -> None:
        self.file, self._lock = file, threading.Lock()
        self._known: dict[tuple[str, str], str] = {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            # A line that a kill has cut, or whose answer is no verdict, is asked again.
            with contextlib.suppress(ValueError, KeyError, TypeError, EnvError):
                one = json.loads(line)
                verdict(str(one["answer"]))
                self._known[one["judge"], one["asked"]] = str(one["answer"])

    def get(self, key: tuple[str, str]) -> str | None:
        return self._known.get(key)

    def keep(self, key: tuple[str, str], answer: str) -> None:
        line = json.dumps({"judge": key[0], "asked": key[1], "answer": answer}) + "\n"
        with self._lock, self.file.open("a", encoding="utf-8") as file:
            self._known[key] = answer
            file.write(line)


@functools.cache
def _calls(file: Path) -> Calls:
    return Calls(file)


class Judge:
    """Grades replies by asking a model.

    Args:
        prompt: a file with the question to the judge. ``{conversation}`` and ``{reply}`` stand for what is judged;
            other names in braces are columns of the row. The last line of its answer must be yes, no, or a number from
            0 to 1.
        address: ``http://HOST:PORT#NAME``, an OpenAI-compatible API and its name for the model.

    Raises:
        EnvError: the file or the address is of no use.
    """

    def __init__(self, prompt: str, address: str) -> None:
        url, _, self.name = address.partition("#")
        try:
            check_address(url)
            api_key()
            if without_password(url) != url or not self.name:
                raise ConfigError(
                    f"judge is {without_password(address)!r}; wanted http://HOST:PORT#NAME without a password"
                )
            if not is_file(prompt):
                raise ConfigError(f"there is no file {prompt!r} with the question to the judge; name one with --grader")
            self.file = path_of(prompt)
            self.prompt = read_text(self.file).strip()
        except ConfigError as error:
            raise EnvError(str(error)) from None
        if missing := [place for place in PLACES if place not in _PLACE.findall(self.prompt)]:
            raise EnvError(f"{prompt} has no {{{missing[0]}}}; write it where the {missing[0]} is to stand")
        self.url = url.rstrip("/")
        self._calls = _calls(self.file.with_name(f"{self.file.name}.calls.jsonl"))
        self._lock, self._closed = threading.Lock(), False
        self._waits: Future[str] | None = None

    def close(self) -> None:
        """End the question under way, and ask no other. May come from another thread than the one that waits."""
        with self._lock:
            self._closed = True
            if self._waits is not None:
                self._waits.cancel()

    def __call__(self, row: Mapping[str, Any], conversation: str, reply: str) -> float:
        """The score of a reply, from 0 to 1.

        Raises:
            EnvError: a place names no column, the API does not answer, or the answer is no verdict.
        """
        pieces = {**row, "conversation": conversation, "reply": reply}
        if unknown := [name for name in _PLACE.findall(self.prompt) if name not in pieces]:
            raise EnvError(f"{self.file} names {{{unknown[0]}}}, and the row has no such column")
        asked = _PLACE.sub(lambda found: str(pieces[found[1]]), self.prompt)
        key = (f"{self.url}#{self.name}", asked)
        kept = self._calls.get(key)
        if kept is not None:
            return verdict(kept)
        answer = self._ask([Message(role="user", content=asked)])
        score = verdict(answer)
        self._calls.keep(key, answer)  # only with a verdict: another try may get one
        return score

    def _ask(self, messages: list[Any]) -> str:
        """The judge's answer. A thread waits for it, which nobody has to wait for: a socket that another thread reads
        cannot be closed, and with retries an answer may take many minutes."""
        with self._lock:
            waits = self._waits = Future()
            if self._closed:
                waits.cancel()
            else:
                threading.Thread(target=self._fetch, args=(messages, waits), daemon=True).start()
        try:
            return waits.result()
        except CancelledError:
            raise EnvError(f"the judge at {self.url} was closed before it answered") from None

    def _fetch(self, messages: list[Any], into: Future[str]) -> None:
        with contextlib.suppress(InvalidStateError):  # closed meanwhile
            try:
                answer = self._answer(messages)
            except BaseException as error:
                into.set_exception(error)
            else:
                into.set_result(answer)

    def _answer(self, messages: list[Any]) -> str:
        import openai

        root = self.url if re.search(r"//[^/]+/.", self.url) else f"{self.url}/v1"
        with openai.OpenAI(base_url=root, api_key=api_key(), timeout=TIMEOUT_S, max_retries=RETRIES) as client:
            try:
                with as_api(f"the judge at {self.url}", EnvError):
                    answer = client.chat.completions.create(model=self.name, messages=messages, temperature=0)
                    return answer.choices[0].message.content or ""
            except openai.OpenAIError as error:
                raise EnvError(f"the judge at {self.url} does not answer: {first_line(error)}") from error


def verdict(answer: str) -> float:
    """The score that the last line of a judge's answer gives.

    Raises:
        EnvError: it gives none.
    """
    lines = answer.strip().splitlines()
    found = _VERDICT.fullmatch(lines[-1].strip(" *`")) if lines else None
    if found is None:
        raise EnvError(f"the judge's last line must be yes, no or a number from 0 to 1, got {lines[-1:]!r:.80}")
    word = found[1].lower()
    score = 1.0 if word == "yes" else 0.0 if word == "no" else float(word)
    if score > 1:
        raise EnvError(f"the judge's score must be from 0 to 1, got {score:g}")
    return score
