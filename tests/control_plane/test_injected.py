"""Pods as others leave them: with a mesh's containers, a gate, no scheduler, no node, or no successor."""

from __future__ import annotations

from typing import Any

import pytest

from pipedec_operator.causes import condition
from pipedec_operator.names import Object
from tests.control_plane.samples import container
from tests.control_plane.test_status import STAGE, Scene, of

PLACED = {"type": "PodScheduled", "status": "True"}
STARTING: Object = {"phase": "Pending", **container(waiting={"reason": "PodInitializing"})}
POD = "pod lion-0-stage-1-7d9f-x2x"
MESH = f"0/stage-1: container mesh of {POD}, which is none of PipeDec's,"


def mesh(restarts: int = 0, **state: Any) -> list[Object]:
    (found,) = container(restarts, image="mesh:1", **state)["containerStatuses"]
    return [found | {"name": "mesh"}]


def ready(**status: Any) -> tuple[str, str]:
    """Reason and message of the condition Ready, of a pipeline with this pod."""
    scene = Scene()
    scene.fail(STAGE, **status)
    found = condition(scene.status(), "Ready")
    return found["reason"], found["message"]


NO_IMAGE = mesh(waiting={"reason": "ImagePullBackOff", "message": "denied"})
LOOP = mesh(4, last={"exitCode": 1, "reason": "Error", "message": "no rights"}, waiting={"reason": "CrashLoopBackOff"})
TOO_LARGE = mesh(4, last={"exitCode": 137, "reason": "OOMKilled"}, waiting={"reason": "CrashLoopBackOff"})


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (
            STARTING | {"initContainerStatuses": NO_IMAGE},
            "ImagePullError",
            f"{MESH} cannot pull image mesh:1: ImagePullBackOff: denied",
        ),
        (
            STARTING | {"initContainerStatuses": LOOP},
            "StageCrashed",
            f"{MESH} ended with exit code 1 (4 restarts): Error: no rights",
        ),
        (
            {"containerStatuses": [*TOO_LARGE, *container(running={})["containerStatuses"]]},
            "StageCrashed",
            f"{MESH} ended with exit code 137 (4 restarts): OOMKilled: no message; see its log",
        ),
    ],
)
def test_a_container_that_others_added_is_named(status: Object, reason: str, message: str) -> None:
    assert ready(**status) == (reason, message)


def test_an_initial_container_that_has_done_its_work_is_no_failure() -> None:
    reason, message = ready(initContainerStatuses=mesh(terminated={"exitCode": 0, "reason": "Completed"}))
    assert (reason, "loads its layers" in message) == ("StagesNotReady", True)


def test_a_scheduler_that_is_not_there_is_named() -> None:
    scene = Scene()
    scene.fail(STAGE, phase="Pending", conditions=[], containerStatuses=[])
    scene.pods[STAGE]["spec"] = {"schedulerName": "volcano"}
    assert condition(scene.status(), "Ready")["message"] == (
        f"0/stage-1: {POD} waits to be placed by the scheduler volcano; if that lasts, is there one of that name?"
    )


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            {"message": 'condition of readiness gate "lb" does not exist'},
            'condition of readiness gate "lb" does not exist',
        ),
        ({}, "its node does not answer"),
    ],
)
def test_a_pod_is_not_said_to_load_once_its_containers_are_ready(told: Object, message: str) -> None:
    conditions = [PLACED, {"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": "False"} | told]
    assert ready(conditions=conditions) == ("StagesNotReady", f"0/stage-1: {POD} is not ready: {message}")


def test_what_keeps_a_lost_pod_from_being_replaced_is_told_before_why_it_was_lost() -> None:
    scene = Scene()
    scene.fail(STAGE, phase="Failed", reason="Evicted", message="disk", containerStatuses=[])
    quota = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    scene.live[STAGE]["status"]["conditions"] = [quota]
    result = scene.status()
    assert of(result, "Ready") == ("False", "FailedCreate")
    assert condition(result, "Ready")["message"] == "0/stage-1: its pod cannot be created: exceeded quota"
