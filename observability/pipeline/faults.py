"""What is wrong? Formations, heartbeats, the draft model, and messages that nobody should have sent."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from observability.layout import Line, Section
from observability.panels import Query, time_series
from observability.pipeline.scope import CONNECTIONS, EPOCHS, HERE, MESSAGES, STAGE


def section() -> Section:
    return Section("What is wrong?", [Line(8, _formation()), Line(8, _oddities())])


def _formation() -> list[models.Panel]:
    return [
        time_series(
            "Formed",
            units.BoolYesNo,
            "Whether each replica has a live formation; without one its requests wait.",
            Query(HERE.sum(HERE.of("pipedec_head_epoch_live"), "replica", operator="min"), "replica {{replica}}"),
            most=1.0,
        ),
        time_series(
            "Formations lost",
            EPOCHS,
            "Epochs that ended, and requests that were taken up again in the next one without losing a token.",
            Query(HERE.increase("pipedec_head_epochs_lost_total"), "epochs lost"),
            Query(HERE.increase("pipedec_head_resumptions_total"), "requests resumed"),
        ),
        time_series(
            "Heartbeat age",
            units.Seconds,
            "Since the head last heard each stage.",
            Query(HERE.sum(HERE.of("pipedec_head_heartbeat_age_seconds"), "stage", operator="max"), STAGE),
        ),
        time_series(
            "Reachable",
            units.BoolYesNo,
            "Whether Prometheus reaches each pod.",
            Query(HERE.sum(HERE.of("up"), "pod", operator="min"), "{{pod}}"),
            most=1.0,
        ),
    ]


def _oddities() -> list[models.Panel]:
    return [
        time_series(
            "Draft model",
            units.Short,
            "Failures of the draft model, and replicas that go on without it.",
            Query(HERE.increase("pipedec_head_draft_failures_total"), "failures"),
            Query(HERE.sum(HERE.of("pipedec_head_degraded")), "replicas without it"),
        ),
        time_series(
            "Messages dropped",
            MESSAGES,
            "Malformed or impossible ones are no peer's. Stale ones are of an epoch that is over, and harmless.",
            Query(HERE.increase("pipedec_stage_dropped_total", by="reason"), "stages, {{reason}}"),
            Query(HERE.increase("pipedec_head_malformed_messages_total"), "head, malformed"),
            Query(HERE.increase("pipedec_head_stale_verdicts_total"), "head, stale"),
        ),
        time_series(
            "Strangers",
            CONNECTIONS,
            "Connections without the pipeline's key, and registrations of stages that do not fit: of another revision, "
            "or of an index that is taken.",
            Query(HERE.increase("pipedec_stage_unauthenticated_connections_total"), "to stages, no key"),
            Query(HERE.increase("pipedec_head_unauthenticated_connections_total"), "to the head, no key"),
            Query(HERE.increase("pipedec_head_refused_registrations_total"), "registrations refused"),
        ),
    ]
