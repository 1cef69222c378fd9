"""A service that is told to end: first it is only not ready, then it takes nothing, then it lets go of what runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from draft_service.engine import PipelineEngine
from draft_service.generation import EngineInfo, GenerationRequest, TokenEvent
from pipedec.errors import UnavailableError
from tests.faults.service import Service

FOR_EVER = 3600.0


@pytest.fixture
def service() -> Iterator[Service]:
    found = Service()
    yield found
    found.close()


async def ask(engine: PipelineEngine) -> list[TokenEvent]:
    return [event async for event in engine.generate(GenerationRequest((1, 2), 4))]


def test_requests_are_taken_until_all_have_heard_of_it(service: Service) -> None:
    async def story() -> None:
        engine = PipelineEngine(EngineInfo("m", 64, 512, ((0, 1), (1, 2))), service.head, max_requests=4, timeout=60)
        async with asyncio.timeout(60):
            draining = asyncio.create_task(engine.drain(FOR_EVER, notice=FOR_EVER))
            await asyncio.sleep(0)
            assert (engine.ready, engine.accepting, engine.leaving) == (False, True, True)
            assert len(await ask(engine)) == 4
            draining.cancel()
            await engine.drain(FOR_EVER)
            with pytest.raises(UnavailableError, match="shutting down"):
                await ask(engine)

    asyncio.run(story())
