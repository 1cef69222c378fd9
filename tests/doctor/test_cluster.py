"""What the doctor makes of what an API server answers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipedec import __version__
from pipedec.doctor import ClusterFacts, exit_status, judge_cluster
from pipedec.doctor.cluster import APPLY_CRD, Refusal
from pipedec.doctor.gather.cluster import RIGHTS
from pipedec.doctor.remedies import REMEDIES
from pipedec.spec import parse_manifest
from pipedec.spec.crd import crd
from pipedec_operator import causes
from tests.control_plane.test_chart_files import granted

NODE: dict[str, Any] = {
    "metadata": {"name": "a"},
    "status": {
        "conditions": [{"type": "Ready", "status": "True"}],
        "allocatable": {"cpu": "8", "nvidia.com/gpu": "4"},
    },
}
OPERATOR: dict[str, Any] = {
    "metadata": {
        "namespace": "pipedec",
        "name": "pipedec-operator",
        "labels": {"app.kubernetes.io/version": __version__},
    },
    "spec": {"template": {"spec": {"containers": [{"args": ["--workers=4"]}]}}},
    "status": {"readyReplicas": 1},
}
PIPELINE: dict[str, Any] = {
    "metadata": {"namespace": "default", "name": "lion", "generation": 2},
    "status": {
        "observedGeneration": 2,
        "readyStages": "3/3",
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "AllComponentsReady", "message": "1 pipeline serving"},
            {"type": "Degraded", "status": "False", "reason": "AsExpected", "message": "no pod needs attention"},
        ],
    },
}
MANIFEST = parse_manifest(
    {
        "apiVersion": "pipedec.dev/v1alpha1",
        "kind": "PipeDecDeployment",
        "metadata": {"name": "lion"},
        "spec": {
            "model": {"uri": "file:///models/lion"},
            "draft": {"uri": "file:///models/cub", "resources": {"limits": {"nvidia.com/gpu": 1, "cpu": "2"}}},
            "pipeline": {"stages": 3, "resources": {"limits": {"nvidia.com/gpu": 1}}},
        },
    }
)
HEALTHY = ClusterFacts(
    "https://cluster",
    version={"major": "1", "minor": "30+", "gitVersion": "v1.30.2"},
    crd=crd(),
    operators=[OPERATOR],
    allowed={f"{verb} {resource}": True for (_, resource), verbs in RIGHTS.items() for verb in verbs},
    nodes=[NODE],
    apis=frozenset({"networking.k8s.io/v1", "monitoring.coreos.com/v1"}),
    storage_classes=[
        {"metadata": {"name": "fast", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}
    ],
    resources=[PIPELINE],
    manifest=MANIFEST,
)


def told(facts: ClusterFacts) -> dict[str, tuple[str, str, str]]:
    return {each.check: (each.level, each.message, each.remedy) for each in judge_cluster(facts, __version__)}


def test_a_healthy_cluster_needs_nothing() -> None:
    findings = judge_cluster(HEALTHY, __version__)
    assert {each.level for each in findings} == {"ok"}
    assert told(HEALTHY)["nvidia.com/gpu"][1] == "4 on 1 node; asked for: 4"
    assert told(HEALTHY)["API server"][1] == "Kubernetes v1.30.2 at https://cluster"


def test_a_server_that_is_silent_is_all_there_is_to_say() -> None:
    (only,) = judge_cluster(ClusterFacts("https://gone", unreachable="timed out"), __version__)
    assert (only.level, only.message) == ("fail", "https://gone does not answer: timed out")
    assert "KUBECONFIG" in only.remedy


def test_an_old_server_is_refused_and_one_without_rules_is_told() -> None:
    old = replace(HEALTHY, version={"major": "1", "minor": "19", "gitVersion": "v1.19.0"})
    assert told(old)["API server"][0] == "fail"
    rules = replace(HEALTHY, version={"major": "1", "minor": "24", "gitVersion": "v1.24.0"})
    assert told(rules)["API server"][0] == "ok"
    assert "no CEL rules" in told(rules)["API server"][1]


def other_definition(change: str) -> dict[str, Any]:
    definition = deepcopy(crd())
    spec = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    match change:
        case "lacks":
            del spec["pipeline"]["properties"]["overrides"]
        case "adds":
            spec["model"]["properties"]["flavour"] = {"type": "string"}
        case "differs":
            spec["model"]["properties"]["dtype"]["enum"].append("int4")
    return definition


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ("lacks", "fail", "lacks spec.pipeline.overrides and "),
        ("adds", "warn", "has spec.model.flavour, which"),
        ("differs", "warn", "spec.model.dtype is described differently"),
    ],
)
def test_another_versions_crd_is_noticed(change: str, level: str, words: str) -> None:
    found = told(replace(HEALTHY, crd=other_definition(change)))["CRD"]
    assert found[0] == level
    assert words in found[1]
    assert APPLY_CRD in found[2]


def test_without_a_crd_or_an_operator_nothing_works() -> None:
    found = told(replace(HEALTHY, crd=None, operators=[], allowed=None))
    assert found["CRD"][0] == found["operator"][0] == "fail"
    assert "helm install" in found["operator"][2]
    assert found["RBAC"][0] == "skip"


def test_an_operator_that_is_not_ready_or_another_version_is_said() -> None:
    waiting = {**OPERATOR, "status": {"conditions": [{"status": "False", "message": "image cannot be pulled"}]}}
    assert told(replace(HEALTHY, operators=[waiting]))["operator"][:2] == (
        "fail",
        "pipedec/pipedec-operator is not ready: image cannot be pulled",
    )
    labels = {"app.kubernetes.io/version": "0.0.9"}
    other = {**OPERATOR, "metadata": {**OPERATOR["metadata"], "labels": labels}}
    level, _, remedy = told(replace(HEALTHY, operators=[other]))["operator"]
    assert level == "warn"
    assert remedy.index(APPLY_CRD) < remedy.index("helm upgrade")


def test_the_crd_is_applied_as_the_page_on_upgrades_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert f"    {APPLY_CRD}\n    helm upgrade " in page


def keeping(name: str, *namespaces: str) -> dict[str, Any]:
    containers = [{"args": [f"--namespace={each}" for each in namespaces]}]
    template = {"spec": {"containers": containers}}
    return {**OPERATOR, "metadata": {**OPERATOR["metadata"], "name": name}, "spec": {"template": template}}


def test_two_operators_for_one_namespace_are_noticed() -> None:
    apart = replace(HEALTHY, operators=[keeping("one", "a"), keeping("two", "b", "c")])
    assert [each.level for each in judge_cluster(apart, __version__) if each.check == "operator"] == ["ok", "ok"]
    for second in (keeping("two", "b", "a"), keeping("two")):
        findings = judge_cluster(replace(HEALTHY, operators=[keeping("one", "a"), second]), __version__)
        (warning,) = [each for each in findings if each.level == "warn"]
        assert warning.message == "pipedec/one, pipedec/two keep the same namespaces"


def test_a_right_that_is_missing_is_named() -> None:
    found = told(replace(HEALTHY, allowed={"patch services": True, "create secrets": False, "get secrets": False}))
    assert found["RBAC"][:2] == ("fail", "the operator may not create secrets and 1 more")


def test_devices_are_counted_on_nodes_that_can_be_used() -> None:
    cordoned = {**NODE, "spec": {"unschedulable": True}}
    assert told(replace(HEALTHY, nodes=[NODE, cordoned]))["nodes"][1] == "ready and schedulable: 1 of 2"
    assert told(replace(HEALTHY, nodes=[cordoned]))["nodes"][0] == "fail"
    small = {**NODE, "status": {**NODE["status"], "allocatable": {"nvidia.com/gpu": "3"}}}
    assert told(replace(HEALTHY, nodes=[small]))["nvidia.com/gpu"][0] == "fail"
    bare = {**NODE, "status": {**NODE["status"], "allocatable": {"cpu": "4"}}}
    assert "device plugin" in told(replace(HEALTHY, nodes=[bare]))["nvidia.com/gpu"][2]
    assert told(replace(HEALTHY, nodes=[bare], manifest=None))["nvidia.com/gpu"][0] == "warn"


def test_what_may_not_be_asked_is_skipped_and_not_called_wrong() -> None:
    refused = Refusal("nodes is forbidden")
    found = replace(
        HEALTHY, crd=refused, operators=refused, nodes=refused, storage_classes=refused, resources=refused, allowed=None
    )
    assert exit_status(judge_cluster(found, __version__)) == 0
    assert told(found)["nodes"][:2] == ("skip", "may not be listed: nodes is forbidden")


def pipeline(reason: str, degraded: str = "AsExpected") -> dict[str, Any]:
    conditions = [
        {"type": "Ready", "status": "False", "reason": reason, "message": "0/stage-1: pod x"},
        {"type": "Degraded", "status": str(degraded != "AsExpected"), "reason": degraded, "message": "0/draft: pod y"},
    ]
    return {**PIPELINE, "status": {"observedGeneration": 2, "conditions": conditions}}


def test_a_pipeline_that_is_not_ready_comes_with_what_to_do() -> None:
    level, message, remedy = told(replace(HEALTHY, resources=[pipeline("Unschedulable")]))["default/lion"]
    assert (level, message) == ("fail", "Unschedulable: 0/stage-1: pod x")
    assert "Add nodes" in remedy
    assert told(replace(HEALTHY, resources=[pipeline("Suspended")]))["default/lion"][0] == "skip"
    findings = judge_cluster(replace(HEALTHY, resources=[pipeline("StagesNotReady", "OutOfMemory")]), __version__)
    assert [each.level for each in findings if each.check == "default/lion"] == ["fail", "warn"]


def test_one_that_the_operator_never_saw_is_said_so() -> None:
    new = {"metadata": PIPELINE["metadata"]}
    assert told(replace(HEALTHY, resources=[new]))["default/lion"][0] == "fail"
    stale = {**PIPELINE, "metadata": {**PIPELINE["metadata"], "generation": 3}}
    findings = judge_cluster(replace(HEALTHY, resources=[stale]), __version__)
    assert [each.level for each in findings if each.check == "default/lion"] == ["warn", "ok"]


def test_the_rights_that_are_asked_about_are_those_that_the_chart_grants() -> None:
    assert {resource: set(verbs) for resource, verbs in RIGHTS.items()} == granted()


def test_every_cause_that_the_operator_names_has_a_remedy() -> None:
    assert REMEDIES.keys() >= causes.FAILURES
