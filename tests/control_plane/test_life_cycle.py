"""Every step of a resource's life on a real API server, pass by pass, and what stands in the way of one."""

from __future__ import annotations

from typing import Any

import pytest

from pipedec_operator import names
from pipedec_operator.causes import condition
from pipedec_operator.cluster import ClusterError
from pipedec_operator.names import Object
from tests.control_plane.live import Counting, Failing, Lab, names_of, pod_monitors
from tests.control_plane.samples import manifest

pytestmark = pytest.mark.e2e

PIPELINE = {"stages": 2}


def spec(**changes: Any) -> Object:
    return manifest(**{"pipeline": PIPELINE, **changes})


def templates(lab: Lab) -> dict[str, Object]:
    return {child["metadata"]["name"]: child["spec"]["template"] for child in lab.list(names.WORKLOAD)}


def ready(lab: Lab) -> Object:
    found = lab.resource()
    assert found is not None
    return condition(found["status"], "Ready")


def test_create_makes_all_and_then_rests(lab: Lab) -> None:
    lab.write(spec())
    assert lab.settle() == 1
    assert names_of(lab.list(names.WORKLOAD)) == {"lion-0-draft", "lion-0-stage-0", "lion-0-stage-1"}
    assert {kind.split("/")[0] for kind in lab.state()} >= {
        "ServiceAccount", "ConfigMap", "Service", "NetworkPolicy", "Deployment", "Secret",
    }  # fmt: skip
    resource = lab.resource()
    assert resource is not None
    assert "finalizers" not in resource["metadata"]
    assert resource["status"]["observedGeneration"] == resource["metadata"]["generation"]


def test_an_operator_that_starts_anew_leaves_all_alone(lab: Lab) -> None:
    lab.write(spec())
    lab.settle()
    again = Counting(lab.api)
    lab.reconciler(again).reconcile(lab.namespace, "lion")
    assert again.repairs == []


def test_another_policy_restarts_the_draft_alone(lab: Lab) -> None:
    lab.write(spec())
    lab.settle()
    before = templates(lab)
    lab.write(spec(speculation={"policy": "pipedec", "children": 8}))
    lab.settle()
    after = templates(lab)
    assert {name for name in before if before[name] != after[name]} == {"lion-0-draft"}


def test_another_split_replaces_the_pipeline(lab: Lab) -> None:
    lab.write(spec())
    lab.settle()
    before, services = templates(lab), names_of(lab.list(names.SERVICE))
    lab.write(spec(pipeline={"stages": 1}))
    lab.settle()
    assert names_of(lab.list(names.WORKLOAD)) == {"lion-0-draft", "lion-0-stage-0"}
    after = templates(lab)
    assert before["lion-0-draft"] != after["lion-0-draft"]
    assert len(names_of(lab.list(names.SERVICE)) & services) == 1  # the endpoint stays, the control Service does not


def test_a_field_that_is_removed_is_removed_in_the_children(lab: Lab) -> None:
    lab.write(spec(pipeline=PIPELINE | {"nodeSelector": {"gpu": "small"}, "priorityClassName": "high"}))
    lab.settle()
    assert templates(lab)["lion-0-stage-0"]["spec"]["nodeSelector"] == {"gpu": "small"}
    lab.write(spec())
    lab.settle()
    assert not {"nodeSelector", "priorityClassName"} & templates(lab)["lion-0-stage-0"]["spec"].keys()


def test_scale_out_and_in(lab: Lab) -> None:
    lab.write(spec())
    lab.settle()
    before = lab.state()
    lab.write(spec(replicas=2))
    lab.settle()
    assert len(lab.list(names.WORKLOAD)) == 6
    assert any(key.startswith("PodDisruptionBudget/") for key in lab.state())
    assert {key: value for key, value in lab.state().items() if key in before} == before
    lab.write(spec())
    lab.settle()
    assert lab.state() == before


def test_suspend_and_resume(lab: Lab) -> None:
    lab.write(spec())
    lab.settle()
    before = lab.state()
    lab.write(spec(suspend=True))
    lab.settle()
    assert all(child["spec"]["replicas"] == 0 for child in lab.list(names.WORKLOAD))
    assert ready(lab)["reason"] == "Suspended"
    lab.write(spec())
    lab.settle()
    assert lab.state() == before


