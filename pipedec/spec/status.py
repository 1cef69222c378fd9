"""The status of a `PipeDecDeployment`: written by the operator, read by people, scripts and `kubectl get`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipedec.spec.base import Strict, list_map

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class Condition(Strict):
    """One aspect of the state, as Kubernetes' metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    """Aspect: Ready, Available, Progressing, Degraded, StagesReady, DraftReady, ModelReady, Suspended or Failed."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: int | None = None
    """Generation of the spec that this was found for."""
    last_transition_time: Time
    """When status last changed."""
    reason: Annotated[str, Field(max_length=1024)]
    """One CamelCase word for programs."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Explanation for people: which stage, which pod, what to do."""


class PodStatus(Strict):
    """The pod of a stage or of a draft."""

    name: str
    """Name of the component: <replica>/stage-<index> or <replica>/draft."""
    replica: int
    """Pipeline that it belongs to, from 0."""
    ready: bool
    """Whether its pod is ready."""
    pod: str | None = None
    """Name of its pod."""
    node: str | None = None
    """Node that the pod runs on."""
    restarts: int = 0
    """Restarts of its container, in all its pods seen."""
    revision: str | None = None
    """Revision that the pod runs."""
    reason: str | None = None
    """Why it is not ready, in one word."""
    message: str | None = None
    """Why it is not ready, for people."""


class StageStatus(PodStatus):
    """The pod of a stage."""

    index: int
    """Index of the stage, from 0."""
    layers: str | None = None
    """Layers that it holds, first and last included; absent until the draft pod has said how they are divided."""


class DraftStatus(PodStatus):
    """The draft pod of a pipeline."""

    degraded: str | None = None
    """Why it decodes without the draft model that was asked for; absent while it does not."""


class Status(Strict):
    """What was observed."""

    observed_generation: int | None = None
    """Generation of the spec that this status is about."""
    conditions: Annotated[tuple[Condition, ...], Field(json_schema_extra=list_map("type"))] = ()
    """Aspects of the state; wait on Ready."""
    replicas: int | None = None
    """Whole pipelines that exist."""
    ready_replicas: int | None = None
    """Whole pipelines that serve."""
    updated_replicas: int | None = None
    """Whole pipelines of the newest revision."""
    selector: str | None = None
    """Label selector of the draft pods, for the scale subresource."""
    current_revision: str | None = None
    """Revision that serves."""
    update_revision: str | None = None
    """Revision that is wanted."""
    ready_stages: str | None = None
    """Ready stages of all, such as 4/4."""
    restarts: int | None = None
    """Restarts of all containers."""
    url: str | None = None
    """Address of the endpoint inside the cluster."""
    stages: Annotated[tuple[StageStatus, ...], Field(json_schema_extra=list_map("name"))] = ()
    """Every stage of every pipeline."""
    drafts: Annotated[tuple[DraftStatus, ...], Field(json_schema_extra=list_map("name"))] = ()
    """The draft pod of every pipeline."""
