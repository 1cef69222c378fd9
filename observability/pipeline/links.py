"""Batches and the links that they travel."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from observability import measures
from observability.layout import Line, Section
from observability.panels import Query, time_series
from observability.pipeline.scope import HERE, ROWS, STAGE, quantiles


def section() -> Section:
    return Section("Batches and links", [Line(8, _batches()), Line(8, _waits())])


def _batches() -> list[models.Panel]:
    steps = HERE.sum(HERE.of("pipedec_head_stage_step_seconds"), "stage", operator="avg")
    return [
        time_series(
            "Round trip of a batch",
            units.Seconds,
            "From sending a batch to its verdict, beside the sum of all stages' smallest steps. What lies between is "
            "links, waiting, and rows.",
            *quantiles("pipedec_head_round_trip_seconds"),
            Query(f"sum({steps})", "steps of all stages"),
        ),
        time_series(
            "Rows of a batch",
            ROWS,
            "Rows that enter with one batch, prompt tokens included.",
            *quantiles("pipedec_head_batch_rows"),
        ),
        time_series(
            "Into each stage",
            units.BytesPerSecondIEC,
            "Bytes of the batches that come to each stage.",
            Query(HERE.rate("pipedec_stage_received_bytes_total", by="stage"), STAGE),
        ),
    ]


def _waits() -> list[models.Panel]:
    return [
        time_series(
            "Out of each stage",
            units.BytesPerSecondIEC,
            "Bytes handed on: to the next stage, or from the last one as verdicts to the head.",
            Query(HERE.rate("pipedec_stage_sent_bytes_total", by="stage"), STAGE),
        ),
        time_series(
            "Blocked, by stage",
            units.PercentUnit,
            "Share of time that a stage hands a result on. More than a little means that the link to the next stage "
            "cannot follow.",
            Query(measures.time_spent(HERE, "blocked", "stage"), STAGE),
        ),
        time_series(
            "Idle, by stage",
            units.PercentUnit,
            "Share of time that a stage waits for a batch.",
            Query(measures.time_spent(HERE, "idle", "stage"), STAGE),
        ),
    ]
