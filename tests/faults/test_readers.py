"""Clients that do not read what they asked for: they hold no KV slots, and no place that others could have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace

import pytest

from draft_service.engine import MAX_UNREAD, PipelineEngine
from draft_service.generation import EngineInfo, GenerationRequest, TokenEvent
from pipedec.errors import UnavailableError
from tests.faults.service import Service
from tests.sockets import DEADLINE
from tests.symbolic import VOCABULARY, continuation

LONG = MAX_UNREAD + 60
PROMPT, OTHER = (3, 1, 4), (5, 9, 2, 6)


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service(slots=2 * LONG)
    yield service
    service.close()
    assert service.scheduler.num_slots_used == 0


def engine_of(service: Service, *, max_requests: int = 8, timeout: float = DEADLINE) -> PipelineEngine:
    info = EngineInfo("m", 4 * LONG, VOCABULARY, split=((0, 1), (1, 2)))
    return PipelineEngine(info, service.head, max_requests=max_requests, timeout=timeout)


async def tokens_of(events: AsyncGenerator[TokenEvent, None]) -> list[int]:
    return [event.token async for event in events]


async def read(events: AsyncGenerator[TokenEvent, None], into: list[int]) -> None:
    async for event in events:
        into.append(event.token)


async def first_of(events: AsyncGenerator[TokenEvent, None]) -> int:
    return (await anext(events)).token


async def until_paused(service: Service) -> None:
    async with asyncio.timeout(DEADLINE):
        while service.scheduler.running or len(service.scheduler.waiting):
            await asyncio.sleep(0.005)


def test_who_does_not_read_is_paused_and_goes_on_exactly_when_it_reads(service: Service) -> None:
    async def scenario() -> None:
        engine = engine_of(service)
        idle = engine.generate(GenerationRequest(PROMPT, LONG))
        token = await first_of(idle)
        await until_paused(service)
        assert service.scheduler.num_slots_used == 0
        for _ in range(2):
            assert await tokens_of(engine.generate(GenerationRequest(OTHER, 20))) == continuation(OTHER, 20)
        assert [token, *await tokens_of(idle)] == continuation(PROMPT, LONG)

    asyncio.run(scenario())


def test_a_place_is_free_when_its_request_has_ended_read_or_not(service: Service) -> None:
    async def scenario() -> None:
        engine = engine_of(service, max_requests=1)
        idle = engine.generate(GenerationRequest(PROMPT, 20))
        token = await first_of(idle)
        with pytest.raises(UnavailableError, match="1 request running or waiting"):
            await tokens_of(engine.generate(GenerationRequest(OTHER, LONG)))
        await until_paused(service)
        async with asyncio.timeout(DEADLINE):
            while True:  # the event loop hears of the end a moment later
                try:
                    assert await tokens_of(engine.generate(GenerationRequest(OTHER, 5))) == continuation(OTHER, 5)
                    break
                except UnavailableError:
                    await asyncio.sleep(0.005)
        assert [token, *await tokens_of(idle)] == continuation(PROMPT, 20)

    asyncio.run(scenario())


def test_the_deadline_holds_also_for_who_does_not_read(service: Service) -> None:
    async def scenario() -> None:
        engine = engine_of(service, max_requests=1, timeout=1.0)
        idle = engine.generate(GenerationRequest(PROMPT, 3 * LONG))
        told = [await first_of(idle)]
        await until_paused(service)
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    await tokens_of(engine.generate(GenerationRequest(OTHER, 5)))
                    break
                except UnavailableError:
                    await asyncio.sleep(0.05)
        with pytest.raises(UnavailableError, match="took longer than 1 s"):
            await read(idle, told)
        assert told == continuation(PROMPT, len(told))

    asyncio.run(scenario())


def test_a_hundred_unread_streams_cost_the_token_loop_no_step(service: Service) -> None:
    async def steps_of_a_request(engine: PipelineEngine) -> int:
        before = service.scheduler.counts.batches
        assert await tokens_of(engine.generate(GenerationRequest(OTHER, 30))) == continuation(OTHER, 30)
        return service.scheduler.counts.batches - before

    async def scenario() -> None:
        engine = engine_of(service, max_requests=100)
        alone = await steps_of_a_request(engine)
        idle = [engine.generate(GenerationRequest((*PROMPT, number % VOCABULARY), 4)) for number in range(100)]
        for each in idle:
            await first_of(each)
        await until_paused(service)
        assert await steps_of_a_request(engine) == alone
        for each in idle:
            await each.aclose()

    asyncio.run(scenario())


def test_the_deadline_holds_for_who_waits_for_slots(service: Service) -> None:
    """Requests that do not fit wait; that is no reason to fail before their time, nor to wait for ever."""

    async def scenario() -> None:
        large = GenerationRequest((1,) * (2 * LONG - 30), 8)
        service.scheduler.limits = replace(service.scheduler.limits, max_sequences=0)  # nobody gets a place
        with pytest.raises(UnavailableError, match="took longer than 1 s") as expired:
            await tokens_of(engine_of(service, timeout=1.0).generate(large))
        assert expired.value.status == 504
        service.scheduler.limits = replace(service.scheduler.limits, max_sequences=4)
        patient = engine_of(service)
        both = (patient.generate(large), patient.generate(GenerationRequest(OTHER, 40)))
        told = await asyncio.gather(*map(tokens_of, both))
        assert told == [continuation(large.prompt, 8), continuation(OTHER, 40)]

    asyncio.run(scenario())
