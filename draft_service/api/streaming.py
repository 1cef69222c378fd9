"""Server-sent events, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from draft_service.api.errors import error_body
from draft_service.api.openai_types import StreamOptions
from draft_service.api.replies import Json, Reply, cost, usage
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


class EventStream(Response):
    """The chunks of a reply as its run makes them, then `[DONE]`.

    The response starts with the first delta: a request that is refused still gets a status of its own. A failure
    after that is one event with an `error` and the end of the stream, without `[DONE]`, so that a cut text never
    looks finished. No comments are sent, and usage only if asked for: there are clients that stumble over either.
    """

    media_type = "text/event-stream"

    def __init__(self, reply: Reply, run: Run, options: StreamOptions) -> None:
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._reply, self._run = reply, run
        self._with_usage = bool(options.include_usage)
        self._always_usage = self._with_usage and bool(options.continuous_usage_stats)
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
                await self._write(send, self._chunk(self._reply.chunk_choice(delta)))

        try:
            await self._run.drive(emit)
        except Exception as error:
            if not self._started:
                raise
            if not isinstance(error, PipeDecError):
                log.exception("stream failed", extra=fields(request=scope["state"]["request_id"]))
            _, body = error_body(error)
            await self._write(send, body)
        else:
            if self._with_usage:
                await self._write(send, self._reply.chunk([], **cost(self._run)))
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _start(self, send: Send) -> None:
        if self._started:
            return
        self._started = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for index in range(self._run.num_choices):
            if choice := self._reply.opening(index):
                await self._write(send, self._chunk(choice))

    def _chunk(self, choice: Json) -> Json:
        if not self._with_usage:
            return self._reply.chunk([choice])
        return self._reply.chunk([choice], usage=usage(self._run) if self._always_usage else None)

    async def _write(self, send: Send, event: Json) -> None:
        # ASCII only: some clients split lines at every line break that Unicode knows.
        data = json.dumps(event, ensure_ascii=True, separators=(",", ":")).encode()
        await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
