"""What clients experience, measured: from the arrival of a request to its end."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram

from pipedec.metrics.declared import requests as declared
from pipedec.metrics.declared.requests import FinishedReason
from pipedec.metrics.family import Family


class RequestMetrics:
    """Metrics of the endpoint of one served model.

    How many requests run and wait is the engine's to say.
    """

    def __init__(
        self, registry: CollectorRegistry, model_name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.registry, self.clock = registry, clock

        def counter(family: Family) -> Counter:
            return family.counter(registry).labels(model_name)

        def histogram(family: Family) -> Histogram:
            return family.histogram(registry).labels(model_name)

        self.prompt_tokens = counter(declared.PROMPT_TOKENS)
        self.generation_tokens = counter(declared.GENERATION_TOKENS)
        self.time_to_first_token = histogram(declared.TIME_TO_FIRST_TOKEN)
        self.inter_token_latency = histogram(declared.INTER_TOKEN_LATENCY)
        self.time_per_output_token = histogram(declared.TIME_PER_OUTPUT_TOKEN)
        self.e2e_latency = histogram(declared.E2E_LATENCY)
        self.queue_time = histogram(declared.QUEUE_TIME)
        self.prefill_time = histogram(declared.PREFILL_TIME)
        self.decode_time = histogram(declared.DECODE_TIME)
        self.inference_time = histogram(declared.INFERENCE_TIME)
        self.num_prompt_tokens = histogram(declared.NUM_PROMPT_TOKENS)
        self.num_generation_tokens = histogram(declared.NUM_GENERATION_TOKENS)
        self.params_n = histogram(declared.PARAMS_N)
        self.params_max_tokens = histogram(declared.PARAMS_MAX_TOKENS)
        success = declared.REQUEST_SUCCESS.counter(registry)
        self.finished = {reason: success.labels(model_name, reason) for reason in declared.FINISHED_REASONS}
        self.http_responses = declared.HTTP_RESPONSES.counter(registry)

    def begin(self, num_prompt_tokens: int) -> RequestRecord:
        """A request arrived: what is told to the record becomes metrics."""
        return RequestRecord(self, num_prompt_tokens)


class RequestRecord:
    """The times of one request, in seconds of the metrics' clock, and its tokens."""

    def __init__(self, metrics: RequestMetrics, num_prompt_tokens: int) -> None:
        self._metrics, self.num_prompt_tokens = metrics, num_prompt_tokens
        self.arrival = self._first = self._latest = metrics.clock()
        self.num_tokens = 0
        self._admitted: float | None = None

    def token(self, admitted: float | None = None) -> bool:
        """A token came; whether it is the first. `admitted`: when the request got its place in the pipeline, where that
        is known."""
        self._admitted = self._admitted or admitted
        metrics, now = self._metrics, self._metrics.clock()
        self.num_tokens += 1
        metrics.generation_tokens.inc()
        if self.num_tokens == 1:
            self._first = now
            metrics.prompt_tokens.inc(self.num_prompt_tokens)
            metrics.time_to_first_token.observe(now - self.arrival)
        else:
            metrics.inter_token_latency.observe(now - self._latest)
        self._latest = now
        return self.num_tokens == 1

    def told(self) -> dict[str, float | int | None]:
        """Its tokens and times so far, for a log: seconds from its arrival."""
        first = self._first - self.arrival if self.num_tokens else None
        queued = None if self._admitted is None else self._admitted - self.arrival
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "tokens": self.num_tokens,
            "seconds": self._metrics.clock() - self.arrival,
            "queue_seconds": queued,
            "first_token_seconds": first,
        }

    def parts(self) -> list[tuple[str, float, float]]:
        """What it has spent its time on so far, as far as that is known: name, beginning and end."""
        parts = []
        if self._admitted is not None:
            parts.append(("queue", self.arrival, self._admitted))
            if self.num_tokens:
                parts.append(("prefill", self._admitted, self._first))
        if self.num_tokens > 1:
            parts.append(("decode", self._first, self._latest))
        return parts

    def finish(self, reason: FinishedReason) -> None:
        """The request is over. Latencies and lengths tell only of requests that were answered in full."""
        metrics = self._metrics
        metrics.finished[reason].inc()
        if reason in ("abort", "error"):
            return
        metrics.e2e_latency.observe(self._latest - self.arrival)
        metrics.decode_time.observe(self._latest - self._first)
        if self._admitted is not None:
            metrics.queue_time.observe(self._admitted - self.arrival)
            metrics.prefill_time.observe(self._first - self._admitted)
            metrics.inference_time.observe(self._latest - self._admitted)
        metrics.num_prompt_tokens.observe(self.num_prompt_tokens)
        metrics.num_generation_tokens.observe(self.num_tokens)
        if self.num_tokens > 1:
            metrics.time_per_output_token.observe((self._latest - self._first) / (self.num_tokens - 1))
