"""Desired and observed -> actions: what is drift, what is not, and whose objects are touched."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from pipedec_operator.names import Object
from pipedec_operator.plan import Apply, Delete, key, plan, satisfied
from tests.control_plane.samples import OWNER, children

UID = OWNER.uid


def desired() -> list[Object]:
    return list(children().values())


def live(child: Object) -> Object:
    """A child as the API server has it: with an identity, and what it adds by itself."""
    found = deepcopy(child)
    found["metadata"] |= {"uid": f"uid-{child['metadata']['name']}", "resourceVersion": "7", "generation": 1}
    if child["kind"] == "Deployment":
        found["spec"]["template"]["spec"]["dnsPolicy"] = "ClusterFirst"
        found["spec"]["template"]["spec"]["containers"][0]["terminationMessagePath"] = "/dev/termination-log"
    return found


def test_nothing_is_done_when_all_is_there() -> None:
    wanted = desired()
    assert plan(wanted, map(live, wanted), UID).actions == ()


def test_everything_is_made_in_order_and_fresh() -> None:
    wanted = desired()
    actions = plan(wanted, [], UID).actions
    assert actions == tuple(Apply(child, fresh=True) for child in wanted)
    kinds = [action.child["kind"] for action in actions]
    assert kinds.index("ServiceAccount") < kinds.index("ConfigMap") < kinds.index("Service") < kinds.index("Deployment")


@pytest.mark.parametrize("index", range(len(children())), ids=list(children()))
def test_a_missing_child_is_made(index: int) -> None:
    wanted = desired()
    there = [live(child) for i, child in enumerate(wanted) if i != index]
    assert plan(wanted, there, UID).actions == (Apply(wanted[index], fresh=True),)


@pytest.mark.parametrize("index", range(len(children())), ids=list(children()))
def test_a_child_whose_labels_were_edited_is_repaired(index: int) -> None:
    wanted = desired()
    there = [live(child) for child in wanted]
    there[index]["metadata"]["labels"]["app.kubernetes.io/part-of"] = "something else"
    assert plan(wanted, there, UID).actions == (Apply(wanted[index]),)


def _scale(workload: Object) -> None:
    workload["spec"]["replicas"] = 5


def _image(workload: Object) -> None:
    workload["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:1"


def _variable(workload: Object) -> None:
    workload["spec"]["template"]["spec"]["containers"][0]["env"].pop()


def _probe(workload: Object) -> None:
    del workload["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]


def _owner(workload: Object) -> None:
    del workload["metadata"]["ownerReferences"]


def _escalation(workload: Object) -> None:
    del workload["spec"]["template"]["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"]


def _token(workload: Object) -> None:
    del workload["spec"]["template"]["spec"]["automountServiceAccountToken"]


@pytest.mark.parametrize("edit", [_scale, _image, _variable, _probe, _owner, _escalation, _token])
def test_an_edited_deployment_is_repaired(edit: Any) -> None:
    wanted = children()
    there = {name: live(child) for name, child in wanted.items()}
    edit(there["Deployment/lion-0-stage-0"])
    assert plan(wanted.values(), there.values(), UID).actions == (Apply(wanted["Deployment/lion-0-stage-0"]),)


def _surge(workload: Object) -> None:
    workload["spec"]["strategy"] = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}


def _narrow(service: Object) -> None:
    service["spec"]["selector"]["app"] = "edited"


@pytest.mark.parametrize(
    ("name", "edit", "excess"),
    [
        (
            "Deployment/lion-0-stage-0",
            _surge,
            {"spec": {"strategy": {"type": "Recreate", "rollingUpdate": None}}},
        ),
        (
            "Service/lion",
            _narrow,
            {"spec": {"selector": {"app": None, **children()["Service/lion"]["spec"]["selector"]}}},
        ),
    ],
)
def test_an_addition_that_changes_the_meaning_is_taken_away(name: str, edit: Any, excess: Object) -> None:
    wanted = children()
    there = {name: live(child) for name, child in wanted.items()}
    edit(there[name])
    assert plan(wanted.values(), there.values(), UID).actions == (Apply(wanted[name], excess=excess),)


def test_what_others_add_is_no_drift() -> None:
    wanted = children()
    there = {name: live(child) for name, child in wanted.items()}
    template = there["Deployment/lion-0-stage-0"]["spec"]["template"]
    template["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"] = "2026-01-01T00:00:00Z"
    template["spec"]["containers"][0]["env"].append({"name": "ADDED", "value": "1"})
    assert plan(wanted.values(), there.values(), UID).actions == ()


def test_a_field_that_is_no_longer_asked_for_shows_in_the_hash() -> None:
    before, after = children(), children(pipeline={"stages": 2})
    there = [live(before["Deployment/lion-0-stage-0"])]
    wanted = [after["Deployment/lion-0-stage-0"]]
    assert satisfied({"spec": {"nodeSelector": {}}}, {"spec": {"nodeSelector": {"gpu": "small"}}})
    assert plan(wanted, there, UID).actions == (Apply(wanted[0]),)


def test_what_is_no_longer_asked_for_is_deleted() -> None:
    there = {name: live(child) for name, child in children(replicas=2).items()}
    actions = plan(children().values(), there.values(), UID).actions
    assert {key(action.child) for action in actions if isinstance(action, Delete)} == {
        (child["kind"], child["metadata"]["name"])
        for name, child in there.items()
        if "/lion-1" in name or name == "PodDisruptionBudget/lion"
    }
    assert all(isinstance(action, Delete) for action in actions)


def test_what_goes_is_left_alone() -> None:
    there = [live(child) for child in children().values()]
    for child in there:
        child["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        child["metadata"]["labels"] = {}
    assert plan(children().values(), there, UID).actions == ()
    assert plan([], there, UID).actions == ()


def test_the_children_of_an_earlier_resource_of_that_name_are_waited_for() -> None:
    there = [live(child) for child in children().values()]
    found = plan(children().values(), there, "another-uid")
    assert found.actions == ()
    assert len(found.obstacles) == len(there)
    assert "Deployment lion-0-draft belongs to another resource" in "\n".join(found.obstacles)


@pytest.mark.parametrize(
    ("wanted", "there", "expected"),
    [
        ("0.5", "500m", True),
        (1, "1", True),
        ("1024Mi", "1Gi", True),
        ("8Gi", "8G", False),
        ("1", "2", False),
        (True, "1", False),
        ("abc", "abd", False),
        (8000, "http", False),
        ([1, 2], [1, 2, 3], False),
        ([], None, True),
        ({}, None, True),
        (False, None, True),
        (True, None, False),
        (0, 1, False),
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ([{"name": "b", "v": 1}], [{"name": "a", "v": 0}, {"name": "b", "v": 1}], True),
        ([{"name": "b", "v": 1}], [{"name": "b", "v": 2}], False),
        (
            [{"name": "v", "mountPath": "/a", "subPath": "a"}, {"name": "v", "mountPath": "/b"}],
            [{"name": "v", "mountPath": "/a", "subPath": "a"}, {"name": "v", "mountPath": "/b"}],
            True,
        ),
        ([{"name": "v", "mountPath": "/a"}], [{"name": "v", "mountPath": "/b"}], False),
        ([{"name": "http", "containerPort": 1}], [{"name": "http", "containerPort": 2}], False),
        ({"allowPrivilegeEscalation": False}, {}, False),
        ({"allowPrivilegeEscalation": False}, {"allowPrivilegeEscalation": False}, True),
        ({"readOnly": False}, {}, True),
        ({"a": {"b": 1}}, {"a": None}, False),
    ],
)
def test_satisfied(wanted: object, there: object, expected: bool) -> None:
    assert satisfied(wanted, there) is expected
