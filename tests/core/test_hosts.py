"""Which addresses and Host headers name this machine."""

from __future__ import annotations

import pytest

from agentopcd.core.config import ServeConfig
from agentopcd.core.hosts import is_here, names_here


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2", "::1"])
def test_whoever_listens_here_is_asked_by_that_name(host: str) -> None:
    assert is_here(host) and ServeConfig(model="pocket", host=host).here
    at = f"[{host}]" if ":" in host else host
    assert names_here(at) and names_here(f"{at}:8643") and names_here(at.upper())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "evil.example", "localhost.evil.example", ""])
def test_others_are_not_here(host: str) -> None:
    assert not is_here(host) and not names_here(host) and not names_here(f"{host}:80")


@pytest.mark.parametrize(
    "host", ["::1", "[::1", "[localhost]", "127.0.0.1@evil.example", "localhost:80:80", "localhost\n"]
)
def test_what_is_no_host_names_nothing(host: str) -> None:
    assert not names_here(host)
