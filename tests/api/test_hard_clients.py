"""Clients that take their time, say too much, read nothing, or are too many: on real sockets."""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count, islice, repeat
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from draft_service.api import create_app
from draft_service.api.connections import ConnectionLimits
from draft_service.generation import EngineInfo
from draft_service.text import Tokenizer
from pipedec.metrics.requests import RequestMetrics
from tests.api.scripted import MODEL, ScriptedEngine, served
from tests.sockets import until

ROUTE = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
CONTEXT = 100_000
CLIENTS = 1000
CUT = pytest.raises((ConnectionResetError, BrokenPipeError))


@contextmanager
def endpoint(tokenizer: Tokenizer, **limits: Any) -> Iterator[tuple[int, ScriptedEngine]]:
    """The port of an endpoint with these limits, and the engine behind it."""
    engine = ScriptedEngine(tokenizer, EngineInfo(MODEL, CONTEXT, 258, split=()))
    engine.say("abc", end=False)
    app = create_app(engine, tokenizer, RequestMetrics(CollectorRegistry(), MODEL))
    with served(app, limits=ConnectionLimits(**limits)) as server:
        yield server.port, engine


def connect(port: int, said: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(said)
    return connection


def asked(**fields: Any) -> bytes:
    body = json.dumps({"model": MODEL, "prompt": "x", **fields}).encode()
    return ROUTE + b"content-length: %d\r\n\r\n" % len(body) + body


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection, in whatever way."""
    received = b""
    try:
        while chunk := connection.recv(1 << 16):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def check_serves(port: int) -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": 3}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60, trust_env=False)
    assert answer.json()["choices"][0]["text"] == "abc"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"POST /v1/comp",
        ROUTE,
        ROUTE + b"content-length: 40\r\n\r\n{",
        ROUTE + b"transfer-encoding: chunked\r\n\r\n5",
    ],
    ids=["nothing", "half a line", "half a head", "half a body", "half a chunk"],
)
def test_a_request_that_does_not_arrive_is_not_waited_for(tokenizer: Tokenizer, said: bytes) -> None:
    with endpoint(tokenizer, request_seconds=0.2) as (port, _), connect(port, said) as connection:
        assert rest_of(connection) == b""
        check_serves(port)


def test_a_second_request_on_a_connection_is_not_waited_for_either(tokenizer: Tokenizer) -> None:
    with endpoint(tokenizer, request_seconds=0.2) as (port, _), connect(port, asked(max_tokens=1)) as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.sendall(ROUTE)
        rest_of(connection)
        check_serves(port)


def say_without_end(connection: socket.socket, chunks: Iterator[bytes]) -> None:
    """Ends with an error when the server ends the connection, or when it takes far too much."""
    for chunk in islice(chunks, 1 << 16):
        connection.sendall(chunk)


def test_a_body_without_end_is_refused_and_then_not_read(tokenizer: Tokenizer) -> None:
    chunks = repeat(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
    with endpoint(tokenizer, request_seconds=2.0) as (port, engine):
        with connect(port, ROUTE + b"transfer-encoding: chunked\r\n\r\n") as connection, CUT:
            say_without_end(connection, chunks)
        assert engine.requests == []
        check_serves(port)


def test_a_head_without_end_is_refused(tokenizer: Tokenizer) -> None:
    headers = (b"x-%d: %s\r\n" % (number, b"y" * 8000) for number in count())
    with endpoint(tokenizer) as (port, engine):
        with connect(port, ROUTE) as connection, CUT:
            say_without_end(connection, headers)
        assert engine.requests == []
        check_serves(port)


def test_a_client_that_reads_nothing_is_cut_and_its_request_ended(tokenizer: Tokenizer) -> None:
    with endpoint(tokenizer, unread_seconds=1.0, unread_bytes=1 << 14) as (port, engine):
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            connection.sendall(asked(stream=True, max_tokens=CONTEXT - 10, logprobs=20))
            assert engine.closed.get(timeout=60) == engine.requests[0]
            text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
            generated = re.search(r"^pipedec_generation_tokens_total\S* (\S+)$", text, re.MULTILINE)
            assert generated is not None
            assert 0 < float(generated[1]) < 1000, "what it left unread was bounded"
            assert re.search(r"^pipedec_request_success_total\{.*abort.*\} 1.0$", text, re.MULTILINE)
        check_serves(port)


def test_connections_are_bounded_and_the_others_go_on(tokenizer: Tokenizer) -> None:
    with endpoint(tokenizer, connections=3) as (port, _), ExitStack() as stack:
        first, *others = [stack.enter_context(connect(port, b"GET /hea")) for _ in range(3)]
        with connect(port, b"") as one_too_many:
            assert rest_of(one_too_many) == b""
        first.sendall(b"lth HTTP/1.1\r\nhost: x\r\n\r\n")
        assert first.recv(1 << 16).startswith(b"HTTP/1.1 200")
        for each in others:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.close()

        def serves() -> bool:
            try:
                check_serves(port)
            except httpx.TransportError:
                return False
            return True

        until(serves)


def test_a_thousand_streams_that_idle_leave_the_others_alone(tokenizer: Tokenizer) -> None:
    with endpoint(tokenizer) as (port, engine), ExitStack() as stack:
        engine.hold_after = 1
        idle = [stack.enter_context(connect(port, asked(stream=True, max_tokens=9))) for _ in range(CLIENTS)]
        gates = [engine.held.get(timeout=60) for _ in idle]
        engine.hold_after = None
        for _ in range(3):
            check_serves(port)
        for gate in gates:
            gate.open()
        for connection in idle:
            received = b""
            while not received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
                received += connection.recv(1 << 16)
        check_serves(port)
