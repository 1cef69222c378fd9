"""What clients experience: queue, latencies, tokens and outcomes of requests.

    p99 of the time to first token
        histogram_quantile(0.99, sum by (le) (rate(pipedec_time_to_first_token_seconds_bucket[5m])))
    tokens per second
        sum(rate(pipedec_generation_tokens_total[1m]))
    share of requests that failed
        sum(rate(pipedec_request_success_total{finished_reason="error"}[5m]))
        / (sum(rate(pipedec_request_success_total[5m])) > 0)

Names, `finished_reason` and buckets are vLLM's. A *request* here is one sequence: `n` choices are `n` requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram

from pipedec.metrics import NAMESPACE

FinishedReason = Literal["stop", "length", "abort", "error"]
FINISHED_REASONS: tuple[FinishedReason, ...] = ("stop", "length", "abort", "error")

TO_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
PER_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
END_TO_END = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
LENGTHS = tuple(float(digit * 10**power) for power in range(5) for digit in (1, 2, 5))
CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0)


class RequestMetrics:
    """Metrics of the endpoint of one served model.

    How many requests run and wait is the engine's to say.
    """

    def __init__(
        self, registry: CollectorRegistry, model_name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.registry, self.clock = registry, clock

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["model_name"], namespace=NAMESPACE, registry=registry).labels(model_name)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            family = Histogram(name, text, ["model_name"], namespace=NAMESPACE, registry=registry, buckets=buckets)
            return family.labels(model_name)

        self.prompt_tokens = counter("prompt_tokens_total", "Prompt tokens of requests that got a first token.")
        self.generation_tokens = counter("generation_tokens_total", "Tokens generated.")

        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", TO_FIRST_TOKEN
        )
        self.inter_token_latency = histogram(
            "inter_token_latency_seconds", "Between two tokens of one request.", PER_TOKEN
        )
        self.time_per_output_token = histogram(
            "request_time_per_output_token_seconds",
            "Mean time between the tokens of one finished request.",
            PER_TOKEN,
        )
        self.e2e_latency = histogram(
            "e2e_request_latency_seconds", "From a request's arrival to its last token.", END_TO_END
        )
        self.num_prompt_tokens = histogram("request_prompt_tokens", "Prompt tokens of a request.", LENGTHS)
        self.num_generation_tokens = histogram(
            "request_generation_tokens", "Tokens generated for a finished request.", LENGTHS
        )
        self.params_n = histogram("request_params_n", "Choices asked for (`n`).", CHOICES)
        self.params_max_tokens = histogram(
            "request_params_max_tokens", "Most tokens that a request may have generated.", LENGTHS
        )

        success = Counter(
            "request_success_total",
            "Finished requests, by reason; `abort`: the client went away, `error`: the service failed it.",
            ["model_name", "finished_reason"],
            namespace=NAMESPACE,
            registry=registry,
        )
        self.finished = {reason: success.labels(model_name, reason) for reason in FINISHED_REASONS}
        self.http_responses = Counter(
            "http_responses_total",
            "HTTP responses, by route (`unmatched`: none) and status.",
            ["route", "status"],
            namespace=NAMESPACE,
            registry=registry,
        )

    def begin(self, num_prompt_tokens: int) -> RequestRecord:
        """A request arrived: what is told to the record becomes metrics."""
        return RequestRecord(self, num_prompt_tokens)


class RequestRecord:
    """The times of one request."""

    def __init__(self, metrics: RequestMetrics, num_prompt_tokens: int) -> None:
        self._metrics, self._num_prompt_tokens = metrics, num_prompt_tokens
        self._arrival = self._first = self._latest = metrics.clock()
        self._num_tokens = 0

    def token(self) -> None:
        """A token came."""
        metrics, now = self._metrics, self._metrics.clock()
        self._num_tokens += 1
        metrics.generation_tokens.inc()
        if self._num_tokens == 1:
            self._first = now
            metrics.prompt_tokens.inc(self._num_prompt_tokens)
            metrics.time_to_first_token.observe(now - self._arrival)
        else:
            metrics.inter_token_latency.observe(now - self._latest)
        self._latest = now

    def finish(self, reason: FinishedReason) -> None:
        """The request is over. Latencies and lengths tell only of requests that were answered in full."""
        metrics = self._metrics
        metrics.finished[reason].inc()
        if reason in ("abort", "error"):
            return
        metrics.e2e_latency.observe(self._latest - self._arrival)
        metrics.num_prompt_tokens.observe(self._num_prompt_tokens)
        metrics.num_generation_tokens.observe(self._num_tokens)
        if self._num_tokens > 1:
            metrics.time_per_output_token.observe((self._latest - self._first) / (self._num_tokens - 1))
