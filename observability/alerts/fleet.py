"""Alerts of the operator, and of what it says of its resources."""

from __future__ import annotations

from observability.promql import Scope, share
from observability.rules import Alert, label, value

RESOURCE = f"{label('namespace')}/{label('name')}"
EACH = Scope("", "30m", by="namespace, name")
NAMESPACE = Scope("", "10m", by="namespace")


def _condition(kind: str) -> str:
    return EACH.sum(EACH.of("pipedec_deployment_condition", f'type="{kind}", status="True"'), operator="max")


_WANTED = EACH.sum(EACH.of("pipedec_deployment_stages", 'state="wanted"'), operator="max")
_UNLESS_ASLEEP = f"\nunless {_WANTED} == 0"

ALERTS = (
    Alert(
        "PipeDecOperatorDown",
        "critical",
        "5m",
        'absent(up{job="pipedec-operator"} == 1)',
        "No PipeDec operator runs",
        "Prometheus reaches none. Pipelines go on, but no change to one is carried out, and none is repaired.",
    ),
    Alert(
        "PipeDecNamespaceNotKept",
        "warning",
        "15m",
        NAMESPACE.sum("pipedec_operator_namespace_kept", operator="max") + " == 0",
        f"The operator may not keep {label('namespace')}",
        "It is to, and has no Role there. Pipelines there go on, but no change to one is carried out.",
    ),
    Alert(
        "PipeDecReconcileErrors",
        "warning",
        "15m",
        share(
            NAMESPACE.rate("pipedec_operator_reconcile_total", 'result="error"'),
            NAMESPACE.rate("pipedec_operator_reconcile_total"),
        )
        + " > 0.1",
        f"{value('humanizePercentage')} of the operator's passes in {label('namespace')} fail",
        "The API server refuses a call or does not answer, or the operator has a fault. Each pass is tried again.",
    ),
    Alert(
        "PipeDecDeploymentUnavailable",
        "critical",
        "5m",
        f"{_condition('Available')} == 0{_UNLESS_ASLEEP}",
        f"{RESOURCE} does not serve",
        "No draft pod of it has been ready for five minutes. Clients get no answer.",
    ),
    Alert(
        "PipeDecDeploymentNotReady",
        "warning",
        "15m",
        f"{_condition('Ready')} == 0{_UNLESS_ASLEEP}",
        f"{RESOURCE} is not Ready",
        "What it asks for has not all been there for a quarter of an hour. Its status says what it waits for.",
    ),
    Alert(
        "PipeDecDeploymentFailed",
        "critical",
        "5m",
        f"{_condition('Failed')} == 1",
        f"{RESOURCE} has failed",
        "Its spec cannot be honoured, and its status says why. What the last good one asked for goes on.",
    ),
    Alert(
        "PipeDecRestartLoop",
        "warning",
        "0m",
        f"{EACH.sum('delta(pipedec_deployment_restarts[30m])')} > 3",
        f"Containers of {RESOURCE} restarted {value('humanize')} times in half an hour",
        "Something ends them again and again: memory, a device, a probe, or a fault.",
    ),
)
