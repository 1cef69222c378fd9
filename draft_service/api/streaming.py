"""Server-sent events, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from draft_service.api.replies import Json
from draft_service.api.run import Run
from draft_service.api.transcript import Delta
from pipedec.errors import PipeDecError
from pipedec.logs import fields

log = logging.getLogger(__name__)
T = TypeVar("T")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """`work`'s result. If the client goes away before, `work` is cancelled, and has ended when `ClientGone` is raised.

    The request's body must have been read: `receive` has nothing else to tell any more.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(data: Json, name: str = "") -> bytes:
    # ASCII only: some clients split lines at every line break that Unicode knows.
    told = b"data: " + json.dumps(data, ensure_ascii=True, separators=(",", ":")).encode() + b"\n\n"
    return b"event: " + name.encode() + b"\n" + told if name else told


class Events(ABC):
    """What the stream of one run says, as bytes of whole events."""

    @abstractmethod
    def opening(self, run: Run) -> Iterable[bytes]:
        """Before the first delta."""

    @abstractmethod
    def delta(self, delta: Delta, run: Run) -> Iterable[bytes]: ...

    @abstractmethod
    def closing(self, run: Run) -> Iterable[bytes]:
        """Behind the last delta."""

    @abstractmethod
    def failure(self, error: Exception, run: Run) -> Iterable[bytes]:
        """Instead of the `closing`: a cut text never looks finished."""


class EventStream(Response):
    """The events of a run as it makes deltas.

    The response starts with the first delta: a request that is refused still gets a status of its own. No comments
    are sent: there are clients that stumble over them.
    """

    media_type = "text/event-stream"

    def __init__(self, events: Events, run: Run) -> None:
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events, self._run = events, run
        self._started = False
        self._writing = asyncio.Lock()  # choices are emitted by tasks of their own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._stream(scope, send))
        except ClientGone:
            log.debug("client gone", extra=fields(request=scope["state"]["request_id"]))

    async def _stream(self, scope: Scope, send: Send) -> None:
        async def emit(delta: Delta) -> None:
            async with self._writing:
                await self._start(send)
                await _write(send, self._events.delta(delta, self._run))

        try:
            await self._run.drive(emit)
        except Exception as error:
            if not self._started:
                raise
            if not isinstance(error, PipeDecError):
                log.exception("stream failed", extra=fields(request=scope["state"]["request_id"]))
            await _write(send, self._events.failure(error, self._run))
        else:
            await _write(send, self._events.closing(self._run))
        await send({"type": "http.response.body", "body": b""})

    async def _start(self, send: Send) -> None:
        if self._started:
            return
        self._started = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _write(send, self._events.opening(self._run))


async def _write(send: Send, events: Iterable[bytes]) -> None:
    if body := b"".join(events):
        await send({"type": "http.response.body", "body": body, "more_body": True})
