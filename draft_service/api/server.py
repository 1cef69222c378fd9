"""uvicorn, run inside an event loop that belongs to someone else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from draft_service.api.connections import Connection, ConnectionLimits
from pipedec.listening import listen

KEEP_ALIVE_SECONDS = 75  # longer than clients and proxies keep idle connections: they, not we, close them


async def serve(
    app: ASGIApp,
    host: str,
    port: int,
    stop: asyncio.Event,
    *,
    drain_seconds: int = 45,
    limits: ConnectionLimits | None = None,
    on_listening: Callable[[int], None] | None = None,
) -> None:
    """Serve `app` until `stop` is set; then take no more connections, and give running answers `drain_seconds`.

    Answers that are not finished by then are cut, without their regular end. Signals are the caller's. `on_listening`
    is told the port (useful when `port` is 0) once connections are accepted. Raises `OSError` if the address cannot
    be had.
    """
    limits = limits or ConnectionLimits()
    listener = listen(host, port)
    limits.apply_to(listener)
    config = uvicorn.Config(
        app,
        http=partial(Connection, limits=limits),  # type: ignore[arg-type]  # called like the class, and so it may be
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=drain_seconds,
    )
    server = _Server(config, on_listening)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_listening: Callable[[int], None] | None) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would take the process's signals for itself."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_listening is not None and sockets:
            self._on_listening(sockets[0].getsockname()[1])
