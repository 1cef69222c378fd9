"""A TCP relay whose connections can be cut, delayed and doubled."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

_CHUNK = 1 << 16
Address = tuple[str, int]


@dataclass(slots=True, eq=False)
class _Relayed:
    """One connection: both ends, and how it began."""

    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    beginning: bytearray = field(default_factory=bytearray)

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


class Proxy(AbstractAsyncContextManager["Proxy"]):
    """Relays what connects to `here` to `there`. `delay`: seconds that every chunk waits, both ways."""

    def __init__(self, name: str, here: Address, there: Address) -> None:
        self.name, self.delay = name, 0.0
        self._here, self._there = here, there
        self._relayed: list[_Relayed] = []

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._relay, *self._here)
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """End every connection with a reset."""
        for relayed in self._relayed:
            relayed.cut()

    async def duplicate(self) -> None:
        """Say once more, on a connection of its own, what every present connection has said at its beginning."""
        for relayed in list(self._relayed):
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(*self._there)
                writer.write(bytes(relayed.beginning))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        while await reader.read(_CHUNK):
                            continue
                writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._there)
        except OSError:
            writer.transport.abort()
            return
        relayed = _Relayed((writer, far_writer))
        self._relayed.append(relayed)
        try:
            await asyncio.gather(
                self._pump(reader, far_writer, relayed.beginning), self._pump(far_reader, writer, bytearray())
            )
        finally:
            relayed.cut()
            self._relayed.remove(relayed)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, beginning: bytearray) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                if len(beginning) < _CHUNK:
                    beginning += chunk
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(chunk)
                await writer.drain()
        writer.transport.abort()
