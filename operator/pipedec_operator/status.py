"""Observed -> `status`: conditions, the table of stages, and one sentence that names the pod and the cause. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipedec.spec import PipeDecDeployment
from pipedec.words import counted
from pipedec_operator import causes, names
from pipedec_operator.causes import Cause
from pipedec_operator.components import Component
from pipedec_operator.names import Object
from pipedec_operator.projection import revision

TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"


@dataclass(frozen=True, slots=True)
class Observation:
    """All that a status is made of.

    `resource` is None if the spec is invalid; then `invalid` says why and `components` are those of the last good
    spec. `refused` is what the API server would not take of our children, `obstacles` what is waited for.
    """

    raw: Object
    resource: PipeDecDeployment | None
    components: Sequence[Component]
    now: str
    invalid: str = ""
    refused: str = ""
    obstacles: Sequence[str] = field(default=())

    @property
    def before(self) -> Object:
        """The status that was written last."""
        found: Object = self.raw.get("status", {})
        return found

    @property
    def suspended(self) -> bool:
        """Also while the spec is invalid: what it says of this is left as it is."""
        if self.resource is None:
            return self.raw.get("spec", {}).get("suspend") is True
        return self.resource.spec.suspend

    @property
    def stages(self) -> list[Component]:
        return [each for each in self.components if each.stage is not None]

    @property
    def drafts(self) -> list[Component]:
        return [each for each in self.components if each.stage is None]


def status(seen: Observation) -> Object:
    """The whole `status` of a resource. Equal but for nothing while nothing changes: transition times are kept."""
    before, layers = seen.before, _layers(seen)
    groups = {each.group for each in seen.components}
    ready = [group for group in groups if all(each.serves for each in seen.components if each.group == group)]
    updated = [group for group in groups if all(each.updated for each in seen.components if each.group == group)]
    found = {
        "observedGeneration": seen.raw["metadata"]["generation"],
        "conditions": _stamped(_conditions(seen), before.get("conditions", []), seen),
        "replicas": len({each.group for each in seen.components if each.workload is not None}),
        "readyReplicas": 0 if seen.suspended else len(ready),
        "updatedReplicas": len(updated),
        "selector": _selector(seen.raw["metadata"]["name"]),
        "currentRevision": _current_revision(seen) or before.get("currentRevision"),
        "updateRevision": _update_revision(seen),
        "readyStages": f"{sum(each.ready for each in seen.stages)}/{len(seen.stages)}",
        "restarts": sum(each.restarts for each in seen.components),
        "url": _url(seen) or before.get("url"),
        "stages": [each.row(layers) for each in seen.stages],
        "drafts": [_draft_row(each, seen) for each in seen.drafts],
    }
    return {key: value for key, value in found.items() if value is not None}


def _update_revision(seen: Observation) -> str | None:
    if seen.resource is None:
        return seen.before.get("updateRevision")
    return revision(seen.resource.spec)


def _layers(seen: Observation) -> Sequence[str]:
    """Every stage's layers: as written by hand, else as a draft pod says, now or, of the same revision, before."""
    if seen.resource is not None and seen.resource.spec.pipeline.layers is not None:
        return seen.resource.spec.pipeline.layers
    if told := next((each.report.layers for each in seen.drafts if each.report is not None), None):
        return told
    rows = [row for row in seen.before.get("stages", ()) if row["replica"] == 0]
    known = [str(row["layers"]) for row in rows if "layers" in row]
    same = _update_revision(seen) == seen.before.get("updateRevision")
    return known if same and len(known) == len(rows) else ()


def _draft_row(draft: Component, seen: Observation) -> Object:
    degraded = _without_draft(draft, seen)
    return draft.row(()) | ({"degraded": degraded} if degraded else {})


