"""What a client's connection may cost: how long a request may take to arrive, how long and how much of an answer may
lie unread, and how many connections there may be. Without these, idle sockets are all that it takes to end a service.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from dataclasses import dataclass, field
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

FILES_KEPT = 512  # descriptors that are not for clients: the stages' links, weights, logs

log = logging.getLogger(__name__)


def most_connections() -> int:
    """As many as this process may open, less those that it needs itself; raises its soft limit to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(1, hard - FILES_KEPT)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`request_seconds` from a request's first byte, or the connection, to its last byte; `unread_seconds` without any
    byte taken by a client that has some to take; `unread_bytes` that the kernel keeps for one."""

    request_seconds: float = 30.0
    unread_seconds: float = 60.0
    unread_bytes: int = 1 << 17
    connections: int = field(default_factory=most_connections)

    def apply_to(self, listener: socket.socket) -> None:
        """What the kernel enforces, on every connection that `listener` accepts."""
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.unread_bytes)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * self.unread_seconds))


class Connection(H11Protocol):
    """uvicorn's own, but that a connection is cut if it is one too many, or its request does not arrive in time."""

    def __init__(self, *arguments: Any, limits: ConnectionLimits, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits = limits
        self._arriving: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            log.warning("a connection is refused: there are %d already", self._limits.connections)
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _unsupported_upgrade_warning(self) -> None:
        """Clients may offer HTTP/2 with every request, as Java's does; they are answered in HTTP/1.1 and content."""
        log.debug("an upgrade is offered, and not taken")

    def _watch(self) -> None:
        """The time runs while a request is on its way, however little of it comes at a time."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._unwatch()
        elif self._arriving is None:
            self._arriving = self.loop.call_later(self._limits.request_seconds, self._cut)

    def _unwatch(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _cut(self) -> None:
        log.info("a connection is cut: its request did not arrive within %g s", self._limits.request_seconds)
        self.transport.abort()
