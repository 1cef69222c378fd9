"""What the operator makes is valid for newer versions of Kubernetes, by the schemas that each publishes.

Strictly: a field that a version does not know is an error. The oldest one that we support, 1.20, is what the tests
marked e2e are tried on.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import kubernetes_validate
import pytest
from kubernetes_validate import utils

from pipedec.spec.crd import crd
from pipedec_operator import manifests, names
from pipedec_operator.names import Object
from tests.control_plane.samples import OWNER, SETTING, children, resource

VERSIONS = list(dict.fromkeys(map(utils.major_minor, utils.all_versions())))
EVERYTHING: dict[str, Any] = {
    "pipeline": {
        "stages": 1,
        "resources": {"limits": {"nvidia.com/gpu": 1}},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}
        ],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "schedulerName": "volcano",
        "shmSize": "1Gi",
        "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "volumeMounts": [{"name": "ca", "mountPath": "/etc/ssl/certs"}],
        "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
    },
    "images": {"pullSecrets": [{"name": "registry"}]},
    "modelCache": {"claimName": "models"},
    "networkPolicy": {"clients": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
}


@pytest.fixture(autouse=True, scope="module")
def schemas_read_once() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
        yield


def made() -> list[Object]:
    """The children of the fullest sample."""
    secret = manifests.keys_secret(resource(), OWNER, SETTING, {"server.public": "x"})
    return [*children(replace(SETTING, pod_monitor=None), **EVERYTHING).values(), secret]


def test_no_version_is_left_out() -> None:
    minors = [int(version.split(".")[1]) for version in VERSIONS]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert minors[0] <= 25
    assert minors[-1] >= 37


@pytest.mark.parametrize("version", VERSIONS)
def test_children_and_crd_are_valid(version: str) -> None:
    for thing in (*made(), crd()):
        kubernetes_validate.validate(thing, version, strict=True)


def test_an_unknown_field_is_found() -> None:
    policy = next(each for each in made() if each["kind"] == names.NETWORK_POLICY.kind)
    policy["spec"]["ports"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(policy, VERSIONS[-1], strict=True)
