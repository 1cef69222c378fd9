"""Names, labels and ports of everything the operator makes; the one place that knows them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipedec.spec.deployment import INNER_PORTS

Object = dict[str, Any]
"""A Kubernetes object, as the API's JSON has it."""

GROUP = "pipedec.dev"
VERSION = "v1alpha1"
KIND = "PipeDecDeployment"
PLURAL = "pipedecdeployments"
MANAGER = "pipedec-operator"  # field manager, and the value of managed-by

DEPLOYMENT = f"{GROUP}/deployment"
GROUP_INDEX = f"{GROUP}/group-index"
STAGE_INDEX = f"{GROUP}/stage-index"
ROLE = f"{GROUP}/role"
REVISION = f"{GROUP}/revision"
SPEC_HASH = f"{GROUP}/spec-hash"
KEYS_HASH = f"{GROUP}/keys-hash"
ROTATE_KEYS = f"{GROUP}/rotate-keys"  # on the resource, by a person: another value asks for new keys

INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
MANAGED_BY = "app.kubernetes.io/managed-by"

DATA_PORT, METRICS_PORT = 7000, 9000
CONTROL_PORT, VERDICT_PORT = INNER_PORTS  # which the endpoint cannot have

STAGE, DRAFT = "stage", "draft"

JOB = "pipedec"  # in Prometheus, with these labels of pods as labels of all their series
TARGET_LABELS = {DEPLOYMENT: "pipeline", GROUP_INDEX: "replica", STAGE_INDEX: "stage"}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object: what it is called in manifests, and in the API's paths."""

    api_version: str
    kind: str
    plural: str

    @property
    def path(self) -> str:
        """Where the API server has it: /api/v1 or /apis/<group>/<version>."""
        return f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]


RESOURCE = Kind(f"{GROUP}/{VERSION}", KIND, PLURAL)
POD = Kind("v1", "Pod", "pods")
EVENT = Kind("v1", "Event", "events")
SECRET = Kind("v1", "Secret", "secrets")
SERVICE_ACCOUNT = Kind("v1", "ServiceAccount", "serviceaccounts")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
SERVICE = Kind("v1", "Service", "services")
WORKLOAD = Kind("apps/v1", "Deployment", "deployments")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")

# Kinds that not every cluster has, or not in this version; the first that the API server knows is used.
DISRUPTION_BUDGETS = tuple(
    Kind(version, "PodDisruptionBudget", "poddisruptionbudgets") for version in ("policy/v1", "policy/v1beta1")
)
POD_MONITORS = (Kind("monitoring.coreos.com/v1", "PodMonitor", "podmonitors"),)

# In the order they are made: what a pod needs is there before the pod.
ALWAYS = (SERVICE_ACCOUNT, CONFIG_MAP, SERVICE, NETWORK_POLICY, WORKLOAD)
CHILDREN = (*ALWAYS, *DISRUPTION_BUDGETS, *POD_MONITORS)


def keys_secret(name: str) -> str:
    return f"{name}-keys"


def service_account(name: str) -> str:
    return f"{name}-pipedec"


def workload(name: str, group: int, stage: int | None) -> str:
    """Name of a pod's Deployment; `stage` None is the draft's."""
    return f"{name}-{group}-{DRAFT if stage is None else f'{STAGE}-{stage}'}"


def control_service(name: str, group: int, revision: str) -> str:
    """Name of the headless Service by which stages of one revision find their draft pod, and no other revision's."""
    return f"{name}-{group}-{revision}"


def labels(name: str, version: str) -> dict[str, str]:
    """Labels of every child of a resource."""
    return {
        "app.kubernetes.io/name": "pipedec",
        INSTANCE: name,
        "app.kubernetes.io/version": version,
        "app.kubernetes.io/part-of": name,
        MANAGED_BY: MANAGER,
        DEPLOYMENT: name,
    }


def selector(name: str, group: int | None = None, stage: int | None = None, component: str = "") -> dict[str, str]:
    """Labels that find the pods of a resource, of one of its groups, of one component. Immutable once in use."""
    found = {"app.kubernetes.io/name": "pipedec", INSTANCE: name}
    if component:
        found[COMPONENT] = component
    if group is not None:
        found[GROUP_INDEX] = str(group)
    if stage is not None:
        found[STAGE_INDEX] = str(stage)
    return found
