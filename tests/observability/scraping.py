"""How Prometheus scrapes a pipeline of this machine as if its processes were the pods of a cluster.

The objects are the operator's own: its PodMonitor says what is scraped and how targets are relabelled, its pods'
labels are what is relabelled, as the Prometheus operator turns both into Prometheus' configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipedec.spec import parse_manifest
from pipedec_operator import manifests, names
from pipedec_operator.manifests import Owner, Setting
from pipedec_operator.names import Object

NAMESPACE = "lab"
INTERVAL = "500ms"
OPERATOR_ENDPOINT: Object = {
    "port": "metrics",
    "honorLabels": True,
    "relabelings": [{"targetLabel": "job", "replacement": "pipedec-operator"}],
}
"""What the chart's PodMonitor says; a test of the chart, which needs helm, compares."""
_SETTING = Setting("example/stage:1", "example/draft:1", "9.9.9", pod_monitor=names.POD_MONITORS[0])


def pipeline_config(manifest: Object, addresses: Mapping[str, str]) -> Iterator[Object]:
    """Scrape configurations of a pipeline; `addresses` by process: `draft`, `stage 0`, ..."""
    found = manifests.children(parse_manifest(manifest), Owner(NAMESPACE, "uid"), _SETTING, "keys")
    (monitor,) = (child for child in found if child["kind"] == "PodMonitor")
    pods = [child["spec"]["template"] for child in found if child["kind"] == names.WORKLOAD.kind]
    for number, endpoint in enumerate(monitor["spec"]["podMetricsEndpoints"]):
        targets = [
            {"targets": [addresses[_process(pod)]], "labels": _discovered(pod, endpoint["port"])}
            for pod in pods
            if _selected(monitor, pod) and endpoint["port"] in _ports(pod)
        ]
        yield _scrape(f"podMonitor/{NAMESPACE}/{monitor['metadata']['name']}/{number}", endpoint, targets)


def operator_config(address: str) -> Object:
    """The scrape configuration of the operator, whose PodMonitor is in the chart."""
    labels = {"namespace": "pipedec", "pod": "pod-operator", "container": "operator", "endpoint": "metrics"}
    return _scrape("podMonitor/pipedec/operator/0", OPERATOR_ENDPOINT, [{"targets": [address], "labels": labels}])


def _scrape(job: str, endpoint: Object, targets: list[Object]) -> Object:
    """The scrape configuration of one endpoint of a PodMonitor."""
    return {
        "job_name": job,
        "scrape_interval": INTERVAL,
        "scrape_timeout": INTERVAL,
        "metrics_path": endpoint.get("path", "/metrics"),
        "honor_labels": endpoint["honorLabels"],
        "static_configs": targets,
        "relabel_configs": [
            {re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", key): value for key, value in rule.items()}
            for rule in endpoint["relabelings"]
        ],
    }


def _process(pod: Object) -> str:
    stage = pod["metadata"]["labels"].get(names.STAGE_INDEX)
    return names.DRAFT if stage is None else f"{names.STAGE} {stage}"


def _selected(monitor: Object, pod: Object) -> bool:
    labels = pod["metadata"]["labels"]
    return bool(monitor["spec"]["selector"]["matchLabels"].items() <= labels.items())


def _ports(pod: Object) -> set[str]:
    return {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}


def _discovered(pod: Object, port: str) -> dict[str, Any]:
    """Labels of a target before a monitor's relabelings: the pod's own as meta labels, and the operator's standard."""
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    meta = {"__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", name): value for name, value in labels.items()}
    place = "-".join(labels[name] for name in (names.COMPONENT, names.STAGE_INDEX) if name in labels)
    return meta | {"namespace": NAMESPACE, "pod": f"pod-{place}", "container": container["name"], "endpoint": port}
