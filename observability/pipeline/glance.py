"""The numbers that say whether all is well."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from observability import measures
from observability.layout import Line, Section
from observability.panels import Limits, Query, number
from observability.pipeline.scope import HERE, REQUESTS, TIMES, TOKENS, TOKENS_PER_SECOND
from observability.promql import share


def section() -> Section:
    return Section("At a glance", [Line(4, [*_speed(), *_service()])])


def _speed() -> list[models.Panel]:
    return [
        number(
            "Tokens",
            TOKENS_PER_SECOND,
            "Tokens generated per second, of all requests together.",
            Query(HERE.rate("pipedec_generation_tokens_total")),
        ),
        number(
            "Speed-up",
            TIMES,
            "How many times as fast the tokens of a request come as plain pipeline parallelism could give them to one "
            "request alone: the sum of all stages' smallest steps, divided by the mean inter-token latency. With many "
            "requests at once it falls, while the tokens of all together rise.",
            Query(measures.speed_up(HERE)),
            Limits(1.5, 1.0),
        ),
        number(
            "Utilization",
            units.PercentUnit,
            "Share of the stages' time that went into rows which became tokens. Plain pipeline parallelism with one "
            "request reaches 1 / stages.",
            Query(measures.utilization(HERE)),
        ),
        number(
            "Hit rate",
            units.PercentUnit,
            "Share of decided tokens that were in the pipeline already when they were decided. Each of the others "
            "empties the pipeline for its request.",
            Query(measures.hit_rate(HERE)),
            Limits(0.8, 0.5),
        ),
        number(
            "Tokens per step",
            TOKENS,
            "Tokens decided per batch that carried rows of a request. 1 is a full pipeline; more, several levels of "
            "the tree per batch.",
            Query(measures.tokens_per_step(HERE)),
        ),
    ]


def _service() -> list[models.Panel]:
    present = share(HERE.sum(HERE.of("pipedec_head_stage_present")), HERE.sum(HERE.of("pipedec_head_stages")))
    return [
        number(
            "First token, p95",
            units.Seconds,
            "From a request's arrival to its first token; one in twenty waits longer.",
            Query(HERE.quantile(0.95, "pipedec_time_to_first_token_seconds")),
            Limits(2.0, 10.0),
        ),
        number(
            "Waiting",
            REQUESTS,
            "Requests that wait for a place in the pipeline.",
            Query(HERE.sum(HERE.of("pipedec_num_requests_waiting"))),
            Limits(1, 10),
        ),
        number(
            "Stages present",
            units.PercentUnit,
            "Share of the stages that are registered and were heard of late. Below 100 % some replica decodes nothing.",
            Query(present),
            Limits(1.0, 0.999),
        ),
    ]
