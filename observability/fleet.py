"""The dashboard of the operator and of all resources that it keeps."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from observability import measures, pipeline
from observability.layout import Line, Section, arranged, base, choice
from observability.panels import Column, Limits, Query, number, overview, time_series
from observability.promql import Scope, share

UID = "pipedec-fleet"
WHERE, WINDOW = 'namespace=~"$namespace"', "$__rate_interval"
ALL = Scope(WHERE, WINDOW)
EACH = Scope(WHERE, WINDOW, by="namespace, pipeline")
OPERATOR = Scope('job="pipedec-operator"', WINDOW)
NAME = "{{namespace}}/{{pipeline}}"
FIRING = 'count(ALERTS{alertname=~"PipeDec.+", alertstate="firing"}) or vector(0)'


def dashboard() -> models.Dashboard:
    """The dashboard, ready to be written as JSON."""
    namespaces = choice("namespace", "Namespace", "label_values(pipedec_deployment_info, namespace)", several=True)
    built = (
        base(UID, "PipeDec / Fleet", "Every PipeDecDeployment, and the operator that keeps them.")
        .with_variable(namespaces)
        .build()
    )
    built.panels = arranged(
        [
            Section("At a glance", [Line(4, _glance())]),
            Section("Pipelines", [Line(9, [_table()]), Line(8, _speed()), Line(8, _trouble())]),
            Section("Operator", [Line(8, _passes()), Line(8, _process())]),
        ]
    )
    return built


def _told(metric: str, where: str = "") -> str:
    """What the operator says of each resource, labelled as what the resource's pods say."""
    told = f'label_replace({ALL.of(metric, where)}, "pipeline", "$1", "name", "(.+)")'
    return EACH.sum(told, operator="max")


def _ready(states: str) -> str:
    return ALL.sum(ALL.of("pipedec_deployment_stages", f'state="{states}"'))


def _glance() -> list[models.Panel]:
    ready = ALL.sum(ALL.of("pipedec_deployment_condition", 'type="Ready", status="True"'))
    return [
        number(
            "Pipelines",
            units.Short,
            "PipeDecDeployments that the operator keeps.",
            Query(ALL.sum(ALL.of("pipedec_deployment_info"), operator="count")),
        ),
        number("Ready", units.Short, "PipeDecDeployments whose condition Ready is True.", Query(ready)),
        number(
            "Stages ready",
            units.PercentUnit,
            "Of the stages that are asked for, the share that is ready.",
            Query(share(_ready("ready"), _ready("wanted"))),
            Limits(1.0, 0.9),
        ),
        number(
            "Tokens",
            "suffix: tokens/s",
            "Tokens generated per second by all pipelines.",
            Query(ALL.rate("pipedec_generation_tokens_total")),
        ),
        number(
            "Waiting",
            "suffix: requests",
            "Requests that wait for a place in a pipeline.",
            Query(ALL.sum(ALL.of("pipedec_num_requests_waiting"))),
            Limits(10, 100),
        ),
        number(
            "Alerts", units.Short, "PipeDec's alerts that fire now, of all namespaces.", Query(FIRING), Limits(1, 3)
        ),
    ]


def _table() -> models.Panel:
    first_token = EACH.quantile(0.95, "pipedec_time_to_first_token_seconds")
    address = "/d/" + pipeline.UID + "?var-namespace=${__data.fields.namespace}&var-pipeline=${__value.text}"
    return overview(
        "Pipelines",
        units.Short,
        "One line for each PipeDecDeployment; its name leads to its own dashboard.",
        [
            Column("Ready", units.BoolYesNo, _told("pipedec_deployment_condition", 'type="Ready", status="True"')),
            Column("Stages", units.Short, _told("pipedec_deployment_stages", 'state="wanted"')),
            Column("Stages ready", units.Short, _told("pipedec_deployment_stages", 'state="ready"')),
            Column("Restarts", units.Short, _told("pipedec_deployment_restarts")),
            Column("Tokens", "suffix: tokens/s", EACH.rate("pipedec_generation_tokens_total")),
            Column("Speed-up", "suffix:x", measures.speed_up(EACH)),
            Column("Utilization", units.PercentUnit, measures.utilization(EACH)),
            Column("Hit rate", units.PercentUnit, measures.hit_rate(EACH)),
            Column("First token, p95", units.Seconds, first_token),
            Column("Waiting", units.Short, EACH.sum(EACH.of("pipedec_num_requests_waiting"))),
        ],
        links={"pipeline": address},
    )


