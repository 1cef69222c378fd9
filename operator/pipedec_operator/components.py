"""The pods of a resource as rows of its status: which there must be, and how each is. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pipedec.spec.report import PipelineReport
from pipedec_operator import names
from pipedec_operator.causes import CONFIG, WAITING, Cause, cause_of, condition, is_ready, lost_again, newest
from pipedec_operator.names import Object


@dataclass(frozen=True, slots=True)
class Component:
    """A stage or a draft (`stage` None): its Deployment, as wanted and as it is, and its pod."""

    group: int
    stage: int | None
    wanted: bool  # a pod is asked for: not suspended
    updated: bool  # its Deployment is as asked, and the Deployment controller has acted on that
    waiting: bool  # its Deployment is left as it is until the other pipelines serve
    revision: str
    workload: Object | None
    pod: Object | None
    restarts: int
    report: PipelineReport | None  # a draft pod's own, of the revision that is wanted
    lacks: str = ""  # which Secret or ConfigMap its pod waits for
    losses: Cause | None = None  # why the pods before this one were lost, if that goes on

    @property
    def name(self) -> str:
        return f"{self.group}/{names.DRAFT if self.stage is None else f'{names.STAGE}-{self.stage}'}"

    @property
    def serves(self) -> bool:
        """Whether its pod is ready, be it the one asked for or the one before."""
        return self.pod is not None and is_ready(self.pod)

    @property
    def ready(self) -> bool:
        return self.updated and self.serves

    @property
    def cause(self) -> Cause | None:
        """Why it is not ready; None if it is, or if it should not be."""
        if self.ready or not self.wanted:
            return None
        if cause := cause_of(self.pod, self.workload):
            if self.lacks:
                return self._without(cause)
            if cause.reason == WAITING and self.losses is not None:
                return self.losses
            told = cause.reason == WAITING and self.report is not None and self.report.reason
            return Cause(WAITING, f"{cause.message}; it says: {told}") if told else cause
        how = (
            "waits until the other pipelines serve and its draft has ended its requests"
            if self.waiting
            else "is being replaced"
        )
        return Cause("RollingOut", f"its pod {how}")

    def _without(self, cause: Cause) -> Cause:
        if cause.reason in (WAITING, CONFIG) and self.pod is not None:
            return Cause(CONFIG, f"pod {self.pod['metadata']['name']} cannot start: {self.lacks}")
        return Cause(cause.reason, f"{cause.message}; {self.lacks}")

    @property
    def overdue(self) -> bool:
        """Whether it was not ready within spec.progressDeadlineSeconds."""
        status = self.workload.get("status", {}) if self.workload else {}
        return not self.ready and condition(status, "Progressing").get("reason") == "ProgressDeadlineExceeded"

    def row(self, layers: Sequence[str]) -> Object:
        """Its entry in status.stages or status.drafts; `layers` are those of all stages, empty while not known."""
        pod = self.pod or {"metadata": {"labels": {}}, "spec": {}}
        row = {
            "name": self.name,
            "replica": self.group,
            "ready": self.ready,
            "pod": pod["metadata"].get("name"),
            "node": pod.get("spec", {}).get("nodeName"),
            "restarts": self.restarts,
            "revision": pod["metadata"].get("labels", {}).get(names.REVISION),
        }
        if self.cause:
            row |= {"reason": self.cause.reason, "message": self.cause.message}
        if self.stage is not None:
            row["index"] = self.stage
            if self.stage < len(layers):
                row["layers"] = layers[self.stage]
        return {key: value for key, value in row.items() if value is not None}


def components(
    desired: Iterable[Object],
    observed: Iterable[Object],
    pods: Iterable[Object],
    waiting: Collection[str] = (),
    reports: Mapping[str, PipelineReport] = MappingProxyType({}),
    lacks: Mapping[str, str] = MappingProxyType({}),
) -> list[Component]:
    """The components that the desired Deployments ask for, by group and stage, drafts first.

    While a spec is invalid, `desired` are the Deployments as they are; one that has lost its labels is nobody's.
    `waiting` are names of Deployments whose turn has not come, `reports` what pods say, by their uid,
    `lacks` what they wait for, by their name.
    """
    workloads = {child["metadata"]["name"]: child for child in observed if child["kind"] == names.WORKLOAD.kind}
    by_place: dict[tuple[str, str], list[Object]] = {}
    for pod in pods:
        by_place.setdefault(_place(pod), []).append(pod)
    found = [
        _component(
            child,
            workloads.get(child["metadata"]["name"]),
            by_place.get(_place(child), []),
            child["metadata"]["name"] in waiting,
            reports,
            lacks,
        )
        for child in desired
        if child["kind"] == names.WORKLOAD.kind and _place(child)[0]
    ]
    return sorted(found, key=lambda each: (each.group, -1 if each.stage is None else each.stage))


def _place(child: Object) -> tuple[str, str]:
    labels = child["metadata"].get("labels", {})
    return labels.get(names.GROUP_INDEX, ""), labels.get(names.STAGE_INDEX, "")


def _component(
    desired: Object,
    workload: Object | None,
    pods: list[Object],
    waiting: bool,
    reports: Mapping[str, PipelineReport],
    lacks: Mapping[str, str],
) -> Component:
    labels = desired["metadata"]["labels"]
    statuses = [status for pod in pods for status in pod.get("status", {}).get("containerStatuses", ())]
    stage, pod = labels.get(names.STAGE_INDEX), newest(pods)
    current = pod is not None and pod["metadata"]["labels"].get(names.REVISION) == labels.get(names.REVISION)
    return Component(
        group=int(labels[names.GROUP_INDEX]),
        stage=None if stage is None else int(stage),
        wanted=desired["spec"]["replicas"] > 0,
        updated=workload is not None and _is_updated(desired, workload),
        waiting=waiting,
        revision=labels.get(names.REVISION, ""),
        workload=workload,
        pod=pod,
        restarts=sum(status.get("restartCount", 0) for status in statuses),
        report=reports.get(pod["metadata"].get("uid", "")) if pod is not None and current else None,
        lacks=lacks.get(pod["metadata"]["name"], "") if pod is not None else "",
        losses=lost_again(pods),
    )


def _is_updated(desired: Object, workload: Object) -> bool:
    metadata, status = workload["metadata"], workload.get("status", {})
    asked, there = (each.get("annotations", {}).get(names.SPEC_HASH) for each in (desired["metadata"], metadata))
    return bool(
        asked == there
        and status.get("observedGeneration", 0) >= metadata.get("generation", 1)
        and status.get("updatedReplicas", 0) >= desired["spec"]["replicas"]
    )
