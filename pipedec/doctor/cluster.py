"""A cluster, as its API server shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipedec.doctor.findings import Finding, Level
from pipedec.doctor.remedies import REMEDIES, UNKNOWN
from pipedec.spec import PipeDecDeployment
from pipedec.spec.crd import VERSION, crd
from pipedec.words import counted

GPU_RESOURCE = "nvidia.com/gpu"
APPLY_CRD = "kubectl apply --server-side --force-conflicts -f crds/"  # by force: Helm made it in its own name
OLDEST = (1, 20)
CEL_SINCE = (1, 25)
_ORDINARY = frozenset({"cpu", "memory", "ephemeral-storage"})

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The API server would not say."""

    message: str


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What the API server said; a `Refusal` where it would not. `unreachable`: why it said nothing at all.

    `allowed` tells for each right of the operator, as "verb resource.group", whether it has it; None: cannot be asked.
    """

    server: str
    unreachable: str = ""
    version: Object = field(default_factory=dict)
    crd: Object | Refusal | None = None
    operators: Sequence[Object] | Refusal = ()
    allowed: Mapping[str, bool] | None = None
    nodes: Sequence[Object] | Refusal = ()
    apis: frozenset[str] = frozenset()
    storage_classes: Sequence[Object] | Refusal = ()
    resources: Sequence[Object] | Refusal = ()
    manifest: PipeDecDeployment | None = None


def judge_cluster(facts: ClusterFacts, version: str) -> list[Finding]:
    """Every finding about a cluster. `version` is this program's own."""
    if facts.unreachable:
        remedy = "Check KUBECONFIG and its current context, the network, and that your credentials are still valid"
        return [Finding("fail", "API server", f"{facts.server} does not answer: {facts.unreachable}", remedy)]
    found = [_server(facts), _definition(facts), *_operator(facts, version), _rights(facts)]
    found += [*_nodes(facts), *_apis(facts), _storage(facts)]
    return [*found, *_resources(facts)]


def _numbers(version: Object) -> tuple[int, int]:
    """Major and minor; managed clusters write "27+"."""
    return int(version["major"]), int(str(version["minor"]).rstrip("+"))


def _server(facts: ClusterFacts) -> Finding:
    message = f"Kubernetes {facts.version['gitVersion']} at {facts.server}"
    if _numbers(facts.version) < OLDEST:
        return Finding("fail", "API server", message, f"Upgrade to {OLDEST[0]}.{OLDEST[1]} or newer")
    if _numbers(facts.version) < CEL_SINCE:
        message += "; it knows no CEL rules, so some mistakes in a manifest show only as condition InvalidSpec"
    return Finding("ok", "API server", message)


def _definition(facts: ClusterFacts) -> Finding:
    remedy = f"Apply this version's: `{APPLY_CRD}`"
    if isinstance(facts.crd, Refusal):
        return Finding("skip", "CRD", f"may not be read: {facts.crd.message}")
    if facts.crd is None:
        return Finding("fail", "CRD", "PipeDecDeployment is not known to this cluster", remedy)
    theirs, ours = _fields(_schema(facts.crd)), _fields(_schema(crd()))
    if lacking := sorted(ours.keys() - theirs.keys()):
        more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
        return Finding("fail", "CRD", f"another version's: it lacks {lacking[0]}{more}, which would be dropped", remedy)
    if extra := sorted(theirs.keys() - ours.keys()):
        return Finding("warn", "CRD", f"another version's: it has {extra[0]}, which this version does not know", remedy)
    if changed := sorted(name for name, schema in ours.items() if theirs[name] != schema):
        return Finding("warn", "CRD", f"another version's: {changed[0]} is described differently", remedy)
    return Finding("ok", "CRD", f"installed, {len(ours)} fields as in this version")


def _schema(definition: Object) -> Object:
    versions = {each["name"]: each for each in definition["spec"]["versions"]}
    schema: Object = versions.get(VERSION, {}).get("schema", {}).get("openAPIV3Schema", {})
    return schema


def _fields(schema: Object, path: str = "") -> dict[str, Object]:
    """Every field by its path, with what is said of it; rules are left out, for older servers drop them."""
    found: dict[str, Object] = {}
    for name, below in schema.get("properties", {}).items():
        here = f"{path}.{name}".removeprefix(".")
        found[here] = {k: v for k, v in below.items() if k in ("type", "enum", "default", "pattern", "required")}
        found |= _fields(below, here) | _fields(below.get("items", {}), f"{here}[]")
    return found


