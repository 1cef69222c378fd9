"""The work queue: one worker per key, nothing lost, back-off per key. On an event loop whose clock is stepped."""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import Awaitable, Callable

import pytest

from pipedec_operator.cluster import ClusterError
from pipedec_operator.workqueue import FIRST_DELAY, LAST_DELAY, SETTLE_SECONDS, WorkQueue


class SteppedLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: its clock jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__(_Immediate(self))
        self.now = 0.0

    def time(self) -> float:
        return self.now


class _Immediate(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    def __init__(self, loop: SteppedLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._loop.now += timeout or 0.0
        return super().select(0)


def run(scenario: Callable[[SteppedLoop], Awaitable[None]]) -> None:
    loop = SteppedLoop()
    try:
        loop.run_until_complete(scenario(loop))
    finally:
        loop.close()


async def during(seconds: float, queue: WorkQueue[str], workers: int = 2) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.run(workers), seconds)


def test_a_burst_is_one_piece_of_work() -> None:
    async def scenario(loop: SteppedLoop) -> None:
        done: list[str] = []

        async def work(key: str) -> bool:
            done.append(key)
            return False

        queue = WorkQueue(work)
        for key in ("a", "a", "b", "a"):
            queue.add(key)
        assert len(queue) == 2
        await during(5, queue)
        assert sorted(done) == ["a", "b"]
        assert len(queue) == 0

    run(scenario)


def test_what_is_added_during_work_is_worked_on_again_and_never_twice_at_once() -> None:
    async def scenario(loop: SteppedLoop) -> None:
        began: list[float] = []
        at_once = 0

        async def work(key: str) -> bool:
            nonlocal at_once
            at_once += 1
            assert at_once == 1
            began.append(loop.time())
            if len(began) == 1:
                queue.add(key)
                queue.add(key)
            await asyncio.sleep(1)
            at_once -= 1
            return False

        queue = WorkQueue(work)
        queue.add("a")
        await during(10, queue)
        assert began == pytest.approx([SETTLE_SECONDS, 1 + 2 * SETTLE_SECONDS])

    run(scenario)


@pytest.mark.parametrize("how", ["asks", "raises", "trips"])
def test_failures_back_off_up_to_a_limit_and_then_start_over(how: str) -> None:
    async def scenario(loop: SteppedLoop) -> None:
        began: list[float] = []

        async def work(key: str) -> bool:
            began.append(loop.time())
            if len(began) == 11:
                return False
            if how == "raises":
                raise ClusterError(500, "InternalError", "no")
            if how == "trips":
                raise KeyError("a mistake of ours")
            return True

        queue = WorkQueue(work)
        queue.add("a")
        await during(1000, queue)
        waits = [later - earlier for earlier, later in itertools.pairwise(began)]
        assert waits == pytest.approx([min(FIRST_DELAY * 2**i, LAST_DELAY) for i in range(10)])
        queue.add("a")
        await during(1, queue)
        assert began[12] - began[11] == pytest.approx(FIRST_DELAY)

    run(scenario)


def test_the_api_servers_own_wish_is_respected() -> None:
    async def scenario(loop: SteppedLoop) -> None:
        began: list[float] = []

        async def work(key: str) -> bool:
            began.append(loop.time())
            if len(began) == 1:
                raise ClusterError(429, "TooManyRequests", "later", retry_after=7)
            return False

        queue = WorkQueue(work)
        queue.add("a")
        await during(20, queue)
        assert began[1] - began[0] == pytest.approx(7)

    run(scenario)


def test_an_event_does_not_wait_for_the_back_off() -> None:
    async def scenario(loop: SteppedLoop) -> None:
        began: list[float] = []

        async def work(key: str) -> bool:
            began.append(loop.time())
            return len(began) == 1

        queue = WorkQueue(work)
        queue.add("a", delay=50)
        queue.add("a")
        await during(5, queue)
        assert began[0] == pytest.approx(SETTLE_SECONDS)

    run(scenario)
