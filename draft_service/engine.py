"""The endpoint's view of the pipeline: asynchronous requests in front of the head's own thread."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from draft_service.generation import EngineInfo, GenerationRequest, TokenEvent
from draft_service.loop import Head
from draft_service.schedule.scheduler import Output
from pipedec.errors import PipeDecError, RequestError, UnavailableError
from pipedec.logs import fields
from pipedec.spec.report import PipelineReport
from pipedec.words import counted

_log = logging.getLogger(__name__)

MAX_UNREAD = 512  # tokens that wait for a client; with more it is paused, and its KV slots are for others
RESUME_AT = MAX_UNREAD // 4

Item = Sequence[TokenEvent] | PipeDecError


@dataclass(slots=True)
class Stream:
    """What one client has not read yet. `timer` ends the request at its deadline."""

    timer: asyncio.TimerHandle
    items: asyncio.Queue[Item] = field(default_factory=asyncio.Queue)
    unread: int = 0
    paused: bool = False


class PipelineEngine:
    """Requests of many clients over one pipeline. Lives in an asyncio event loop; the head runs in a thread.

    `max_requests` bounds running and waiting ones together, `timeout` (seconds) each one from start to end.
    """

    def __init__(self, info: EngineInfo, head: Head, *, max_requests: int, timeout: float) -> None:
        self.info = info
        self._head = head
        self._max_requests = max_requests
        self._timeout = timeout
        self._running: dict[int, Stream] = {}  # by key; waiting ones too, but none that has ended
        self._reading = 0  # clients, also of what has ended
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

        Raises `UnavailableError`: the queue is full (429), the service is starting or shutting down (503), or the
        deadline has passed (504).
        """
        if not self.accepting:
            raise UnavailableError(self.not_ready_reason, retry_after=5.0)
        if (busy := len(self._running)) >= self._max_requests:
            message = f"{counted(busy, 'request')} running or waiting, which is the limit; try again later"
            raise UnavailableError(message, status=429)
        if len(request.prompt) + request.max_tokens > self.info.context:
            raise RequestError(f"prompt and max_tokens together exceed the context of {self.info.context} tokens")
        key = next(self._keys)
        stream = Stream(self._loop.call_later(self._timeout, lambda: self._expire(key)))
        self._running[key] = stream
        self._reading += 1
        self._head.submit(key, request)
        finished = False
        try:
            while not finished:
                item = await stream.items.get()
                if isinstance(item, PipeDecError):
                    raise item
                for event in item:
                    self._read(key, stream)
                    finished = event.finish is not None
                    yield event
        finally:
            self._end(key)
            self._reading -= 1
            if not finished:
                self._head.abort(key)
            if not self._reading:
                self._idle.set()

    def _read(self, key: int, stream: Stream) -> None:
        stream.unread -= 1
        if stream.paused and stream.unread <= RESUME_AT:
            stream.paused = False
            self._head.resume(key)

    def _expire(self, key: int) -> None:
        """The deadline has passed, whether the client reads or not."""
        self._head.abort(key)
        self._fail(UnavailableError(f"the request took longer than {self._timeout:g} s", status=504), key)

    async def drain(self, seconds: float, notice: float = 0.0) -> None:
        """Be no longer ready; after `notice` seconds take no new requests, let running ones end for `seconds`, then end
        the rest with an error."""
        self.leaving = True
        _log.info("drain begun", extra=fields(requests=self._reading, seconds=seconds, notice=notice or None))
        await asyncio.sleep(notice)
        self._draining = True
        if self._reading:
            self._idle.clear()
        else:
            self._idle.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        left = self._reading
        _log.log(logging.WARNING if left else logging.INFO, "drain ended", extra=fields(requests_cut=left))
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
            if (stream := self._running.get(key)) is None:
                continue  # its client is gone, or it has ended
            stream.unread += len(events)
            stream.items.put_nowait(events)
            if events[-1].finish is not None:
                self._end(key)
            elif stream.unread > MAX_UNREAD and not stream.paused:
                stream.paused = True
                self._head.pause(key)

    def _fail(self, error: PipeDecError, key: int | None) -> None:
        for each in list(self._running) if key is None else [key]:
            if (stream := self._end(each)) is not None:
                stream.items.put_nowait(error)

    def _end(self, key: int) -> Stream | None:
        """The pipeline works on it no longer; None if it did not any more."""
        if (stream := self._running.pop(key, None)) is not None:
            stream.timer.cancel()
        return stream