def _operator(facts: ClusterFacts, version: str) -> Iterator[Finding]:
    remedy = "helm install pipedec charts/pipedec --namespace pipedec --create-namespace"
    if isinstance(facts.operators, Refusal):
        yield Finding("skip", "operator", f"may not be looked for: {facts.operators.message}")
    elif not facts.operators:
        yield Finding("fail", "operator", "is not installed: no Deployment has its labels", f"Install it: `{remedy}`")
    elif shared := _shared(facts.operators):
        names = ", ".join(map(_name, shared))
        yield Finding("warn", "operator", f"{names} keep the same namespaces", "Keep one for each namespace")
    if isinstance(facts.operators, Refusal):
        return
    for each in facts.operators:
        status = each.get("status", {})
        theirs = each["metadata"].get("labels", {}).get("app.kubernetes.io/version", "of unknown version")
        if not status.get("readyReplicas"):
            why = next(
                (c["message"] for c in status.get("conditions", ()) if c["status"] == "False"), "no pod is ready"
            )
            remedy = "Look at its pod: `kubectl describe pods` and `kubectl logs` in that namespace"
            yield Finding("fail", "operator", f"{_name(each)} is not ready: {why}", remedy)
        elif theirs != version:
            remedy = f"Upgrade this program, or the operator: first the CRD, `{APPLY_CRD}`, then `helm upgrade`"
            yield Finding("warn", "operator", f"{_name(each)} is {theirs}, this program {version}", remedy)
        else:
            yield Finding("ok", "operator", f"{_name(each)} {theirs} is ready")


def kept_namespaces(operator: Object) -> list[str]:
    """Namespaces that an operator's Deployment keeps; one empty name stands for all."""
    containers = operator["spec"]["template"]["spec"]["containers"]
    arguments = [argument for container in containers for argument in container.get("args", ())]
    return [a.removeprefix("--namespace=") for a in arguments if a.startswith("--namespace=")] or [""]


def _shared(operators: Sequence[Object]) -> list[Object]:
    """Operators that keep a namespace which another keeps too."""
    kept = [set(kept_namespaces(each)) for each in operators]
    return [
        each
        for index, each in enumerate(operators)
        if any("" in kept[index] | other or kept[index] & other for other in (*kept[:index], *kept[index + 1 :]))
    ]


def _name(resource: Object) -> str:
    return f"{resource['metadata']['namespace']}/{resource['metadata']['name']}"


def _rights(facts: ClusterFacts) -> Finding:
    if facts.allowed is None:
        return Finding("skip", "RBAC", "the operator's rights cannot be asked about: no operator, or not your right")
    if denied := [right for right, allowed in facts.allowed.items() if not allowed]:
        remedy = "Install the chart with rbac.create, or bind a role with what its templates/_helpers.tpl lists"
        more = f" and {len(denied) - 1} more" if denied[1:] else ""
        return Finding("fail", "RBAC", f"the operator may not {denied[0]}{more}", remedy)
    return Finding("ok", "RBAC", f"the operator has all {len(facts.allowed)} rights that it needs")


def _nodes(facts: ClusterFacts) -> Iterator[Finding]:
    if isinstance(facts.nodes, Refusal):
        yield Finding("skip", "nodes", f"may not be listed: {facts.nodes.message}")
        return
    usable = [node for node in facts.nodes if _usable(node)]
    if not usable:
        remedy = "Nothing can run: see `kubectl get nodes`, and uncordon or add some"
        yield Finding("fail", "nodes", f"none of {len(facts.nodes)} is ready and schedulable", remedy)
        return
    yield Finding("ok", "nodes", f"ready and schedulable: {len(usable)} of {len(facts.nodes)}")
    wanted = _devices(facts.manifest) if facts.manifest else {GPU_RESOURCE: 0}
    for name, count in wanted.items():
        offers = [amount for node in usable if (amount := _whole(node["status"].get("allocatable", {}).get(name, "0")))]
        message = f"{sum(offers)} on {counted(len(offers), 'node')}" + (f"; asked for: {count}" if count else "")
        remedy = "Install the device plugin (for NVIDIA its GPU operator), or add nodes"
        if not offers:
            yield Finding("fail" if count else "warn", name, f"no node offers any; asked for: {count}", remedy)
        else:
            enough = sum(offers) >= count
            yield Finding("ok" if enough else "fail", name, message, "" if enough else "Add nodes, or use fewer stages")


