"""A pod -> why it is not ready: one word for programs, one sentence for people. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pipedec.words import counted
from pipedec_operator.names import DRAFT, STAGE, Object

UNSCHEDULABLE, IMAGE, CONFIG, CRASHED = "Unschedulable", "ImagePullError", "ContainerConfigError", "StageCrashed"
MODEL_NOT_FOUND, MODEL_AUTH, MODEL_DOWNLOAD = "ModelNotFound", "AuthFailed", "ModelDownloadFailed"
MODEL_CACHE = "ModelCacheUnusable"
OUT_OF_MEMORY, EVICTED, NOT_CREATED, WAITING = "OutOfMemory", "Evicted", "FailedCreate", "NotReady"
INVALID = "InvalidSpec"  # by what only a pod can know: that the model has fewer layers, or a shorter context

MODEL_CAUSES = frozenset({MODEL_NOT_FOUND, MODEL_AUTH, MODEL_DOWNLOAD, MODEL_CACHE})
# Causes that someone must do something about; the rest passes with time.
FAILURES = MODEL_CAUSES | {UNSCHEDULABLE, IMAGE, CONFIG, CRASHED, OUT_OF_MEMORY, EVICTED, NOT_CREATED, INVALID}

IMAGE_REASONS = frozenset({"ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName"})
_MAX_MESSAGE = 1000
_OFTEN = 3  # restarts
_TEMPLATE = "pod-template-hash"  # the Deployment controller's label: equal while a Deployment asks for the same
_LATELY = timedelta(hours=6)  # long enough for a pod that fetches a large model before it fills its node


class Cause(NamedTuple):
    """Why a pod is not ready."""

    reason: str
    message: str


def cause_of(pod: Object | None, workload: Object | None) -> Cause | None:
    """Why the pod of a Deployment is not ready; None if it is. Both as observed, None where there is none yet."""
    if pod is None:
        return _not_created(workload) or Cause(WAITING, "has no pod yet" if workload else "is being created")
    if is_ready(pod):
        return None
    status = pod.get("status", {})
    name = pod["metadata"]["name"]
    if "deletionTimestamp" in pod["metadata"]:
        return Cause(WAITING, f"pod {name} is terminating")
    scheduled = condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        return Cause(UNSCHEDULABLE, f"pod {name} cannot be placed: {scheduled.get('message', 'no node fits')}")
    if ended(pod) and (refused := _not_created(workload)):  # there will be none in its place
        return refused
    if status.get("phase") == "Failed" and (status.get("reason") or not status.get("containerStatuses")):
        return Cause(EVICTED, f"pod {name}: {status.get('reason', 'Failed')}: {status.get('message', '')}")
    for container in _unfinished(status):
        if found := _container_cause(name, container):
            return found
    return Cause(WAITING, f"pod {name} {_stage_of_start(pod)}")


def lost_again(pods: Collection[Object]) -> Cause | None:
    """Why a place loses its pods, if it lost several like the newest shortly before that one was made. Each is the
    newest only for a moment."""
    pod = newest(pods)
    if pod is None or "deletionTimestamp" in pod["metadata"]:
        return None
    lost = [each for each in pods if each is not pod and _preceded(each, pod)]
    found = [cause for each in sorted(lost, key=_counts) if (cause := cause_of(each, None)) and cause.reason == EVICTED]
    if len(found) < 2:
        return None
    return Cause(EVICTED, f"{found[-1].message} ({len(found)} pods lately)")


def _preceded(pod: Object, successor: Object) -> bool:
    """Whether a pod was lost, and this other one took its place, or that of one between them."""
    if pod.get("status", {}).get("phase") != "Failed":
        return False
    old, new = pod["metadata"], successor["metadata"]
    made, then = (datetime.fromisoformat(each["creationTimestamp"]) for each in (new, old))
    return old["labels"].get(_TEMPLATE) == new["labels"].get(_TEMPLATE) and made - then < _LATELY


def _not_created(workload: Object | None) -> Cause | None:
    failure = condition(workload.get("status", {}), "ReplicaFailure") if workload else {}
    if failure.get("status") != "True":
        return None
    return Cause(NOT_CREATED, f"its pod cannot be created: {failure.get('message', '')}"[:_MAX_MESSAGE])


def _unfinished(status: Object) -> list[dict[str, Any]]:
    """A pod's containers in the order they start, those that others added (a mesh's) among them, but for the initial
    ones that have done what they were for."""
    initial = [
        each
        for each in status.get("initContainerStatuses", ())
        if each.get("state", {}).get("terminated", {}).get("exitCode") != 0
    ]
    return [*initial, *status.get("containerStatuses", ())]


def _container_cause(pod: str, container: dict[str, Any]) -> Cause | None:
    state = container.get("state", {})
    waiting = state.get("waiting", {})
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    ours = container.get("name") in (STAGE, DRAFT)
    who = f"pod {pod}" if ours else f"container {container.get('name')} of pod {pod}, which is none of PipeDec's,"
    if reason in IMAGE_REASONS:
        return Cause(IMAGE, f"{who} cannot pull image {container.get('image', '')}: {reason}: {message}")
    if reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
        return Cause(CONFIG, f"{who} cannot start: {reason}: {message}")
    ended = state.get("terminated") or container.get("lastState", {}).get("terminated")
    if ended is None:
        return None
    restarts = container.get("restartCount", 0)
    cause = _end_cause(who, ours, ended, restarts)
    # One that is started again is as it was, if it will end in the same way, or has done so again and again.
    lasts = cause.reason in MODEL_CAUSES | {INVALID} or restarts >= _OFTEN
    return cause if lasts or state.get("terminated") or reason == "CrashLoopBackOff" else None


def _end_cause(who: str, ours: bool, ended: dict[str, Any], restarts: int) -> Cause:
    lines = str(ended.get("message", "")).strip().splitlines()
    last = lines[-1] if lines else "no message; see its log"
    code = ended.get("exitCode")
    how = f"{who} ended with exit code {code} ({counted(restarts, 'restart')})"
    if not ours:
        return Cause(CRASHED, f"{how}: {ended.get('reason', '')}: {last}"[:_MAX_MESSAGE])
    if ended.get("reason") == "OOMKilled":
        return Cause(OUT_OF_MEMORY, f"{how}: out of memory; raise resources.limits.memory or use more stages")
    return Cause(_classified(last), f"{how}: {last}"[:_MAX_MESSAGE])


def _classified(line: str) -> str:
    """The cause in the last line that a service wrote: the name of the error that ended it, and its text."""
    if line.startswith("ManifestError: "):
        return INVALID
    if not line.startswith("ModelError: "):
        return CRASHED
    if re.search(r"is gated|HF_TOKEN", line):
        return MODEL_AUTH
    if re.search(r"model cache .* cannot be used", line):  # before it is called a download that failed
        return MODEL_CACHE
    if re.search(r"could not (be fetched|fetch it)", line):
        return MODEL_DOWNLOAD
    return MODEL_NOT_FOUND


def _stage_of_start(pod: Object) -> str:
    status, spec = pod.get("status", {}), pod.get("spec", {})
    if not spec.get("nodeName"):
        scheduler = spec.get("schedulerName", "default-scheduler")
        return f"waits to be placed by the scheduler {scheduler}; if that lasts, is there one of that name?"
    if condition(status, "ContainersReady").get("status") == "True":
        # Who else has a say in it, by a readiness gate, leaves a message. A lost node's kubelet cannot.
        return f"is not ready: {condition(status, 'Ready').get('message') or 'its node does not answer'}"
    if status.get("phase") == "Running":
        return "is running, and not ready: it loads its layers or waits for the others"
    return "is starting: its image is pulled and its volumes are mounted; if that lasts, `kubectl describe` tells why"


def condition(status: Object, kind: str) -> dict[str, Any]:
    """The condition of a type; empty if there is none."""
    return next((each for each in status.get("conditions", ()) if each.get("type") == kind), {})


def is_ready(pod: Object) -> bool:
    return (
        "deletionTimestamp" not in pod["metadata"] and condition(pod.get("status", {}), "Ready").get("status") == "True"
    )


def ended(pod: Object) -> bool:
    """Whether its containers have ended for good. One that was evicted is kept for people to look at, maybe for ever,
    beside the one in its place; it holds no device."""
    return pod.get("status", {}).get("phase") in ("Failed", "Succeeded")


def newest(pods: Iterable[Object]) -> Object | None:
    """The pod that counts: one that stays before one that goes, that before one that has ended, then the youngest."""
    return max(pods, key=_counts, default=None)


def _counts(pod: Object) -> tuple[bool, bool, str]:
    metadata = pod["metadata"]
    return not ended(pod), "deletionTimestamp" not in metadata, metadata.get("creationTimestamp", "")