def _speed() -> list[models.Panel]:
    return [
        time_series(
            "Tokens",
            "suffix: tokens/s",
            "Tokens generated per second, by pipeline.",
            Query(EACH.rate("pipedec_generation_tokens_total"), NAME),
            stacked=True,
        ),
        time_series(
            "Utilization",
            units.PercentUnit,
            "Share of the stages' time that went into rows which became tokens, by pipeline.",
            Query(measures.utilization(EACH), NAME),
            most=1.0,
        ),
        time_series(
            "Hit rate",
            units.PercentUnit,
            "Share of decided tokens that were in the pipeline already, by pipeline.",
            Query(measures.hit_rate(EACH), NAME),
            most=1.0,
        ),
        time_series(
            "Time to first token, p95",
            units.Seconds,
            "From a request's arrival to its first token, by pipeline.",
            Query(EACH.quantile(0.95, "pipedec_time_to_first_token_seconds"), NAME),
        ),
    ]


def _trouble() -> list[models.Panel]:
    return [
        time_series(
            "Resources",
            units.Short,
            "PipeDecDeployments by phase.",
            Query("sum by (phase) (pipedec_operator_resources)", "{{phase}}"),
            stacked=True,
        ),
        time_series(
            "Formations lost",
            "suffix: epochs",
            "Epochs that ended, by pipeline: each stands for a stage or a link that was lost.",
            Query(EACH.increase("pipedec_head_epochs_lost_total"), NAME),
        ),
        time_series(
            "Restarts",
            "suffix: restarts",
            "Restarts of the containers in all pods that are there, by pipeline.",
            Query(_told("pipedec_deployment_restarts"), NAME),
        ),
        time_series(
            "Waiting",
            "suffix: requests",
            "Requests that wait for a place, by pipeline.",
            Query(EACH.sum(EACH.of("pipedec_num_requests_waiting")), NAME),
        ),
    ]


def _passes() -> list[models.Panel]:
    seconds = "pipedec_operator_reconcile_duration_seconds"
    return [
        time_series(
            "Passes",
            "suffix: passes/s",
            "Passes over a resource, by result; again: something stands in the way, error: the API server.",
            Query(OPERATOR.rate("pipedec_operator_reconcile_total", by="result"), "{{result}}"),
            stacked=True,
        ),
        time_series(
            "Time of a pass",
            units.Seconds,
            "How long one pass over a resource takes, all its calls of the API server included.",
            *(Query(OPERATOR.quantile(q, seconds), f"p{100 * q:g}") for q in (0.5, 0.95, 0.99)),
        ),
        time_series(
            "Calls of the API server",
            units.RequestsPerSecond,
            "By HTTP status; 0: no answer. 409 is a lost race and harmless, 403 a permission that is missing.",
            Query(OPERATOR.rate("pipedec_operator_api_calls_total", by="code"), "{{code}}"),
            stacked=True,
        ),
    ]


def _process() -> list[models.Panel]:
    return [
        time_series(
            "Queue",
            "suffix: resources",
            "Resources that wait for a pass, or for another try.",
            Query(OPERATOR.sum(OPERATOR.of("pipedec_operator_queue_depth")), "waiting"),
        ),
        time_series(
            "Failures",
            "suffix: passes",
            "Passes that failed, by why.",
            Query(OPERATOR.increase("pipedec_operator_reconcile_errors_total", by="error_type"), "{{error_type}}"),
        ),
        time_series(
            "Memory",
            units.BytesIEC,
            "Resident memory of the operator.",
            Query(OPERATOR.sum(OPERATOR.of("process_resident_memory_bytes"), "pod"), "{{pod}}"),
        ),
        time_series(
            "Reachable",
            units.BoolYesNo,
            "Whether Prometheus reaches the operator.",
            Query(OPERATOR.sum(OPERATOR.of("up"), operator="max"), "operator"),
            most=1.0,
        ),
    ]
