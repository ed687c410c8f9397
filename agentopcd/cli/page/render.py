"""From data to HTML: the templates, what they may show, and the policy that lets nothing else run.

Texts of a page come from models, games and other people. Three walls keep them texts: every value is escaped by Jinja,
characters that hide or turn text around are spelled out, and a Content-Security-Policy allows one style sheet and one
script, both by their hash, and no address at all.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

import agentopcd
from agentopcd.core.terminal import HARMFUL

MISLEADING = re.compile(
    "[\\u00ad\\u034f\\u061c\\u115f\\u1160\\u180e\\u200b-\\u200f\\u2028\\u2029\\u2060-\\u2065\\u206a-\\u206f\\u3164"
    "\\ufeff\\uffa0\\ufff9-\\ufffb\\U000e0000-\\U000e007f]"
)
"""Characters that show nothing or change the order of those around: marks of direction, empty widths, fillers, tags."""


class Section(NamedTuple):
    """A part of a page."""

    id: str
    heading: str
    template: str
    data: Any


Link = Callable[[str, Any], str]
"""Where a thing is shown, by its kind and its id; '' if nowhere."""


def page(
    title: str, sections: list[Section], link: Link, *, live: bool, nav: list[tuple[str, str]], longest: int = 100_000
) -> str:
    """A whole page.

    Args:
        live: whether it comes from ``agentopcd view``, and so asks for news.
        nav: names and addresses of other pages, or of parts of this one.
        longest: characters of a single text; of a longer one the beginning is shown.
    """
    template = _environment(longest).get_template("page.html")
    return template.render(
        title=title, sections=sections, link=link, live=live, nav=nav, policy=policy(live),
        style=Markup(_asset("page.css")), script=Markup(_asset("page.js")), version=agentopcd.__version__,
    )  # fmt: skip


def policy(live: bool) -> str:
    """The Content-Security-Policy of a page."""
    rules = ["default-src 'none'", f"style-src {_hash('page.css')}", f"script-src {_hash('page.js')}"]
    rules += ["base-uri 'none'", "form-action 'none'", *(["connect-src 'self'"] if live else [])]
    return "; ".join(rules)


def shown(value: Any, longest: int = 100_000) -> Any:
    """A value as templates print it: None as nothing, text with every character seen, and not without end."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return "" if value is None else value
    return MISLEADING.sub(_spelled, HARMFUL.sub(_spelled, clipped(value, longest)))


def _spelled(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def clipped(text: Any, longest: int = 4000) -> str:
    """``text`` up to a length, with the number of characters that are left out."""
    text = str(text)
    left_out = len(text) - longest
    return text if left_out <= 0 else f"{text[:longest]}… ({left_out} more characters)"


def signed(value: float | None) -> str:
    """A difference with its sign; nothing for None."""
    return "" if value is None else f"{value:+.3f}"


def share(value: float | None) -> str:
    """A rate or mean with three decimals; nothing for None."""
    return "" if value is None else f"{value:.3f}"


def whole(value: float | None) -> str:
    """A count; nothing for None."""
    return "" if value is None else f"{value:.0f}"


def small(value: float | None) -> str:
    """A p-value or a mean length with its leading digits; nothing for None."""
    return "" if value is None else f"{value:.3g}"


def json_text(value: Any) -> str:
    """Data as one line of JSON, to be escaped like any text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def interval(row: Any, sign: bool = False) -> str:
    """The interval of a rate or difference; nothing where it is unknown."""
    form = signed if sign else share
    return "" if row["low"] is None or row["high"] is None else f"[{form(row['low'])}, {form(row['high'])}]"


@functools.cache
def _environment(longest: int) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, finalize=functools.partial(shown, longest=longest),
    )  # fmt: skip
    for form in (clipped, signed, share, interval, whole, small, json_text):
        environment.filters[form.__name__] = form
    return environment


@functools.cache
def _asset(name: str) -> str:
    return (files("agentopcd.cli.page") / "templates" / name).read_text(encoding="utf-8")


def _hash(name: str) -> str:
    digest = hashlib.sha256(_asset(name).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
