"""The times of a request, on a clock that the test moves."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from pipedec.metrics.requests import RequestMetrics


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def value(metrics: RequestMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"pipedec_{name}", {"model_name": "m", **labels})


def test_latencies_of_an_answered_request() -> None:
    clock = Clock()
    metrics = RequestMetrics(CollectorRegistry(), "m", clock)
    record = metrics.begin(num_prompt_tokens=7)
    for seconds in (0.5, 0.25, 1.25):
        clock.now += seconds
        record.token()
    clock.now += 60.0  # a client that reads slowly is not our latency
    record.finish("length")
    assert value(metrics, "time_to_first_token_seconds_sum") == 0.5
    assert value(metrics, "inter_token_latency_seconds_sum") == 1.5
    assert value(metrics, "request_time_per_output_token_seconds_sum") == 0.75
    assert value(metrics, "e2e_request_latency_seconds_sum") == 2.0
    assert value(metrics, "e2e_request_latency_seconds_bucket", le="1.5") == 0
    assert value(metrics, "e2e_request_latency_seconds_bucket", le="2.0") == 1
    assert value(metrics, "request_success_total", finished_reason="length") == 1


def test_a_request_that_was_not_answered_has_no_latency() -> None:
    metrics = RequestMetrics(CollectorRegistry(), "m", Clock())
    record = metrics.begin(num_prompt_tokens=7)
    record.finish("abort")
    assert value(metrics, "e2e_request_latency_seconds_count") == 0
    assert value(metrics, "prompt_tokens_total") == 0
    assert {
        reason: value(metrics, "request_success_total", finished_reason=reason)
        for reason in ("stop", "length", "abort", "error")
    } == {"stop": 0, "length": 0, "abort": 1, "error": 0}
