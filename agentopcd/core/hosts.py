"""Names of this machine, as an address to listen at and in the Host header of a request."""

from __future__ import annotations

import ipaddress
import re

_HOST = re.compile(r"(?:\[([^\[\]]*:[^\[\]]*)\]|([^\[\]:]+))(?::[0-9]*)?")


def is_here(name: str) -> bool:
    """Whether only programs on this machine can reach what listens at this name or address."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


def names_here(host: str) -> bool:
    """Whether a Host header names this machine. Another one belongs to a stranger's page whose name was made to lead
    here.

    Args:
        host: its value, with a port or without.
    """
    found = _HOST.fullmatch(host)
    return found is not None and is_here(found[1] or found[2])