def _without_draft(draft: Component, seen: Observation) -> str:
    """Why it decodes without its draft model. A pod that was not asked yet, by an operator that has just begun, is as
    it was."""
    if draft.report is not None:
        return draft.report.degraded
    was: Object = next((row for row in seen.before.get("drafts", ()) if row["name"] == draft.name), {})
    same = draft.pod is not None and draft.pod["metadata"]["name"] == was.get("pod")
    return str(was.get("degraded", "")) if same else ""


def _selector(name: str) -> str:
    return ",".join(f"{label}={value}" for label, value in names.selector(name, component=names.DRAFT).items())


def _url(seen: Observation) -> str | None:
    if seen.resource is None:
        return None
    metadata = seen.raw["metadata"]
    return f"http://{metadata['name']}.{metadata['namespace']}.svc:{seen.resource.spec.serving.port}/v1"


def _current_revision(seen: Observation) -> str | None:
    serving = [each for each in seen.drafts if each.serves]
    return next((each.pod["metadata"]["labels"].get(names.REVISION) for each in serving if each.pod), None)


Verdict = tuple[str, str, str]  # status, reason, message


def _conditions(seen: Observation) -> dict[str, Verdict]:
    return {
        "Ready": _ready(seen),
        "Available": _available(seen),
        "Progressing": _progressing(seen),
        "Degraded": _degraded(seen),
        "StagesReady": _component_condition(seen.stages, "AllStagesReady", "WaitingForStages", seen),
        "DraftReady": _component_condition(seen.drafts, _draft_reason(seen), "WaitingForDraft", seen),
        "ModelReady": _model_ready(seen),
        "Suspended": _suspended(seen),
        "Failed": _failed(seen),
    }


def _ready(seen: Observation) -> Verdict:
    if seen.invalid:
        return FALSE, "InvalidSpec", seen.invalid
    if seen.suspended:
        return FALSE, "Suspended", "spec.suspend is true"
    if seen.refused:
        return FALSE, "FailedCreate", seen.refused
    if seen.obstacles:
        return FALSE, "Blocked", "; ".join(seen.obstacles)
    if not seen.components:
        return FALSE, "NoReplicas", "spec.replicas is 0"
    groups = [(seen.stages, "StagesNotReady"), (seen.drafts, "DraftNotReady")]
    if all(map(_runs, seen.stages)) and not all(map(_runs, seen.drafts)):
        groups.reverse()  # stages that run wait for the draft pod
    waiting = [(cause, otherwise) for group, otherwise in groups if (cause := _worst(group))]
    if not waiting:
        return TRUE, "AllComponentsReady", f"{counted(len(seen.drafts), 'pipeline')} serving"
    cause, otherwise = min(waiting, key=lambda each: each[0].reason not in causes.FAILURES)
    return FALSE, cause.reason if cause.reason in causes.FAILURES else otherwise, cause.message


def _runs(component: Component) -> bool:
    return component.pod is not None and component.pod.get("status", {}).get("phase") == "Running"


def _worst(components: Sequence[Component]) -> Cause | None:
    """What most needs a person's attention: a failure before what passes with time, then the first in line."""
    waiting = [(each, cause) for each in components if (cause := each.cause)]
    if not waiting:
        return None
    component, cause = min(waiting, key=lambda pair: pair[1].reason not in causes.FAILURES)
    more = f" (and {len(waiting) - 1} more)" if len(waiting) > 1 else ""
    return Cause(cause.reason, f"{component.name}: {cause.message}{more}")


def _available(seen: Observation) -> Verdict:
    serving = sum(each.serves for each in seen.drafts)
    if serving:
        return TRUE, "EndpointServing", f"serving: {serving} of {counted(len(seen.drafts), 'endpoint')}"
    return FALSE, "NoReadyEndpoint", "no draft pod is ready to take requests"


