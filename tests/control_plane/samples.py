"""Resources, pods and Deployments for the operator's tests."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from pipedec.spec import PipeDecDeployment, parse_manifest
from pipedec_operator import manifests, names
from pipedec_operator.manifests import Owner, Setting
from pipedec_operator.names import Object

OWNER = Owner("lab", "11111111-2222-3333-4444-555555555555")
SETTING = Setting(
    "example/stage:1",
    "example/draft:1",
    "9.9.9",
    disruption_budget=names.DISRUPTION_BUDGETS[0],
    pod_monitor=names.POD_MONITORS[0],
)
KEYS_HASH = "0123456789ab"

MANIFEST: Object = {
    "apiVersion": "pipedec.dev/v1alpha1",
    "kind": "PipeDecDeployment",
    "metadata": {"name": "lion"},
    "spec": {
        "model": {"uri": "hf://org/large", "dtype": "bfloat16", "tokenSecretRef": {"name": "hf", "key": "token"}},
        "draft": {"uri": "pvc://weights/small", "resources": {"limits": {"nvidia.com/gpu": 1}}},
        "pipeline": {
            "layers": ["0-5", "6-11"],
            "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "8Gi"}, "requests": {"cpu": "0.5"}},
            "nodeSelector": {"gpu": "small"},
            "shmSize": "1Gi",
            "overrides": [
                {"stage": 1, "nodeSelector": {"gpu": "big"}, "env": [{"name": "NCCL_DEBUG", "value": "INFO"}]}
            ],
        },
        "serving": {"maxSequences": 4, "apiKeySecretRef": {"name": "keys", "key": "api"}},
    },
}


def manifest(**spec: Any) -> Object:
    """The sample manifest with some fields of its spec replaced."""
    changed = deepcopy(MANIFEST)
    changed["spec"].update(spec)
    return changed


def resource(**spec: Any) -> PipeDecDeployment:
    return parse_manifest(manifest(**spec))


def children(setting: Setting = SETTING, **spec: Any) -> dict[str, Object]:
    """Children of the sample by kind and name, as Deployment/lion-0-draft."""
    found = manifests.children(resource(**spec), OWNER, setting, KEYS_HASH)
    return {f"{child['kind']}/{child['metadata']['name']}": child for child in found}


def workloads(**spec: Any) -> dict[str, Object]:
    return {name: child for name, child in children(**spec).items() if child["kind"] == "Deployment"}


def rolled_out(workload: Object) -> Object:
    """A Deployment as the API server has it once its controller has acted on it."""
    live = deepcopy(workload)
    live["metadata"] |= {"generation": 2, "uid": f"uid-{workload['metadata']['name']}"}
    replicas = workload["spec"]["replicas"]
    live["status"] = {"observedGeneration": 2, "replicas": replicas, "updatedReplicas": replicas}
    return live


def pod_of(workload: Object, *, ready: bool = True, **status: Any) -> Object:
    """The pod of a Deployment; `status` is merged into its status."""
    template = workload["spec"]["template"]
    return {
        "kind": "Pod",
        "metadata": {
            "name": f"{workload['metadata']['name']}-7d9f-x2x",
            "labels": dict(template["metadata"]["labels"]),
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"nodeName": "node-1"},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"name": "stage", "restartCount": 0, "state": {"running": {}}, "image": "i:1"}],
            **status,
        },
    }


def container(restarts: int = 0, image: str = "i:1", last: Object | None = None, **state: Any) -> Object:
    """A `containerStatuses` for `pod_of`."""
    found: Object = {"name": "stage", "restartCount": restarts, "state": state, "image": image}
    if last:
        found["lastState"] = {"terminated": last}
    return {"containerStatuses": [found]}
