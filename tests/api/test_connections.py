"""Clients that go away, and a server that stops: on real sockets."""

from __future__ import annotations

import asyncio
import json
import queue
import socket
import threading
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from draft_service.api import create_app, serve
from draft_service.text import Tokenizer
from pipedec.metrics.requests import RequestMetrics
from tests.api.scripted import MODEL, ScriptedEngine, byte_tokenizer, served


def send(port: int, **fields: Any) -> socket.socket:
    """A connection on which a completion was asked for."""
    body = json.dumps({"model": MODEL, "prompt": "x", **fields}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(head.encode() + b"\r\n\r\n" + body)
    return connection


@pytest.mark.parametrize("num_tokens", [0, 2])
@pytest.mark.parametrize("fields", [{"stream": True}, {"stream": False}, {"stream": True, "n": 3}, {"n": 3}])
def test_a_client_that_goes_away_ends_its_requests(
    http: httpx.Client, port: int, engine: ScriptedEngine, num_tokens: int, fields: dict[str, Any]
) -> None:
    aborted = 'pipedec_request_success_total{finished_reason="abort",model_name="tiny"} '
    before = float(http.get("/metrics").text.partition(aborted)[2].split()[0])
    num_sequences = fields.get("n", 1)
    engine.say("abc")
    engine.hold_after = num_tokens
    connection = send(port, **fields)
    for _ in range(num_sequences):
        engine.held.get(timeout=30)
    assert engine.closed.empty()
    connection.close()
    closed = [engine.closed.get(timeout=30) for _ in range(num_sequences)]
    assert {request.sampling.seed for request in closed} == {request.sampling.seed for request in engine.requests}
    assert float(http.get("/metrics").text.partition(aborted)[2].split()[0]) == before + num_sequences


@pytest.mark.parametrize("offer", ["h2c", "websocket"])
def test_an_upgrade_that_is_not_taken_is_no_warning(
    http: httpx.Client, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture, offer: str
) -> None:
    engine.say("abc")
    headers = {"connection": "Upgrade, HTTP2-Settings", "upgrade": offer, "http2-settings": "AAEAAEAAAAIAAAABAAMAAABk"}
    for _ in range(2):
        answer = http.post("/v1/completions", json={"model": MODEL, "prompt": "x"}, headers=headers)
        assert answer.json()["choices"][0]["text"] == "abc"
    assert [each.message for each in caplog.records if each.levelname == "WARNING"] == []


def stream_of(port: int, into: queue.SimpleQueue[str | httpx.TransportError]) -> None:
    """Read a stream to its end, or to where it breaks."""
    body = {"model": MODEL, "prompt": "x", "stream": True}
    try:
        into.put(httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=30).text)
    except httpx.TransportError as error:
        into.put(error)


def wait_until_refused(port: int) -> None:
    """New connections are refused as soon as a server stops; one that was queued just then is reset."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=30).close()
        except ConnectionResetError:
            continue
        except ConnectionRefusedError:
            return


def test_who_keeps_a_connection_to_a_service_that_leaves_is_led_elsewhere(tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine(tokenizer)
    engine.say("ab")
    app = create_app(engine, tokenizer, RequestMetrics(CollectorRegistry(), MODEL))
    with served(app) as server, httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
        for stream in (False, True):
            for engine.leaving in (False, True):
                answer = client.post("/v1/completions", json={"model": MODEL, "prompt": "x", "stream": stream})
                assert answer.status_code == 200
                assert answer.headers.get("connection") == ("close" if engine.leaving else None)


@pytest.mark.parametrize("drained", [True, False])
def test_a_server_that_stops_gives_running_answers_their_time(tokenizer: Tokenizer, drained: bool) -> None:
    engine = ScriptedEngine(tokenizer, hold_after=1)
    engine.say("abc")
    app = create_app(engine, tokenizer, RequestMetrics(CollectorRegistry(), MODEL))
    answer: queue.SimpleQueue[str | httpx.TransportError] = queue.SimpleQueue()
    with served(app, drain_seconds=30 if drained else 0) as server:
        client = threading.Thread(target=stream_of, args=(server.port, answer))
        client.start()
        gate = engine.held.get(timeout=30)
        server.stop.open()
        wait_until_refused(server.port)
        if drained:
            gate.open()
        client.join()
    received = answer.get(timeout=30)
    if drained:
        assert isinstance(received, str)
        assert received.endswith("data: [DONE]\n\n")
    else:
        assert isinstance(received, httpx.RemoteProtocolError)


def test_an_address_that_is_taken_is_an_error(port: int) -> None:
    app = create_app(ScriptedEngine(), byte_tokenizer(), RequestMetrics(CollectorRegistry(), MODEL))

    async def run() -> None:
        await serve(app, "127.0.0.1", port, asyncio.Event())

    with pytest.raises(OSError, match="in use"):
        asyncio.run(run())


def test_all_addresses_are_served(tokenizer: Tokenizer) -> None:
    host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    app = create_app(ScriptedEngine(tokenizer), tokenizer, RequestMetrics(CollectorRegistry(), MODEL))
    with served(app, host) as server:
        assert httpx.get(f"http://127.0.0.1:{server.port}/health").status_code == 200
