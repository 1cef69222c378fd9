"""The harness itself: its relay does what it says, and a text that differs would be seen."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from benchmarks.faults.inject import Fault
from benchmarks.faults.load import Answer, Load, RequestFailed, questions
from benchmarks.faults.proxy import Proxy
from benchmarks.faults.report import Mark, Memory, periods, quantile, report
from pipedec.cli.ports import LOOPBACK, free_ports


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(100):
        writer.write(chunk)
    writer.close()


def test_a_relay_passes_on_delays_doubles_and_cuts() -> None:
    async def scenario() -> None:
        here, there = ((LOOPBACK, port) for port in free_ports(2))
        seen: list[bytes] = []

        async def remember(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await reader.readexactly(5))
            writer.write(seen[-1])
            await echo(reader, writer)

        server = await asyncio.start_server(remember, *there)
        async with Proxy("p", here, there) as proxy, server:
            reader, writer = await asyncio.open_connection(*here)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            proxy.delay = 0.01
            writer.write(b"again")
            assert await reader.readexactly(5) == b"again"
            await proxy.duplicate()
            assert seen == [b"hello", b"hello"]
            proxy.cut()
            assert await reader.read() == b""
            writer.close()

    asyncio.run(scenario())


def test_questions_are_mixed_and_the_same_every_time() -> None:
    bodies = questions("m", 40, seed=1, max_tokens=64)
    assert bodies == questions("m", 40, seed=1, max_tokens=64)
    for name in ("stop", "n", "top_p", "ignore_eos"):
        assert 0 < sum(name in body for body in bodies) < 40
    assert {body["stream"] for body in bodies} == {True, False}


def load_of(replies: list[httpx.Response]) -> Load:
    transport = httpx.MockTransport(lambda request: replies.pop(0))
    client = httpx.AsyncClient(transport=transport, base_url="http://pipeline")
    return Load(client, [{"stream": False, "prompt": "x"}])


def said(text: str) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"text": text, "finish_reason": "length"}]})


def test_a_text_that_differs_and_a_request_that_fails_are_seen() -> None:
    load = load_of([said("right"), said("right"), said("wrong"), httpx.Response(503, text="gone")])

    async def scenario() -> None:
        await load.learn(1)
        asking = asyncio.create_task(load.run(1, seed=0))
        while not load.failed:
            await asyncio.sleep(0)
        load.stopping = True
        await asking

    asyncio.run(scenario())
    assert load.expected == {0: Answer(("right",), ("length",))}
    assert len(load.latencies) == 2
    assert len(load.different) == 1
    assert "wrong" in load.different[0]
    assert "503: gone" in load.failed[0]


@pytest.mark.parametrize("end", ["", 'data: {"error": {"message": "gone"}}\n\n'])
def test_a_stream_without_its_end_is_a_failure(end: str) -> None:
    text = 'data: {"choices": [{"text": "a", "finish_reason": "stop"}]}\n\n' + end
    load = load_of([httpx.Response(200, text=text)])
    load.bodies = [{"stream": True, "prompt": "x"}]
    with pytest.raises(RequestFailed):
        asyncio.run(load.learn(1))


def test_what_is_reported() -> None:
    load = load_of([])
    load.latencies = [(1.0, 0.5), (7.0, 1.5)]
    load.token_times = [0.5, 6.0, 7.0]
    faults = [Fault("stage", "kill -9 of stage 1", 4.0), Fault("link", "cut", 1.0), Fault("link", "cut", 3.0)]
    told = report(load, faults, leaked_slots=2, memory=[Memory("draft", 1, 2**20, 3 * 2**20)])
    assert told["recovery_s"] == {"median": 3.0, "p99": 4.0}
    assert told["recovery_by_kind_s"] == {"link": 2.0, "stage": 4.0}
    assert (told["requests"], told["leaked_slots"]) == (2, 2)
    assert told["memory"] == [{"process": "draft", "mib": 3.0, "growth_mib": 2.0}]
    first, second = periods(load, [Mark(0.0, 1.0, 2**20), Mark(4.0, 1.5, 2**21), Mark(8.0, 2.5, 2**21)])
    assert (first["streamed_pieces_per_s"], second["streamed_pieces_per_s"]) == (0.25, 0.5)
    assert (first["streamed_pieces_per_cpu_s"], second["streamed_pieces_per_cpu_s"]) == (2.0, 2.0)
    assert (first["latency_median_s"], second["latency_median_s"], second["mib"]) == (0.5, 1.5, 2.0)
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
