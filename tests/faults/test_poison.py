"""Real processes, and requests that kill a stage whenever it computes them: these end with an error, soon; whatever
else is asked meanwhile is answered as if nothing had happened."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from benchmarks.hostile.trial import MODEL, resource
from draft_service.schedule.suspicion import GUILTY, SUSPECT
from pipedec.cli.local import Local, LocalPipeline
from pipedec.cli.serve import serve
from pipedec.cli.up import local_pipeline
from pipedec.spec import parse_manifest
from tests.faults.mortal_stage import DEATHS, KILLS_AT_ONCE, KILLS_LATER, LATER
from tests.tiny import tiny_model

STAGES, LENGTH = 2, 40
HONEST = [[72, 101, 108, 108, 111], [80, 105], [33, 34, 35, 36]]
TOLD = "the pipeline breaks down whenever it computes this request, even alone"


def mortal(plan: LocalPipeline, deaths: Path) -> LocalPipeline:
    """The same pipeline, whose last stage some requests kill; how often, `deaths` tells by its size."""
    *others, last = plan.programs
    environment = {**last.environment, "PYTHONPATH": str(Path(__file__).parents[2]), DEATHS: str(deaths)}
    command = (sys.executable, "-m", "tests.faults.mortal_stage")
    return replace(plan, programs=(*others, replace(last, command=command, environment=environment)))


def body(prompt: Sequence[int], **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": list(prompt), "max_tokens": LENGTH, "temperature": 0, "logprobs": 0, **fields}


async def ask(client: openai.AsyncOpenAI, prompt: Sequence[int]) -> str:
    answer = await client.completions.create(**body(prompt, extra_body={"ignore_eos": True}))
    assert answer.choices[0].finish_reason == "length"
    return answer.choices[0].text


async def metric(http: httpx.AsyncClient, name: str) -> float:
    found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", (await http.get("/metrics")).text, re.MULTILINE)
    assert found is not None
    return float(found[1])


async def poisoned(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match=TOLD) as caught:
        await client.completions.create(**body((KILLS_AT_ONCE, 5, 6)))
    assert caught.value.code == "unfinishable"


async def poisoned_later(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(**body((KILLS_LATER, 5, 6), stream=True, extra_body={"ignore_eos": True}))
    tokens: list[str] = []

    async def read() -> None:
        async for chunk in stream:
            assert chunk.choices[0].finish_reason is None
            assert chunk.choices[0].logprobs is not None
            tokens.extend(chunk.choices[0].logprobs.tokens or ())

    with pytest.raises(openai.APIError, match=TOLD):
        await read()
    assert 0 < len(tokens) <= LATER - 2


def test_a_request_that_kills_its_stage_is_ended_alone(tmp_path: Path) -> None:
    async def scenario(plan: LocalPipeline) -> None:
        client = openai.AsyncOpenAI(base_url=f"{plan.url}/v1", api_key="any", timeout=120, max_retries=0)
        async with client, httpx.AsyncClient(base_url=plan.url, trust_env=False) as http:
            undisturbed = [await ask(client, prompt) for prompt in HONEST]
            disturbed = await asyncio.gather(
                poisoned(client), poisoned_later(client), *(ask(client, prompt) for prompt in HONEST)
            )
            assert list(disturbed[2:]) == undisturbed
            # not the epochs lost: some never live, where the head is told of a death later than it tries again
            assert deaths.stat().st_size <= 2 * (SUSPECT + GUILTY + 1)
            assert await metric(http, "pipedec_head_kv_slots_used") == 0

    deaths = tmp_path / "deaths"
    manifest = resource(tiny_model(tmp_path), STAGES)
    with local_pipeline(parse_manifest(manifest), Local(port=0, devices=("cpu",))) as plan:
        plan = mortal(plan, deaths)
        assert asyncio.run(serve(plan, lambda: scenario(plan)))