def test_an_invalid_spec_touches_nothing_and_says_so(lab: Lab) -> None:
    lab.write(spec())
    lab.settle()
    before = lab.state()
    broken = spec(pipeline={"layers": ["0-5", "7-11"]})
    lab.write(broken)
    lab.settle()
    assert lab.state() == before
    assert ready(lab)["reason"] == "InvalidSpec"
    assert "spec.pipeline.layers[1]" in ready(lab)["message"]
    lab.write(spec())
    lab.settle()
    assert ready(lab)["reason"] != "InvalidSpec"


def test_a_resource_that_is_gone_is_left_alone(lab: Lab) -> None:
    counting = Counting(lab.api)
    assert lab.reconciler(counting).reconcile(lab.namespace, "lion").resource is None
    assert counting.calls == 1


def test_children_carry_the_reference_that_deletes_them(lab: Lab) -> None:
    uid = lab.write(spec())["metadata"]["uid"]
    lab.settle()
    for kind in (*names.ALWAYS, names.SECRET):
        for child in lab.list(kind):
            (reference,) = child["metadata"]["ownerReferences"]
            assert (reference["uid"], reference["controller"]) == (uid, True)


def test_an_object_of_that_name_that_is_not_ours_is_left_alone(lab: Lab) -> None:
    theirs = {
        "metadata": {"name": "lion", "namespace": lab.namespace},
        "spec": {"ports": [{"port": 80, "name": "http"}]},
    }
    lab.api.create(names.SERVICE, theirs)
    lab.write(spec())
    outcome = lab.reconciler().reconcile(lab.namespace, "lion")
    assert outcome.again
    found = lab.api.get(names.SERVICE, lab.namespace, "lion")
    assert found is not None
    assert "ownerReferences" not in found["metadata"]
    assert ready(lab)["reason"] == "FailedCreate"
    assert "Service lion: there is one of that name" in ready(lab)["message"]
    assert len(lab.list(names.WORKLOAD)) == 3


def test_a_secret_of_that_name_that_is_not_ours_is_left_alone(lab: Lab) -> None:
    theirs = {"metadata": {"name": "lion-keys", "namespace": lab.namespace}, "stringData": {"mine": "x"}}
    lab.api.create(names.SECRET, theirs)
    lab.write(spec())
    outcome = lab.reconciler().reconcile(lab.namespace, "lion")
    assert outcome.again
    assert ready(lab)["reason"] == "Blocked"
    found = lab.api.get(names.SECRET, lab.namespace, "lion-keys")
    assert found is not None
    assert set(found["data"]) == {"mine"}
    assert lab.list(names.WORKLOAD) == []


def test_what_the_api_server_refuses_is_told_and_the_rest_is_made(lab: Lab) -> None:
    lab.write(spec(pipeline=PIPELINE | {"affinity": {"nodeAffinity": "nonsense"}}))
    outcome = lab.reconciler().reconcile(lab.namespace, "lion")
    assert outcome.again
    assert ready(lab)["reason"] == "FailedCreate"
    assert "Deployment lion-0-stage-0" in ready(lab)["message"]
    assert names_of(lab.list(names.WORKLOAD)) == {"lion-0-draft"}


def test_a_monitor_is_made_where_the_api_server_knows_it_and_only_there(lab: Lab) -> None:
    (kind,) = names.POD_MONITORS
    lab.write(spec())
    reconciler = lab.reconciler()
    reconciler.reconcile(lab.namespace, "lion")
    with pod_monitors():
        assert reconciler.look_again()
        reconciler.reconcile(lab.namespace, "lion")
        (monitor,) = lab.list(kind)
        assert monitor["metadata"]["ownerReferences"][0]["name"] == "lion"
        assert not reconciler.look_again()
    with pytest.raises(ClusterError):
        reconciler.reconcile(lab.namespace, "lion")
    assert not reconciler.reconcile(lab.namespace, "lion").again


def test_events_are_told_once(lab: Lab) -> None:
    lab.write(spec())
    lab.settle()
    events = lab.core.list_namespaced_event(lab.namespace).items
    told = [event.reason for event in events if event.involved_object.kind == names.KIND]
    assert told.count("Created") == 1


@pytest.mark.parametrize("code", [0, 409, 410, 429, 500, 503])
def test_an_api_server_that_fails_every_third_call_only_delays(lab: Lab, code: int) -> None:
    lab.write(spec())
    failing = Failing(lab.api, code, lambda call: call % 3 == 2)
    for _ in range(40):
        try:
            assert not lab.reconciler(failing).reconcile(lab.namespace, "lion").again
            break
        except ClusterError:
            failing.calls += 1  # the next attempt fails elsewhere
    lab.settle()
    assert len(lab.list(names.WORKLOAD)) == 3
