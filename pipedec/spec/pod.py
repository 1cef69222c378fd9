"""What can be said of a pod: resources, placement, environment. Kubernetes' own names and meanings."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipedec.spec.base import (
    DNS_SUBDOMAIN,
    SECRET_KEY,
    Annotations,
    Labels,
    Name,
    Passthrough,
    Quantity,
    Rule,
    Strict,
    unless,
)


class SecretKeyRef(Strict):
    """One key of a Secret in the resource's namespace."""

    name: Annotated[str, Field(pattern=DNS_SUBDOMAIN, max_length=253)]
    """Name of the Secret."""
    key: Annotated[str, Field(pattern=SECRET_KEY, max_length=253)]
    """Key within the Secret."""


class Resources(Strict):
    """Requests and limits of a container, by resource name (cpu, memory, nvidia.com/gpu, ...)."""

    limits: dict[str, Quantity] = Field(default_factory=dict)
    """The most a container may use. Extended resources such as nvidia.com/gpu belong here."""
    requests: dict[str, Quantity] = Field(default_factory=dict)
    """What the scheduler reserves. Defaults to the limits."""


class Toleration(Strict):
    """Lets the pod run on nodes with a matching taint."""

    key: Annotated[str, Field(max_length=317)] | None = None
    """Taint key; absent, with operator Exists, matches every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How key and value are compared with the taint's."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Taint value; for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; absent matches all."""
    toleration_seconds: int | None = None
    """How long a NoExecute taint is tolerated; absent: for ever."""


class EnvVar(Strict):
    """An environment variable of the container."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=253)]
    """Name of the variable. Names beginning with PIPEDEC_ are the operator's own."""
    value: Annotated[str, Field(max_length=32768)] | None = None
    """Its value."""
    value_from: Passthrough | None = None
    """Where the value comes from (secretKeyRef, configMapKeyRef, fieldRef, ...). Only in a cluster."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="name",
            problem="names beginning with PIPEDEC_ are set by the operator",
            remedy="Use the manifest's own field for it",
            cel="!self.name.startsWith('PIPEDEC_')",
            violations=unless(lambda env: not env.name.startswith("PIPEDEC_")),
        ),
        Rule(
            field="value",
            problem="value and valueFrom exclude each other, and one is needed",
            remedy="Give exactly one of the two",
            cel="has(self.value) != has(self.valueFrom)",
            violations=unless(lambda env: (env.value is None) != (env.value_from is None)),
        ),
    )


class PodSettings(Strict):
    """Resources and placement of a pod. Outside a cluster only `env` means something."""

    resources: Resources | None = None
    """Resource requests and limits of the pod's container."""
    node_selector: Labels | None = None
    """Node labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=64)] | None = None
    """Taints the pod tolerates."""
    affinity: Passthrough | None = None
    """Kubernetes Affinity: node affinity, pod affinity and anti-affinity."""
    topology_spread_constraints: Annotated[tuple[Passthrough, ...], Field(max_length=16)] | None = None
    """Kubernetes TopologySpreadConstraints."""
    priority_class_name: Name | None = None
    """PriorityClass of the pod."""
    runtime_class_name: Name | None = None
    """RuntimeClass of the pod, such as nvidia."""
    scheduler_name: Name | None = None
    """Scheduler that places the pod; absent: the cluster's default."""
    shm_size: Quantity | None = None
    """Size of /dev/shm, as a memory-backed volume; absent: the container runtime's default."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=64)] | None = None
    """Further environment variables of the container."""
    volumes: Annotated[tuple[Passthrough, ...], Field(max_length=32)] | None = None
    """Further Kubernetes Volumes of the pod."""
    volume_mounts: Annotated[tuple[Passthrough, ...], Field(max_length=32)] | None = None
    """Further Kubernetes VolumeMounts of the container."""
    labels: Labels | None = None
    """Further labels of the pod. Our own labels cannot be overwritten."""
    annotations: Annotations | None = None
    """Further annotations of the pod."""

    def overridden_by(self, other: PodSettings) -> PodSettings:
        """These settings, with every field that `other` sets taken from it, whole."""
        return PodSettings.model_construct(
            **{
                name: value if (value := getattr(other, name)) is not None else getattr(self, name)
                for name in PodSettings.model_fields
            }
        )
