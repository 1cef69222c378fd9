"""A resource -> every object that it asks for. Pure, and equal for equal input."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pipedec.spec import PipeDecDeployment
from pipedec_operator import names, pods
from pipedec_operator.names import DRAFT, STAGE, Kind, Object
from pipedec_operator.projection import digest, manifest_for, revision

MIN_READY_SECONDS = 5  # until a ready pod counts as available: by then every node sends it requests


@dataclass(frozen=True, slots=True)
class Setting:
    """What the operator knows beside the spec: its images and version, and the cluster's optional kinds."""

    stage_image: str
    draft_image: str
    version: str
    namespace: str = ""  # of the operator, which asks draft pods how they are; empty: outside the cluster
    disruption_budget: Kind | None = None
    pod_monitor: Kind | None = None
    pod_monitor_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of children that this cluster can have, in the order they are made; without the Secret."""
        return (*names.ALWAYS, *(kind for kind in (self.disruption_budget, self.pod_monitor) if kind))


@dataclass(frozen=True, slots=True)
class Owner:
    """The resource as the API server has it; its deletion deletes all that refers to it."""

    namespace: str
    uid: str


def children(
    resource: PipeDecDeployment, owner: Owner, setting: Setting, keys_hash: str, ports: Collection[int] = ()
) -> list[Object]:
    """Every child but the Secret of keys, which is made once and of random content: see `keys_secret`.

    `ports` are those at which draft pods still answer, if they are not to be replaced yet.
    """
    configs = {role: _config_map(resource, role) for role in (STAGE, DRAFT)}
    wanted = [
        _object(
            names.SERVICE_ACCOUNT, names.service_account(resource.metadata.name), automountServiceAccountToken=False
        ),
        *configs.values(),
        _client_service(resource),
        *_network_policies(resource, setting, ports),
    ]
    for group in range(resource.spec.replicas):
        wanted.append(_control_service(resource, group))
        wanted += _workloads(resource, group, owner.namespace, setting, configs, keys_hash)
    if setting.disruption_budget and resource.spec.replicas > 1:
        wanted.append(_disruption_budget(resource, setting.disruption_budget))
    if setting.pod_monitor:
        wanted.append(_pod_monitor(resource, setting.pod_monitor, setting.pod_monitor_labels))
    order = [kind.kind for kind in setting.kinds]
    return sorted(_adopted(wanted, resource, owner, setting), key=lambda child: order.index(child["kind"]))


def keys_secret(resource: PipeDecDeployment, owner: Owner, setting: Setting, keys: dict[str, str]) -> Object:
    """The Secret with a pipeline's CURVE keys."""
    secret = _object(names.SECRET, names.keys_secret(resource.metadata.name), type="Opaque", stringData=keys)
    if asked := resource.metadata.annotations.get(names.ROTATE_KEYS):
        secret["metadata"]["annotations"] = {names.ROTATE_KEYS: asked}
    return next(_adopted([secret], resource, owner, setting))


def _object(kind: Kind, name: str, **body: object) -> Object:
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name}, **body}


