"""What of a resource's spec each program reads. Pure.

A pod's manifest comes in a ConfigMap named after its content, so a change of the spec restarts exactly the pods that
read what changed: another policy restarts the draft pods alone, another Service type no pod at all.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import yaml

from pipedec.spec import DeploymentSpec, PipeDecDeployment, PodSettings
from pipedec.spec.deployment import API_VERSION, KIND
from pipedec_operator.names import DRAFT, STAGE

_NOT_READ_BY_THE_DRAFT = {
    "replicas": True, "images": True, "model_cache": True, "network_policy": True, "suspend": True,
    "progress_deadline_seconds": True,
    "model": {"token_secret_ref"},
    "pipeline": {*PodSettings.model_fields, "overrides"},
    "draft": set(PodSettings.model_fields),
    "serving": {"service"},
    "logging": {"stage_level"},
}  # fmt: skip
_READ_BY_STAGES = {
    "model": {"uri", "dtype"},
    "pipeline": {"stages", "layers"},
    "speculation": {"width", "max_rows"},
    "serving": {"max_sequences", "max_context", "kv_slots", "prefill_chunk", "threads"},
    "logging": {"stage_level", "format"},
}


def digest(value: object, length: int = 12) -> str:
    """Hex digits that are equal for equal JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def revision(spec: DeploymentSpec) -> str:
    """Names what must be equal in all pods of a pipeline, as far as the manifest says it.

    The services' own handshake adds what only they know: the balanced split, and the protocol's number.
    """
    return digest([spec.model.uri, spec.model.dtype, spec.pipeline.stages, spec.pipeline.layers])


def manifest_for(role: str, resource: PipeDecDeployment) -> str:
    """The part of a resource that a program reads, as a manifest of its own. Equal while nothing in it changes."""
    if role == STAGE:
        spec = _dump(resource.spec, include=_READ_BY_STAGES)
    else:
        assert role == DRAFT
        spec = _dump(resource.spec, exclude=_NOT_READ_BY_THE_DRAFT)
    manifest = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": resource.metadata.name}, "spec": spec}
    return yaml.safe_dump(manifest, sort_keys=False)


def _dump(spec: DeploymentSpec, **chosen: Any) -> dict[str, Any]:
    # Without defaults, so that a field that a later operator adds does not change what pods have mounted.
    dumped = spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True, **chosen)
    return {name: value for name, value in dumped.items() if value != {}}
