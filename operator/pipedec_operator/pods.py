"""The pods of stages and of drafts: spec -> pod template. Pure.

Pods satisfy the *restricted* Pod Security Standard. Only /tmp, /dev/shm and the model cache are writable.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipedec.config import DraftConfig, ProcessConfig, StageConfig
from pipedec.spec import PipeDecDeployment, PodSettings
from pipedec_operator import names
from pipedec_operator.names import DRAFT, STAGE, Object
from pipedec_operator.projection import revision

MANIFEST_DIR, KEYS_DIR, API_KEY_DIR = Path("/etc/pipedec"), Path("/var/run/pipedec/keys"), Path("/var/run/pipedec/api")
CACHE_DIR, CLAIMS_DIR = Path("/var/cache/pipedec"), Path("/var/run/pipedec/claims")
OWN_VOLUMES = frozenset({"manifest", "keys"})  # of the ConfigMap and the Secret that the operator makes
EVERY_ADDRESS = "::"  # whichever family the cluster gives pods
USER = 10001  # the images' own
LOADING_SECONDS = 3600  # a kubelet kills a container that has not answered /healthz once by then
PROBE_PATHS = {STAGE: ("/healthz", "/readyz"), DRAFT: ("/health", "/ready")}  # alive, ready
DRAIN_NOTICE_SECONDS = 5  # until every node knows that a draft pod has left the Service


@dataclass(frozen=True, slots=True)
class Pod:
    """Which pod: `stage` None is the draft's. `config` is the name of the ConfigMap with its manifest."""

    group: int
    stage: int | None
    image: str
    config: str
    keys_hash: str

    @property
    def role(self) -> str:
        return DRAFT if self.stage is None else STAGE


