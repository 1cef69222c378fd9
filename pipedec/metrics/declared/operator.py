"""What the operator does, and how the resources stand that it keeps."""

from __future__ import annotations

from pipedec.metrics.family import Catalogue

RESULTS = ("settled", "again", "error")
CONDITIONS = ("Ready", "Available", "Progressing", "Degraded", "Suspended", "Failed")
CONDITION_STATES = ("True", "False", "Unknown")
PHASES = ("Ready", "Progressing", "Degraded", "Suspended", "Failed", "Pending")
STAGE_STATES = ("wanted", "ready")

_NAMESPACE = {"namespace": "namespaces with resources"}
_RESOURCE = {**_NAMESPACE, "name": "resources; the series of one that is deleted ends"}

families = Catalogue()

RECONCILES = families.counter(
    "pipedec_operator_reconcile_total",
    "passes",
    "Passes over a resource, by result: settled, again (something stands in the way) or error.",
    "sum by (result) (rate(pipedec_operator_reconcile_total[5m]))",
    **_NAMESPACE,
    result=RESULTS,
)
RECONCILE_SECONDS = families.histogram(
    "pipedec_operator_reconcile_duration_seconds",
    "seconds",
    "Time of one pass.",
    "histogram_quantile(0.99, sum by (le) (rate(pipedec_operator_reconcile_duration_seconds_bucket[5m])))",
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    **_NAMESPACE,
)
RECONCILE_ERRORS = families.counter(
    "pipedec_operator_reconcile_errors_total",
    "passes",
    "Passes that failed, by why: the API server's word for it, `Unreachable`, or `Internal` for a mistake of ours.",
    "sum by (error_type) (increase(pipedec_operator_reconcile_errors_total[10m])) > 0",
    **_NAMESPACE,
    error_type="Kubernetes' reasons of a failed call or else its status code, `Unreachable` and `Internal`",
)
API_CALLS = families.counter(
    "pipedec_operator_api_calls_total",
    "calls",
    "Calls of the API server; code 0: no answer.",
    "sum by (verb, code) (rate(pipedec_operator_api_calls_total[5m]))",
    verb="verbs of the Kubernetes API",
    code="HTTP status codes, and 0",
)
NAMESPACE_KEPT = families.gauge(
    "pipedec_operator_namespace_kept",
    "1",
    "1 for each namespace that is kept of those that the operator is limited to, 0 for those where it has no Role.",
    "pipedec_operator_namespace_kept == 0",
    namespace="namespaces of `watchNamespaces`; none where all are kept",
)
QUEUE_DEPTH = families.gauge(
    "pipedec_operator_queue_depth", "resources", "Resources that wait for a pass.", "pipedec_operator_queue_depth"
)
RESOURCES = families.gauge(
    "pipedec_operator_resources",
    "resources",
    "Resources by phase, and by the reason of their condition Ready.",
    "sum by (phase) (pipedec_operator_resources)",
    phase=PHASES,
    reason="reasons of the condition Ready, which the operator chooses from a fixed list",
)
DEPLOYMENT_INFO = families.gauge(
    "pipedec_deployment_info",
    "1",
    "1 for every resource.",
    "count by (model) (pipedec_deployment_info)",
    **_RESOURCE,
    model="one per resource",
)
DEPLOYMENT_CONDITION = families.gauge(
    "pipedec_deployment_condition",
    "bool",
    "1 for the status that a condition has, 0 for those it has not.",
    'pipedec_deployment_condition{type="Ready", status="True"} == 0',
    **_RESOURCE,
    type=CONDITIONS,
    status=CONDITION_STATES,
)
DEPLOYMENT_STAGES = families.gauge(
    "pipedec_deployment_stages",
    "stages",
    "Stages asked for, of a suspended resource none, and ready.",
    'sum by (namespace, name) (pipedec_deployment_stages{state="ready"})',
    **_RESOURCE,
    state=STAGE_STATES,
)
DEPLOYMENT_RESTARTS = families.gauge(
    "pipedec_deployment_restarts",
    "restarts",
    "Restarts of the containers in all pods that are there.",
    "delta(pipedec_deployment_restarts[10m]) > 3",
    **_RESOURCE,
)
