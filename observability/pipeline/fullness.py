"""Is the pipeline full? Stage by stage."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from observability import measures
from observability.layout import Line, Section
from observability.panels import Query, heat_map, time_series
from observability.pipeline.scope import BATCHES, HERE, STAGE


def section() -> Section:
    return Section("Is the pipeline full?", [Line(9, _maps()), Line(8, _courses())])


def _maps() -> list[models.Panel]:
    return [
        heat_map(
            "Utilization by stage",
            units.PercentUnit,
            "Share of each stage's time that went into rows which became tokens. Stage 0 is at the top. A stage unlike "
            "the others waits for them, or wastes more.",
            Query(measures.utilization(HERE, "stage"), "{{stage}}"),
            axis="stage",
            most=1.0,
        ),
        heat_map(
            "Busy by stage",
            units.PercentUnit,
            "Share of time that each stage computes, rows in vain included. What is more here than beside it is waste. "
            "The busiest stage is the bottleneck.",
            Query(measures.time_spent(HERE, "busy", "stage"), "{{stage}}"),
            axis="stage",
            most=1.0,
        ),
    ]


def _courses() -> list[models.Panel]:
    states = [Query(measures.time_spent(HERE, state), state) for state in ("busy", "blocked", "idle", "unformed")]
    in_flight = f"avg_over_time({HERE.of('pipedec_head_batches_in_flight')}[{HERE.window}])"
    return [
        time_series(
            "Time of the stages",
            units.PercentUnit,
            "What the stages do, on average. Idle: waiting for a batch; blocked: handing a result on; unformed: in no "
            "epoch.",
            *states,
            stacked=True,
            most=1.0,
        ),
        time_series(
            "Batches in flight",
            BATCHES,
            "Batches in the pipeline beside its number of stages: below it, some stage has nothing to do.",
            Query(HERE.sum(in_flight, operator="avg"), "in flight"),
            Query(HERE.sum(HERE.of("pipedec_head_stages"), operator="max"), "stages"),
        ),
        time_series(
            "Step by stage, p99",
            units.Seconds,
            "Time to compute one step. The slowest stage sets the pace of all.",
            Query(HERE.quantile(0.99, "pipedec_stage_step_seconds", by="stage"), STAGE),
        ),
    ]
