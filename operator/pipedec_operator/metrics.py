"""The operator's Prometheus metrics, on a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pipedec_operator.names import Object

CONDITIONS = ("Ready", "Available", "Progressing", "Degraded", "Failed")


class OperatorMetrics:
    """What the operator does, and how the resources stand that it keeps."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.reconciles = Counter(
            "pipedec_operator_reconcile",
            "Passes over a resource, by result: settled, again (something stands in the way) or error.",
            ["namespace", "result"],
            registry=registry,
        )
        self.seconds = Histogram(
            "pipedec_operator_reconcile_duration_seconds", "Time of one pass.", ["namespace"], registry=registry
        )
        self.calls = Counter(
            "pipedec_operator_api_calls",
            "Calls of the API server; code 0: no answer.",
            ["verb", "code"],
            registry=registry,
        )
        self.queue = Gauge("pipedec_operator_queue_depth", "Resources that wait for a pass.", registry=registry)
        self.info = Gauge(
            "pipedec_deployment_info", "1 for every resource.", ["namespace", "name", "model"], registry=registry
        )
        self.condition = Gauge(
            "pipedec_deployment_condition",
            "1 for the status that a condition has, 0 for those it has not.",
            ["namespace", "name", "type", "status"],
            registry=registry,
        )
        self.stages = Gauge(
            "pipedec_deployment_stages",
            "Stages asked for, and ready.",
            ["namespace", "name", "state"],
            registry=registry,
        )
        self.restarts = Gauge(
            "pipedec_deployment_restarts", "Restarts of all containers.", ["namespace", "name"], registry=registry
        )

    def count_call(self, verb: str, code: int) -> None:
        self.calls.labels(verb, str(code)).inc()

    def observe(self, resource: Object) -> None:
        """Takes up the state of a resource."""
        namespace, name = resource["metadata"]["namespace"], resource["metadata"]["name"]
        status = resource.get("status", {})
        model = resource.get("spec", {}).get("model", {}).get("uri", "")
        self._forget_info(namespace, name)
        self.info.labels(namespace, name, model).set(1)
        states = {each["type"]: each["status"] for each in status.get("conditions", ())}
        for kind in CONDITIONS:
            for state in ("True", "False", "Unknown"):
                self.condition.labels(namespace, name, kind, state).set(states.get(kind) == state)
        stages = status.get("stages", ())
        self.stages.labels(namespace, name, "wanted").set(len(stages))
        self.stages.labels(namespace, name, "ready").set(sum(row["ready"] for row in stages))
        self.restarts.labels(namespace, name).set(status.get("restarts", 0))

    def forget(self, namespace: str, name: str) -> None:
        """Drops the series of a resource that is gone."""
        self._forget_info(namespace, name)
        for gauge in (self.condition, self.stages, self.restarts):
            gauge.remove_by_labels({"namespace": namespace, "name": name})

    def _forget_info(self, namespace: str, name: str) -> None:
        self.info.remove_by_labels({"namespace": namespace, "name": name})
