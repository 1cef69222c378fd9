"""The endpoint's view of the pipeline: asynchronous requests in front of the head's own thread."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from draft_service.generation import EngineInfo, GenerationRequest, TokenEvent
from draft_service.loop import Head
from draft_service.scheduler import Output
from pipedec.errors import PipeDecError, RequestError, UnavailableError
from pipedec.spec.report import PipelineReport

_log = logging.getLogger(__name__)

Item = Sequence[TokenEvent] | PipeDecError


class PipelineEngine:
    """Requests of many clients over one pipeline. Lives in an asyncio event loop; the head runs in a thread.

    `max_requests` bounds running and waiting ones together, `timeout` (seconds) each one from start to end.
    """

    def __init__(self, info: EngineInfo, head: Head, *, max_requests: int, timeout: float) -> None:
        self.info = info
        self._head = head
        self._max_requests = max_requests
        self._timeout = timeout
        self._streams: dict[int, asyncio.Queue[Item]] = {}
        self._keys = itertools.count()
        self.leaving = False
        self._draining = False
        self._idle = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        head.listen(self._deliver_soon, self._fail_soon)

    @property
    def report(self) -> PipelineReport:
        return PipelineReport.of(self.info.split, self.not_ready_reason, self._head.status.degraded)

    @property
    def ready(self) -> bool:
        return self._head.status.ready and not self.leaving

    @property
    def accepting(self) -> bool:
        return self._head.status.ever_ready and not self._draining

    @property
    def not_ready_reason(self) -> str:
        if self.leaving:
            return "shutting down"
        return self._head.status.reason

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """Events of one request, in order; closing the iterator cancels it.

        Raises `UnavailableError`: the queue is full (429), the service is starting or shutting down, or the deadline
        has passed (503).
        """
        if not self.accepting:
            raise UnavailableError(self.not_ready_reason, retry_after=5.0)
        if len(self._streams) >= self._max_requests:
            raise UnavailableError(
                f"{len(self._streams)} requests are running or waiting, which is the limit; try again later", status=429
            )
        if len(request.prompt) + request.max_tokens > self.info.context:
            raise RequestError(f"prompt and max_tokens together exceed the context of {self.info.context} tokens")
        key = next(self._keys)
        stream: asyncio.Queue[Item] = asyncio.Queue()
        self._streams[key] = stream
        self._head.submit(key, request)
        finished = False
        try:
            deadline = time.monotonic() + self._timeout
            while not finished:
                for event in await self._next(stream, deadline):
                    finished = event.finish is not None
                    yield event
        finally:
            del self._streams[key]
            if not finished:
                self._head.abort(key)
            if not self._streams:
                self._idle.set()

    async def _next(self, stream: asyncio.Queue[Item], deadline: float) -> Sequence[TokenEvent]:
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                item = await stream.get()
        except TimeoutError as error:
            raise UnavailableError(f"the request took longer than {self._timeout:g} s", retry_after=1.0) from error
        if isinstance(item, PipeDecError):
            raise item
        return item

    async def drain(self, seconds: float, notice: float = 0.0) -> None:
        """Be no longer ready; after `notice` seconds take no new requests, let running ones end for `seconds`, then end
        the rest with an error."""
        self.leaving = True
        await asyncio.sleep(notice)
        self._draining = True
        if self._streams:
            self._idle.clear()
        else:
            self._idle.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        self._fail(UnavailableError("the service is shutting down", retry_after=5.0), None)

    def _deliver_soon(self, outputs: Sequence[Output]) -> None:
        self._soon(lambda: self._deliver(outputs))

    def _fail_soon(self, error: PipeDecError, key: int | None) -> None:
        self._soon(lambda: self._fail(error, key))

    def _soon(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the event loop is closed: nobody is left to tell
            _log.debug("an event came after the endpoint had closed")

    def _deliver(self, outputs: Sequence[Output]) -> None:
        by_key: dict[int, list[TokenEvent]] = {}
        for key, event in outputs:
            by_key.setdefault(key, []).append(event)
        for key, events in by_key.items():
            if (stream := self._streams.get(key)) is not None:
                stream.put_nowait(events)

    def _fail(self, error: PipeDecError, key: int | None) -> None:
        for each, stream in self._streams.items():
            if key in (None, each):
                stream.put_nowait(error)