def _adopted(
    objects: Iterable[Object], resource: PipeDecDeployment, owner: Owner, setting: Setting
) -> Iterator[Object]:
    reference = {
        "apiVersion": names.RESOURCE.api_version,
        "kind": names.KIND,
        "name": resource.metadata.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    for child in objects:
        metadata = child["metadata"]
        metadata["namespace"] = owner.namespace
        metadata["labels"] = metadata.get("labels", {}) | names.labels(resource.metadata.name, setting.version)
        metadata["ownerReferences"] = [reference]
        if child["kind"] != names.SECRET.kind:
            metadata["annotations"] = metadata.get("annotations", {}) | {names.SPEC_HASH: digest(child)}
        yield child


def _config_map(resource: PipeDecDeployment, role: str) -> Object:
    manifest = manifest_for(role, resource)
    name = f"{resource.metadata.name}-{role}-{digest(manifest, 8)}"
    return _object(names.CONFIG_MAP, name, data={"manifest.yaml": manifest}, immutable=True)


def _client_service(resource: PipeDecDeployment) -> Object:
    service, port = resource.spec.serving.service, resource.spec.serving.port
    child = _object(
        names.SERVICE,
        resource.metadata.name,
        spec={
            "type": service.type,
            "selector": names.selector(resource.metadata.name, component=DRAFT),
            "ports": [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP"}],
        },
    )
    if service.annotations:
        child["metadata"]["annotations"] = dict(service.annotations)
    return child


def _control_service(resource: PipeDecDeployment, group: int) -> Object:
    name, current = resource.metadata.name, revision(resource.spec)
    return _object(
        names.SERVICE,
        names.control_service(name, group, current),
        spec={
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # stages register before anything is ready
            "selector": names.selector(name, group, component=DRAFT) | {names.REVISION: current},
            "ports": [
                {"name": "control", "port": names.CONTROL_PORT, "targetPort": "control", "protocol": "TCP"},
                {"name": "verdicts", "port": names.VERDICT_PORT, "targetPort": "verdicts", "protocol": "TCP"},
            ],
        },
    )


def _workloads(
    resource: PipeDecDeployment,
    group: int,
    namespace: str,
    setting: Setting,
    configs: dict[str, Object],
    keys_hash: str,
) -> Iterator[Object]:
    """One Deployment of one pod for the draft and for each stage: they come back though the operator be down."""
    name, spec = resource.metadata.name, resource.spec
    images = {STAGE: spec.images.stage or setting.stage_image, DRAFT: spec.images.draft or setting.draft_image}
    for stage in (None, *range(spec.pipeline.num_stages)):
        role = DRAFT if stage is None else STAGE
        pod = pods.Pod(group, stage, images[role], configs[role]["metadata"]["name"], keys_hash)
        labels = names.selector(name, group, stage, role)
        child = _object(
            names.WORKLOAD,
            names.workload(name, group, stage),
            spec={
                "replicas": 0 if spec.suspend else 1,
                "paused": False,  # by `kubectl rollout pause`: no change would ever reach its pod
                "minReadySeconds": MIN_READY_SECONDS,
                "strategy": {"type": "Recreate"},  # a surge pod would wait for a device that this one holds
                "revisionHistoryLimit": 2,
                "progressDeadlineSeconds": spec.progress_deadline_seconds,
                "selector": {"matchLabels": labels},
                "template": pods.template(resource, pod, namespace),
            },
        )
        child["metadata"]["labels"] = labels | {names.ROLE: role, names.REVISION: revision(spec)}
        yield child


def _network_policies(resource: PipeDecDeployment, setting: Setting, ports: Collection[int]) -> Iterator[Object]:
    """Stages and control ports are for the pipeline's own pods, metrics and probes for everyone, the endpoint for the
    clients and the operator.

    By number: not every network plugin knows a port by its name, which would be each pod's own.
    """
    policy = resource.spec.network_policy
    if not policy.enabled:
        return
    peers: list[Object] = [{"podSelector": {"matchLabels": {names.DEPLOYMENT: resource.metadata.name}}}]
    clients = [dict(peer) for peer in policy.clients]
    inside = {STAGE: [names.DATA_PORT], DRAFT: [names.CONTROL_PORT, names.VERDICT_PORT]}
    outside = {STAGE: [names.METRICS_PORT], DRAFT: sorted({resource.spec.serving.port, *ports})}
    for role in (STAGE, DRAFT):
        open_ports: Object = {"ports": [{"port": port, "protocol": "TCP"} for port in outside[role]]}
        if role == DRAFT and clients:
            open_ports["from"] = [*clients, *_operator_peer(setting)]
        yield _object(
            names.NETWORK_POLICY,
            f"{resource.metadata.name}-{role}",
            spec={
                "podSelector": {"matchLabels": names.selector(resource.metadata.name, component=role)},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {"from": peers, "ports": [{"port": port, "protocol": "TCP"} for port in inside[role]]},
                    open_ports,
                ],
            },
        )


def _operator_peer(setting: Setting) -> list[Object]:
    if not setting.namespace:
        return []
    labels = {names.COMPONENT: "operator", "app.kubernetes.io/part-of": "pipedec"}
    namespace = {"kubernetes.io/metadata.name": setting.namespace}  # every namespace has it, from Kubernetes 1.21 on
    return [{"namespaceSelector": {"matchLabels": namespace}, "podSelector": {"matchLabels": labels}}]


def _disruption_budget(resource: PipeDecDeployment, kind: Kind) -> Object:
    """Drains of nodes take one draft pod at a time, and the next when that one serves again.

    Stages are not held: a lost one costs no request, and one that waits for the device it was taken from would hold
    the drain for ever. For the same reason a single replica has no budget: nothing of it could be kept, and an API
    server evicts no draft pod that is not ready under a budget of which none need be.
    """
    selector = names.selector(resource.metadata.name, component=DRAFT)
    return _object(kind, resource.metadata.name, spec={"maxUnavailable": 1, "selector": {"matchLabels": selector}})


def _pod_monitor(resource: PipeDecDeployment, kind: Kind, labels: Mapping[str, str]) -> Object:
    """Series carry the pipeline, replica and stage that they are of, beside the namespace and pod that a PodMonitor
    gives; what a program says of these itself (the head tells of every stage) goes before."""
    name = resource.metadata.name
    relabelings: list[Object] = [
        {"sourceLabels": ["__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", label)], "targetLabel": target}
        for label, target in names.TARGET_LABELS.items()
    ]
    endpoint = {
        "path": "/metrics",
        "honorLabels": True,
        "relabelings": [*relabelings, {"targetLabel": "job", "replacement": names.JOB}],
    }
    spec = {
        "selector": {"matchLabels": names.selector(name)},
        "podMetricsEndpoints": [{"port": port, **endpoint} for port in ("http", "metrics")],
    }
    monitor = _object(kind, name, spec=spec)
    monitor["metadata"]["labels"] = dict(labels)
    return monitor
