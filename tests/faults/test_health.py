"""The draft process counts as alive only while its head's loop turns."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client import CollectorRegistry

from draft_service.api import create_app
from pipedec.health import Health, HealthServer
from pipedec.metrics.requests import RequestMetrics
from tests.api.scripted import MODEL, ScriptedEngine, byte_tokenizer, served
from tests.faults.service import Service
from tests.sockets import until


def test_an_endpoint_before_a_head_that_hangs_is_not_alive() -> None:
    now = 0.0
    health, tokenizer = Health(patience=10.0, clock=lambda: now), byte_tokenizer()
    metrics = RequestMetrics(CollectorRegistry(), MODEL)
    with served(create_app(ScriptedEngine(tokenizer), tokenizer, metrics, health=health)) as server:
        url = f"http://127.0.0.1:{server.port}/health"
        assert httpx.get(url).status_code == 200, "it has not begun"
        health.beat()
        assert httpx.get(url).status_code == 200
        now = 11.0
        answer = httpx.get(url)
        assert (answer.status_code, answer.json()["error"]["message"]) == (503, "the head has been stuck for 11 s")


def test_the_heads_loop_beats() -> None:
    service = Service()
    try:
        now = 0.0
        health = service.head.health = Health(patience=10.0, clock=lambda: now)
        health.beat()
        now = 100.0
        until(lambda: health.stuck_seconds() == 0.0)
    finally:
        service.close()


@pytest.mark.parametrize(("failure", "level"), [(BrokenPipeError, "DEBUG"), (KeyError, "ERROR")])
def test_a_client_that_goes_away_is_not_told_as_a_fault(
    caplog: pytest.LogCaptureFixture, failure: type[Exception], level: str
) -> None:
    class Failing(Health):
        def stuck_seconds(self) -> float:
            raise failure

    with caplog.at_level("DEBUG"), HealthServer("127.0.0.1", 0, Failing(), CollectorRegistry()) as server:
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://127.0.0.1:{server.port}/healthz")
        until(lambda: [each.levelname for each in caplog.records if "answering" in each.message] == [level])
