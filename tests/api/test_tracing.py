"""Traces as a collector gets them, from a real endpoint over OTLP."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client import CollectorRegistry

from draft_service.api import create_app
from draft_service.generation import RequestStatistics
from draft_service.text import Tokenizer
from draft_service.tracing import Tracer
from pipedec.config import traces_wanted
from pipedec.metrics.requests import RequestMetrics
from tests.api.scripted import MODEL, ScriptedEngine, served
from tests.sockets import until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "Xanthippe"


class Collector:
    """An OTLP receiver; `received` are the requests, `spans` what was in them."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def spans(self) -> dict[str, Span]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.received]
        scopes = [scope for each in requests for part in each.resource_spans for scope in part.scope_spans]
        return {span.name: span for scope in scopes for span in scope.spans}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


@pytest.fixture
def client(collector: Collector, tokenizer: Tokenizer, engine: ScriptedEngine) -> Iterator[httpx.Client]:
    app = create_app(engine, tokenizer, RequestMetrics(CollectorRegistry(), MODEL), tracer=Tracer.open(MODEL))
    with served(app) as server, httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
        yield client


def attributes(span: Span) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_a_request_is_a_span_with_its_parts(collector: Collector, client: httpx.Client, engine: ScriptedEngine) -> None:
    engine.say("yes")
    engine.statistics = RequestStatistics(hits=3, misses=1, steps=2, admitted=time.monotonic() + 0.001)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "r1"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": SECRET}]}
    assert client.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    until(lambda: len(collector.spans) == 4)
    spans = collector.spans
    whole = spans[f"chat {MODEL}"]
    assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (TRACE, PARENT)
    assert whole.kind == Span.SPAN_KIND_SERVER
    told = attributes(whole)
    assert (told["pipedec.request.id"], told["pipedec.hit_rate"], told["pipedec.steps"]) == ("r1", 0.75, 2)
    assert told["gen_ai.usage.output_tokens"] == 4
    parts = [spans[name] for name in ("queue", "prefill", "decode")]
    assert {part.parent_span_id for part in parts} == {whole.span_id}
    times = [(part.start_time_unix_nano, part.end_time_unix_nano) for part in parts]
    assert times[0][0] == whole.start_time_unix_nano
    assert times[-1][1] <= whole.end_time_unix_nano
    assert [end for _, end in times[:-1]] == [start for start, _ in times[1:]]
    assert not [received for received in collector.received if SECRET.encode() in received or b"yes" in received]


def test_a_request_that_failed_says_so(collector: Collector, client: httpx.Client, engine: ScriptedEngine) -> None:
    engine.say("yes")
    engine.fail_after, engine.failure = 0, RuntimeError(SECRET)
    assert client.post("/v1/completions", json={"model": MODEL, "prompt": "a"}).status_code == 500
    until(lambda: len(collector.spans) == 1)
    (span,) = collector.spans.values()
    assert span.name == f"text_completion {MODEL}"
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert SECRET.encode() not in collector.received[0]


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
    ],
)
def test_traces_are_asked_for_by_the_standard_variables(environ: dict[str, str], wanted: bool) -> None:
    assert traces_wanted(environ) is wanted


def test_nothing_is_imported_while_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    program = (
        "import sys; from draft_service.tracing import Tracer;"  # alone: transformers looks for OpenTelemetry too
        "assert Tracer.open('m') is None; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
