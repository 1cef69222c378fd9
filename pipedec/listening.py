"""Where programs listen. `::` is every address of this machine: of both families, or of IPv4 where it has no IPv6."""

from __future__ import annotations

import socket

BACKLOG = 2048


def known(host: str) -> str:
    """The host, as this machine knows it: a kernel without IPv6 has no `::`."""
    return "0.0.0.0" if host == "::" and not socket.has_dualstack_ipv6() else host


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `OSError` if the address cannot be had."""
    host = known(host)
    if ":" not in host:
        return socket.create_server((host, port), backlog=BACKLOG)
    return socket.create_server((host, port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=host == "::")
