"""Keys of work, each by at most one worker at a time, with back-off of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from pipedec_operator.cluster import ClusterError

Key = TypeVar("Key", bound=Hashable)

SETTLE_SECONDS = 0.1  # events come in bursts; one pass answers a burst
FIRST_DELAY, LAST_DELAY = 0.5, 60.0  # seconds before a failed key is tried again: doubled every time, up to the last

_log = logging.getLogger(__name__)


class WorkQueue(Generic[Key]):
    """Wakes `work(key)` for every key that is added. `work` says whether it wants to be woken again later.

    A key added while it waits is there already; one added while it is worked on is worked on once more.
    """

    def __init__(self, work: Callable[[Key], Awaitable[bool]]) -> None:
        self._work = work
        self._due: dict[Key, asyncio.TimerHandle] = {}
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: set[Key] = set()
        self._working: set[Key] = set()
        self._dirty: set[Key] = set()
        self._failures: dict[Key, int] = {}

    def add(self, key: Key, delay: float = SETTLE_SECONDS) -> None:
        """Work on a key in `delay` seconds, or earlier if it was to be earlier."""
        if key in self._working:
            self._dirty.add(key)
        if key in self._queued or key in self._working:
            return
        loop = asyncio.get_running_loop()
        if timer := self._due.get(key):
            if timer.when() <= loop.time() + delay:
                return
            timer.cancel()
        self._due[key] = loop.call_later(delay, self._enqueue, key)

    def __len__(self) -> int:
        return len(self._due) + len(self._queued) + len(self._working)

    async def run(self, workers: int) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._serve())

    def _enqueue(self, key: Key) -> None:
        del self._due[key]
        self._queued.add(key)
        self._ready.put_nowait(key)

    async def _serve(self) -> None:
        while True:
            key = await self._ready.get()
            self._queued.discard(key)
            self._working.add(key)
            try:
                delay = await self._attempt(key)
            finally:
                self._working.discard(key)
            if key in self._dirty:
                self._dirty.discard(key)
                delay = min(delay, SETTLE_SECONDS) if delay else SETTLE_SECONDS
            if delay:
                self.add(key, delay)

    async def _attempt(self, key: Key) -> float:
        """Seconds until the key is to be tried again; 0: not by itself."""
        asked = None
        try:
            if not await self._work(key):
                self._failures.pop(key, None)
                return 0.0
        except ClusterError as error:
            asked = error.retry_after
            _log.warning("%s: %s", key, error)
        except Exception:
            # One resource that trips over a mistake of ours must not stop the others.
            _log.exception("%s", key)
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        return max(asked or 0.0, min(FIRST_DELAY * 2.0 ** (failures - 1), LAST_DELAY))
