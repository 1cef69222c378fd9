"""`pipedec doctor --cluster` on a real API server: the CRD, the operator and its rights, a pipeline that waits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client

from pipedec import __version__
from tests.cli.test_commands import run
from tests.control_plane.live import Lab
from tests.control_plane.samples import manifest
from tests.control_plane.test_chart import of_kind, render

pytestmark = pytest.mark.e2e


def findings(lab: Lab) -> dict[str, tuple[str, str]]:
    """Level and message by check, as the command prints them for the lab's namespace."""
    code, out, err = run("doctor", "--cluster", "--namespace", lab.namespace, "--json")
    assert code in (0, 1, 2), err
    report: dict[str, Any] = json.loads(out)
    (section,) = report["findings"].values()
    return {each["check"]: (each["level"], each["message"]) for each in section}


@pytest.fixture
def operator(lab: Lab) -> Iterator[client.V1Deployment]:
    """The chart's operator in the lab's namespace, for that namespace alone; its image is never pulled."""
    objects = render(f"watchNamespaces={{{lab.namespace}}}", "rbac.aggregate=false")
    rbac, apps = client.RbacAuthorizationV1Api(), client.AppsV1Api()
    (role,), (binding,), (deployment,) = (of_kind(objects, kind) for kind in ("Role", "RoleBinding", "Deployment"))
    binding["subjects"][0]["namespace"] = deployment["metadata"]["namespace"] = lab.namespace
    rbac.create_namespaced_role(lab.namespace, role)
    rbac.create_namespaced_role_binding(lab.namespace, binding)
    deployment["spec"]["replicas"] = 0
    created = apps.create_namespaced_deployment(lab.namespace, deployment)
    yield created
    apps.delete_namespaced_deployment(created.metadata.name, lab.namespace)


def test_the_installed_crd_is_this_versions(lab: Lab) -> None:
    found = findings(lab)
    assert found["API server"][0] == "ok"
    assert found["CRD"][0] == "ok", found["CRD"]
    assert found["NetworkPolicy"][0] == "ok"
    assert found["pipelines"] == ("skip", "there is no PipeDecDeployment yet")


def test_an_operator_that_is_not_ready_is_named(lab: Lab, operator: client.V1Deployment) -> None:
    level, message = findings(lab)["operator"]
    assert level == "fail"
    assert message.startswith(f"{lab.namespace}/release-pipedec-operator is not ready")


def test_a_ready_operator_has_all_its_rights_and_each_that_is_missing_is_noticed(
    lab: Lab, operator: client.V1Deployment
) -> None:
    name = operator.metadata.name
    client.AppsV1Api().patch_namespaced_deployment_status(
        name, lab.namespace, {"status": {"replicas": 1, "readyReplicas": 1}}
    )
    found = findings(lab)
    assert found["operator"] == ("ok", f"{lab.namespace}/{name} {__version__} is ready")
    assert found["RBAC"][0] == "ok", found["RBAC"]

    rbac = client.RbacAuthorizationV1Api()
    role = rbac.read_namespaced_role(name, lab.namespace)
    role.rules = [rule for rule in role.rules if "secrets" not in rule.resources]
    rbac.replace_namespaced_role(name, lab.namespace, role)
    assert findings(lab)["RBAC"] == ("fail", "the operator may not get secrets and 3 more")


def test_a_pipeline_that_waits_says_for_what(lab: Lab) -> None:
    lab.write(manifest())
    assert findings(lab)[f"{lab.namespace}/lion"] == ("fail", "the operator has not looked at it")
    lab.settle()
    level, message = findings(lab)[f"{lab.namespace}/lion"]
    assert level == "fail"
    assert message.startswith("StagesNotReady: 0/stage-0: ")
    resource = lab.resource()
    assert resource is not None
    assert {each["reason"] for each in resource["status"]["conditions"] if each["type"] == "Ready"} == {
        "StagesNotReady"
    }
