"""Pods that were evicted: kept beside those in their place, which may be evicted in their turn."""

from __future__ import annotations

import pytest

from pipedec_operator.causes import condition
from pipedec_operator.names import Object
from tests.control_plane.samples import pod_of
from tests.control_plane.test_status import LATER, STAGE, Scene, of


def evicted(scene: Scene, minute: int) -> Object:
    """A pod of the stage that was evicted soon after it was made."""
    pod = pod_of(scene.desired[STAGE], ready=False, phase="Failed", reason="Evicted", message=f"low on disk, {minute}")
    pod["metadata"] |= {"name": f"evicted-{minute}", "creationTimestamp": f"2026-01-01T00:{minute:02}:00Z"}
    return pod


def test_a_pod_that_loads_in_place_of_evicted_ones_is_about_to_be_the_next() -> None:
    scene = Scene()
    scene.fail(STAGE)
    scene.pods[STAGE]["metadata"]["creationTimestamp"] = "2026-01-01T00:59:00Z"
    scene.pods["first"] = evicted(scene, 1)
    assert of(scene.status(), "Ready") == ("False", "StagesNotReady"), "once may be a chance"
    scene.pods |= {"third": evicted(scene, 3), "second": evicted(scene, 2)}
    result = scene.status()
    assert of(result, "Ready") == of(result, "StagesReady") == ("False", "Evicted")
    assert condition(result, "Ready")["message"] == "0/stage-1: pod evicted-3: Evicted: low on disk, 3 (3 pods lately)"
    assert of(result, "Degraded") == ("True", "Evicted")
    scene.pods[STAGE] = pod_of(scene.desired[STAGE])
    assert of(scene.status(), "Ready")[0] == "True"


@pytest.mark.parametrize(
    "change",
    [
        {"creationTimestamp": "2026-01-02T00:00:00Z"},
        {"labels": {"pod-template-hash": "another"}},
        {"deletionTimestamp": LATER},
    ],
)
def test_evictions_of_long_ago_or_before_a_change_say_nothing_of_a_pod_that_loads(change: Object) -> None:
    scene = Scene()
    scene.fail(STAGE)
    scene.pods |= {str(minute): evicted(scene, minute) for minute in range(4)}
    metadata = scene.pods[STAGE]["metadata"]
    metadata |= {"creationTimestamp": "2026-01-01T00:59:00Z"} | change
    metadata["labels"] = pod_of(scene.desired[STAGE])["metadata"]["labels"] | change.get("labels", {})
    assert of(scene.status(), "Ready") == ("False", "StagesNotReady")


def test_a_pod_that_was_evicted_does_not_hold_up_a_suspension_nor_hide_the_one_that_ends() -> None:
    scene = Scene(suspend=True)
    going = pod_of(scene.desired[STAGE])
    going["metadata"] |= {"name": "going", "deletionTimestamp": LATER}
    scene.pods = {"evicted": evicted(scene, 1), "going": going}
    assert of(scene.status(), "Suspended") == ("False", "SuspendInProgress")
    del scene.pods["going"]
    assert of(scene.status(), "Suspended") == ("True", "SuspendComplete")