def template(resource: PipeDecDeployment, pod: Pod, namespace: str) -> Object:
    """The pod template of a stage's or a draft's Deployment."""
    settings = _settings(resource, pod)
    name, spec = resource.metadata.name, resource.spec
    labels = names.selector(name, pod.group, pod.stage, pod.role) | {
        "app.kubernetes.io/part-of": name,
        names.MANAGED_BY: names.MANAGER,
        names.DEPLOYMENT: name,
        names.ROLE: pod.role,
        names.REVISION: revision(spec),
    }
    pod_spec = {
        "serviceAccountName": names.service_account(name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _grace_seconds(resource, pod),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "imagePullSecrets": [{"name": secret.name} for secret in spec.images.pull_secrets],
        "containers": [_container(resource, pod, settings, namespace)],
        "volumes": _volumes(resource, pod, settings),
        **_placement(settings),
    }
    return {
        "metadata": {
            "labels": (settings.labels or {}) | labels,
            "annotations": (settings.annotations or {}) | {names.KEYS_HASH: pod.keys_hash},
        },
        "spec": {key: value for key, value in pod_spec.items() if value != []},
    }


def _settings(resource: PipeDecDeployment, pod: Pod) -> PodSettings:
    if pod.stage is not None:
        return resource.spec.pipeline.pod(pod.stage)
    return resource.spec.draft or PodSettings()


def _grace_seconds(resource: PipeDecDeployment, pod: Pod) -> int:
    return 30 if pod.role == STAGE else DRAIN_NOTICE_SECONDS + resource.spec.serving.drain_seconds + 15


def _placement(settings: PodSettings) -> Object:
    given = settings.model_dump(
        mode="json",
        by_alias=True,
        exclude_none=True,
        include={
            "node_selector", "tolerations", "affinity", "topology_spread_constraints", "priority_class_name",
            "runtime_class_name", "scheduler_name",
        },
    )  # fmt: skip
    return {key: value for key, value in given.items() if value not in ({}, [])}


def _container(resource: PipeDecDeployment, pod: Pod, settings: PodSettings, namespace: str) -> Object:
    resources = settings.resources.model_dump() if settings.resources else {}
    port = names.METRICS_PORT if pod.role == STAGE else resource.spec.serving.port
    alive, ready = PROBE_PATHS[pod.role]
    container: Object = {
        "name": pod.role,
        "image": pod.image,
        "imagePullPolicy": resource.spec.images.pull_policy,
        "ports": [{"name": name, "containerPort": number} for name, number in ports(resource, pod.role).items()],
        "env": _environment(resource, pod, settings, namespace),
        "resources": {key: {k: str(v) for k, v in value.items()} for key, value in resources.items() if value},
        "volumeMounts": _mounts(resource, pod, settings),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            # The hooks that give a container its devices may write to its root file system.
            "readOnlyRootFilesystem": not any("/" in resource for resource in resources.get("limits", {})),
        },
        # Alive means: its own loop turns. A dead peer is no reason to kill this one, which holds loaded weights.
        "startupProbe": _probe(alive, port, period=2, failures=LOADING_SECONDS // 2),
        "livenessProbe": _probe(alive, port, period=10, failures=3),
        "readinessProbe": _probe(ready, port, period=2, failures=2),
    }
    return {key: value for key, value in container.items() if value != {}}


def ports(resource: PipeDecDeployment, role: str) -> dict[str, int]:
    """Ports that a program listens on, by name."""
    if role == STAGE:
        return {"data": names.DATA_PORT, "metrics": names.METRICS_PORT}
    return {"http": resource.spec.serving.port, "control": names.CONTROL_PORT, "verdicts": names.VERDICT_PORT}


def http_port(pod_spec: Object) -> int | None:
    """The port of a draft pod's endpoint; None for other pods."""
    found = (port for container in pod_spec.get("containers", ()) for port in container.get("ports", ()))
    return next((port["containerPort"] for port in found if port.get("name") == "http"), None)


def _probe(path: str, port: int, period: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _environment(resource: PipeDecDeployment, pod: Pod, settings: PodSettings, namespace: str) -> list[Object]:
    token = resource.spec.model.token_secret_ref
    variables: dict[str, Object] = {
        "HOME": {"value": "/tmp"},
        "HF_HOME": {"value": str(CACHE_DIR / "huggingface")},
    }
    if token:
        variables["HF_TOKEN"] = {"valueFrom": {"secretKeyRef": token.model_dump()}}
    for env in settings.env or ():
        variables[env.name] = {"value": env.value} if env.value_from is None else {"valueFrom": env.value_from}
    variables |= {name: {"value": value} for name, value in config(resource, pod, namespace).to_env().items()}
    variables["PIPEDEC_ADVERTISE_HOST"] = {"valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    return [{"name": name, **source} for name, source in variables.items()]


def config(resource: PipeDecDeployment, pod: Pod, namespace: str) -> ProcessConfig:
    """What a pod's program is told by its environment (its own address excepted, which only the kubelet knows)."""
    common: dict[str, Any] = {
        "manifest": MANIFEST_DIR / "manifest.yaml",
        "bind_host": EVERY_ADDRESS,
        "keys_dir": KEYS_DIR,
        "model_cache": CACHE_DIR,
        "claims_dir": CLAIMS_DIR,
    }
    if pod.stage is None:
        return DraftConfig(
            **common,
            control_port=names.CONTROL_PORT,
            verdict_port=names.VERDICT_PORT,
            http_host=EVERY_ADDRESS,
            drain_notice=DRAIN_NOTICE_SECONDS,
            api_key_file=API_KEY_DIR / "key" if resource.spec.serving.api_key_secret_ref else None,
        )
    service = names.control_service(resource.metadata.name, pod.group, revision(resource.spec))
    return StageConfig(
        **common,
        stage=pod.stage,
        head_address=f"tcp://{service}.{namespace}.svc:{names.CONTROL_PORT}",
        data_port=names.DATA_PORT,
        metrics_port=names.METRICS_PORT,
    )


def _claims(resource: PipeDecDeployment, role: str) -> list[str]:
    """Volume claims that hold a model which this program reads; the draft pod reads the target's tokenizer too."""
    uris = [resource.spec.model.uri]
    if role == DRAFT and resource.spec.draft and resource.spec.draft.uri:
        uris.append(resource.spec.draft.uri)
    claims = [uri.removeprefix("pvc://").split("/")[0] for uri in uris if uri.startswith("pvc://")]
    return list(dict.fromkeys(claims))


def _volumes(resource: PipeDecDeployment, pod: Pod, settings: PodSettings) -> list[Object]:
    cache = resource.spec.model_cache
    limit = {} if cache.size is None else {"sizeLimit": str(cache.size)}
    volumes: list[Object] = [
        {"name": "manifest", "configMap": {"name": pod.config}},
        {"name": "keys", "secret": {"secretName": names.keys_secret(resource.metadata.name), "defaultMode": 0o440}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "cache", "persistentVolumeClaim": {"claimName": cache.claim_name}}
        if cache.claim_name
        else {"name": "cache", "emptyDir": limit},
    ]
    if settings.shm_size is not None:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(settings.shm_size)}})
    if pod.role == DRAFT and (key := resource.spec.serving.api_key_secret_ref):
        items = [{"key": key.key, "path": "key"}]
        volumes.append({"name": "api", "secret": {"secretName": key.name, "items": items, "defaultMode": 0o440}})
    for index, claim in enumerate(_claims(resource, pod.role)):
        if claim == cache.claim_name:  # kubelets never mount a claim that a pod has as two volumes
            continue
        # As a whole read-only: only so may a disk that many nodes read be attached to them.
        volumes.append({"name": f"claim-{index}", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
    return [*volumes, *map(dict, settings.volumes or ())]


def _mounts(resource: PipeDecDeployment, pod: Pod, settings: PodSettings) -> list[Object]:
    mounts: list[Object] = [
        {"name": "manifest", "mountPath": str(MANIFEST_DIR), "readOnly": True},
        {"name": "keys", "mountPath": str(KEYS_DIR), "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "cache", "mountPath": str(CACHE_DIR)},
    ]
    if settings.shm_size is not None:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    if pod.role == DRAFT and resource.spec.serving.api_key_secret_ref:
        mounts.append({"name": "api", "mountPath": str(API_KEY_DIR), "readOnly": True})
    for index, claim in enumerate(_claims(resource, pod.role)):
        volume = "cache" if claim == resource.spec.model_cache.claim_name else f"claim-{index}"
        mounts.append({"name": volume, "mountPath": str(CLAIMS_DIR / claim), "readOnly": True})
    return [*mounts, *map(dict, settings.volume_mounts or ())]
