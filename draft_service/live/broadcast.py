"""Sends frames to everyone who watches, at most ten a second. Lives in the endpoint's event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from draft_service.live.frames import About, Json, Watched, frame
from draft_service.live.picture import Picture
from draft_service.status import HeadStatus
from pipedec.errors import UnavailableError

PERIOD = 0.1  # seconds between frames
QUIET_PERIOD = 1.0  # where nothing happens
MAX_WATCHERS = 16
BACKLOG = 2  # frames that wait for a watcher; older ones are dropped
STALLED_SECONDS = 30.0  # a watcher that takes no frame for so long is let go

_log = logging.getLogger(__name__)


class _Watcher:
    """One client's frames. The oldest goes when there is no room: whoever is slow sees fewer, and delays nobody."""

    def __init__(self, greeting: bytes, now: float) -> None:
        self.frames: asyncio.Queue[bytes | None] = asyncio.Queue(BACKLOG)
        self.taken = now  # when it had room lately
        self.frames.put_nowait(greeting)

    def offer(self, message: bytes | None, now: float) -> None:
        if self.frames.full():
            self.frames.get_nowait()
        else:
            self.taken = now
        self.frames.put_nowait(message)


class Broadcast:
    """Frames of one head. Works only while somebody watches."""

    def __init__(self, head: Watched, about: About, clock: Callable[[], float] = time.monotonic) -> None:
        self._head, self._about, self._clock = head, about, clock
        self._watchers: set[_Watcher] = set()
        self._sending: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def num_watchers(self) -> int:
        return len(self._watchers)

    async def watch(self) -> AsyncGenerator[bytes, None]:
        """JSON objects: first what does not change, then frames, until the service ends or this is closed.

        Raises `UnavailableError` if too many watch already.
        """
        if self._closed or len(self._watchers) >= MAX_WATCHERS:
            raise UnavailableError(f"{len(self._watchers)} pages watch already, which is the limit", retry_after=10.0)
        watcher = _Watcher(_encode({"about": self._about.greeting()}), self._clock())
        self._watchers.add(watcher)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        try:
            while (message := await watcher.frames.get()) is not None:
                yield message
        finally:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """The service ends: so do all streams, after what they have."""
        self._closed = True
        for watcher in self._watchers:
            watcher.offer(None, self._clock())

    async def _send(self) -> None:
        """Until nobody watches any more."""
        try:
            async with aclosing(self._frames()) as frames:
                async for message in frames:
                    data, now = _encode(message), self._clock()
                    for watcher in list(self._watchers):
                        watcher.offer(data, now)
                        if now - watcher.taken > STALLED_SECONDS:
                            watcher.offer(None, now)
                            self._watchers.discard(watcher)
        except Exception:  # the page must never harm the service that it shows: it is told, and the streams end
            _log.exception("the live page failed")
            for watcher in self._watchers:
                watcher.offer(None, self._clock())
        finally:
            self._head.watch(False)
            self._sending = None

    async def _frames(self) -> AsyncGenerator[Json, None]:
        picture = self._begin()
        shown, sent = HeadStatus(), -QUIET_PERIOD
        while self._watchers and not self._closed:
            await asyncio.sleep(PERIOD)
            events = self._head.tap.drain()
            if events is None:
                picture, events = self._begin(), []
            picture.observe(self._head.tap.step_times)
            picture.apply(events)
            picture.forget(self._head.running())
            status, now = self._head.status, self._clock()
            if not events and not picture.in_flight and status == shown and now < sent + QUIET_PERIOD:
                continue
            shown, sent = status, now
            yield frame(picture, self._about, self._head, now)

    def _begin(self) -> Picture:
        self._head.watch(True)
        return Picture(len(self._about.layers))


def _encode(message: Json) -> bytes:
    return json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode()
