"""The manifest: `PipeDecDeployment` as frozen, validated models; the one reading of it.

The CRD's schema and its CEL rules are generated from these same models (`pipedec.spec.crd`), so that the API
server, the operator, the services and `pipedec up` mean the same by the same text.
Pure: no torch, no sockets, no cluster.
"""

from pipedec.spec.deployment import (
    DeploymentSpec,
    Draft,
    Dtype,
    Images,
    Metadata,
    Model,
    ModelCache,
    NetworkPolicy,
    PipeDecDeployment,
    Policy,
    Serving,
    Speculation,
)
from pipedec.spec.manifest import InvalidManifest, load_manifest, parse_manifest
from pipedec.spec.pipeline import Pipeline, Span, StageOverride
from pipedec.spec.pod import EnvVar, PodSettings, Resources, SecretKeyRef, Toleration

__all__ = [
    "DeploymentSpec",
    "Draft",
    "Dtype",
    "EnvVar",
    "Images",
    "InvalidManifest",
    "Metadata",
    "Model",
    "ModelCache",
    "NetworkPolicy",
    "PipeDecDeployment",
    "Pipeline",
    "PodSettings",
    "Policy",
    "Resources",
    "SecretKeyRef",
    "Serving",
    "Span",
    "Speculation",
    "StageOverride",
    "Toleration",
    "load_manifest",
    "parse_manifest",
]
