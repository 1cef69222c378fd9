"""The operator's Prometheus metrics, on a registry of their own."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry

from pipedec.metrics.declared import operator as declared
from pipedec_operator.cluster import ClusterError
from pipedec_operator.names import Object

Place = tuple[str, str]  # phase of a resource, and the reason of its condition Ready


class Pass:
    """One pass over a resource; `again`: something stands in its way."""

    again = False


class OperatorMetrics:
    """What the operator does, and how the resources stand that it keeps."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._reconciles = declared.RECONCILES.counter(registry)
        self._seconds = declared.RECONCILE_SECONDS.histogram(registry)
        self._errors = declared.RECONCILE_ERRORS.counter(registry)
        self._calls = declared.API_CALLS.counter(registry)
        self._kept = declared.NAMESPACE_KEPT.gauge(registry)
        self.queue = declared.QUEUE_DEPTH.gauge(registry)
        self._resources = declared.RESOURCES.gauge(registry)
        self._info = declared.DEPLOYMENT_INFO.gauge(registry)
        self._condition = declared.DEPLOYMENT_CONDITION.gauge(registry)
        self._stages = declared.DEPLOYMENT_STAGES.gauge(registry)
        self._restarts = declared.DEPLOYMENT_RESTARTS.gauge(registry)
        self._places: dict[tuple[str, str], Place] = {}

    @contextmanager
    def reconciling(self, namespace: str) -> Iterator[Pass]:
        """Around a pass: counts it with its time and what became of it."""
        began, result, going = time.monotonic(), "error", Pass()
        try:
            yield going
            result = "again" if going.again else "settled"
        except Exception as error:
            self._errors.labels(namespace, _error_type(error)).inc()
            raise
        finally:
            self._reconciles.labels(namespace, result).inc()
            self._seconds.labels(namespace).observe(time.monotonic() - began)

    def keep(self, namespaces: Iterable[str], refused: Collection[str]) -> None:
        """Which namespaces are to be kept, and which of them cannot be: nothing more is told of what is in these."""
        for place in [place for place in self._places if place[0] in refused]:
            self.forget(*place)
        for namespace in namespaces:
            self._kept.labels(namespace).set(namespace not in refused)

    def count_call(self, verb: str, code: int) -> None:
        self._calls.labels(verb, str(code)).inc()

    def observe(self, resource: Object) -> None:
        """Takes up the state of a resource."""
        namespace, name = resource["metadata"]["namespace"], resource["metadata"]["name"]
        status = resource.get("status", {})
        model = resource.get("spec", {}).get("model", {}).get("uri", "")
        self._forget_info(namespace, name)
        self._info.labels(namespace, name, model).set(1)
        conditions = {each["type"]: each for each in status.get("conditions", ())}
        self._place((namespace, name), (_phase(conditions), conditions.get("Ready", {}).get("reason", "")))
        for kind in declared.CONDITIONS:
            for state in declared.CONDITION_STATES:
                found = conditions.get(kind, {}).get("status") == state
                self._condition.labels(namespace, name, kind, state).set(found)
        stages = status.get("stages", ())
        # None from the moment that it is to be suspended: the alerts are not to miss what ends its last requests.
        suspended = resource.get("spec", {}).get("suspend") is True
        self._stages.labels(namespace, name, "wanted").set(0 if suspended else len(stages))
        self._stages.labels(namespace, name, "ready").set(sum(row["ready"] for row in stages))
        self._restarts.labels(namespace, name).set(status.get("restarts", 0))

    def forget(self, namespace: str, name: str) -> None:
        """Drops the series of a resource that is gone."""
        self._place((namespace, name), None)
        self._forget_info(namespace, name)
        for gauge in (self._condition, self._stages, self._restarts):
            gauge.remove_by_labels({"namespace": namespace, "name": name})

    def _forget_info(self, namespace: str, name: str) -> None:
        self._info.remove_by_labels({"namespace": namespace, "name": name})

    def _place(self, resource: tuple[str, str], place: Place | None) -> None:
        """How many resources there are of each sort; sorts that there were stay, with none."""
        left = self._places.pop(resource, None)
        if place is not None:
            self._places[resource] = place
        counts = Counter(self._places.values())
        for each in filter(None, {left, place}):
            self._resources.labels(*each).set(counts[each])


def _phase(conditions: Mapping[str, Object]) -> str:
    """One word for how a resource stands: the first of these conditions that holds."""
    phases = ("Failed", "Suspended", "Ready", "Degraded", "Progressing")
    return next((phase for phase in phases if conditions.get(phase, {}).get("status") == "True"), "Pending")


def _error_type(error: Exception) -> str:
    """Kubernetes' words are few, and so are HTTP's codes for what comes without one."""
    if isinstance(error, ClusterError):
        return error.reason or str(error.code)
    return "Internal"
