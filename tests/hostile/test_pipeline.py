"""One small pipeline of real processes, and what is done to it; each test leaves it serving.

It is asked what its own OpenAPI document allows, and what that forbids; every port of every process is sent what it
should not be while clients ask; requests that are right, and wrong in every way, come at once
(`python -m benchmarks.hostile` sends a thousand); its draft process is told to end, or just ends, while clients read
their streams.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks.hostile.storm import storm
from benchmarks.hostile.trial import MODEL, harmless, resource, trial
from benchmarks.up import Up, running
from tests.sockets import until
from tests.tiny import tiny_model

DRAIN_SECONDS = 8
STAGES = 2

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
SECONDS = 120.0  # until an answer is there
MOST = {"max_tokens": 3, "max_completion_tokens": 3, "max_output_tokens": 3, "n": 2, "best_of": 2}
GROWTH_MIB = 24  # allocators round up; a leak of every message would be seen at ten times the messages
REQUESTS = 250
SHORT, LONG = 16, 240
DONE = "data: [DONE]"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    model = tiny_model(tmp_path_factory.mktemp("model"))
    with running(resource(model, STAGES, drainSeconds=DRAIN_SECONDS, maxQueue=64)) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def operations(up: Up) -> dict[str, APIOperation]:
    """By path."""
    schema = schemathesis.openapi.from_dict(httpx.get(f"{up.url}/openapi.json", trust_env=False).json())
    schema.config.update(base_url=up.url)
    return {operation.path: operation for operation in (found.ok() for found in schema.get_all_operations())}


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("route", ROUTES)
def test_every_answer_is_documented(operations: dict[str, APIOperation], route: str, mode: GenerationMode) -> None:
    statuses = set()

    @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(operations[route].as_strategy(mode))
    def ask(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):
            case.body = modest(case.body, "max_output_tokens" if route == "/v1/responses" else "max_tokens")
        response = case.call(timeout=SECONDS)
        case.validate_response(response, checks=CHECKS)
        statuses.add(response.status_code)

    ask()
    assert statuses >= {200 if mode is GenerationMode.POSITIVE else 400}


def modest(body: dict[str, Any], limit: str) -> dict[str, Any]:
    """The same request, but of the model that is there, and for few tokens, as the field `limit` says: a test has no
    time for more."""
    few = {limit: 3} | body
    for name, most in MOST.items():
        if type(few.get(name)) is int and few[name] > most:
            few[name] = most
    return few | {"model": MODEL} if isinstance(few.get("model"), str) else few


def test_nothing_that_is_sent_has_an_effect_but_on_the_counters(up: Up) -> None:
    assert len(up.targets()) == 3 + 2 * STAGES
    result = asyncio.run(trial(up, messages=210, clients=2, seed=3))
    assert harmless(result), result
    assert result["requests"] > 0
    assert max(result["growth_mib"].values()) < GROWTH_MIB


def test_many_requests_at_once_all_get_a_documented_answer(up: Up) -> None:
    statuses = asyncio.run(storm(up.url, REQUESTS, seed=11))
    assert sum(statuses.values()) == REQUESTS
    assert set(statuses) <= {200, 400, 404, 429, 503}
    assert statuses[200] > 0
    assert statuses[400] > 0


class Stream:
    """One streamed completion."""

    def __init__(self, response: httpx.Response, max_tokens: int) -> None:
        assert response.status_code == 200
        self._lines = (line for line in response.iter_lines() if line)
        self.first = next(self._lines)
        self.max_tokens = max_tokens

    def rest(self) -> list[str]:
        """All further lines."""
        return list(self._lines)

    def is_finished_by(self, lines: list[str]) -> bool:
        return lines[-1] == DONE and json.loads(lines[-2][6:])["choices"][0]["finish_reason"] == "length"


@contextmanager
def stream(client: httpx.Client, max_tokens: int) -> Iterator[Stream]:
    body: dict[str, Any] = {"model": MODEL, "prompt": "Hello", "temperature": 0, "ignore_eos": True}
    body |= {"max_tokens": max_tokens, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        yield Stream(response, max_tokens)


@contextmanager
def client_of(up: Up) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=up.url, timeout=120, trust_env=False) as client:
        yield client


def wait_until_it_serves_again(up: Up, client: httpx.Client, old: int) -> None:
    def serves() -> bool:
        draft = up.processes().get("draft")
        if draft is None or draft.pid == old:
            return False
        try:
            return client.get("/ready").status_code == 200
        except httpx.HTTPError:
            return False

    until(serves, seconds=240.0, pace=0.2)


def stage_pids(up: Up) -> dict[str, int]:
    return {name: process.pid for name, process in up.processes().items() if name != "draft"}


def test_sigterm_lets_requests_end_within_the_grace_and_then_says_so(up: Up) -> None:
    draft, stages = up.processes()["draft"], stage_pids(up)
    with client_of(up) as client:
        with stream(client, LONG) as long, stream(client, SHORT) as short:
            draft.send_signal(signal.SIGTERM)
            until(lambda: client.get("/ready").status_code == 503)
            refused = client.post("/v1/completions", json={"model": MODEL, "prompt": "x"})
            assert (refused.status_code, refused.json()["error"]["message"]) == (503, "shutting down")
            assert int(refused.headers["retry-after"]) >= 1
            assert short.is_finished_by(short.rest())
            with stopped(up, "stage 1"):  # so that the long one cannot end within the grace
                last = long.rest()[-1]
            assert json.loads(last[6:])["error"]["message"] == "the service is shutting down"
        wait_until_it_serves_again(up, client, draft.pid)
        with stream(client, SHORT) as again:
            assert again.is_finished_by(again.rest())
    assert stage_pids(up) == stages


@contextmanager
def stopped(up: Up, name: str) -> Iterator[None]:
    process = up.processes()[name]
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def test_a_killed_draft_process_cuts_every_stream_visibly_and_is_replaced(up: Up) -> None:
    draft, stages = up.processes()["draft"], stage_pids(up)
    with client_of(up) as client:
        with stream(client, LONG) as long, stream(client, LONG) as other:
            draft.send_signal(signal.SIGKILL)
            for each in (long, other):
                try:
                    lines = each.rest()
                except httpx.RemoteProtocolError:
                    continue
                assert lines[-1] == DONE, "it had been finished before"
        wait_until_it_serves_again(up, client, draft.pid)
        with stream(client, SHORT) as again:
            assert again.is_finished_by(again.rest())
    assert stage_pids(up) == stages