def _progressing(seen: Observation) -> Verdict:
    if seen.invalid:
        return FALSE, "InvalidSpec", "what runs is left as it is until the spec is valid"
    if seen.suspended:
        return FALSE, "Suspended", "spec.suspend is true"
    if overdue := [each.name for each in seen.components if each.overdue]:
        return FALSE, "ProgressDeadlineExceeded", f"not ready in time: {', '.join(overdue)}"
    if all(each.ready for each in seen.components):
        return FALSE, "AllGroupsReady", "every pipeline is as asked"
    if any(each.workload is None for each in seen.components):
        return TRUE, "Creating", "children are being made"
    if not all(each.updated for each in seen.components) and _current_revision(seen):
        return TRUE, "RollingOut", "pods are being replaced"
    return TRUE, "WaitingForStages", ", ".join(each.name for each in seen.components if not each.ready)


def _degraded(seen: Observation) -> Verdict:
    broken = [each for each in seen.components if (cause := each.cause) and cause.reason in causes.FAILURES]
    crashing = [each for each in broken if each.cause and each.cause.reason not in (causes.UNSCHEDULABLE, causes.IMAGE)]
    worst = _worst(crashing) or _worst(broken)
    if worst is None:
        return _degraded_drafts(seen)
    return TRUE, "StageCrashLoop" if worst.reason == causes.CRASHED else worst.reason, worst.message


def _degraded_drafts(seen: Observation) -> Verdict:
    told = [f"{each.name}: {why}" for each in seen.drafts if (why := _without_draft(each, seen))]
    if told:
        return TRUE, "DraftUnavailable", f"decodes without the draft model: {'; '.join(told)}"
    return FALSE, "AsExpected", "no pod needs attention"


def _component_condition(components: Sequence[Component], good: str, waiting: str, seen: Observation) -> Verdict:
    if seen.suspended:
        return FALSE, "Suspended", "spec.suspend is true"
    if worst := _worst(components):
        return FALSE, worst.reason if worst.reason in causes.FAILURES else waiting, worst.message
    if not components:
        return FALSE, waiting, "there are none"
    return TRUE, good, f"{len(components)} of {len(components)} ready"


def _draft_reason(seen: Observation) -> str:
    without = seen.resource is not None and seen.resource.spec.draft is None
    return "DraftDisabled" if without else "DraftReady"


def _model_ready(seen: Observation) -> Verdict:
    for component in seen.components:
        if (cause := component.cause) and cause.reason in causes.MODEL_CAUSES:
            return FALSE, cause.reason, f"{component.name}: {cause.message}"
    if seen.stages and all(each.ready for each in seen.stages):
        return TRUE, "WeightsPresent", "every stage holds its layers"
    return UNKNOWN, "Suspended" if seen.suspended else "Loading", "known when every stage has loaded its layers"


def _suspended(seen: Observation) -> Verdict:
    if not seen.suspended:
        return FALSE, "NotSuspended", "spec.suspend is false"
    if left := [each.name for each in seen.components if each.pod is not None and not causes.ended(each.pod)]:
        return FALSE, "SuspendInProgress", f"still there: {', '.join(left)}"
    return TRUE, "SuspendComplete", "no pod is left; the address and the keys are kept"


def _failed(seen: Observation) -> Verdict:
    if seen.invalid:
        return TRUE, "InvalidSpec", seen.invalid
    return FALSE, "AsExpected", "the spec is valid"


def _stamped(verdicts: dict[str, Verdict], before: Sequence[Object], seen: Observation) -> list[Object]:
    """As metav1.Conditions; the time is that of the last change of status, not of reason or message."""
    old = {each["type"]: each for each in before}
    stamped = []
    for kind, (state, reason, message) in verdicts.items():
        same = old.get(kind, {}).get("status") == state
        stamped.append({
            "type": kind,
            "status": state,
            "observedGeneration": seen.raw["metadata"]["generation"],
            "lastTransitionTime": old[kind]["lastTransitionTime"] if same else seen.now,
            "reason": reason,
            "message": message[:32768],
        })  # fmt: skip
    return stamped