def _usable(node: Object) -> bool:
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", ()))
    return ready and not node.get("spec", {}).get("unschedulable", False)


def _devices(manifest: PipeDecDeployment) -> dict[str, int]:
    """Devices that all pods of a manifest together ask for."""
    spec, total = manifest.spec, dict[str, int]()
    pods = [spec.pipeline.pod(stage) for stage in range(spec.pipeline.num_stages)]
    for pod in (*pods, *([spec.draft] if spec.draft else [])):
        limits = (pod.resources.limits if pod.resources else None) or {}
        for name, amount in limits.items():
            if name not in _ORDINARY:
                total[name] = total.get(name, 0) + _whole(amount) * spec.replicas
    return total


def _whole(quantity: int | str) -> int:
    """Devices are counted in whole numbers."""
    return int(quantity) if str(quantity).isdecimal() else 0


def _apis(facts: ClusterFacts) -> Iterator[Finding]:
    if "networking.k8s.io/v1" in facts.apis:
        yield Finding("ok", "NetworkPolicy", "known; whether it is enforced is up to your network plugin")
    else:
        yield Finding("fail", "NetworkPolicy", "networking.k8s.io/v1 is not served", "Upgrade the cluster")
    if "monitoring.coreos.com/v1" in facts.apis:
        yield Finding("ok", "PodMonitor", "known: pipelines are scraped by the Prometheus operator")
    else:
        yield Finding("skip", "PodMonitor", "not known here; scrape the pods' /metrics some other way")


def _storage(facts: ClusterFacts) -> Finding:
    if isinstance(facts.storage_classes, Refusal):
        return Finding("skip", "StorageClass", f"may not be listed: {facts.storage_classes.message}")
    default = "storageclass.kubernetes.io/is-default-class"
    names = [each["metadata"]["name"] for each in facts.storage_classes]
    marked = [
        each["metadata"]["name"]
        for each in facts.storage_classes
        if (each["metadata"].get("annotations") or {}).get(default) == "true"
    ]
    if marked:
        return Finding("ok", "StorageClass", f"{marked[0]} is the default")
    claim = facts.manifest is not None and facts.manifest.spec.model_cache.claim_name
    message = f"none is the default, of {len(names)}" if names else "there is none"
    if claim:
        remedy = f"The claim {claim} must name a class, or a volume that exists"
        return Finding("warn", "StorageClass", message, remedy)
    return Finding("skip", "StorageClass", f"{message}; only claims of your own need one")


def _resources(facts: ClusterFacts) -> Iterator[Finding]:
    if isinstance(facts.resources, Refusal):
        yield Finding("skip", "pipelines", f"may not be listed: {facts.resources.message}")
        return
    if not facts.resources:
        yield Finding("skip", "pipelines", "there is no PipeDecDeployment yet")
    for each in facts.resources:
        yield from _resource(each)


def _resource(resource: Object) -> Iterator[Finding]:
    name, status = _name(resource), resource.get("status") or {}
    conditions = {each["type"]: each for each in status.get("conditions", ())}
    ready, degraded = conditions.get("Ready"), conditions.get("Degraded", {})
    if ready is None:
        yield Finding(
            "fail", name, "the operator has not looked at it", "See the operator: is it running, and watching?"
        )
        return
    if status.get("observedGeneration") != resource["metadata"].get("generation"):
        yield Finding("warn", name, "its newest change was not taken up yet", "If it lasts, see the operator's log")
    reason = ready["reason"]
    if ready["status"] == "True":
        yield Finding("ok", name, f"ready, stages {status.get('readyStages', '?')}: {ready['message']}")
    else:
        level: Level = "skip" if reason in ("Suspended", "NoReplicas") else "fail"
        yield Finding(level, name, f"{reason}: {ready['message']}", REMEDIES.get(reason, UNKNOWN))
    if degraded.get("status") == "True" and degraded["reason"] != reason:
        yield Finding(
            "warn",
            name,
            f"degraded: {degraded['reason']}: {degraded['message']}",
            REMEDIES.get(degraded["reason"], UNKNOWN),
        )
