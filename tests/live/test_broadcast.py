"""Who watches gets frames; who is slow gets fewer; and where nobody watches nothing is done."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

import pytest

from draft_service.live.broadcast import BACKLOG, MAX_WATCHERS, STALLED_SECONDS, Broadcast
from draft_service.live.frames import About
from draft_service.live.tap import MAX_EVENTS, Tap
from draft_service.status import HeadStatus
from pipedec.errors import UnavailableError
from pipedec.metrics.head import HeadState
from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import Batch, Decision, Open, Prefill, Row, Rows, Verdict

SECRET = 7


class QuietHead:
    """A head that does only what it is told to."""

    def __init__(self, stages: int = 2) -> None:
        self.tap = Tap(stages)
        self.status = HeadStatus(ready=True, ever_ready=True, epoch=5)
        self.opened = 0

    def watch(self, wanted: bool) -> None:
        if wanted:
            self.opened += 1
            self.tap.open(0.0, ())
        else:
            self.tap.close()

    def running(self) -> tuple[int, ...]:
        return (1,)

    def state(self) -> HeadState:
        counts = dict.fromkeys(HeadState.__dataclass_fields__, 0)
        return HeadState(**counts)  # type: ignore[arg-type]

    def decode(self, steps: int) -> None:
        """One request and some hits."""
        opening = (Open(1, SamplingParams(), 2), Prefill(1, 0, (SECRET,), (0,)))
        self.tap.add(1.0, Batch(5, 0, opening, Rows.of([Row(1, 0, -1, SECRET, 1, 1, ())])))
        for step in range(1, steps):
            self.tap.add(1.0, Batch(5, step, (), Rows.of([Row(1, step, step - 1, SECRET, 1 + step, 1 + step, ())])))
            self.tap.add(1.0, Verdict(5, step - 1, (Decision(1, (SECRET,)),)))


def about(texts: bool = False) -> About:
    return About("m", ((0, 2), (2, 4)), "adaptive", (lambda token: f"secret {token}") if texts else None)


async def first(broadcast: Broadcast, number: int) -> list[Any]:
    """The first messages of a new watcher."""
    messages: list[Any] = []
    async with aclosing(broadcast.watch()) as stream:
        async for message in stream:
            messages.append(json.loads(message))
            if len(messages) == number:
                break
    return messages


async def until_quiet(head: QuietHead) -> None:
    while head.tap.watched:
        await asyncio.sleep(0.01)


def test_a_watcher_is_told_what_there_is_and_nothing_is_done_afterwards() -> None:
    async def watch() -> None:
        head = QuietHead()
        broadcast = Broadcast(head, about())
        assert not head.tap.watched
        greeting, frame = await first(broadcast, 2)
        assert greeting["about"]["layers"] == [[0, 2], [2, 4]]
        assert (frame["epoch"], frame["ready"], frame["batches"]) == (5, True, [])
        assert broadcast.num_watchers == 0
        await until_quiet(head)
        await first(broadcast, 2)  # and again
        assert head.opened == 2

    asyncio.run(watch())


@pytest.mark.parametrize("texts", [False, True])
def test_texts_are_sent_only_where_they_may_be(texts: bool) -> None:
    async def watch() -> None:
        head = QuietHead()
        async with aclosing(Broadcast(head, about(texts)).watch()) as stream:
            await anext(stream)
            await anext(stream)
            head.decode(5)
            message = (await anext(stream)).decode()
        frame = json.loads(message)
        assert frame["tree"]["output"] == 4
        assert len(frame["tree"]["path"]) == 4
        assert [batch["useful"] for batch in frame["batches"]] == [1] * 5
        assert ("secret 7" in message) == texts

    asyncio.run(watch())


def test_too_many_watchers_are_refused() -> None:
    async def watch() -> None:
        broadcast = Broadcast(QuietHead(), about())
        streams = [broadcast.watch() for _ in range(MAX_WATCHERS)]
        for stream in streams:
            await anext(stream)
        with pytest.raises(UnavailableError, match=f"{MAX_WATCHERS} pages watch already"):
            await anext(broadcast.watch())
        await streams.pop().aclose()
        assert len(await first(broadcast, 1)) == 1
        for stream in streams:
            await stream.aclose()

    asyncio.run(watch())


def test_a_slow_watcher_loses_frames_and_delays_nobody() -> None:
    async def watch() -> None:
        clock = iter(range(0, 10**9, int(STALLED_SECONDS) // 4))
        broadcast = Broadcast(QuietHead(), about(), clock=lambda: float(next(clock)))
        slow = broadcast.watch()
        await anext(slow)  # and takes no more
        assert len(await first(broadcast, 6)) == 6
        left = [message async for message in slow]
        assert len(left) < BACKLOG  # and was let go: its stream has ended

    asyncio.run(watch())


def test_a_gap_begins_anew() -> None:
    async def watch() -> None:
        head = QuietHead()
        async with aclosing(Broadcast(head, about()).watch()) as stream:
            await anext(stream)
            await anext(stream)
            for step in range(MAX_EVENTS + 1):
                head.tap.add(0.0, Verdict(5, step))
            await anext(stream)
            assert head.opened == 2

    asyncio.run(watch())


def test_streams_end_with_the_service() -> None:
    async def watch() -> None:
        broadcast = Broadcast(QuietHead(), about())
        stream = broadcast.watch()
        await anext(stream)
        broadcast.close()
        assert len([message async for message in stream]) < BACKLOG
        with pytest.raises(UnavailableError):
            await anext(broadcast.watch())

    asyncio.run(watch())
