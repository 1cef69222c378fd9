"""What do clients see? Latencies, the queue, tokens and outcomes."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from observability.layout import Line, Section
from observability.panels import Query, time_series
from observability.pipeline.scope import HERE, REQUESTS, TOKENS_PER_SECOND, quantiles


def section() -> Section:
    return Section("What do clients see?", [Line(8, _latencies()), Line(8, _traffic())])


def _latencies() -> list[models.Panel]:
    return [
        time_series(
            "Time to first token",
            units.Seconds,
            "From a request's arrival to its first token.",
            *quantiles("pipedec_time_to_first_token_seconds"),
        ),
        time_series(
            "Inter-token latency",
            units.Seconds,
            "Between two tokens of a request. Tokens that one batch decides come together, so the median may be "
            "next to nothing.",
            *quantiles("pipedec_inter_token_latency_seconds"),
        ),
        time_series(
            "Request latency",
            units.Seconds,
            "From a request's arrival to its last token.",
            *quantiles("pipedec_e2e_request_latency_seconds"),
        ),
    ]


def _traffic() -> list[models.Panel]:
    return [
        time_series(
            "Requests",
            REQUESTS,
            "Requests that are being decoded, and that wait for a place in the pipeline.",
            Query(HERE.sum(HERE.of("pipedec_num_requests_running")), "running"),
            Query(HERE.sum(HERE.of("pipedec_num_requests_waiting")), "waiting"),
        ),
        time_series(
            "Tokens",
            TOKENS_PER_SECOND,
            "Prompt tokens read and tokens generated.",
            Query(HERE.rate("pipedec_prompt_tokens_total"), "prompt"),
            Query(HERE.rate("pipedec_generation_tokens_total"), "generated"),
        ),
        time_series(
            "Requests finished",
            units.RequestsPerSecond,
            "By reason; abort: the client went away, error: the service failed it.",
            Query(HERE.rate("pipedec_request_success_total", by="finished_reason"), "{{finished_reason}}"),
            stacked=True,
        ),
        time_series(
            "HTTP responses",
            units.RequestsPerSecond,
            "By status. 429 and 503 tell a client to try again later.",
            Query(HERE.rate("pipedec_http_responses_total", by="status"), "{{status}}"),
            stacked=True,
        ),
    ]
