"""Probes, metrics, models, request ids, keys, limits, and the document that describes it all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from draft_service.api import create_app
from draft_service.text import Tokenizer
from pipedec.errors import UnavailableError
from pipedec.metrics import service_registry
from pipedec.metrics.requests import RequestMetrics
from tests.api.scripted import CONTEXT, MODEL, ScriptedEngine, served

COMPLETIONS = "/v1/completions"


@contextmanager
def served_with(tokenizer: Tokenizer, **options: Any) -> Iterator[httpx.Client]:
    """A client of a server of its own."""
    engine = ScriptedEngine(tokenizer)
    engine.say("ab")
    app = create_app(engine, tokenizer, RequestMetrics(CollectorRegistry(), MODEL), **options)
    with served(app) as server, httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def with_key(tokenizer: Tokenizer) -> Iterator[httpx.Client]:
    with served_with(tokenizer, api_key=lambda: "key") as client:
        yield client


@pytest.fixture(scope="module")
def with_limit(tokenizer: Tokenizer) -> Iterator[httpx.Client]:
    with served_with(tokenizer, max_body_bytes=200) as client:
        yield client


def test_probes(http: httpx.Client, engine: ScriptedEngine) -> None:
    for path in ("/health", "/ready"):
        response = http.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_the_operator_is_told_how_the_pipeline_stands(http: httpx.Client, engine: ScriptedEngine) -> None:
    assert http.get("/pipeline").json() == {"layers": ["0-2", "3-4"], "reason": "", "degraded": ""}
    engine.not_ready_reason = "stage 1 is missing" + "!" * 2000
    reason = http.get("/pipeline").json()["reason"]
    engine.not_ready_reason = ""
    assert reason.startswith("stage 1 is missing")
    assert len(reason) == 1000


def test_models(http: httpx.Client) -> None:
    (model,) = http.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == (MODEL, "model", CONTEXT)
    assert http.get(f"/v1/models/{MODEL}").json() == model


def test_request_ids(http: httpx.Client) -> None:
    assert http.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = {http.get(path).headers["x-request-id"] for path in ("/health", "/nowhere")}
    assert len(made) == 2
    for bad in ("x" * 129, "a b", ""):
        assert http.get("/health", headers={"x-request-id": bad}).headers["x-request-id"] not in (bad, "")


def test_a_failure_has_a_request_id_too(http: httpx.Client, engine: ScriptedEngine) -> None:
    engine.say("a")
    engine.fail_after = 0
    response = http.post(COMPLETIONS, json={"model": MODEL, "prompt": "x"}, headers={"x-request-id": "mine-2"})
    assert (response.status_code, response.headers["x-request-id"]) == (500, "mine-2")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        *((None, 401), ("Bearer key", 200), ("bearer  key", 200), ("Bearer kex", 401), ("Bearer keyy", 401)),
        *(("Bearer", 401), ("key", 401), ("Basic key", 401), ("Bearer ké", 401)),
    ],
)
def test_keys(with_key: httpx.Client, header: str | None, status: int) -> None:
    headers = httpx.Headers([] if header is None else [(b"authorization", header.encode())])
    assert with_key.get("/v1/models", headers=headers).status_code == status
    response = with_key.post(COMPLETIONS, json={"model": MODEL, "prompt": "x"}, headers=headers)
    assert response.status_code == status
    if status == 401:
        assert response.json()["error"]["type"] == "authentication_error"
        assert response.headers["www-authenticate"] == "Bearer"
        assert with_key.get("/v1/nowhere", headers=headers).status_code == 401
        assert with_key.post(COMPLETIONS, content=b"{", headers=headers).status_code == 401
    for path in ("/health", "/ready", "/pipeline", "/metrics"):
        assert with_key.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize("declared", [True, False])
def test_the_body_limit(with_limit: httpx.Client, declared: bool) -> None:
    for padding, status in ((0, 200), (200, 413)):
        body = b'{"model": "tiny", "prompt": "x", "user": "' + b"u" * padding + b'"}'
        content = body if declared else iter([body[:50], body[50:]])
        response = with_limit.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
        assert response.status_code == status
        if status == 413:
            assert "200 bytes" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"), [({"n": 5}, "n"), ({"prompt": ["x"] * 5}, "prompt"), ({"prompt": ["x"] * 2, "n": 3}, "n")]
)
def test_more_sequences_than_ever_have_a_place_are_refused_for_good(
    tokenizer: Tokenizer, fields: dict[str, Any], param: str
) -> None:
    with served_with(tokenizer, max_sequences=4) as client:
        refused = client.post(COMPLETIONS, json={"model": MODEL, "prompt": "x", **fields})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        assert "more than 4 sequences" in refused.json()["error"]["message"]
        assert client.post(COMPLETIONS, json={"model": MODEL, "prompt": "x", "n": 4}).status_code == 200


def sample(metrics: RequestMetrics, name: str, **labels: str) -> float:
    labels = labels or {"model_name": MODEL}
    return metrics.registry.get_sample_value(f"pipedec_{name}", labels) or 0.0


def test_requests_are_counted(http: httpx.Client, engine: ScriptedEngine, metrics: RequestMetrics) -> None:
    counted = {
        "prompt_tokens_total": 1.0,
        "generation_tokens_total": 3.0,
        "time_to_first_token_seconds_count": 1.0,
        "inter_token_latency_seconds_count": 2.0,
        "e2e_request_latency_seconds_count": 1.0,
        "request_time_per_output_token_seconds_count": 1.0,
        "request_prompt_tokens_sum": 1.0,
        "request_generation_tokens_sum": 3.0,
        "request_params_n_sum": 1.0,
        "request_params_max_tokens_sum": 16.0,
    }
    finished = {"model_name": MODEL, "finished_reason": "stop"}
    answered = {"route": COMPLETIONS, "status": "200"}
    before = {name: sample(metrics, name) for name in counted}
    num_finished = sample(metrics, "request_success_total", **finished)
    num_answered = sample(metrics, "http_responses_total", **answered)
    engine.say("ab")
    assert http.post(COMPLETIONS, json={"model": MODEL, "prompt": "x"}).status_code == 200
    assert {name: sample(metrics, name) - before[name] for name in counted} == counted
    assert sample(metrics, "request_success_total", **finished) == num_finished + 1
    assert sample(metrics, "http_responses_total", **answered) == num_answered + 1


def test_failures_are_counted(http: httpx.Client, engine: ScriptedEngine, metrics: RequestMetrics) -> None:
    failed = {"model_name": MODEL, "finished_reason": "error"}
    unmatched = {"route": "unmatched", "status": "404"}
    num_failed = sample(metrics, "request_success_total", **failed)
    num_unmatched = sample(metrics, "http_responses_total", **unmatched)
    engine.say("a")
    engine.fail_after = 0
    http.post(COMPLETIONS, json={"model": MODEL, "prompt": "x"})
    http.get("/a-path-that-nobody/expects")
    assert sample(metrics, "request_success_total", **failed) == num_failed + 1
    assert sample(metrics, "http_responses_total", **unmatched) == num_unmatched + 1


@pytest.mark.parametrize(("status", "counted", "level"), [(429, 0, "INFO"), (503, 1, "WARNING")])
def test_a_full_queue_is_no_error_of_the_service(
    http: httpx.Client,
    engine: ScriptedEngine,
    metrics: RequestMetrics,
    caplog: pytest.LogCaptureFixture,
    status: int,
    counted: int,
    level: str,
) -> None:
    def finished() -> float:
        reasons = ("stop", "length", "abort", "error")
        return sum(
            sample(metrics, "request_success_total", model_name=MODEL, finished_reason=reason) for reason in reasons
        )

    before = finished()
    engine.say("a")
    engine.fail_after, engine.failure = 0, UnavailableError("try again later", status=status)
    with caplog.at_level("INFO"):
        assert http.post(COMPLETIONS, json={"model": MODEL, "prompt": "x"}).status_code == status
    assert finished() == before + counted
    assert [each.levelname for each in caplog.records if each.message == "request finished"] == [level]


def test_the_exposition_is_prometheus(http: httpx.Client) -> None:
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert {"pipedec_request_success"} <= names
    openmetrics = http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


def test_a_service_registry_tells_of_the_process() -> None:
    assert service_registry("draft").get_sample_value("process_resident_memory_bytes")


def test_the_document_is_truthful(http: httpx.Client, with_key: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert set(document["paths"]) == {
        *("/health", "/ready", "/pipeline", "/metrics", "/v1/models", "/v1/models/{model}"),
        *("/v1/completions", "/v1/chat/completions", "/v1/responses"),
    }
    responses = document["paths"][COMPLETIONS]["post"]["responses"]
    assert set(responses) == {"200", "400", "404", "413", "415", "429", "500", "503", "504"}
    assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
    assert set(document["components"]["schemas"]["CompletionBody"]["required"]) == {"model", "prompt"}
    assert document["components"]["schemas"]["ChatBody"]["properties"]["function_call"]["enum"] == [
        None,
        "none",
        "auto",
    ]
    assert "HTTPValidationError" not in document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert (
        {"ChatChunk", "CompletionChunk", "ResponseEvent", "ErrorReply"}
        <= references
        <= set(document["components"]["schemas"])
    )
    assert "securitySchemes" not in document["components"]
    locked = with_key.get("/openapi.json").json()
    assert locked["paths"][COMPLETIONS]["post"]["security"] == [{"HTTPBearer": []}]
    assert "401" in locked["paths"]["/v1/models"]["get"]["responses"]
