"""What comes in: headers that name something, bodies within their bounds, and whether the client is still there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from typing import Any

from starlette.requests import ClientDisconnect, Request

from agentopcd.workspace.gateway.asked import Refused

BODY_BYTES = 4 << 20
"""The largest body."""
READ_BYTES = 16 * BODY_BYTES
"""How much of a larger one is read and thrown away, since many clients read no answer before they have sent all."""
BODY_S = 30.0
"""How long a body may take to arrive."""
_HEADER = re.compile(r"[\x21-\x7e]{1,200}")


def header(request: Request, name: str) -> str:
    """A header that names something; empty if it is not there.

    Raises:
        Refused: it is no such name.
    """
    given = request.headers.getlist(name)
    if not given:
        return ""
    if len(given) > 1 or not _HEADER.fullmatch(given[0]):
        raise Refused(400, f"{name} wants one name of 1 to 200 visible ASCII characters", param=name)
    return given[0]


async def body_of(request: Request) -> bytes:
    """The body of a request, as JSON that no stranger's page can send unasked.

    Raises:
        Refused: it is too large, comes too slowly, or is declared as something else.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "the body must be JSON: Content-Type: application/json")
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size += len(part)
                body += part if size <= BODY_BYTES else b""
                if size > READ_BYTES:
                    break
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {BODY_S:.0f} s", headers={"Connection": "close"}) from None
    if size > BODY_BYTES:
        raise Refused(
            413, f"the body has more than {BODY_BYTES} bytes; shorten the messages", headers={"Connection": "close"}
        )
    return bytes(body)


async def until_gone(request: Request, work: Awaitable[Any]) -> Any:
    """What ``work`` returns; it is cancelled when the client leaves.

    Raises:
        ClientDisconnect: the client has left.
    """

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(_left(request))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ClientDisconnect
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
